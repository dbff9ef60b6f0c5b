//! A netlink socket to the netfilter subsystems.
//!
//! Owns: the descriptor, buffers, and the three conversations there are: a request that is acknowledged, a dump, and a
//! batch that succeeds or fails as one.
//! Never: knows what the messages mean.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::Error as Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send,
    setsockopt, socket, sockopt,
};

use crate::backend::BackendError;
use crate::objects::Family;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const RECEIVE: usize = 128 * 1024;
const SEND_BUFFER: usize = 1 << 20;

/// The socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
    send_buffer: usize,
    receive: Vec<u8>,
}

/// One message as it came.
#[derive(Clone, Copy)]
pub struct Raw<'a> {
    /// Type: subsystem and message.
    pub kind: u16,
    /// Port of the socket whose request caused it.
    pub port: u32,
    /// What follows the two headers.
    pub attributes: &'a [u8],
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread, joined to the given multicast groups (a bit
    /// mask).
    ///
    /// # Errors
    /// When the kernel has no nfnetlink or refuses.
    pub fn open(groups: u32) -> Result<Self, BackendError> {
        let failed = |errno| BackendError::Kernel {
            action: "open a netfilter netlink socket".to_owned(),
            errno,
            operation: None,
        };
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(failed)?;
        // Without CAP_NET_ADMIN in the initial user namespace the limit stays; small batches still fit.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &(8 * SEND_BUFFER));
        let port = getsockname::<NetlinkAddr>(fd.as_raw_fd()).map_err(failed)?.pid();
        Ok(Self { fd, port, sequence: 0, send_buffer: 0, receive: vec![0; RECEIVE] })
    }

    /// The port the kernel knows this socket by.
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Sends a request and waits until it is carried out.
    pub fn request(&mut self, family: Family, inner: NetfilterMessageInner) -> Result<(), Errno> {
        let bytes = self.message(family, inner, NLM_F_REQUEST | NLM_F_ACK);
        self.send(&bytes)?;
        self.receive_until_done(false, |_| {})
    }

    /// Sends a request for a list and hands each entry to `each`.
    pub fn dump(
        &mut self,
        family: Family,
        inner: NetfilterMessageInner,
        each: impl FnMut(Raw<'_>),
    ) -> Result<(), Errno> {
        let bytes = self.message(family, inner, NLM_F_REQUEST | NLM_F_DUMP);
        self.send(&bytes)?;
        self.receive_until_done(true, each)
    }

    /// Carries out a batch. The error names the message that was refused, counted from zero without the batch's own
    /// first message.
    pub fn batch(&mut self, batch: &Batch) -> Result<(), (Errno, Option<usize>)> {
        self.make_room(batch.bytes.len()).map_err(|errno| (errno, None))?;
        self.send(&batch.bytes).map_err(|errno| (errno, None))?;
        // The kernel has processed the batch when send returns: all answers are waiting. Only the last message asks
        // for one; others answer when they are refused.
        let mut outcome = None;
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.receive, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err((errno, None)),
            };
            for (header, body) in messages(&self.receive[..length]) {
                if header.message_type != NLMSG_ERROR {
                    continue;
                }
                let errno = error_code(body);
                let index = header.sequence_number.checked_sub(1).map(|index| index as usize);
                match (errno, &outcome) {
                    (Some(errno), None | Some(Ok(()))) => outcome = Some(Err((errno, index))),
                    (None, None) => outcome = Some(Ok(())),
                    _ => {}
                }
            }
        }
        outcome.unwrap_or(Err((Errno::EIO, None)))
    }

    /// Reads what is waiting, without waiting for more, and hands each message to `each`.
    pub fn drain(&mut self, mut each: impl FnMut(Raw<'_>)) -> Result<(), Errno> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.receive, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            };
            for (header, body) in messages(&self.receive[..length]) {
                each(raw(&header, body));
            }
        }
    }

    fn message(&mut self, family: Family, inner: NetfilterMessageInner, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        append(&mut bytes, NetfilterHeader::new(protocol(family), 0, 0), inner, flags, self.sequence);
        bytes
    }

    /// A batch must fit into the send buffer as one datagram.
    fn make_room(&mut self, length: usize) -> Result<(), Errno> {
        let needed = (length + length / 8).max(SEND_BUFFER);
        if needed > self.send_buffer {
            setsockopt(&self.fd, sockopt::SndBufForce, &needed)?;
            self.send_buffer = needed;
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn receive_until_done(&mut self, dump: bool, mut each: impl FnMut(Raw<'_>)) -> Result<(), Errno> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.receive, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            };
            for (header, body) in messages(&self.receive[..length]) {
                if header.sequence_number != self.sequence {
                    continue;
                }
                match header.message_type {
                    NLMSG_DONE => return error_code(body).map_or(Ok(()), Err),
                    NLMSG_ERROR => match error_code(body) {
                        Some(errno) => return Err(errno),
                        None if dump => {}
                        None => return Ok(()),
                    },
                    _ => each(raw(&header, body)),
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn raw<'a>(header: &NetlinkHeader, body: &'a [u8]) -> Raw<'a> {
    Raw { kind: header.message_type, port: header.port_number, attributes: body.get(4..).unwrap_or_default() }
}

/// The messages of a datagram; a broken length ends them.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (NetlinkHeader, &[u8])> {
    std::iter::from_fn(move || {
        let word =
            |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
        let half =
            |at: usize| -> Option<u16> { Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?)) };
        let mut header = NetlinkHeader::default();
        header.length = word(0)?;
        header.message_type = half(4)?;
        header.flags = half(6)?;
        header.sequence_number = word(8)?;
        header.port_number = word(12)?;
        let length = header.length as usize;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, body))
    })
}

/// The error an answer carries; none for success.
fn error_code(body: &[u8]) -> Option<Errno> {
    let code = body.get(..4)?.try_into().map(i32::from_ne_bytes).ok()?;
    (code != 0).then(|| Errno::from_raw(-code))
}

fn protocol(family: Family) -> NetfilterProtoFamily {
    match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    }
}

fn append(
    bytes: &mut Vec<u8>,
    header: NetfilterHeader,
    inner: impl Into<NetfilterMessageInner>,
    flags: u16,
    sequence: u32,
) {
    let payload = NetlinkPayload::from(NetfilterMessage::new(header, inner));
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len(), 0);
    message.serialize(&mut bytes[start..]);
}

/// Messages that the kernel carries out together.
pub struct Batch {
    bytes: Vec<u8>,
    /// The sequence number of a message is one more than its index; the frame's is zero.
    next: u32,
    last: usize,
}

impl Batch {
    /// An empty batch for nf_tables.
    pub fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), next: 0, last: 0 };
        batch.frame(ControlMessage::BatchBegin);
        batch
    }

    /// Adds a message built by the message crate.
    pub fn add(&mut self, family: Family, inner: impl Into<NetfilterMessageInner>, flags: u16) {
        self.begin_message();
        append(&mut self.bytes, NetfilterHeader::new(protocol(family), 0, 0), inner, flags, self.next);
    }

    /// Adds an nf_tables message whose attributes `body` appends. Elements come by the hundred thousand: this spares
    /// them a tree of allocations.
    pub fn add_raw(&mut self, family: Family, message: u8, flags: u16, body: impl FnOnce(&mut Vec<u8>)) {
        self.begin_message();
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(((NFNL_SUBSYS_NFTABLES << 8) | u16::from(message)).to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.next.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([u8::from(protocol(family)), 0, 0, 0]);
        body(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - start).expect("a message is far smaller than 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Closes the batch.
    pub fn finish(mut self) -> Self {
        if self.next > 0 {
            // Asks for an answer to the last message.
            let flags =
                u16::from_ne_bytes([self.bytes[self.last + 6], self.bytes[self.last + 7]]) | NLM_F_ACK;
            self.bytes[self.last + 6..self.last + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.frame(ControlMessage::BatchEnd);
        self
    }

    fn begin_message(&mut self) {
        self.next += 1;
        self.last = self.bytes.len();
    }

    fn frame(&mut self, message: ControlMessage) {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
        append(&mut self.bytes, header, message, NLM_F_REQUEST, 0);
    }
}
