//! Cgroups of pods: where they are, making them, killing what is in them, removing them.
//!
//! Owns: `<base>[/burstable|/besteffort]/pod<uid>` in every hierarchy that is mounted, version 1 or 2. The base is the cgroup
//! of `orlop-pods.service`, which systemd has delegated, or `<cgroupRoot>/kubepods`.
//! Does: plain file writes, as the kernel's cgroup-v1 and cgroup-v2 documents describe them. Never: touches a cgroup
//! outside that subtree, decides a limit (that is `resources`), or creates the cgroup of a container (`libcontainer`
//! does, below the pod's).

pub mod resources;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use resources::PodLimits;

use crate::config::{CgroupDriver, Cgroups as Settings};
use crate::pod::spec::QosClass;

/// The cgroup file systems of this machine, and the subtree in them that is ours.
#[derive(Debug, Clone)]
pub struct Cgroups {
    version: Version,
    /// Below which all pods are, from the root of each hierarchy.
    base: PathBuf,
    /// Whether the base is systemd's to make, and so is everything above it.
    delegated: bool,
}

/// The cgroup of `orlop-pods.service`.
const DELEGATED: &str = "/kubepods.slice/orlop-pods.service";

#[derive(Debug, Clone)]
enum Version {
    /// The unified hierarchy.
    V2 { mount: PathBuf },
    /// One mount for each controller (or several co-mounted ones).
    V1 { mounts: Vec<Hierarchy> },
}

/// A version 1 hierarchy.
#[derive(Debug, Clone)]
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<String>,
}

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither version is mounted.
    #[error("no cgroup file system is mounted: mount cgroup2 at /sys/fs/cgroup")]
    NotMounted,
    /// A file operation failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Processes that do not die.
    #[error("cgroup {path} still has processes after SIGKILL")]
    Busy {
        /// The cgroup.
        path: PathBuf,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { what, path, source }
}

/// The controllers of version 1 that a pod needs; others that are mounted get no group of ours.
const V1_CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "perf_event",
    "net_cls",
    "net_prio",
];

impl Cgroups {
    /// Reads which hierarchies are mounted, and chooses the base: what `cgroupRoot` says, or else systemd's where the driver
    /// allows it and the unit runs. Only there systemd leaves the groups and their controllers alone, whatever it reloads.
    pub fn open(settings: &Settings) -> Result<Self, CgroupError> {
        let mut cgroups = Self::detect(&settings.root)?;
        let wanted = settings.root.is_empty() && settings.driver != Some(CgroupDriver::Cgroupfs);
        if wanted && cgroups.exists(Path::new(DELEGATED)) {
            cgroups.base = DELEGATED.into();
            cgroups.delegated = true;
        } else if settings.driver == Some(CgroupDriver::Systemd) {
            tracing::warn!(
                base = %cgroups.base.display(),
                "cgroupDriver is systemd, but pods get plain groups: cgroupRoot is set, or orlop-pods.service does not run"
            );
        }
        Ok(cgroups)
    }

    /// Reads which hierarchies are mounted. `root` is `cgroupRoot` of the configuration.
    pub fn detect(root: &str) -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = fs::read_to_string(path).map_err(failed("read", path))?;
        Self::from_mountinfo(&mountinfo, root).ok_or(CgroupError::NotMounted)
    }

    fn from_mountinfo(mountinfo: &str, root: &str) -> Option<Self> {
        let mut unified = None;
        let mut mounts: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or(""));
            match kind {
                Some("cgroup2") if unified.is_none() => unified = Some(PathBuf::from(mount)),
                Some("cgroup") => {
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| V1_CONTROLLERS.contains(option))
                        .map(str::to_owned)
                        .collect();
                    let known = mounts.iter().any(|other| other.controllers == controllers);
                    if !controllers.is_empty() && !known {
                        mounts.push(Hierarchy { mount: PathBuf::from(mount), controllers });
                    }
                }
                Some(_) | None => {}
            }
        }
        let version =
            if mounts.is_empty() { Version::V2 { mount: unified? } } else { Version::V1 { mounts } };
        let base = Path::new("/").join(root.trim_matches('/')).join("kubepods");
        Some(Self { version, base, delegated: false })
    }

    /// Whether this is the unified hierarchy.
    pub fn is_v2(&self) -> bool {
        matches!(self.version, Version::V2 { .. })
    }

    /// The controllers at hand, for `orlop check`. On version 2 those of the root group.
    pub fn controllers(&self) -> Vec<String> {
        match &self.version {
            Version::V2 { mount } => fs::read_to_string(mount.join("cgroup.controllers"))
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            Version::V1 { mounts } => mounts.iter().flat_map(|h| h.controllers.clone()).collect(),
        }
    }

    /// A pod's cgroup as a path from the root of every hierarchy, as `linux.cgroupsPath` wants it.
    pub fn pod_path(&self, qos: QosClass, uid: &str) -> PathBuf {
        match qos {
            QosClass::Guaranteed => self.base.clone(),
            QosClass::Burstable => self.base.join("burstable"),
            QosClass::BestEffort => self.base.join("besteffort"),
        }
        .join(format!("pod{uid}"))
    }

    /// Makes a pod's cgroup with its limits in every hierarchy.
    pub fn create_pod(&self, path: &Path, limits: &PodLimits) -> Result<(), CgroupError> {
        match &self.version {
            Version::V2 { mount } => {
                let dir = below(mount, path);
                let above = if self.delegated { self.base.parent() } else { None };
                make_v2(mount, path, above)?;
                for (file, value) in limits.v2() {
                    write_if_present(&dir.join(file), &value)?;
                }
            }
            Version::V1 { mounts } => {
                for hierarchy in mounts {
                    let dir = below(&hierarchy.mount, path);
                    make_v1(hierarchy, path)?;
                    for (controller, file, value) in limits.v1() {
                        if hierarchy.controllers.iter().any(|c| c == controller) {
                            write_if_present(&dir.join(file), &value)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The `cgroup.procs` files of a group beside the containers' groups, for the supervisor. On version 2 a group with
    /// children may hold no process, so the supervisor gets a leaf of its own.
    pub fn supervisor_procs(&self, path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
        let leaf = path.join("supervisor");
        self.dirs(&leaf)
            .into_iter()
            .map(|dir| {
                make_dir(&dir)?;
                if !self.is_v2() {
                    inherit_cpuset(&dir)?;
                }
                Ok(dir.join("cgroup.procs"))
            })
            .collect()
    }

    /// Whether anything of the group exists.
    pub fn exists(&self, path: &Path) -> bool {
        self.dirs(path).iter().any(|dir| dir.exists())
    }

    /// The cgroup directory that holds memory statistics, for `stats` and `orlop ps`.
    pub fn memory_dir(&self, path: &Path) -> Option<PathBuf> {
        match &self.version {
            Version::V2 { mount } => Some(below(mount, path)),
            Version::V1 { mounts } => mounts
                .iter()
                .find(|h| h.controllers.iter().any(|c| c == "memory"))
                .map(|h| below(&h.mount, path)),
        }
    }

    /// SIGKILL to every process in the group and below it, then the group is removed. Gone already is success.
    pub fn kill_and_remove(&self, path: &Path) -> Result<(), CgroupError> {
        kill_and_remove(&self.dirs(path))
    }

    fn dirs(&self, path: &Path) -> Vec<PathBuf> {
        match &self.version {
            Version::V2 { mount } => vec![below(mount, path)],
            Version::V1 { mounts } => mounts.iter().map(|h| below(&h.mount, path)).collect(),
        }
    }
}

/// As [`Cgroups::kill_and_remove`], for one group by its directories in every hierarchy.
pub fn kill_and_remove(dirs: &[PathBuf]) -> Result<(), CgroupError> {
    for round in 0..200 {
        let mut alive = false;
        for dir in dirs {
            alive |= kill_tree(dir)?;
        }
        if !alive {
            break;
        }
        // A killed process leaves its cgroup when it is reaped; version 1 announces nothing for that.
        std::thread::sleep(Duration::from_millis(if round < 20 { 1 } else { 10 }));
    }
    for dir in dirs {
        remove_tree(dir)?;
    }
    Ok(())
}

fn below(mount: &Path, path: &Path) -> PathBuf {
    mount.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_dir(dir: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("create cgroup", dir)(error)),
    }
}

/// Creates every level of `path` and enables, level by level, the controllers that its children need, but for `foreign` and
/// the levels above it: there somebody else decides.
fn make_v2(mount: &Path, path: &Path, foreign: Option<&Path>) -> Result<(), CgroupError> {
    let mut dir = mount.to_owned();
    let foreign = foreign.map(|path| below(mount, path));
    for part in path.strip_prefix("/").unwrap_or(path) {
        if foreign.as_ref().is_none_or(|foreign| !foreign.starts_with(&dir)) {
            enable_controllers(&dir);
        }
        dir.push(part);
        make_dir(&dir)?;
    }
    enable_controllers(&dir);
    Ok(())
}

/// Best effort: a controller that cannot be enabled shows later as a limit file that is absent.
fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|other| other == controller) {
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

fn make_v1(hierarchy: &Hierarchy, path: &Path) -> Result<(), CgroupError> {
    let mut dir = hierarchy.mount.clone();
    for part in path.strip_prefix("/").unwrap_or(path) {
        dir.push(part);
        make_dir(&dir)?;
        inherit_cpuset(&dir)?;
    }
    Ok(())
}

/// A new version 1 cpuset is empty and takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(dir: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = dir.join(file);
        let Ok(current) = fs::read_to_string(&own) else { continue };
        if current.trim().is_empty()
            && let Some(parent) = dir.parent()
        {
            let from = parent.join(file);
            let value = fs::read_to_string(&from).map_err(failed("read", &from))?;
            fs::write(&own, value.trim()).map_err(failed("write", &own))?;
        }
    }
    Ok(())
}

fn write_if_present(path: &Path, value: &str) -> Result<(), CgroupError> {
    match fs::write(path, value) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("write", path)(error)),
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Signals every process in the tree; says whether there was any.
fn kill_tree(dir: &Path) -> Result<bool, CgroupError> {
    let kill = dir.join("cgroup.kill");
    if kill.exists() {
        let events = fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
        let populated = events.lines().any(|line| line == "populated 1");
        if populated {
            fs::write(&kill, "1").map_err(failed("write", &kill))?;
        }
        return Ok(populated);
    }
    let mut any = false;
    for child in children(dir) {
        any |= kill_tree(&child)?;
    }
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|line| line.parse::<i32>().ok()) {
        any = true;
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    Ok(any)
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Err(CgroupError::Busy { path: dir.to_owned() })
        }
        Err(error) => Err(failed("remove cgroup", dir)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 31 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn controllers_of_version_1_win_over_an_empty_unified_mount() {
        let cgroups = Cgroups::from_mountinfo(HYBRID, "/").expect("mounted");
        assert!(!cgroups.is_v2());
        assert_eq!(cgroups.controllers(), ["cpu", "cpuacct", "memory"]);
    }

    #[test]
    fn the_unified_hierarchy_is_recognised() {
        assert!(Cgroups::from_mountinfo(UNIFIED, "").expect("mounted").is_v2());
        assert!(Cgroups::from_mountinfo("", "").is_none());
    }

    #[test]
    fn a_pods_path_is_kubelets() {
        let cgroups = Cgroups::from_mountinfo(UNIFIED, "/edge").expect("mounted");
        let path = |qos| cgroups.pod_path(qos, "u1").display().to_string();
        assert_eq!(path(QosClass::Guaranteed), "/edge/kubepods/podu1");
        assert_eq!(path(QosClass::Burstable), "/edge/kubepods/burstable/podu1");
        assert_eq!(path(QosClass::BestEffort), "/edge/kubepods/besteffort/podu1");
    }

    /// A directory in the place of the mounted hierarchy: the files that tell controllers are plain ones.
    fn mounted(delegated: bool) -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().expect("a directory");
        for path in ["", "kubepods.slice", "kubepods.slice/orlop-pods.service"] {
            fs::create_dir_all(dir.path().join(path)).expect("made");
            fs::write(dir.path().join(path).join("cgroup.controllers"), "cpu memory\n").expect("written");
        }
        let version = Version::V2 { mount: dir.path().to_owned() };
        let base = if delegated { DELEGATED } else { "/kubepods" };
        (dir, Cgroups { version, base: base.into(), delegated })
    }

    #[test]
    fn below_systemds_unit_nothing_above_it_is_written() {
        let (dir, cgroups) = mounted(true);
        let pod = cgroups.pod_path(QosClass::Burstable, "u1");
        assert_eq!(pod, Path::new("/kubepods.slice/orlop-pods.service/burstable/podu1"));
        cgroups.create_pod(&pod, &PodLimits::default()).expect("created");
        let touched = |path: &str| dir.path().join(path).join("cgroup.subtree_control").exists();
        assert!(!touched("") && !touched("kubepods.slice"), "systemd's own groups");
        assert!(touched("kubepods.slice/orlop-pods.service"), "the delegated one");
    }

    #[test]
    fn without_systemd_every_level_passes_its_controllers_on() {
        let (dir, cgroups) = mounted(false);
        let pod = cgroups.pod_path(QosClass::Guaranteed, "u1");
        cgroups.create_pod(&pod, &PodLimits::default()).expect("created");
        assert!(dir.path().join("cgroup.subtree_control").exists());
        assert!(dir.path().join("kubepods/podu1").is_dir());
    }
}
