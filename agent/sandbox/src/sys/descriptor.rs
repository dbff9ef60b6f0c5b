//! Descriptors that arrive as bare numbers: accepted, or received in a message.
//!
//! Never: duplicates or closes; it only says who the owner is. Public, because the daemon receives terminals, too.
#![allow(unsafe_code)] // Reason: a number becomes an owner here and nowhere else.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockFlag, accept4, recvmsg};

use crate::protocol::MAX_FDS;

/// A message, and the descriptors that came beside it.
#[derive(Debug)]
pub struct Received {
    /// How many bytes of the buffer it fills.
    pub length: usize,
    /// More descriptors came than fit; the kernel has closed those.
    pub descriptors_cut: bool,
    /// At most [`MAX_FDS`], close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one message with its descriptors (`SCM_RIGHTS`). `flags` are added to `MSG_CMSG_CLOEXEC`.
///
/// # Errors
/// Those of `recvmsg(2)`; `EAGAIN` when there is nothing and the call may not wait.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: MsgFlags) -> Result<Received, Errno> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(buffer)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let rights = message.cmsgs().into_iter().flatten().filter_map(|control| match control {
        ControlMessageOwned::ScmRights(numbers) => Some(numbers),
        _ => None,
    });
    // SAFETY: the kernel installed these numbers for us in the message just received, and each is taken over once, so
    // nobody else owns it.
    let descriptors = rights.flatten().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
    let descriptors_cut = message.flags.contains(MsgFlags::MSG_CTRUNC);
    Ok(Received { length: message.bytes, descriptors_cut, descriptors })
}

/// Accepts a connection, close-on-exec.
pub(crate) fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    let number = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
