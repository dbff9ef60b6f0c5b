//! One client's connection: packets in, packets out, descriptors beside them.
//!
//! Owns: the socket and a bounded queue of what the client has not read yet. Never: blocks; a client that does not read
//! is dropped, and finds everything again in `State` and in the records when it comes back.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};

use crate::protocol::{Failure, FailureKind, FromSupervisor, MAX_FDS, MAX_PACKET, Request};
use crate::sys::descriptor;

/// The most packets that wait for a client.
const MAX_QUEUED: usize = 256;
/// The most bytes that wait for a client.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// A client.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    queue: VecDeque<Packet>,
    queued_bytes: usize,
    /// The client has said Hello: it gets answers and events.
    pub greeted: bool,
}

#[derive(Debug)]
struct Packet {
    text: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

/// What a read gave.
#[derive(Debug)]
pub enum Incoming {
    /// A request and its descriptors.
    Request(Request, Vec<OwnedFd>),
    /// A packet that is none; the id if it could be made out.
    Malformed(u64, Failure),
    /// Nothing now.
    Nothing,
    /// The client is gone.
    Closed,
}

/// The connection is of no use any more and must be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Takes a connected socket.
    pub fn new(socket: OwnedFd) -> Self {
        Connection { socket, queue: VecDeque::new(), queued_bytes: 0, greeted: false }
    }

    /// Reads one packet.
    pub fn receive(&self) -> Incoming {
        let length = match self.peek_length() {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return Incoming::Nothing,
            Err(_) => return Incoming::Closed,
        };
        // Only as large as the packet: an idle supervisor keeps no buffers.
        let mut text = vec![0u8; length.min(MAX_PACKET)];
        let received = match descriptor::receive(self.socket.as_fd(), &mut text, MsgFlags::MSG_DONTWAIT) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Incoming::Nothing,
            Err(_) => return Incoming::Closed,
        };
        if received.length == 0 {
            return Incoming::Closed;
        }
        if length > MAX_PACKET {
            return malformed(&text, format!("packet of {length} bytes, at most {MAX_PACKET} are taken"));
        }
        if received.descriptors_cut {
            return malformed(&text, format!("more than {MAX_FDS} descriptors in a packet"));
        }
        match serde_json::from_slice(&text[..received.length]) {
            Ok(request) => Incoming::Request(request, received.descriptors),
            Err(error) => malformed(&text[..received.length], format!("not a request: {error}")),
        }
    }

    /// The whole length of the next packet, which stays where it is.
    fn peek_length(&self) -> Result<usize, Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let mut iov = [IoSliceMut::new(&mut [])];
        recvmsg::<()>(self.socket.as_raw_fd(), &mut iov, None, flags).map(|message| message.bytes)
    }

    /// Sends, or queues what cannot be sent now. Whether anything waits is for [`Connection::is_waiting`] to say.
    pub fn send(&mut self, message: &FromSupervisor, descriptor: Option<OwnedFd>) -> Result<(), Broken> {
        let text = serde_json::to_vec(message).map_err(|_| Broken)?;
        self.queued_bytes += text.len();
        self.queue.push_back(Packet { text, descriptor });
        self.flush()?;
        let full = self.queue.len() > MAX_QUEUED || self.queued_bytes > MAX_QUEUED_BYTES;
        if full { Err(Broken) } else { Ok(()) }
    }

    /// Sends what waits, as far as the client's socket takes it.
    pub fn flush(&mut self) -> Result<(), Broken> {
        while let Some(packet) = self.queue.front() {
            let fds: Vec<i32> = packet.descriptor.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&packet.text)], control, flags, None)
            {
                Ok(_) => {
                    self.queued_bytes -= packet.text.len();
                    self.queue.pop_front();
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Broken),
            }
        }
        self.queue = VecDeque::new();
        Ok(())
    }

    /// Whether something waits until the client reads.
    pub fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }
}

fn malformed(text: &[u8], message: String) -> Incoming {
    #[derive(serde::Deserialize)]
    struct JustId {
        id: u64,
    }
    let id = serde_json::from_slice::<JustId>(text).map_or(0, |just| just.id);
    Incoming::Malformed(id, Failure { kind: FailureKind::BadRequest, message })
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt};
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Answer, Call, Reply};

    fn pair() -> (Connection, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&theirs, sockopt::SndBuf, &(1 << 20)).unwrap();
        (Connection::new(ours), theirs)
    }

    fn say(client: &OwnedFd, text: &[u8]) {
        assert_eq!(send(client.as_raw_fd(), text, MsgFlags::empty()).unwrap(), text.len());
    }

    #[test]
    fn a_request_arrives_with_its_descriptors() {
        let (connection, client) = pair();
        let text = serde_json::to_vec(&Request { id: 5, call: Call::State }).unwrap();
        let fds = [client.as_raw_fd(), client.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(&text)], &control, MsgFlags::empty(), None).unwrap();
        let Incoming::Request(request, fds) = connection.receive() else { panic!() };
        assert_eq!((request, fds.len()), (Request { id: 5, call: Call::State }, 2));
        assert!(matches!(connection.receive(), Incoming::Nothing));
        drop((client, fds));
        assert!(matches!(connection.receive(), Incoming::Closed));
    }

    #[test]
    fn what_is_no_request_is_answered_by_its_id() {
        let (connection, client) = pair();
        let large = format!(r#"{{"id":9,"call":"{}"}}"#, "x".repeat(MAX_PACKET));
        for (text, id, what) in [
            (r#"{"id":7,"call":"no_such_call"}"#, 7, "not a request"),
            ("\u{0}\u{1}", 0, "not a request"),
            (r#"{"id":-1}"#, 0, "not a request"),
            (large.as_str(), 0, "at most 65536"),
        ] {
            say(&client, text.as_bytes());
            let Incoming::Malformed(got, failure) = connection.receive() else { panic!("{what}") };
            assert_eq!((got, failure.kind), (id, FailureKind::BadRequest));
            assert!(failure.message.contains(what), "{}", failure.message);
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped_and_one_that_does_gets_all() {
        let message = |id| FromSupervisor::Reply(Reply { id, result: Ok(Answer::Done) });
        let (mut connection, client) = pair();
        let mut sent = 0;
        while !connection.is_waiting() {
            connection.send(&message(sent), None).unwrap();
            sent += 1;
        }
        let mut text = [0u8; 1024];
        for expected in 0..sent {
            let length = recv(client.as_raw_fd(), &mut text, MsgFlags::empty()).unwrap();
            let got: FromSupervisor = serde_json::from_slice(&text[..length]).unwrap();
            assert_eq!(got, message(expected));
            connection.flush().unwrap();
        }
        assert!(!connection.is_waiting());
        let mut result = Ok(());
        for id in 0..100_000 {
            result = connection.send(&message(id), None);
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, Err(Broken));
    }

    proptest! {
        #[test]
        fn no_packet_is_a_panic(text in proptest::collection::vec(any::<u8>(), 1..300)) {
            let (connection, client) = pair();
            say(&client, &text);
            let received = connection.receive();
            prop_assert!(matches!(received, Incoming::Malformed(..) | Incoming::Request(..)));
        }

        #[test]
        fn no_json_is_a_panic(id in any::<i64>(), call in "[a-z_]{0,12}", value in any::<i32>()) {
            let (connection, client) = pair();
            say(&client, format!(r#"{{"id":{id},"call":{{"{call}":{value}}}}}"#).as_bytes());
            let received = connection.receive();
            prop_assert!(matches!(received, Incoming::Malformed(..) | Incoming::Request(..)));
        }
    }
}
