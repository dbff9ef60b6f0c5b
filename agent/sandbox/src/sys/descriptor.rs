//! Descriptors that arrive as bare numbers: inherited from the parent, or received in a message.
//!
//! Never: duplicates or closes; it only says who the owner is.
#![allow(unsafe_code)] // Reason: a number becomes an owner here and nowhere else.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of descriptors that the kernel has just installed for this process (`SCM_RIGHTS`).
pub fn adopt_received(numbers: &[RawFd]) -> Vec<OwnedFd> {
    numbers
        .iter()
        .map(|&number| {
            // SAFETY: the kernel installed this number for us in the message just received, and the caller hands
            // each message's numbers over once, so nobody else owns it.
            unsafe { OwnedFd::from_raw_fd(number) }
        })
        .collect()
}

/// Takes ownership of a descriptor that the parent process left open for us; `None` if it is not open.
///
/// Call it once for each number, at the start of the process, before anything else could have opened it.
pub fn adopt_inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only looks a number up; it touches no memory.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    // SAFETY: the number is open, and by this function's contract nothing in this process owns it yet.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}
