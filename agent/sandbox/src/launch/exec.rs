//! Running a further process in a running container: what the helper does.
//!
//! The process joins the container's namespaces and cgroups as a tenant. Every setting that protects the container is
//! given again in full (user, groups, limits, capabilities, filter): `libcontainer` would not take them over by itself.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::container::Console;
use super::executor::Launcher;
use super::report::{Report, send};
use super::spec::{self, Process};
use super::{Site, cannot_create, details, enter_helper, from_libcontainer, in_full, named};
use crate::protocol::{ExecProcess, Failure, Security};
use crate::record::{read_json, write_json};
use crate::rootfs;
use crate::sys::process::fork_child;

/// What a helper needs to know of the container beside the request.
#[derive(Debug)]
pub struct Target<'a> {
    /// The `libcontainer` id.
    pub container_id: &'a str,
    /// The container's first process.
    pub pid: i32,
    /// What applies to the container applies to the new process.
    pub security: &'a Security,
    /// The container's cgroup.
    pub cgroup: &'a Path,
}

/// The name of an exec'd process's own cgroup, below the container's.
pub fn cgroup_name(exec_id: u64) -> String {
    format!("exec-{exec_id:x}")
}

/// Forks a helper that runs a process in a container. `stdio` is stdin, stdout and stderr, or nothing with a terminal.
pub fn fork(
    site: &Site,
    exec: &ExecProcess,
    target: &Target<'_>,
    stdio: Vec<OwnedFd>,
    channel: OwnedFd,
) -> Result<Pid, Errno> {
    fork_child(move || {
        let channel = Rc::new(channel);
        if let Ok(copy) = channel.as_fd().try_clone_to_owned() {
            details::install(copy);
        }
        enter_helper(target.security.oom_score_adj);
        let job =
            Job { site, exec, target, place: site.dir.attempt(&exec.id).join(cgroup_name(exec.exec_id)) };
        let result = job.run(stdio, &channel);
        // What stays behind goes with the attempt's directory.
        let _ = fs::remove_dir_all(&job.place);
        let (report, master) = match result {
            Ok((pid, master)) => (Report::Created { pid: pid.as_raw() }, master),
            Err(failure) => (Report::Failed(failure), None),
        };
        i32::from(send(channel.as_fd(), &report, master.as_ref()).is_err())
    })
}

struct Job<'a> {
    site: &'a Site,
    exec: &'a ExecProcess,
    target: &'a Target<'a>,
    /// A directory for this one process: `libcontainer` leaves sockets in whatever it takes for the container's state.
    place: PathBuf,
}

impl Job<'_> {
    fn run(&self, stdio: Vec<OwnedFd>, channel: &Rc<OwnedFd>) -> Result<(Pid, Option<OwnedFd>), Failure> {
        let process = self.process()?;
        let process_json = self.lay_out(&process)?;
        let name = cgroup_name(self.exec.exec_id);
        let procs = self.site.hierarchies.create_child(self.target.cgroup, &name);
        let procs = procs.map_err(|error| named("make cgroup", &self.target.cgroup.join(&name), &error))?;
        let launcher = Launcher::new(process, self.target.security, Rc::clone(channel))?.in_cgroup(procs);

        let console = if self.exec.tty { Some(Console::listen(&self.place)?) } else { None };
        let mut builder = ContainerBuilder::new(self.target.container_id.to_owned(), SyscallType::default())
            .with_root_path(&self.place)
            .map_err(|error| cannot_create(in_full(&error)))?
            .with_executor(launcher)
            .with_console_socket(console.as_ref().map(|console| console.path.clone()));
        if let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(stdio) {
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
        let pid = builder
            .as_tenant()
            .with_detach(true)
            .as_sibling(true)
            .with_process(Some(process_json))
            .build()
            .map_err(|error| from_libcontainer(&error))?;
        let master = console.map(Console::receive).transpose()?;
        Ok((Pid::from_raw(pid.as_raw()), master))
    }

    /// The container's own process, with another program.
    fn process(&self) -> Result<Process, Failure> {
        let spec: Value =
            read_json(&self.site.config(&self.exec.id)).map_err(|error| cannot_create(in_full(&error)))?;
        let mut process = spec::process(&spec).map_err(|error| cannot_create(in_full(&error)))?;
        process.args.clone_from(&self.exec.args);
        process.env = spec::merged(&process.env, &self.exec.env);
        if let Some(cwd) = &self.exec.cwd {
            process.cwd.clone_from(cwd);
        }
        let root = PathBuf::from(format!("/proc/{}/root", self.target.pid));
        let root = rootfs::open_root(&root).map_err(|errno| named("open", &root, &errno))?;
        spec::with_home(&mut process.env, || rootfs::home_of(&root, process.user.uid));
        Ok(process)
    }

    /// Makes the directory that stands for the container's state, and `process.json`.
    fn lay_out(&self, process: &Process) -> Result<PathBuf, Failure> {
        let state = self.place.join(self.target.container_id);
        fs::create_dir_all(&state).map_err(|error| named("make", &state, &error))?;
        let real = self.site.state(self.target.container_id).join("state.json");
        symlink(&real, state.join("state.json")).map_err(|error| named("link", &real, &error))?;
        let path = self.place.join("process.json");
        let text = json!({
            "terminal": self.exec.tty,
            "user": process.user,
            "args": process.args,
            "env": process.env,
            "cwd": "/",
        });
        write_json(&path, &text).map_err(|error| cannot_create(in_full(&error)))?;
        Ok(path)
    }
}
