//! The new mount API: a file system is described to a descriptor, option by option, and then put somewhere.
//!
//! Options one by one have no common length limit, unlike the page that `mount(2)` takes: 128 layers fit.
//! Never: decides what to mount (see `rootfs`).
#![allow(unsafe_code)] // Reason: fsopen, fsconfig, fsmount and move_mount have no safe wrapper.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;

/// A file system being described.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

/// A mount that is nowhere yet.
#[derive(Debug)]
pub struct DetachedMount(OwnedFd);

impl FsContext {
    /// Opens a context for a file system type.
    pub fn open(file_system: &CStr) -> Result<Self, Errno> {
        // SAFETY: the name is a terminated string that outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, file_system.as_ptr(), FSOPEN_CLOEXEC) };
        owned(fd).map(FsContext)
    }

    /// Sets one option.
    pub fn set(&self, key: &CStr, value: &CStr) -> Result<(), Errno> {
        // SAFETY: both strings are terminated and outlive the call; the descriptor is a context.
        let done = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        };
        Errno::result(done).map(drop)
    }

    /// What the kernel has to say about the last failure, if anything.
    pub fn complaint(&self) -> Option<String> {
        let mut text = [0u8; 256];
        let length = nix::unistd::read(&self.0, &mut text).ok()?;
        let text = String::from_utf8_lossy(text.get(2..length)?).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Creates the file system and a mount of it.
    pub fn mount(&self) -> Result<DetachedMount, Errno> {
        let fd = self.0.as_raw_fd();
        // SAFETY: the command takes neither key nor value; null is what it asks for.
        let done = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                fd,
                FSCONFIG_CMD_CREATE,
                ptr::null::<u8>(),
                ptr::null::<u8>(),
                0,
            )
        };
        Errno::result(done)?;
        // SAFETY: numbers only.
        let mount = unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0) };
        owned(mount).map(DetachedMount)
    }
}

impl DetachedMount {
    /// Puts the mount on a directory.
    pub fn attach(self, target: BorrowedFd<'_>) -> Result<(), Errno> {
        let empty = c"".as_ptr();
        let flags = MOVE_MOUNT_F_EMPTY_PATH | 0x40; // MOVE_MOUNT_T_EMPTY_PATH: the target is a descriptor, too.
        // SAFETY: the two paths are empty terminated strings; both descriptors are open.
        let done = unsafe {
            libc::syscall(libc::SYS_move_mount, self.0.as_raw_fd(), empty, target.as_raw_fd(), empty, flags)
        };
        Errno::result(done).map(drop)
    }
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Opens a file by way of a mount of its own, which is read-only and nowhere: whoever gets at the file through a process
/// that was executed from this descriptor cannot write to it, whatever the file's own mount and mode would allow.
pub fn open_read_only(path: &CStr) -> Result<OwnedFd, Errno> {
    const OPEN_TREE_CLONE: u32 = 1;
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    // SAFETY: the path is a terminated string that outlives the call.
    let tree = owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    let (fd, empty) = (tree.as_raw_fd(), c"".as_ptr());
    // SAFETY: the path is an empty terminated string, and the attributes outlive the call, which writes to neither.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, empty, libc::AT_EMPTY_PATH, &attr, size_of::<MountAttr>())
    };
    Errno::result(done)?;
    Ok(tree)
}

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(fd)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
