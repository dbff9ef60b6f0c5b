//! The channel from a helper, and from what it starts, back to the supervisor.
//!
//! Owns: the messages and the socket pair. Never: waits; the supervisor reads when the event loop says so.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use serde::{Deserialize, Serialize};

use crate::protocol::Failure;
use crate::sys::descriptor;

/// Longest message; failures are cut to it.
const MAX_REPORT: usize = 4096;

/// What a helper, or the process it made, has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The container's cgroup, as the spec names it. Said before there is one.
    Cgroup(PathBuf),
    /// The process exists and was told to go. A pty master may come along.
    Created {
        /// In the node's pid namespace.
        pid: i32,
    },
    /// More about a failure that follows.
    Detail(String),
    /// It will not run. The first failure is the cause of any other.
    Failed(Failure),
}

/// A pair of ends: the supervisor's and the helper's. Both close on exec, the supervisor's does not block.
pub fn channel() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((ours, theirs))
}

/// Sends a report. An error means that the supervisor is gone, or that a filter forbids it: nobody can be told.
pub fn send(channel: BorrowedFd<'_>, report: &Report, master: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut text = serde_json::to_vec(&shortened(report)).map_err(|_| Errno::EINVAL)?;
    text.truncate(2 * MAX_REPORT);
    let fds: Vec<i32> = master.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let iov = [IoSlice::new(&text)];
    sendmsg::<()>(channel.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

fn shortened(report: &Report) -> Report {
    let cut = |text: &str| {
        let fits = (0..=text.len().min(MAX_REPORT / 2)).rev().find(|end| text.is_char_boundary(*end));
        text[..fits.unwrap_or(0)].to_owned()
    };
    match report {
        Report::Cgroup(path) => Report::Cgroup(path.clone()),
        Report::Created { pid } => Report::Created { pid: *pid },
        Report::Detail(text) => Report::Detail(cut(text)),
        Report::Failed(failure) => {
            Report::Failed(Failure { kind: failure.kind, message: cut(&failure.message) })
        }
    }
}

/// What a read of the channel gave.
#[derive(Debug)]
pub enum Received {
    /// A report, and the pty master that came with it.
    Report(Report, Option<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// Nobody holds the other end any more: the outcome is known.
    End,
}

/// Reads one report.
pub fn receive(channel: &OwnedFd) -> Received {
    let mut text = [0u8; 2 * MAX_REPORT];
    let mut message = match descriptor::receive(channel.as_fd(), &mut text, MsgFlags::MSG_DONTWAIT) {
        Ok(message) => message,
        Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
        Err(_) => return Received::End,
    };
    match serde_json::from_slice(&text[..message.length]) {
        _ if message.length == 0 => Received::End,
        Ok(report) => Received::Report(report, message.descriptors.pop()),
        // Only our own helpers hold the other end; what they cannot say is nothing.
        Err(_) => Received::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::FailureKind;

    #[test]
    fn reports_arrive_whole_and_then_the_end() {
        let (ours, theirs) = channel().unwrap();
        assert!(matches!(receive(&ours), Received::Nothing));
        let created = Report::Created { pid: 7 };
        let failed =
            Report::Failed(Failure { kind: FailureKind::CannotRun, message: "é".repeat(MAX_REPORT) });
        send(theirs.as_fd(), &created, Some(&theirs)).unwrap();
        send(theirs.as_fd(), &failed, None).unwrap();
        drop(theirs);
        let Received::Report(report, Some(descriptor)) = receive(&ours) else { panic!() };
        assert_eq!(report, created);
        drop(descriptor);
        let Received::Report(Report::Failed(failure), None) = receive(&ours) else { panic!() };
        assert_eq!(failure.message, "é".repeat(MAX_REPORT / 4));
        assert!(matches!(receive(&ours), Received::End));
    }
}
