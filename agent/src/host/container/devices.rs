//! The node's devices, which a privileged container sees all of.
//!
//! Owns: the walk through `/dev`. Never: follows a link, or lists what a container has a file system of its own for.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Folders of `/dev` that are file systems of their own in a container.
const SKIPPED: [&str; 6] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts"];

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where it is, on the node and in the container.
    pub path: PathBuf,
    /// A block device, not a character device.
    pub block: bool,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
}

/// Every device of the node but the console, which a container has its own of.
pub fn of_node() -> Vec<Device> {
    let mut devices = vec![];
    collect(Path::new("/dev"), &mut devices);
    devices
}

fn collect(dir: &Path, devices: &mut Vec<Device>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let kind = meta.file_type();
        if kind.is_dir() {
            if !SKIPPED.iter().any(|name| path.ends_with(name)) {
                collect(&path, devices);
            }
        } else if (kind.is_char_device() || kind.is_block_device()) && path != Path::new("/dev/console") {
            devices.push(Device {
                path,
                block: kind.is_block_device(),
                major: major(meta.rdev()),
                minor: minor(meta.rdev()),
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
            });
        }
    }
}
