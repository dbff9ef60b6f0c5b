//! One directory that archive entries may be made in, and nothing outside of it.
//!
//! Owns: the directory's descriptor. Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT)`: links in the
//! middle of a path lead at most to the directory itself. The last component is never followed. Never: joins path strings.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};

/// A name from an archive, cleaned: no empty, `.` or `..` components. Empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct EntryPath {
    parts: Vec<CString>,
}

/// The name leads out of the directory through `..`, or holds a NUL byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Escapes;

impl EntryPath {
    /// Cleans a name as archives write it. A leading `/` means the root; `..` may not go above it.
    pub fn parse(name: &[u8]) -> Result<Self, Escapes> {
        let mut parts: Vec<CString> = Vec::new();
        for part in name.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop().ok_or(Escapes)?),
                _ => parts.push(CString::new(part).map_err(|_| Escapes)?),
            }
        }
        Ok(Self { parts })
    }

    /// Last component and the path of its parent; `None` for the root.
    pub fn split(&self) -> Option<(&CStr, &[CString])> {
        let (last, parents) = self.parts.split_last()?;
        Some((last, parents))
    }

    /// The path with `/` between its components.
    pub fn join(parts: &[CString]) -> CString {
        if parts.is_empty() {
            return c".".to_owned();
        }
        let bytes = parts.iter().map(|p| p.as_bytes()).collect::<Vec<_>>().join(&b'/');
        CString::new(bytes).expect("no component holds a NUL")
    }

    /// The whole path.
    pub fn joined(&self) -> CString {
        Self::join(&self.parts)
    }
}

/// Why a parent directory cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ParentError {
    /// A component is a link that leads to nothing here, or to something that is no directory.
    NotADirectory(CString),
    /// A system call failed.
    Errno(Errno),
}

/// The directory being filled.
pub(super) struct Root {
    fd: OwnedFd,
    /// Where the last entry was made: archives list a directory's files together.
    last_parent: Option<(CString, Rc<OwnedFd>)>,
    /// Directories no entry named, made because an entry needed them.
    pub implied: Vec<CString>,
}

impl Root {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> nix::Result<Self> {
        let fd = open(path, OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { fd, last_parent: None, implied: Vec::new() })
    }

    /// The directory itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens an existing directory below, following links inside the root only.
    pub fn directory(&self, path: &CStr, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // EAGAIN means that something was renamed meanwhile; nobody else works in this directory, so it passes.
        loop {
            match openat2(&self.fd, path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Opens the directory an entry lives in, making what is missing of it.
    pub fn parent(&mut self, parts: &[CString]) -> Result<Rc<OwnedFd>, ParentError> {
        let joined = EntryPath::join(parts);
        if let Some((path, fd)) = &self.last_parent
            && *path == joined
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.directory(&joined, OFlag::O_PATH) {
            Err(Errno::ENOENT) => self.make_parents(parts)?,
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(ParentError::NotADirectory(joined)),
            other => other.map_err(ParentError::Errno)?,
        };
        let fd = Rc::new(fd);
        self.last_parent = Some((joined, Rc::clone(&fd)));
        Ok(fd)
    }

    /// Opens an entry's directory only if it is there.
    pub fn existing_parent(&self, parts: &[CString]) -> nix::Result<OwnedFd> {
        self.directory(&EntryPath::join(parts), OFlag::O_PATH)
    }

    /// Forgets what was resolved. To be called when a directory or a link has been removed or replaced.
    pub fn forget(&mut self) {
        self.last_parent = None;
    }

    fn make_parents(&mut self, parts: &[CString]) -> Result<OwnedFd, ParentError> {
        let mut above = self.directory(c".", OFlag::O_PATH).map_err(ParentError::Errno)?;
        for depth in 1..=parts.len() {
            let path = EntryPath::join(&parts[..depth]);
            above = match self.directory(&path, OFlag::O_PATH) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => {
                    let name = parts[depth - 1].as_c_str();
                    match mkdirat(&above, name, Mode::from_bits_truncate(0o755)) {
                        Ok(()) => self.implied.push(path.clone()),
                        Err(Errno::EEXIST) => return Err(ParentError::NotADirectory(path)),
                        Err(errno) => return Err(ParentError::Errno(errno)),
                    }
                    self.directory(&path, OFlag::O_PATH).map_err(ParentError::Errno)?
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(ParentError::NotADirectory(path)),
                Err(errno) => return Err(ParentError::Errno(errno)),
            };
        }
        Ok(above)
    }
}

/// What stands under a name, links not followed; `None` for nothing.
pub(super) fn look(parent: BorrowedFd<'_>, name: &CStr) -> nix::Result<Option<FileStat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_escapes_refused() {
        for (name, clean) in [
            (&b"a/b"[..], Ok("a/b")),
            (b"/etc/passwd", Ok("etc/passwd")),
            (b"./a//b/./c/", Ok("a/b/c")),
            (b"a/../b", Ok("b")),
            (b"./", Ok(".")),
            (b"", Ok(".")),
            (b"../a", Err(Escapes)),
            (b"a/../../b", Err(Escapes)),
            (b"/..", Err(Escapes)),
            (b"a\0b", Err(Escapes)),
        ] {
            let parsed = EntryPath::parse(name).map(|p| p.joined().into_string().unwrap());
            assert_eq!(parsed.as_deref().map_err(|e| *e), clean, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn links_in_the_middle_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        std::fs::create_dir_all(inside.join("usr/lib")).unwrap();
        std::os::unix::fs::symlink("usr/lib", inside.join("lib")).unwrap();
        std::os::unix::fs::symlink("/", inside.join("top")).unwrap();
        std::os::unix::fs::symlink("../..", inside.join("up")).unwrap();
        std::os::unix::fs::symlink("/nowhere", inside.join("lost")).unwrap();
        let mut root = Root::open(&inside).unwrap();
        let mut make = |path: &[u8]| {
            let path = EntryPath::parse(path).unwrap();
            let (name, parents) = path.split().unwrap();
            let parent = root.parent(parents)?;
            mkdirat(parent, name, Mode::S_IRWXU).map_err(ParentError::Errno)
        };
        for path in ["lib/a", "top/b", "up/c", "new/deep/d"] {
            assert_eq!(make(path.as_bytes()), Ok(()), "{path}");
        }
        assert_eq!(make(b"lost/e"), Err(ParentError::NotADirectory(c"lost".to_owned())));
        for path in ["usr/lib/a", "b", "c", "new/deep/d"] {
            assert!(inside.join(path).is_dir(), "{path}");
        }
        assert_eq!(root.implied, [c"new".to_owned(), c"new/deep".to_owned()]);
    }
}
