//! Starting a container: what the helper does.
//!
//! Owns: the root mount, the filled-in bundle, the calls to `libcontainer`. Never: runs in the supervisor itself.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::MsgFlags;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::Value;

use super::executor::Launcher;
use super::report::{Report, send};
use super::spec::{self, Filling, Process, SpecError};
use super::{Site, cannot_create, details, enter_helper, from_libcontainer, in_full, named};
use crate::cgroup::guard_devices;
use crate::device;
use crate::protocol::{Failure, StartContainer};
use crate::record::{read_json, write_json};
use crate::rootfs;
use crate::sys;
use crate::sys::descriptor;
use crate::sys::process::fork_child;

/// The ends of the standard streams that go to the container; all absent with a terminal.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input; `None` is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// Forks a helper that starts a container.
pub fn fork(
    site: &Site,
    start: &StartContainer,
    container_id: &str,
    stdio: Stdio,
    channel: OwnedFd,
) -> Result<Pid, Errno> {
    fork_child(move || {
        let channel = Rc::new(channel);
        if let Ok(copy) = channel.as_fd().try_clone_to_owned() {
            details::install(copy);
        }
        enter_helper(start.security.oom_score_adj);
        let job = Job { site, start, container_id };
        let (report, master) = match job.run(stdio, &channel) {
            Ok((pid, master)) => (Report::Created { pid: pid.as_raw() }, master),
            Err(failure) => (Report::Failed(failure), None),
        };
        // Nobody listens any more: the supervisor is gone, and the daemon will clear up.
        i32::from(send(channel.as_fd(), &report, master.as_ref()).is_err())
    })
}

struct Job<'a> {
    site: &'a Site,
    start: &'a StartContainer,
    container_id: &'a str,
}

impl Job<'_> {
    fn run(&self, stdio: Stdio, channel: &Rc<OwnedFd>) -> Result<(Pid, Option<OwnedFd>), Failure> {
        let id = &self.start.id;
        let root = self.site.dir.rootfs(id);
        rootfs::mount_root(&self.start.rootfs, &root).map_err(|error| cannot_create(in_full(&error)))?;
        let mut spec: Value =
            read_json(&self.site.config(id)).map_err(|error| cannot_create(in_full(&error)))?;
        let malformed = |error: SpecError| cannot_create(in_full(&error));
        let mut process = spec::process(&spec).map_err(malformed)?;
        let cgroup = spec::cgroups_path(&spec).map_err(malformed)?;
        send(channel.as_fd(), &Report::Cgroup(cgroup), None)
            .map_err(|errno| cannot_create(format!("report: {errno}")))?;
        complete(&mut process, &root)?;
        let filling = Filling {
            rootfs: &root,
            pid_namespace: self.site.pid_ns_holder.map(|pid| format!("/proc/{pid}/ns/pid").into()),
            terminal: self.start.tty,
        };
        spec::fill(&mut spec, &process, &filling).map_err(malformed)?;
        let bundle = self.site.bundle(id);
        fs::create_dir_all(&bundle).map_err(|error| named("make", &bundle, &error))?;
        write_json(&bundle.join("config.json"), &spec).map_err(|error| cannot_create(in_full(&error)))?;
        let launcher = Launcher::new(process, &self.start.security, Rc::clone(channel))?;
        self.create(&spec, launcher, stdio)
    }

    fn create(
        &self,
        spec: &Value,
        launcher: Launcher,
        stdio: Stdio,
    ) -> Result<(Pid, Option<OwnedFd>), Failure> {
        let console = match self.start.tty {
            true => Some(Console::listen(&self.site.dir.attempt(&self.start.id))?),
            false => None,
        };
        fs::create_dir_all(&self.site.state_dir)
            .map_err(|error| named("make", &self.site.state_dir, &error))?;
        let mut builder = ContainerBuilder::new(self.container_id.to_owned(), SyscallType::default())
            .with_root_path(&self.site.state_dir)
            .map_err(|error| cannot_create(in_full(&error)))?
            .with_executor(launcher)
            .with_console_socket(console.as_ref().map(|console| console.path.clone()));
        if let (Some(stdout), Some(stderr)) = (stdio.stdout, stdio.stderr) {
            let stdin = stdio.stdin.map_or_else(dev_null, Ok)?;
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
        let mut container = builder
            .as_init(self.site.bundle(&self.start.id))
            .with_systemd(false)
            .with_detach(true)
            .as_sibling(true)
            .build()
            .map_err(|error| from_libcontainer(&error))?;
        let pid = container.pid().ok_or_else(|| cannot_create("libcontainer gave no pid"))?;
        let pid = Pid::from_raw(pid.as_raw());
        let finish = || {
            let master = console.map(Console::receive).transpose()?;
            self.guard_devices(spec)?;
            container.start().map_err(|error| from_libcontainer(&error))?;
            Ok((pid, master))
        };
        // A process that was made but cannot be started must not wait for ever.
        finish().inspect_err(|_| {
            let _ = sys::process::signal(pid, libc::SIGKILL);
        })
    }

    /// On cgroup v2 device rules are a program that nobody else attaches.
    fn guard_devices(&self, spec: &Value) -> Result<(), Failure> {
        if !self.site.hierarchies.is_unified() {
            return Ok(());
        }
        let path = spec::cgroups_path(spec).map_err(|error| cannot_create(in_full(&error)))?;
        let rules = spec::device_rules(spec).map_err(|error| cannot_create(in_full(&error)))?;
        let directory = self.site.hierarchies.tracking_directory(&path).unwrap_or(path);
        guard_devices(&directory, &device::with_usual(rules))
            .map_err(|errno| named("attach device program to", &directory, &errno))
    }
}

/// What depends on the image: the user's home, and a working directory that it lacks.
fn complete(process: &mut Process, root: &Path) -> Result<(), Failure> {
    let root_fd = rootfs::open_root(root).map_err(|errno| named("open", root, &errno))?;
    spec::with_home(&mut process.env, || rootfs::home_of(&root_fd, process.user.uid));
    if process.cwd.as_os_str().len() > 1 {
        // It may also lie in a volume, or below a file: then the executor tries again and has the last word.
        let _ = rootfs::make_directory(&root_fd, &process.cwd);
    }
    Ok(())
}

pub(super) fn dev_null() -> Result<OwnedFd, Failure> {
    open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| cannot_create(format!("open /dev/null: {errno}")))
}

/// The socket to which the pty master is sent.
pub(super) struct Console {
    listener: UnixListener,
    pub(super) path: std::path::PathBuf,
}

impl Console {
    pub(super) fn listen(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join("console.sock");
        let fail = |error: &dyn std::error::Error| named("listen on", &path, error);
        let place = open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| fail(&errno))?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(&error)),
            _ => {}
        }
        // By way of the descriptor: the whole path may be longer than a socket address.
        let short = format!("/proc/self/fd/{}/console.sock", place.as_raw_fd());
        let listener = UnixListener::bind(short).map_err(|error| fail(&error))?;
        Ok(Console { listener, path })
    }

    pub(super) fn receive(self) -> Result<OwnedFd, Failure> {
        // libcontainer connected before it made the process, so that this does not wait.
        let (stream, _) = self.listener.accept().map_err(|error| named("accept on", &self.path, &error))?;
        let _ = fs::remove_file(&self.path);
        let mut text = [0u8; 256];
        let refuse = |errno: Errno| cannot_create(format!("receive pty: {errno}"));
        let mut message =
            descriptor::receive(stream.as_fd(), &mut text, MsgFlags::empty()).map_err(refuse)?;
        message.descriptors.pop().ok_or_else(|| refuse(Errno::ENODATA))
    }
}
