//! The root file system of a container: overlay layers, mounted in the supervisor's mount namespace alone.
//!
//! Owns: the mount at `SandboxDir::rootfs`, and small questions about what is inside (a user's home, the working
//! directory), answered without ever leaving it. Never: unpacks layers, follows a link out of the root.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::utsname::uname;

use crate::protocol::Rootfs;
use crate::sys::mount::FsContext;

/// `fsconfig` takes strings up to this length.
const MAX_OPTION: usize = 255;
/// Longest `/etc/passwd` that is looked through.
const MAX_PASSWD: u64 = 1 << 20;

/// Why a root file system is not there.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A directory cannot be made or opened.
    #[error("root file system: {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The overlay was refused.
    #[error("mount overlay of {layers} layers on {target}: {what}: {errno}{complaint}")]
    Overlay {
        /// How many lower layers.
        layers: usize,
        /// Where.
        target: PathBuf,
        /// Which step.
        what: String,
        /// Why.
        errno: Errno,
        /// The kernel's own words.
        complaint: String,
    },
}

/// Mounts the layers on `target`, which is made if absent.
pub fn mount_root(rootfs: &Rootfs, target: &Path) -> Result<(), RootfsError> {
    for directory in [&rootfs.upper, &rootfs.work, target] {
        fs::create_dir_all(directory)
            .map_err(|source| RootfsError::Directory { path: directory.to_owned(), source })?;
    }
    if rootfs.lower.is_empty() {
        // No layer, nothing to overlay: the writable directory is the root.
        return mount(Some(&rootfs.upper), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| failure(rootfs, target, "bind upper directory", errno, None));
    }
    if takes_layers_one_by_one(&uname().map(|name| name.release().to_owned()).unwrap_or_default()) {
        overlay_by_option(rootfs, target)
    } else {
        overlay_by_string(rootfs, target)
    }
}

/// `lowerdir+` came with Linux 6.7. Older kernels take any option when it is set and refuse it, in their log too, when
/// the file system is created: so this is asked of the release instead of tried.
fn takes_layers_one_by_one(release: &OsStr) -> bool {
    let release = release.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 7)
}

fn failure(
    rootfs: &Rootfs,
    target: &Path,
    what: &str,
    errno: Errno,
    context: Option<&FsContext>,
) -> RootfsError {
    let complaint =
        context.and_then(FsContext::complaint).map(|text| format!(" ({text})")).unwrap_or_default();
    RootfsError::Overlay {
        layers: rootfs.lower.len(),
        target: target.to_owned(),
        what: what.to_owned(),
        errno,
        complaint,
    }
}

fn overlay_by_option(rootfs: &Rootfs, target: &Path) -> Result<(), RootfsError> {
    let fail = |what: &str, errno, context: Option<&FsContext>| failure(rootfs, target, what, errno, context);
    let context = FsContext::open(c"overlay").map_err(|errno| fail("open file system", errno, None))?;
    let mut keep: Vec<OwnedFd> = Vec::new();
    let mut set = |key: &'static std::ffi::CStr, path: &Path| {
        let name = || format!("{}={}", key.to_string_lossy(), path.display());
        let value = option_value(path, &mut keep).map_err(|errno| fail(&name(), errno, None))?;
        context.set(key, &value).map_err(|errno| fail(&name(), errno, Some(&context)))
    };
    // The protocol counts layers from the lowest; overlay wants the topmost first.
    for layer in rootfs.lower.iter().rev() {
        set(c"lowerdir+", layer)?;
    }
    set(c"upperdir", &rootfs.upper)?;
    set(c"workdir", &rootfs.work)?;
    context.set(c"source", c"overlay").map_err(|errno| fail("source", errno, Some(&context)))?;
    let mounted = context.mount().map_err(|errno| fail("create", errno, Some(&context)))?;
    let directory = open(target, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| fail("open mount point", errno, None))?;
    mounted.attach(directory.as_fd()).map_err(|errno| fail("attach", errno, None))
}

/// The path itself, or, if it is too long, a short name for it by way of an open descriptor.
fn option_value(path: &Path, keep: &mut Vec<OwnedFd>) -> Result<CString, Errno> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= MAX_OPTION {
        return CString::new(bytes).map_err(|_| Errno::EINVAL);
    }
    let short = short_name(path, keep)?;
    CString::new(short).map_err(|_| Errno::EINVAL)
}

fn short_name(path: &Path, keep: &mut Vec<OwnedFd>) -> Result<String, Errno> {
    let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    keep.push(fd);
    Ok(name)
}

/// The way of `mount(2)`: all layers in one string of at most a page. Short names make room for 128 of them.
fn overlay_by_string(rootfs: &Rootfs, target: &Path) -> Result<(), RootfsError> {
    let fail = |what: &str, errno| failure(rootfs, target, what, errno, None);
    let mut keep = Vec::new();
    let mut name = |path: &Path| {
        short_name(path, &mut keep).map_err(|errno| fail(&format!("open {}", path.display()), errno))
    };
    let layers = rootfs.lower.iter().rev().map(|layer| name(layer)).collect::<Result<Vec<_>, _>>()?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        layers.join(":"),
        name(&rootfs.upper)?,
        name(&rootfs.work)?
    );
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|errno| fail("mount", errno))
}

/// Takes the root away; not mounted is success.
pub fn unmount_root(target: &Path) -> Result<(), Errno> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// Opens something inside a root; links are followed as they would be by a process that has it for its root.
fn open_inside(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// Opens a directory as a root for the questions below.
pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
    openat2(AT_FDCWD, path, how)
}

/// The home directory that `/etc/passwd` inside a root gives to a user.
pub fn home_of(root: &OwnedFd, uid: u32) -> Option<String> {
    // Not blocking: the image may have put a pipe there.
    let file = open_inside(root, Path::new("etc/passwd"), OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?;
    let file = File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let same = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (same && !home.is_empty()).then(|| home.to_owned())
    })
}

/// Makes a working directory that the image lacks, with all its parents.
pub fn make_directory(root: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let mut done = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                let parent = if done.as_os_str().is_empty() { Path::new(".") } else { &done };
                let parent = open_inside(root, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                make_one(&parent, name)?;
                done.push(name);
            }
            Component::ParentDir => {
                done.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(())
}

fn make_one(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_release() {
        for (release, new) in [
            ("6.18.44-fc", true),
            ("6.7.0", true),
            ("7.0-rc1", true),
            ("6.1.0-44-amd64", false),
            ("5.15.0", false),
            ("", false),
        ] {
            assert_eq!(takes_layers_one_by_one(OsStr::new(release)), new, "{release}");
        }
    }

    #[test]
    fn home_is_found_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\nweb:x:33:33::/var/www:/bin/false\nn:x:44:44:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_in(passwd, 44), None);
        assert_eq!(home_in(passwd, 1), None);
    }

    #[test]
    fn directories_are_made_inside_the_root_only() {
        let outside = tempfile::tempdir().unwrap();
        let root_path = outside.path().join("root");
        fs::create_dir(&root_path).unwrap();
        std::os::unix::fs::symlink(outside.path().join("escaped"), root_path.join("link")).unwrap();
        let root = open_root(&root_path).unwrap();
        make_directory(&root, Path::new("/a/b/../c")).unwrap();
        assert!(root_path.join("a/b").is_dir() && root_path.join("a/c").is_dir());
        // The link's target does not exist inside the root, so nothing can be made below it.
        assert!(make_directory(&root, Path::new("/link/x")).is_err());
        assert!(!outside.path().join("escaped").exists());
    }

    #[test]
    fn passwd_that_is_a_link_is_read_inside_the_root() {
        let root_path = tempfile::tempdir().unwrap();
        fs::create_dir_all(root_path.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/real", root_path.path().join("etc/passwd")).unwrap();
        fs::write(root_path.path().join("real"), "u:x:5:5::/home/u:/bin/sh\n").unwrap();
        assert_eq!(home_of(&open_root(root_path.path()).unwrap(), 5).as_deref(), Some("/home/u"));
    }
}
