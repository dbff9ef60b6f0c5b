//! Extended attributes through descriptors.
//!
//! This file alone of `image` holds `unsafe`: nix has no wrappers for `fsetxattr(2)` and its sisters, and a path-based call
//! could be led astray by a link in an archive.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// The kernel's bound for one value and for the list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LARGEST: usize = 64 * 1024;

/// Sets or replaces one attribute of the open file or directory.
pub(super) fn set(fd: impl AsFd, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call; `name` is NUL-terminated; pointer and length describe `value`,
    // which the kernel only reads.
    let result = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

/// Gives `to` every attribute of `from`.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    let mut buffer = vec![0u8; LARGEST];
    // SAFETY: the descriptor is borrowed for the call; pointer and length describe `buffer`, which is ours alone.
    let listed = unsafe { libc::flistxattr(from.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let length = match Errno::result(listed) {
        Ok(length) => usize::try_from(length).unwrap_or(0),
        Err(Errno::ENOTSUP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let names: Vec<CString> = buffer[..length]
        .split_inclusive(|&b| b == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned))
        .collect();
    for name in names {
        // SAFETY: as above; `name` is NUL-terminated.
        let read = unsafe {
            libc::fgetxattr(from.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        let length = usize::try_from(Errno::result(read)?).unwrap_or(0);
        set(to, &name, &buffer[..length])?;
    }
    Ok(())
}
