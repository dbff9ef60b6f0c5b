//! Volumes of pods on this node: set up before a container starts, torn down after the last has ended.
//!
//! Owns: `<root-dir>/pods/<uid>/volumes` (emptyDir on disk) and `<run-dir>/pods/<uid>/volumes` (everything that holds
//! secrets or is small: on the run directory's tmpfs). Does: one function for each kind, all idempotent. Never: mounts
//! in the node's mount namespace (a memory-backed emptyDir is mounted by the pod's supervisor, in its own).
//!
//! A configMap, secret, downwardAPI or projected volume is a [`payload::Payload`] written by [`atomic::write`]; writing
//! it again with newer objects is a live update, whoever asks for it.

pub mod atomic;
mod content;
mod host_path;
pub mod objects;
pub mod payload;

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use orlop_sandbox::protocol::TmpfsMount;

use crate::host::container::env::Facts;
use crate::host::container::mounts::VolumeBind;
use crate::host::files;
use crate::pod::names::PodUid;
use crate::pod::spec::{Container, EmptyDir, Medium, MountPropagation, Pod, Volume, VolumeSource};
use objects::{ObjectError, Objects};
use payload::PayloadError;

/// Sets volumes up and tears them down.
pub struct Volumes {
    /// `<run-dir>/pods`.
    run_pods: PathBuf,
    /// `<root-dir>/pods`.
    root_pods: PathBuf,
    objects: Arc<dyn Objects>,
}

/// Why a volume is not ready. The text follows `MountVolume.SetUp failed for volume "x" : `.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// An object it is made from is missing or cannot be asked for.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Its content cannot be laid out.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A field of the downward API.
    #[error("{0}")]
    Field(String),
    /// A hostPath that is not what it must be.
    #[error("hostPath type check failed: {path} is not {wanted}")]
    HostPathType {
        /// The path.
        path: String,
        /// What was wanted, in words.
        wanted: &'static str,
    },
    /// A kind that this node does not know.
    #[error("volumes of kind {0} are not supported by this node")]
    Unsupported(String),
    /// A file operation; the error names its path.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Volumes {
    /// `run_dir` and `root_dir` as configured.
    pub fn new(run_dir: &Path, root_dir: &Path, objects: Arc<dyn Objects>) -> Self {
        Self { run_pods: run_dir.join("pods"), root_pods: root_dir.join("pods"), objects }
    }

    /// Sets every volume of the pod up.
    ///
    /// # Errors
    /// The first volume that failed, by name, in kubelet's words.
    pub async fn prepare(&self, pod: &Pod, facts: &Facts) -> Result<(), String> {
        for volume in &pod.spec.volumes {
            self.set_up(pod, volume, facts).await.map_err(|error| {
                format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name)
            })?;
        }
        let marker = self.marker(pod.uid());
        if let Some(parent) = marker.parent() {
            fs::create_dir_all(parent).map_err(|error| format!("create {}: {error}", parent.display()))?;
        }
        fs::write(&marker, b"").map_err(|error| format!("write {}: {error}", marker.display()))
    }

    /// Whether [`Self::prepare`] has succeeded for this pod, in this or an earlier daemon's life.
    pub fn ready(&self, pod: &Pod) -> bool {
        pod.spec.volumes.is_empty() || self.marker(pod.uid()).exists()
    }

    /// Whether anything of the pod's volumes is on the node.
    pub fn present(&self, uid: &PodUid) -> bool {
        self.marker(uid).exists() || self.run_dir(uid).exists() || self.root_dir(uid).exists()
    }

    /// Tears everything down; gone already is success.
    pub fn remove(&self, uid: &PodUid) -> io::Result<()> {
        files::remove_file(&self.marker(uid))?;
        files::remove_tree(&self.run_dir(uid))?;
        files::remove_tree(&self.root_dir(uid))
    }

    /// The memory-backed emptyDirs, for the supervisor to mount; their mount points are made here.
    pub fn tmpfs(&self, pod: &Pod, allocatable_memory: u64) -> io::Result<Vec<TmpfsMount>> {
        let limit = pod.total_resources().memory_limit_bytes;
        let mut mounts = vec![];
        for volume in &pod.spec.volumes {
            let VolumeSource::EmptyDir(EmptyDir { medium: Medium::Memory, size_limit }) = &volume.source
            else {
                continue;
            };
            let target = self.path(pod.uid(), volume);
            fs::create_dir_all(&target).map_err(|error| named("create", &target, &error))?;
            let sizes = [size_limit.as_ref().map(|size| size.units()), limit, Some(allocatable_memory)];
            let size_bytes = sizes.into_iter().flatten().filter(|size| *size > 0).min();
            let group = pod.spec.security_context.fs_group;
            let mode = if group.is_some() { 0o2777 } else { 0o777 };
            mounts.push(TmpfsMount { target, size_bytes, mode, gid: group });
        }
        Ok(mounts)
    }

    /// Where a container's volume mounts come from.
    ///
    /// # Errors
    /// A sentence for `CreateContainerConfigError`.
    pub fn binds(&self, pod: &Pod, container: &Container) -> Result<Vec<VolumeBind>, String> {
        container
            .volume_mounts
            .iter()
            .map(|mount| {
                let volume = pod.spec.volumes.iter().find(|volume| volume.name == mount.name);
                let volume = volume.ok_or_else(|| {
                    format!("volume {} of container {} not found", mount.name, container.name)
                })?;
                if !mount.sub_path.is_empty() || !mount.sub_path_expr.is_empty() {
                    return Err(format!(
                        "subPath of volume mount {} is not supported by this node",
                        mount.mount_path
                    ));
                }
                if mount.mount_propagation == MountPropagation::Bidirectional {
                    // A supervisor's mounts are slaves of the node's: what a container mounts would not reach the node.
                    return Err(format!(
                        "mountPropagation Bidirectional of volume mount {} is not supported by this node",
                        mount.mount_path
                    ));
                }
                Ok(VolumeBind {
                    source: self.path(pod.uid(), volume),
                    target: Path::new("/").join(&mount.mount_path),
                    read_only: mount.read_only,
                    recursive_read_only: mount.recursive_read_only,
                    propagation: mount.mount_propagation,
                })
            })
            .collect()
    }

    fn path(&self, uid: &PodUid, volume: &Volume) -> PathBuf {
        match &volume.source {
            VolumeSource::HostPath(host) => PathBuf::from(&host.path),
            VolumeSource::EmptyDir(EmptyDir { medium: Medium::Disk, .. }) => {
                self.root_dir(uid).join(&volume.name)
            }
            VolumeSource::EmptyDir(_)
            | VolumeSource::ConfigMap(_)
            | VolumeSource::Secret(_)
            | VolumeSource::DownwardApi(_)
            | VolumeSource::Projected(_)
            | VolumeSource::Unsupported { .. } => self.run_dir(uid).join(&volume.name),
        }
    }

    async fn set_up(&self, pod: &Pod, volume: &Volume, facts: &Facts) -> Result<(), VolumeError> {
        let path = self.path(pod.uid(), volume);
        let group = pod.spec.security_context.fs_group;
        match &volume.source {
            VolumeSource::HostPath(host) => host_path::check(host),
            VolumeSource::EmptyDir(EmptyDir { medium: Medium::Disk, .. }) => {
                Ok(make_empty_dir(&path, group)?)
            }
            // The mount point is made with the sandbox, the mount by its supervisor.
            VolumeSource::EmptyDir(EmptyDir { medium: Medium::Memory, .. }) => Ok(()),
            VolumeSource::EmptyDir(EmptyDir {
                medium: Medium::HugePages(text) | Medium::Other(text),
                ..
            }) => Err(VolumeError::Unsupported(format!("emptyDir with medium {text}"))),
            VolumeSource::Unsupported { kind } => Err(VolumeError::Unsupported(kind.clone())),
            VolumeSource::ConfigMap(_)
            | VolumeSource::Secret(_)
            | VolumeSource::DownwardApi(_)
            | VolumeSource::Projected(_) => {
                let payload = content::payload(pod, &volume.source, self.objects.as_ref(), facts).await?;
                fs::create_dir_all(&path).map_err(|error| named("create", &path, &error))?;
                if group.is_some() {
                    chown(&path, None, group).map_err(|error| named("chown", &path, &error))?;
                }
                let mode = if group.is_some() { 0o2755 } else { 0o755 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
                atomic::write(&path, &payload, group, Timestamp::now())?;
                Ok(())
            }
        }
    }

    fn marker(&self, uid: &PodUid) -> PathBuf {
        self.run_pods.join(uid.as_str()).join("volumes.ready")
    }

    fn run_dir(&self, uid: &PodUid) -> PathBuf {
        self.run_pods.join(uid.as_str()).join("volumes")
    }

    fn root_dir(&self, uid: &PodUid) -> PathBuf {
        self.root_pods.join(uid.as_str()).join("volumes")
    }
}

/// 0777 whatever the umask, as every container of the pod may use it; with `fsGroup`, setgid to it.
fn make_empty_dir(path: &Path, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(path).map_err(|error| named("create", path, &error))?;
    if group.is_some() {
        chown(path, None, group).map_err(|error| named("chown", path, &error))?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|error| named("chmod", path, &error))
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
