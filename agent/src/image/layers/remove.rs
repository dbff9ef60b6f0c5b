//! Removing a directory tree that an archive made.
//!
//! Never: follows a link, recurses, or holds more than two descriptors, however deep the tree is. Directories below the
//! one being emptied are first moved up beside it and emptied in turn.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, renameat2};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Removes `name` in `parent` with everything below it. Absence is success.
///
/// # Errors
/// The errno of the call that failed; parts of the tree may then be left.
pub fn remove_tree(parent: impl AsFd, name: &OsStr) -> nix::Result<()> {
    let parent = parent.as_fd();
    let first = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut waiting = vec![first];
    let mut moved = 0u64;
    while let Some(name) = waiting.pop() {
        if unlink(parent, &name)? {
            continue;
        }
        let mut dir = Dir::openat(
            parent,
            name.as_c_str(),
            OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let children = dir
            .iter()
            .map(|entry| entry.map(|e| e.file_name().to_owned()))
            .collect::<nix::Result<Vec<_>>>()?;
        for child in children {
            if matches!(child.to_bytes(), b"." | b"..") || unlink(dir.as_fd(), &child)? {
                continue;
            }
            waiting.push(move_up(dir.as_fd(), &child, parent, &mut moved)?);
        }
        unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}

/// [`remove_tree`] for an absolute path.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_path(path: &Path) -> nix::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL);
    };
    match Dir::open(parent, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(dir) => remove_tree(dir.as_fd(), name),
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Whether the entry is gone; `false` means a directory that is not empty.
fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> nix::Result<bool> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn move_up(
    dir: BorrowedFd<'_>,
    child: &CStr,
    parent: BorrowedFd<'_>,
    moved: &mut u64,
) -> nix::Result<CString> {
    let mut opened = false;
    loop {
        let name = CString::new(format!(".orlop-removing-{moved}")).expect("the name holds no NUL");
        *moved += 1;
        match renameat2(dir, child, parent, name.as_c_str(), RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(name),
            Err(Errno::EEXIST) => {}
            // Without root's rights a directory cannot be moved unless it may be written.
            Err(Errno::EACCES) if !opened => {
                make_writable(dir, child)?;
                opened = true;
            }
            Err(errno) => return Err(errno),
        }
    }
}

fn make_writable(dir: BorrowedFd<'_>, child: &CStr) -> nix::Result<()> {
    let child =
        Dir::openat(dir, child, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    fchmod(child.as_fd(), Mode::S_IRWXU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_deep_trees_and_leaves_link_targets() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        let mut deep = dir.path().join("tree");
        for _ in 0..60 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("tree/d/link")).unwrap();
        remove_path(&dir.path().join("tree")).unwrap();
        remove_path(&dir.path().join("tree")).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["outside"]);
        assert!(outside.join("kept").exists());
    }
}
