//! What a container sees where: the kernel's file systems, the pod's files, volumes. Pure.
//!
//! Owns: the list and its order. Never: mounts anything, or makes a mount point.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};

use crate::pod::spec::{Container, MountPropagation, Pod, RecursiveReadOnly};

/// Where the files of a pod are, which every container gets.
#[derive(Debug, Clone)]
pub struct PodFiles {
    /// The run directory of the sandbox: `shm` is below it.
    pub sandbox: PathBuf,
    /// `hosts`, `hostname`, `resolv.conf` are in here.
    pub etc: PathBuf,
    /// The file for the termination message; `None` if the container has one of its own.
    pub termination_log: Option<PathBuf>,
}

/// A volume mount, resolved to a path on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeBind {
    /// On the node.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Without write access.
    pub read_only: bool,
    /// Read-only for mounts below it too.
    pub recursive_read_only: RecursiveReadOnly,
    /// Whether later mounts are seen on the other side.
    pub propagation: MountPropagation,
}

/// All mounts of a container, in the order in which they are made.
pub fn all(
    pod: &Pod,
    container: &Container,
    files: &PodFiles,
    volumes: &[VolumeBind],
) -> Result<Vec<Mount>, OciSpecError> {
    let privileged = container.security_context.privileged;
    let mut mounts = kernel(privileged)?;
    let own = |target: &str| volumes.iter().any(|volume| volume.target == Path::new(target));
    let shm = if pod.spec.host_ipc { PathBuf::from("/dev/shm") } else { files.sandbox.join("shm") };
    let mut binds = vec![(shm, "/dev/shm".to_owned())];
    for name in ["hosts", "hostname", "resolv.conf"] {
        binds.push((files.etc.join(name), format!("/etc/{name}")));
    }
    if let Some(log) = &files.termination_log {
        binds.push((log.clone(), container.termination_message_path.clone()));
    }
    for (source, target) in binds {
        // A volume in the same place takes it: such a container manages the file itself.
        if !own(&target) {
            mounts.push(bind(&source, Path::new(&target), &["rbind", "rprivate", "rw"])?);
        }
    }
    let mut volumes: Vec<&VolumeBind> = volumes.iter().collect();
    // Outer mount points first, or an inner one would be hidden.
    volumes.sort_by_key(|volume| volume.target.components().count());
    for volume in volumes {
        mounts.push(bind(&volume.source, &volume.target, &options(volume))?);
    }
    Ok(mounts)
}

fn options(volume: &VolumeBind) -> Vec<&'static str> {
    let propagation = match volume.propagation {
        MountPropagation::None => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    let access = match (volume.read_only, volume.recursive_read_only) {
        (false, _) => "rw",
        (true, RecursiveReadOnly::Disabled) => "ro",
        (true, RecursiveReadOnly::IfPossible | RecursiveReadOnly::Enabled) => "rro",
    };
    vec!["rbind", propagation, access]
}

fn bind(source: &Path, target: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    MountBuilder::default().destination(target).source(source).typ("bind").options(options).build()
}

/// The file systems that every container has, as runtimes agree on them.
fn kernel(privileged: bool) -> Result<Vec<Mount>, OciSpecError> {
    let access = if privileged { "rw" } else { "ro" };
    let table: [(&str, &str, &str, &[&str]); 6] = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    table
        .into_iter()
        .map(|(target, kind, source, options)| {
            let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
            MountBuilder::default().destination(target).typ(kind).source(source).options(options).build()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> PodFiles {
        PodFiles {
            sandbox: "/run/pod".into(),
            etc: "/run/pod/etc".into(),
            termination_log: Some("/run/pod/containers/c/0/termination-log".into()),
        }
    }

    fn volume(target: &str) -> VolumeBind {
        VolumeBind {
            source: "/v".into(),
            target: target.into(),
            read_only: true,
            recursive_read_only: RecursiveReadOnly::Disabled,
            propagation: MountPropagation::None,
        }
    }

    fn targets(mounts: &[Mount]) -> Vec<String> {
        mounts.iter().map(|mount| mount.destination().display().to_string()).collect()
    }

    #[test]
    fn every_container_has_the_pods_files() {
        let mounts = all(&Pod::default(), &Container::default(), &files(), &[]).expect("mounts");
        let targets = targets(&mounts);
        for target in ["/proc", "/dev/shm", "/etc/hosts", "/etc/resolv.conf", "/dev/termination-log"] {
            assert_eq!(targets.iter().filter(|t| *t == target).count(), 1, "{target}");
        }
    }

    #[test]
    fn a_volume_takes_the_place_of_a_pods_file() {
        let mounts =
            all(&Pod::default(), &Container::default(), &files(), &[volume("/etc/hosts")]).expect("mounts");
        let hosts: Vec<&Mount> =
            mounts.iter().filter(|m| m.destination() == Path::new("/etc/hosts")).collect();
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0].source().as_deref(), Some(Path::new("/v")));
        assert_eq!(hosts[0].options().clone().expect("options"), ["rbind", "rprivate", "ro"]);
    }

    #[test]
    fn outer_volumes_come_before_inner_ones() {
        let volumes = [volume("/a/b/c"), volume("/a")];
        let mounts = all(&Pod::default(), &Container::default(), &files(), &volumes).expect("mounts");
        let targets = targets(&mounts);
        assert_eq!(&targets[targets.len() - 2..], ["/a", "/a/b/c"]);
    }
}
