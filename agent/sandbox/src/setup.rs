//! Becoming a supervisor: from a process that the daemon spawned to the owner of the pod's namespaces.
//!
//! Owns: everything that is done once, in this order: leave the parent behind, enter the pod's cgroups, make namespaces,
//! mount what belongs to the pod, set its sysctls, start its reaper, listen. Never: undoes anything; whatever it makes
//! ends with the process.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, chdir, fexecve, setgroups, sethostname, setsid};

use crate::protocol::{SandboxConfig, SandboxDir, SupervisorRecord, TmpfsMount, VERSION};
use crate::reaper;
use crate::record::{FileError, now_ms, read_json, start_ticks, write_json};
use crate::sys::mount::open_read_only;
use crate::sys::{loopback, process};

/// Waiting connections.
const BACKLOG: i32 = 16;

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// One of the supervisor's own files.
    #[error(transparent)]
    File(#[from] FileError),
    /// A step that has no object.
    #[error("{step}: {errno}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        errno: Errno,
    },
    /// A step that concerns a path.
    #[error("{step} {path}: {errno}")]
    Path {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// A sysctl that would change the node.
    #[error("sysctl {name} does not belong to a namespace of this pod")]
    ForeignSysctl {
        /// As it was given.
        name: String,
    },
    /// A sysctl that the kernel refused.
    #[error("set sysctl {name} to {value:?}: {source}")]
    Sysctl {
        /// As it was given.
        name: String,
        /// The value.
        value: String,
        /// Why.
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl Fn(Errno) -> SetupError {
    move |errno| SetupError::Step { step, errno }
}

fn at<'a>(step: &'static str, path: &'a Path) -> impl Fn(Errno) -> SetupError + 'a {
    move |errno| SetupError::Path { step, path: path.to_owned(), errno }
}

/// What a finished set-up leaves for the event loop.
#[derive(Debug)]
pub struct Sandbox {
    /// The listening socket.
    pub listener: OwnedFd,
    /// What answers Hello.
    pub record: SupervisorRecord,
}

/// The argument that says that this process has been through [`seal_program`].
pub const SEALED: &str = "--sealed";

/// Executes this program again from a read-only mount of its own file, and returns only if that fails.
///
/// A container's process is this program until it executes its own, and an image may name `/proc/self/exe` as its
/// program. Without this the way back from there to the node's file would be open for writing (CVE-2019-5736). The pages
/// in memory stay shared with all other processes of this program.
pub fn seal_program() -> Errno {
    let text = |arg: std::ffi::OsString| CString::new(arg.into_encoded_bytes()).ok();
    let args: Option<Vec<CString>> = std::env::args_os().chain([SEALED.into()]).map(text).collect();
    let pair = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let mut entry = name;
        entry.push("=");
        entry.push(value);
        text(entry)
    };
    let env: Option<Vec<CString>> = std::env::vars_os().map(pair).collect();
    let (Some(args), Some(env)) = (args, env) else { return Errno::EINVAL };
    match open_read_only(c"/proc/self/exe").and_then(|program| fexecve(program, &args, &env)) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Leaves the parent behind: descriptors, session, signals, groups, working directory.
pub fn detach() -> Result<(), SetupError> {
    process::reset_signals().map_err(step("reset signals"))?;
    // Everything is blocked: SIGCHLD is read from a descriptor, and nothing else ends a supervisor but SIGKILL, so that
    // stopping the daemon's unit does not stop the pods.
    SigSet::all().thread_set_mask().map_err(step("block signals"))?;
    // EPERM: already the leader of a session.
    let _ = setsid();
    setgroups(&[]).map_err(step("drop supplementary groups"))?;
    umask(Mode::from_bits_truncate(0o022));
    chdir("/").map_err(step("change to /"))?;
    prctl::set_name(c"orlop-sandbox").map_err(step("set name"))?;
    prctl::set_child_subreaper(true).map_err(step("become subreaper"))?;
    // A machine may lack CAP_SYS_RESOURCE; then the supervisor is as likely a victim as any other process.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    Ok(())
}

/// Reads what the sandbox is to be.
pub fn read_config(dir: &SandboxDir) -> Result<SandboxConfig, SetupError> {
    Ok(read_json(&dir.config())?)
}

/// Makes the sandbox. The last thing done is the record that says it is there.
pub fn make(dir: &SandboxDir, config: &SandboxConfig) -> Result<Sandbox, SetupError> {
    let own = Pid::this();
    for procs in &config.cgroup_procs {
        fs::write(procs, own.to_string()).map_err(|source| FileError { path: procs.clone(), source })?;
    }
    make_namespaces(config)?;
    mount_volumes(dir, config)?;
    for (name, value) in &config.sysctls {
        set_sysctl(name, value, config)?;
    }
    let pid_ns_holder = if config.shared_pid { Some(start_reaper()?.as_raw()) } else { None };
    let listener = open_socket(dir)?;
    let record = SupervisorRecord {
        version: VERSION,
        pid: own.as_raw(),
        start_ticks: start_ticks(own.as_raw())
            .map_err(|source| FileError { path: "/proc/self/stat".into(), source })?,
        created_at_ms: now_ms(),
        pid_ns_holder,
    };
    write_json(&dir.supervisor(), &record)?;
    Ok(Sandbox { listener, record })
}

fn make_namespaces(config: &SandboxConfig) -> Result<(), SetupError> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    if !config.host_network {
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !config.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags).map_err(step("make namespaces"))?;
    // Mounts of the node go on arriving here; none of ours goes out.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(step("make mounts slaves"))?;
    if !config.host_network {
        sethostname(&config.hostname).map_err(step("set hostname"))?;
        loopback::up().map_err(step("bring lo up"))?;
    }
    Ok(())
}

fn mount_volumes(dir: &SandboxDir, config: &SandboxConfig) -> Result<(), SetupError> {
    let shm = dir.0.join("shm");
    fs::create_dir_all(&shm).map_err(|source| FileError { path: shm.clone(), source })?;
    let shm = TmpfsMount { target: shm, size_bytes: Some(config.shm_bytes), mode: 0o1777, gid: None };
    if !config.host_ipc {
        mount_tmpfs(&shm, MsFlags::MS_NOEXEC)?;
    }
    config.tmpfs.iter().try_for_each(|one| mount_tmpfs(one, MsFlags::empty()))
}

fn mount_tmpfs(tmpfs: &TmpfsMount, more: MsFlags) -> Result<(), SetupError> {
    let mut options = format!("mode={:o}", tmpfs.mode & 0o7777);
    if let Some(gid) = tmpfs.gid {
        options.push_str(&format!(",gid={gid}"));
    }
    if let Some(size) = tmpfs.size_bytes {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | more;
    mount(Some("tmpfs"), &tmpfs.target, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(at("mount tmpfs on", &tmpfs.target))
}

/// Sets a sysctl of a namespace that this sandbox made; any other would be the node's.
fn set_sysctl(name: &str, value: &str, config: &SandboxConfig) -> Result<(), SetupError> {
    let path =
        sysctl_path(name, config).ok_or_else(|| SetupError::ForeignSysctl { name: name.to_owned() })?;
    fs::write(path, value).map_err(|source| SetupError::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}

fn sysctl_path(name: &str, config: &SandboxConfig) -> Option<PathBuf> {
    // As sysctl(8): whichever separator comes first is the separator; the other is then part of a name (eth0.1).
    let slashed = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => name.to_owned(),
        _ => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    let ipc = ["kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|prefix| slashed.starts_with(prefix))
        || slashed == "kernel/sem";
    let net = slashed.starts_with("net/");
    let owned = (net && !config.host_network) || (ipc && !config.host_ipc);
    let plain = slashed.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (owned && plain).then(|| Path::new("/proc/sys").join(slashed))
}

/// Forks the pod's PID 1. Only this one child is to be in the new pid namespace, so this process's choice of
/// namespace for its children is taken back at once.
fn start_reaper() -> Result<Pid, SetupError> {
    let own = open("/proc/self/ns/pid", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open own pid namespace"))?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(step("make pid namespace"))?;
    let reaper = process::fork_child(reaper::run).map_err(step("start reaper"));
    setns(own.as_fd(), CloneFlags::CLONE_NEWPID).map_err(step("return to own pid namespace"))?;
    reaper
}

fn open_socket(dir: &SandboxDir) -> Result<OwnedFd, SetupError> {
    let path = dir.socket();
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(FileError { path, source }.into());
        }
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(step("open socket"))?;
    let place = open(&dir.0, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(at("open", &dir.0))?;
    // By way of the descriptor: the whole path may be longer than a socket address.
    let address = UnixAddr::new(format!("/proc/self/fd/{}/sock", place.as_raw_fd()).as_str())
        .map_err(at("address", &path))?;
    let before = umask(Mode::from_bits_truncate(0o077));
    let bound = bind(listener.as_raw_fd(), &address);
    umask(before);
    bound.map_err(at("bind", &path))?;
    listen(&listener, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN)).map_err(at("listen on", &path))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(host_network: bool, host_ipc: bool) -> SandboxConfig {
        let json = serde_json::json!({
            "uid": "u", "namespace": "n", "name": "p", "attempt": 0, "hostname": "h", "host_network": host_network,
            "host_ipc": host_ipc, "shm_bytes": 1, "cgroup_procs": [], "state_dir": "/s", "log_max_bytes": 1,
            "log_max_files": 1,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn sysctls_of_the_pods_namespaces_have_a_path() {
        let own = config(false, false);
        for (name, path) in [
            ("net.core.somaxconn", Some("/proc/sys/net/core/somaxconn")),
            ("net/ipv4/conf/eth0.1/rp_filter", Some("/proc/sys/net/ipv4/conf/eth0.1/rp_filter")),
            ("net.ipv4.conf.eth0/1.rp_filter", Some("/proc/sys/net/ipv4/conf/eth0.1/rp_filter")),
            ("kernel.shmmax", Some("/proc/sys/kernel/shmmax")),
            ("kernel.sem", Some("/proc/sys/kernel/sem")),
            ("fs.mqueue.msg_max", Some("/proc/sys/fs/mqueue/msg_max")),
            ("kernel.panic", None),
            ("vm.swappiness", None),
            ("net/../kernel/panic", None),
            ("net..x", None),
        ] {
            assert_eq!(sysctl_path(name, &own), path.map(PathBuf::from), "{name}");
        }
        assert_eq!(sysctl_path("net.core.somaxconn", &config(true, false)), None);
        assert_eq!(sysctl_path("kernel.shmmax", &config(false, true)), None);
    }
}
