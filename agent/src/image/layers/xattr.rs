//! Setting extended attributes through a descriptor.
//!
//! This file alone of `image` holds `unsafe`: nix has no wrapper for `fsetxattr(2)`, and a path-based call could be led
//! astray by a link in an archive.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Sets or replaces one attribute of the open file or directory.
pub(super) fn set(fd: impl AsFd, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call; `name` is NUL-terminated; pointer and length describe `value`,
    // which the kernel only reads.
    let result = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}
