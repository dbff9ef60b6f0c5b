//! Making one archive entry in a layer's directory: kinds, owners, modes, attributes, times and whiteouts.
//!
//! Owns: the [`Root`] being filled, and the times of directories, which are set last because filling a directory changes
//! them. Order within an entry: content, owner, mode (a change of owner clears setuid), attributes (a change of owner
//! clears capabilities), time.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, mkfifoat, symlinkat};

use super::root::{EntryPath, Escapes, ParentError, Root, look};
use super::tar::{Kind, Member, printable};
use super::{LayerError, read_error, remove_tree, xattr};

const BUFFER: usize = 128 * 1024;
const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Fills one directory.
pub(super) struct Unpacker {
    root: Root,
    directory: PathBuf,
    directory_times: Vec<(CString, TimeSpec)>,
    buffer: Vec<u8>,
    size: u64,
}

/// An errno with what was attempted, on its way to becoming a [`LayerError`].
struct Failed(&'static str, Errno);

trait Doing<T> {
    fn doing(self, action: &'static str) -> Result<T, Failed>;
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, action: &'static str) -> Result<T, Failed> {
        self.map_err(|errno| Failed(action, errno))
    }
}

impl Unpacker {
    pub fn new(directory: &Path) -> Result<Self, LayerError> {
        let root = Root::open(directory).map_err(|errno| LayerError::System {
            entry: directory.display().to_string(),
            action: "open the directory",
            errno,
        })?;
        let (directory_times, buffer) = (Vec::new(), vec![0; BUFFER]);
        Ok(Self { root, directory: directory.to_owned(), directory_times, buffer, size: 0 })
    }

    /// Makes one entry.
    pub fn entry(&mut self, member: &Member, data: &mut impl Read) -> Result<(), LayerError> {
        let path = EntryPath::parse(&member.path).map_err(|Escapes| LayerError::Escapes {
            entry: member.display_name(),
            what: "its name".into(),
        })?;
        let Some((name, parents)) = path.split() else {
            return self.root_itself(member);
        };
        let parent = match self.root.parent(parents) {
            Ok(parent) => parent,
            Err(error) => return Err(self.parent_error(member, error)),
        };
        if let Some(hidden) = name.to_bytes().strip_prefix(b".wh.") {
            return self.whiteout(member, parent.as_fd(), hidden);
        }
        let failed = match member.kind {
            Kind::Directory => self.make_directory(member, &path, parent.as_fd(), name),
            Kind::File => return self.make_file(member, data, parent.as_fd(), name),
            Kind::HardLink => return self.make_hard_link(member, parent.as_fd(), name),
            Kind::Symlink => self.make_symlink(member, parent.as_fd(), name),
            Kind::Char | Kind::Block | Kind::Fifo => self.make_node(member, parent.as_fd(), name),
        };
        failed.map_err(|f| self.failed(member, f))
    }

    /// Sets the directories' times. Returns bytes in files, and the directories no entry named.
    pub fn finish(mut self) -> Result<(u64, Vec<PathBuf>), LayerError> {
        for (path, time) in self.directory_times.drain(..).rev() {
            // A later entry may have replaced the directory.
            if let Ok(fd) = self.root.directory(&path, OFlag::O_RDONLY | OFlag::O_NOFOLLOW) {
                futimens(&fd, &time, &time).map_err(|errno| LayerError::System {
                    entry: printable(path.to_bytes()),
                    action: "set its time",
                    errno,
                })?;
            }
        }
        let implied =
            self.root.implied.iter().map(|p| PathBuf::from(OsStr::from_bytes(p.to_bytes()))).collect();
        Ok((self.size, implied))
    }

    fn root_itself(&mut self, member: &Member) -> Result<(), LayerError> {
        if member.kind != Kind::Directory {
            let reason = "it would replace the root directory with something else".to_owned();
            return Err(LayerError::Entry { entry: member.display_name(), reason });
        }
        self.directory_times.push((c".".to_owned(), time_of(member)));
        attributes(self.root.fd(), member).map_err(|f| self.failed(member, f))
    }

    fn make_directory(
        &mut self,
        member: &Member,
        path: &EntryPath,
        parent: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<(), Failed> {
        let mut hides_lower = false;
        if let Some(there) = look(parent, name).doing("look at it")? {
            if kind_of(&there) != SFlag::S_IFDIR {
                hides_lower = is_whiteout(&there);
                self.clear(parent, name)?;
                mkdirat(parent, name, Mode::S_IRWXU).doing("make the directory")?;
            }
        } else {
            mkdirat(parent, name, Mode::S_IRWXU).doing("make the directory")?;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty()).doing("open the directory")?;
        if hides_lower {
            xattr::set(&fd, OPAQUE, b"y").doing("mark it opaque")?;
        }
        attributes(fd.as_fd(), member)?;
        let joined = path.joined();
        self.root.implied.retain(|implied| *implied != joined);
        self.directory_times.push((joined, time_of(member)));
        Ok(())
    }

    fn make_file(
        &mut self,
        member: &Member,
        data: &mut impl Read,
        parent: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<(), LayerError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut created = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        if matches!(created, Err(Errno::EEXIST)) {
            self.clear(parent, name).map_err(|f| self.failed(member, f))?;
            created = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        }
        let file = File::from(created.doing("create the file").map_err(|f| self.failed(member, f))?);
        self.copy(member, data, &file)?;
        attributes(file.as_fd(), member).map_err(|f| self.failed(member, f))?;
        let time = time_of(member);
        futimens(&file, &time, &time).doing("set its time").map_err(|f| self.failed(member, f))
    }

    fn copy(&mut self, member: &Member, data: &mut impl Read, file: &File) -> Result<(), LayerError> {
        let whole = [(0, member.size)];
        let segments = member.sparse.as_ref().map_or(&whole[..], |s| &s.segments);
        for &(offset, length) in segments {
            let mut at = offset;
            while at < offset + length {
                let want = self.buffer.len().min(usize::try_from(offset + length - at).unwrap_or(usize::MAX));
                let n = data.read(&mut self.buffer[..want]).map_err(read_error)?;
                file.write_all_at(&self.buffer[..n], at)
                    .map_err(|e| self.failed(member, Failed("write", errno_of(&e))))?;
                at += n as u64;
                self.size += n as u64;
            }
        }
        if let Some(sparse) = &member.sparse {
            file.set_len(sparse.size)
                .map_err(|e| self.failed(member, Failed("set its size", errno_of(&e))))?;
        }
        Ok(())
    }

    fn make_hard_link(
        &mut self,
        member: &Member,
        parent: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<(), LayerError> {
        let target = printable(&member.link);
        let what = format!("its hard link target {target:?}");
        let path = EntryPath::parse(&member.link)
            .map_err(|Escapes| LayerError::Escapes { entry: member.display_name(), what })?;
        let missing = |why: &str| LayerError::Entry {
            entry: member.display_name(),
            reason: format!("its hard link target {target:?} {why}"),
        };
        let (old_name, old_parents) = path.split().ok_or_else(|| missing("is the layer's root"))?;
        let old_parent = match self.root.existing_parent(old_parents) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Err(missing("is not in the layer")),
            Err(errno) => return Err(self.failed(member, Failed("open its target", errno))),
        };
        let link = || linkat(&old_parent, old_name, parent, name, AtFlags::empty());
        let mut linked = link();
        if linked == Err(Errno::EEXIST) {
            let same = |a: FileStat, b: FileStat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
            if let (Ok(Some(old)), Ok(Some(new))) = (look(old_parent.as_fd(), old_name), look(parent, name))
                && same(old, new)
            {
                return Ok(());
            }
            self.clear(parent, name).map_err(|f| self.failed(member, f))?;
            linked = link();
        }
        match linked {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => Err(missing("is not in the layer")),
            Err(Errno::EPERM) => Err(missing("is a directory")),
            Err(errno) => Err(self.failed(member, Failed("make the hard link", errno))),
        }
    }

    fn make_symlink(&mut self, member: &Member, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Failed> {
        let target =
            CString::new(&member.link[..]).map_err(|_| Failed("read the link's target", Errno::EINVAL))?;
        let mut made = symlinkat(target.as_c_str(), parent, name);
        if made == Err(Errno::EEXIST) {
            self.clear(parent, name)?;
            made = symlinkat(target.as_c_str(), parent, name);
        }
        made.doing("make the symbolic link")?;
        own(parent, name, member)?;
        let time = time_of(member);
        utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink).doing("set its time")
    }

    fn make_node(&mut self, member: &Member, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Failed> {
        let device = makedev(member.device.0.into(), member.device.1.into());
        let make = || match member.kind {
            Kind::Char => mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), device),
            Kind::Block => mknodat(parent, name, SFlag::S_IFBLK, Mode::empty(), device),
            Kind::Fifo | Kind::File | Kind::HardLink | Kind::Symlink | Kind::Directory => {
                mkfifoat(parent, name, Mode::empty())
            }
        };
        let mut made = make();
        if made == Err(Errno::EEXIST) {
            self.clear(parent, name)?;
            made = make();
        }
        made.doing("make the device or pipe")?;
        own(parent, name, member)?;
        // Not a link, for it was made just now by us alone: following is harmless, and the only form the kernel has.
        fchmodat(parent, name, mode_of(member), FchmodatFlags::FollowSymlink).doing("set its mode")?;
        let time = time_of(member);
        utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink).doing("set its time")
    }

    /// `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` everything below this directory.
    fn whiteout(&mut self, member: &Member, parent: BorrowedFd<'_>, hidden: &[u8]) -> Result<(), LayerError> {
        let failed = |this: &Self, f| Err(this.failed(member, f));
        if hidden == b".wh..opq" {
            return match open_readable(parent, c".").and_then(|fd| xattr::set(&fd, OPAQUE, b"y")) {
                Ok(()) => Ok(()),
                Err(errno) => failed(self, Failed("mark the directory opaque", errno)),
            };
        }
        if hidden.starts_with(b".wh.") {
            // Bookkeeping of aufs, which no other file system wants.
            return Ok(());
        }
        let name = match CString::new(hidden) {
            Ok(name) if !matches!(hidden, b"" | b"." | b"..") => name,
            Ok(_) | Err(_) => {
                let reason = "a whiteout of no usable name".to_owned();
                return Err(LayerError::Entry { entry: member.display_name(), reason });
            }
        };
        let done = match look(parent, &name) {
            Err(errno) => Err(Failed("look at what it hides", errno)),
            Ok(None) => mknodat(parent, name.as_c_str(), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))
                .doing("make the whiteout"),
            // The layer brings the name itself: a directory must not merge with the one below, a file hides it anyway.
            Ok(Some(there)) if kind_of(&there) == SFlag::S_IFDIR => open_readable(parent, &name)
                .and_then(|fd| xattr::set(&fd, OPAQUE, b"y"))
                .doing("mark the directory opaque"),
            Ok(Some(_)) => Ok(()),
        };
        done.map_err(|f| self.failed(member, f))
    }

    /// Removes what an entry replaces.
    fn clear(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Failed> {
        self.root.forget();
        remove_tree(parent, OsStr::from_bytes(name.to_bytes())).doing("remove what it replaces")
    }

    fn failed(&self, member: &Member, Failed(action, errno): Failed) -> LayerError {
        let entry = member.display_name();
        match errno {
            Errno::ENOSPC | Errno::EDQUOT => {
                LayerError::DiskFull { entry, directory: self.directory.clone() }
            }
            errno => LayerError::System { entry, action, errno },
        }
    }

    fn parent_error(&self, member: &Member, error: ParentError) -> LayerError {
        match error {
            ParentError::Errno(errno) => self.failed(member, Failed("open its directory", errno)),
            ParentError::NotADirectory(path) => LayerError::Entry {
                entry: member.display_name(),
                reason: format!(
                    "{:?} on the way to it is not a directory of the layer",
                    printable(path.to_bytes())
                ),
            },
        }
    }
}

fn attributes(fd: BorrowedFd<'_>, member: &Member) -> Result<(), Failed> {
    fchown(fd, Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid))).doing("set its owner")?;
    fchmod(fd, mode_of(member)).doing("set its mode")?;
    for (name, value) in member.xattrs.iter().filter(|(name, _)| is_wanted_xattr(name)) {
        let name = CString::new(&name[..]).map_err(|_| Failed("set an extended attribute", Errno::EINVAL))?;
        match xattr::set(fd, &name, value) {
            // The file system of the store does not keep such attributes; containers then lack them as well.
            Ok(()) | Err(Errno::ENOTSUP) => {}
            Err(errno) => return Err(Failed("set an extended attribute", errno)),
        }
    }
    Ok(())
}

/// Attributes that steer overlayfs or a security module are the host's business, never an archive's.
fn is_wanted_xattr(name: &[u8]) -> bool {
    name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn own(parent: BorrowedFd<'_>, name: &CStr, member: &Member) -> Result<(), Failed> {
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).doing("set its owner")
}

fn open_readable(parent: BorrowedFd<'_>, name: &CStr) -> nix::Result<std::os::fd::OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn mode_of(member: &Member) -> Mode {
    Mode::from_bits_truncate(member.mode & 0o7777)
}

fn time_of(member: &Member) -> TimeSpec {
    TimeSpec::new(member.mtime.0, member.mtime.1)
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn is_whiteout(stat: &FileStat) -> bool {
    kind_of(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
