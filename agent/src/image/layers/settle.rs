//! A layer whose directories agree with the layers below it.
//!
//! An archive may hold `home/app/file` and not describe `home/app`. Alone in its directory the layer then has a
//! `home/app` of mode 0755 that belongs to root, and in an overlay it would hide owner and mode of the one below. Layers are
//! shared by their digest, whatever they lie on; so where owner or mode differ, the image gets a copy of the layer with the
//! right ones. The copy shares all files by hard links; only directories are its own.
//! Never: changes the layer it copies.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use serde::Serialize;

use super::xattr;

/// Owner and mode for a directory that its archive does not describe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// Below the layer's root.
    pub path: PathBuf,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What the directories a layer implies are in the layers below it, where that is not what unpacking gave them.
/// `below` is ordered from the lowest up.
///
/// # Errors
/// Failing system calls on the layers below.
pub fn differing(implied: &[PathBuf], below: &[PathBuf]) -> io::Result<Vec<Settled>> {
    let mut found = Vec::new();
    for path in implied {
        for lower in below.iter().rev() {
            let Some(stat) = look(lower, path)? else { continue };
            let mode = stat.st_mode & 0o7777;
            // Anything but a directory, a whiteout among them, ends what the overlay would merge.
            let is_directory = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
            if is_directory && (stat.st_uid, stat.st_gid, mode) != (0, 0, 0o755) {
                found.push(Settled { path: path.clone(), uid: stat.st_uid, gid: stat.st_gid, mode });
            }
            break;
        }
    }
    Ok(found)
}

/// Copies a layer into the empty directory `to`, by hard links, and gives directories their settled owner and mode.
///
/// # Errors
/// Failing file operations; a part of the copy is then left.
pub fn copy_settled(from: &Path, to: &Path, settled: &[Settled]) -> io::Result<()> {
    let mut waiting = vec![PathBuf::new()];
    let mut directories = Vec::new();
    while let Some(below) = waiting.pop() {
        for entry in fs::read_dir(from.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                fs::create_dir(to.join(&path))?;
                waiting.push(path);
            } else {
                fs::hard_link(from.join(&path), to.join(&path))?;
            }
        }
        directories.push(below);
    }
    // Deepest last in, so that filling a directory no longer changes its time.
    for path in directories.iter().rev() {
        let (old, new) = (File::open(from.join(path))?, File::open(to.join(path))?);
        let metadata = old.metadata()?;
        let wanted = settled.iter().find(|s| s.path == *path);
        let (uid, gid, mode) = wanted
            .map_or((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), |s| (s.uid, s.gid, s.mode));
        chown(to.join(path), Some(uid), Some(gid))?;
        new.set_permissions(fs::Permissions::from_mode(mode))?;
        xattr::copy(old.as_fd(), new.as_fd())?;
        new.set_modified(metadata.modified()?)?;
    }
    Ok(())
}

/// What stands at a path in a layer, no link followed; `None` for nothing.
fn look(layer: &Path, path: &Path) -> io::Result<Option<FileStat>> {
    let root = File::open(layer)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(&root, path, how) {
        Ok(fd) => Ok(Some(fstat(fd)?)),
        // A link or a file on the way: the upper layer's directories replace it, nothing is merged.
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR | nix::errno::Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
