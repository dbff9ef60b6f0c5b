//! What runs in the container between `libcontainer`'s work and the program: the executor of started and exec'd
//! processes.
//!
//! It runs in the container's namespaces, with the final user and group, before the program's first instruction. Its
//! environment is still the supervisor's; all it needs it carries. Never: returns success; it becomes the program, or
//! says why not on the report channel.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, chdir, chown, fchown, getcwd, write};
use oci_spec::runtime::Spec;

use super::confine::{ConfineError, Confinement};
use super::program::Program;
use super::report::{Report, send};
use super::spec::{Process, Rlimit};
use crate::protocol::{Failure, FailureKind, Security};
use crate::sys::process::reset_signals;

/// Everything about one process that is not in `libcontainer`'s hands.
#[derive(Debug)]
struct Plan {
    program: Program,
    process: Process,
    confinement: Confinement,
}

/// The executor; cloned by `libcontainer` at will.
#[derive(Debug, Clone)]
pub struct Launcher {
    plan: Rc<Plan>,
    report: Rc<OwnedFd>,
    /// `cgroup.procs` of the process's own child cgroup.
    cgroup: Option<Rc<OwnedFd>>,
}

impl Launcher {
    /// Prepares everything that can fail while it is easy to say why.
    pub fn new(process: Process, security: &Security, report: Rc<OwnedFd>) -> Result<Self, Failure> {
        let program = Program::new(&process.args, &process.env).ok_or_else(|| Failure {
            kind: FailureKind::CannotRun,
            message: format!("exec: {:?}: invalid argument", process.args),
        })?;
        let confinement = Confinement::prepare(security)
            .map_err(|error: ConfineError| super::cannot_create(super::in_full(&error)))?;
        Ok(Launcher { plan: Rc::new(Plan { program, process, confinement }), report, cgroup: None })
    }

    /// Lets the process enter a cgroup of its own first.
    pub fn in_cgroup(mut self, procs: OwnedFd) -> Self {
        self.cgroup = Some(Rc::new(procs));
        self
    }

    fn launch(&self) -> Result<(), Failure> {
        let process = &self.plan.process;
        if let Some(procs) = &self.cgroup {
            // 0 is the writer itself, whatever its pid is in the cgroup file system's eyes.
            write(procs.as_fd(), b"0")
                .map_err(|errno| super::cannot_create(format!("enter cgroup: {errno}")))?;
        }
        for limit in process.rlimits.iter().flatten() {
            set_limit(limit)?;
        }
        own_stdio(process.user.uid);
        enter_directory(&process.cwd)?;
        reset_signals().map_err(|errno| super::cannot_create(format!("reset signals: {errno}")))?;
        self.plan.confinement.apply().map_err(super::cannot_create)?;
        Err(Failure { kind: FailureKind::CannotRun, message: self.plan.program.execute() })
    }
}

impl Executor for Launcher {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        match self.launch() {
            Ok(()) => Ok(()),
            Err(failure) => {
                let message = failure.message.clone();
                // If even this is refused, the end of file makes it an exit with code 255.
                let _ = send(self.report.as_fd(), &Report::Failed(failure), None);
                Err(ExecutorError::Other(message))
            }
        }
    }

    /// Whether the program can be executed is for `execve` to say: a check beforehand would only be a worse one.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// `execve` is given the environment, in order and with repeated names, as it stands in the spec.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// Changes to the working directory, which is made if it is missing.
fn enter_directory(cwd: &Path) -> Result<(), Failure> {
    let cwd = if cwd.as_os_str().is_empty() { Path::new("/") } else { cwd };
    let refuse =
        |errno: Errno| super::cannot_create(format!("chdir to cwd ({cwd:?}) failed: {}", errno.desc()));
    match chdir(cwd) {
        Err(Errno::ENOENT) => {
            fs::create_dir_all(cwd).map_err(|error| refuse(Errno::try_from(error).unwrap_or(Errno::EIO)))?;
            // It belongs to root, as if the image had brought it.
            let _ = chown(cwd, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)));
            chdir(cwd).map_err(refuse)?;
        }
        done => done.map_err(refuse)?,
    }
    // A directory outside the root (by way of a leaked descriptor under /proc) has no path here.
    match getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(super::cannot_create(format!("cwd {cwd:?} is outside the container"))),
    }
}

/// Gives the standard streams to the user, who could otherwise not open `/dev/stdout` again.
fn own_stdio(uid: u32) {
    for stream in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        own(stream, uid);
    }
}

fn own(stream: BorrowedFd<'_>, uid: u32) {
    let Ok(status) = fstat(stream) else { return };
    let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
    let terminal = kind == SFlag::S_IFCHR && (136..=143).contains(&nix::sys::stat::major(status.st_rdev));
    if (terminal || kind == SFlag::S_IFIFO || kind == SFlag::S_IFSOCK) && status.st_uid != uid {
        // A stream on a read-only file system, say: the program has it open all the same.
        let _ = fchown(stream, Some(Uid::from_raw(uid)), None);
    }
}

fn set_limit(limit: &Rlimit) -> Result<(), Failure> {
    let resource = resource(&limit.kind)
        .ok_or_else(|| super::cannot_create(format!("unknown resource limit {:?}", limit.kind)))?;
    match setrlimit(resource, limit.soft, limit.hard) {
        // Without CAP_SYS_RESOURCE a limit cannot be raised; as much as is allowed is better than no container.
        Err(Errno::EPERM) => {
            let (_, most) = getrlimit(resource).unwrap_or((limit.soft, limit.hard));
            setrlimit(resource, limit.soft.min(most), limit.hard.min(most))
        }
        done => done,
    }
    .map_err(|errno| super::cannot_create(format!("set {}: {errno}", limit.kind)))
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => Resource::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}
