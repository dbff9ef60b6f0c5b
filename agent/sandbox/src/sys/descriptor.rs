//! Descriptors that arrive as bare numbers, received in a message.
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
