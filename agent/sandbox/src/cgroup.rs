//! The cgroups of containers: where they are, whether the OOM killer struck, killing and removing them whole.
//!
//! Owns: the list of mounted hierarchies, paths below them. Never: creates a container's cgroup or sets limits
//! (`libcontainer` does), touches the pod's own cgroup (the daemon's), or kills outside the cgroup it was given.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::device::{self, DeviceRule};
use crate::sys::bpf;
use crate::sys::process::signal;

/// How often a v1 cgroup is read and killed before one call gives up; each round kills what the round before forked.
const KILL_ROUNDS: usize = 64;

/// The cgroup hierarchies of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchies {
    /// Version 2 alone: its mount point.
    Unified(PathBuf),
    /// Version 1, perhaps beside a version 2 without controllers: the mount points that `libcontainer` uses.
    Legacy(Vec<Hierarchy>),
}

/// A mounted version 1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
    kind: LegacyKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LegacyKind {
    Memory,
    Freezer,
    Other,
}

/// The version 1 controllers in whose hierarchies a container gets a cgroup.
const CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

impl Hierarchies {
    /// Reads them from this process's mount table.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mounts")?))
    }

    fn parse(mounts: &str) -> Self {
        let mut legacy: Vec<Hierarchy> = Vec::new();
        let mut unified = None;
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(mount), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let has = |controller: &str| options.split(',').any(|option| option == controller);
            match kind {
                "cgroup2" => unified = unified.or(Some(PathBuf::from(mount))),
                "cgroup" if CONTROLLERS.iter().any(|controller| has(controller)) => {
                    let kind = if has("memory") {
                        LegacyKind::Memory
                    } else if has("freezer") {
                        LegacyKind::Freezer
                    } else {
                        LegacyKind::Other
                    };
                    // The same hierarchy may be mounted twice; the first is the usual place.
                    if !legacy.iter().any(|known| known.mount == Path::new(mount)) {
                        legacy.push(Hierarchy { mount: mount.into(), kind });
                    }
                }
                _ => {}
            }
        }
        match unified {
            Some(mount) if legacy.is_empty() => Hierarchies::Unified(mount),
            _ => Hierarchies::Legacy(legacy),
        }
    }

    /// Whether this is version 2 alone.
    pub fn is_unified(&self) -> bool {
        matches!(self, Hierarchies::Unified(_))
    }

    fn directories<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
        let mounts: Vec<&Path> = match self {
            Hierarchies::Unified(mount) => vec![mount],
            Hierarchies::Legacy(all) => all.iter().map(|hierarchy| hierarchy.mount.as_path()).collect(),
        };
        mounts.into_iter().map(move |mount| below(mount, path))
    }

    /// The one hierarchy in which processes are listed and killed. With v1 that is the freezer's: it accounts nothing,
    /// so that a child cgroup there is only a name for a group of processes.
    fn tracking(&self) -> Option<&Path> {
        match self {
            Hierarchies::Unified(mount) => Some(mount),
            Hierarchies::Legacy(all) => {
                let freezer = all.iter().find(|hierarchy| hierarchy.kind == LegacyKind::Freezer);
                freezer.or(all.first()).map(|hierarchy| hierarchy.mount.as_path())
            }
        }
    }

    fn memory(&self) -> Option<&Path> {
        match self {
            Hierarchies::Unified(mount) => Some(mount),
            Hierarchies::Legacy(all) => all
                .iter()
                .find(|hierarchy| hierarchy.kind == LegacyKind::Memory)
                .map(|hierarchy| hierarchy.mount.as_path()),
        }
    }

    /// The directory in which the processes of the cgroup `path` are listed.
    pub fn tracking_directory(&self, path: &Path) -> Option<PathBuf> {
        self.tracking().map(|mount| below(mount, path))
    }

    /// Whether the OOM killer has struck in this cgroup. The kernel counts before it kills, so a process that died of
    /// it has been counted when its exit is seen; no notification is needed.
    pub fn oom_killed(&self, path: &Path) -> bool {
        let Some(mount) = self.memory() else { return false };
        let file = if self.is_unified() { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(below(mount, path).join(file)).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    }

    /// Sends SIGKILL to every process of the cgroup and of its children.
    pub fn kill(&self, path: &Path) {
        let Some(directory) = self.tracking_directory(path) else { return };
        if self.is_unified() {
            match fs::write(directory.join("cgroup.kill"), "1") {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !directory.exists() => return,
                // Before Linux 5.14 there is no such file: go on as with version 1.
                Err(_) => {}
            }
        }
        for _ in 0..KILL_ROUNDS {
            if signal_all(&directory, libc::SIGKILL) == 0 {
                return;
            }
        }
    }

    /// Sends a signal to every process of the cgroup and of its children.
    pub fn signal(&self, path: &Path, number: i32) {
        if let Some(directory) = self.tracking_directory(path) {
            signal_all(&directory, number);
        }
    }

    /// Makes a child cgroup in the tracking hierarchy and opens its `cgroup.procs` for a process to enter.
    pub fn create_child(&self, path: &Path, name: &str) -> io::Result<OwnedFd> {
        let directory = self.tracking_directory(path).ok_or(io::ErrorKind::NotFound)?.join(name);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(open(&directory.join("cgroup.procs"), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Removes a child cgroup. False while a process is still in it.
    pub fn remove_child(&self, path: &Path, name: &str) -> bool {
        self.tracking_directory(path)
            .is_none_or(|directory| rmdir(&directory.join(name)) != Err(Errno::EBUSY))
    }

    /// Removes the cgroup and its children from every hierarchy.
    ///
    /// # Errors
    /// `EBUSY` with the path while a process is still in it: try again when it is gone.
    pub fn remove(&self, path: &Path) -> Result<(), (PathBuf, Errno)> {
        let mut failed = None;
        for directory in self.directories(path) {
            if let Err(error) = remove_tree(&directory) {
                failed = Some((directory, error));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn below(mount: &Path, path: &Path) -> PathBuf {
    // Only ordinary components: a `..` would lead out of what belongs to the pod.
    let ordinary = path.components().filter(|part| matches!(part, std::path::Component::Normal(_)));
    mount.join(ordinary.collect::<PathBuf>())
}

/// The child cgroups of a directory.
pub fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// The processes in a cgroup directory and below.
pub fn processes(directory: &Path) -> Vec<Pid> {
    let mut all = members(directory);
    for child in children(directory) {
        all.extend(processes(&child));
    }
    all
}

/// The processes in a cgroup directory itself.
pub fn members(directory: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok())
        // 0 stands for a process outside our pid namespace; to `kill` it would mean our own group.
        .filter(|pid: &i32| *pid > 0)
        .map(Pid::from_raw)
        .collect()
}

/// How many were found.
fn signal_all(directory: &Path, number: i32) -> usize {
    let own = Pid::this();
    let all = processes(directory);
    for pid in all.iter().filter(|pid| **pid != own) {
        // ESRCH: it has just gone by itself.
        let _ = signal(*pid, number);
    }
    all.len()
}

fn remove_tree(directory: &Path) -> Result<(), Errno> {
    match rmdir(directory) {
        Err(Errno::EBUSY) => {}
        done => return done,
    }
    for child in children(directory) {
        remove_tree(&child)?;
    }
    rmdir(directory)
}

fn rmdir(directory: &Path) -> Result<(), Errno> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
    }
}

/// Lets the processes of a version 2 cgroup, given by its directory, use only the devices that the rules allow.
pub fn guard_devices(directory: &Path, rules: &[DeviceRule]) -> Result<(), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let cgroup = open(directory, flags, Mode::empty())?;
    let program = bpf::load_device_program(&device::program(rules))?;
    bpf::attach_device_program(cgroup.as_fd(), program.as_fd())
}

/// Whether a path can name a cgroup: absolute, and made of ordinary names alone.
pub fn is_valid(path: &Path) -> bool {
    let mut parts = path.components();
    let ordinary = |part: std::path::Component<'_>| match part {
        std::path::Component::Normal(name) => name != OsStr::new(""),
        _ => false,
    };
    matches!(parts.next(), Some(std::path::Component::RootDir))
        && parts.clone().count() > 0
        && parts.all(ordinary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unified_and_hybrid_machines_are_told_apart() {
        let unified = Hierarchies::parse("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n");
        assert_eq!(unified, Hierarchies::Unified("/sys/fs/cgroup".into()));
        let hybrid = Hierarchies::parse(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
             cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
             cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
             cgroup /sys/fs/cgroup/freezer cgroup rw,freezer 0 0\n",
        );
        let Hierarchies::Legacy(all) = &hybrid else { panic!("{hybrid:?}") };
        assert_eq!(all.len(), 3, "the named hierarchy and version 2 carry no controller");
        assert_eq!(hybrid.tracking(), Some(Path::new("/sys/fs/cgroup/freezer")));
        assert_eq!(hybrid.memory(), Some(Path::new("/sys/fs/cgroup/memory")));
    }

    #[test]
    fn paths_stay_below_the_mount() {
        assert_eq!(below(Path::new("/m"), Path::new("/a/../../etc/b")), Path::new("/m/a/etc/b"));
        assert!(is_valid(Path::new("/kubepods/pod1/c-0")));
        for bad in ["relative", "/", "/a/../b", ""] {
            assert!(!is_valid(Path::new(bad)), "{bad}");
        }
    }
}
