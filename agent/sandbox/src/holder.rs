//! The process of `orlop-pods.service`: it holds the cgroup that systemd has delegated for the pods, and ends the pods with it.
//!
//! Owns: a leaf of its own in that cgroup (a delegated group with controllers may hold no process itself), and the orderly
//! end at `systemctl stop` and at shutdown: SIGTERM to the containers, a grace, SIGKILL to the rest. Never: starts, watches
//! or limits a pod. The pods are the supervisors' children and live on whatever happens to the daemon; a unit exists in
//! systemd only as long as it has a process, and this is that process.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use crate::cgroup::{self, Hierarchies};
use crate::sys::memory::{release_free_memory, release_program};
use crate::sys::process::{open_pid, signal};

/// The leaf for this process beside the pods.
const LEAF: &str = "holder";
/// The leaf of a pod's supervisor, which the daemon makes.
const SUPERVISOR: &str = "supervisor";
/// How long containers may take to end if nobody says otherwise.
const GRACE: Duration = Duration::from_secs(20);

/// `orlop hold-pods [--grace SECONDS]`: waits for SIGTERM, then ends every pod in the cgroup it was started in.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(grace) = parse(args) else {
        eprintln!("usage: orlop hold-pods [--grace SECONDS]");
        return ExitCode::from(2);
    };
    match hold(grace) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop hold-pods: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Duration> {
    match (args.next(), args.next()) {
        (None, _) => Some(GRACE),
        (Some(flag), Some(value)) if flag == "--grace" => {
            value.to_str()?.parse().ok().map(Duration::from_secs)
        }
        _ => None,
    }
}

fn hold(grace: Duration) -> io::Result<()> {
    // Before anybody is told that this process is there: a signal that comes early is not lost.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()?;
    let _ = prctl::set_name(c"orlop-pods");
    let hierarchies = Hierarchies::detect()?;
    let own = own_cgroup(&fs::read_to_string("/proc/self/cgroup")?, hierarchies.is_unified())
        .ok_or_else(|| io::Error::other("this process is in no cgroup of its own"))?;
    let directory = hierarchies
        .tracking_directory(&own)
        .ok_or_else(|| io::Error::other("no cgroup file system is mounted"))?;
    if hierarchies.is_unified() {
        enter_leaf(&directory)?;
    }
    notify("READY=1\nSTATUS=Holding the pods' cgroup; stopping this unit stops every pod");
    // It waits for as long as the node is up.
    release_program();
    release_free_memory();
    ends.wait()?;
    notify("STOPPING=1\nSTATUS=Ending the pods");
    end_pods(&hierarchies, &own, &directory, grace);
    Ok(())
}

/// The cgroup this process was started in, as a path from the root of its hierarchy. The root itself is nobody's to end.
fn own_cgroup(text: &str, unified: bool) -> Option<PathBuf> {
    let prefix = if unified { "0::" } else { "name=systemd:" };
    let line = text.lines().find_map(|line| {
        if unified { line.strip_prefix(prefix) } else { line.split_once(prefix).map(|(_, path)| path) }
    })?;
    let path = PathBuf::from(line);
    cgroup::is_valid(&path).then_some(path)
}

fn enter_leaf(directory: &Path) -> io::Result<()> {
    let leaf = directory.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(leaf.join("cgroup.procs"), Pid::this().to_string())
}

/// SIGTERM to the containers, SIGKILL to what is left after `grace`, the supervisors included.
fn end_pods(hierarchies: &Hierarchies, own: &Path, directory: &Path, grace: Duration) {
    let deadline = Instant::now() + grace;
    for pid in containers(directory) {
        // ESRCH: it has just gone by itself.
        let _ = signal(pid, libc::SIGTERM);
    }
    while let Some(pid) = containers(directory).first().copied() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait_for(pid, left) {
            break;
        }
    }
    for group in cgroup::children(directory) {
        if let Some(name) = group.file_name().filter(|name| *name != LEAF) {
            hierarchies.kill(&own.join(name));
        }
    }
}

/// The processes of containers: everything that is neither this process nor a supervisor.
fn containers(directory: &Path) -> Vec<Pid> {
    let groups = cgroup::children(directory)
        .filter(|group| group.file_name().is_some_and(|name| name != LEAF && name != SUPERVISOR));
    let mut all = Vec::new();
    for group in groups {
        all.extend(cgroup::members(&group));
        all.extend(containers(&group));
    }
    all
}

/// Waits until a process has ended. False when the time is over.
fn wait_for(pid: Pid, limit: Duration) -> bool {
    let descriptor = match open_pid(pid) {
        Ok(descriptor) => descriptor,
        Err(errno) => return errno == Errno::ESRCH,
    };
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let mut ended = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ended, limit) {
        Ok(count) => count > 0,
        Err(errno) => errno == Errno::EINTR,
    }
}

/// Tells systemd, where it listens (`sd_notify(3)`). That nobody does is no reason to fail.
fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_found_in_either_version() {
        let unified = "0::/kubepods.slice/orlop-pods.service\n";
        let hybrid = "5:pids:/\n1:name=systemd:/kubepods.slice/orlop-pods.service\n0::/x\n";
        let path = Some(PathBuf::from("/kubepods.slice/orlop-pods.service"));
        assert_eq!(own_cgroup(unified, true), path);
        assert_eq!(own_cgroup(hybrid, false), path);
        assert_eq!(own_cgroup("0::/\n", true), None, "the root is nobody's to end");
        assert_eq!(own_cgroup("", true), None);
    }

    #[test]
    fn the_grace_is_a_number_of_seconds() {
        let of = |line: &str| parse(line.split_whitespace().map(OsString::from));
        assert_eq!(of(""), Some(GRACE));
        assert_eq!(of("--grace 5"), Some(Duration::from_secs(5)));
        assert_eq!(of("--grace"), None);
        assert_eq!(of("--grace soon"), None);
    }

    #[test]
    fn supervisors_are_not_containers() {
        let root = tempfile::tempdir().expect("a directory");
        let group = |path: &str, pids: &str| {
            let dir = root.path().join(path);
            fs::create_dir_all(&dir).expect("made");
            fs::write(dir.join("cgroup.procs"), pids).expect("written");
        };
        group("holder", "1\n");
        group("pod1/supervisor", "2\n");
        group("pod1/app-0", "3\n4\n");
        group("burstable/pod2/app-1/inner", "5\n");
        group("burstable/pod2/supervisor", "6\n");
        let mut found = containers(root.path());
        found.sort_unstable();
        assert_eq!(found, [3, 4, 5].map(Pid::from_raw));
    }
}
