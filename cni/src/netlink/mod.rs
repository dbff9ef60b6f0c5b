//! One blocking netlink socket: send a request, read the answers.
//!
//! Owns: the socket, sequence numbers, acknowledgements and dumps.
//! The messages themselves are built by `rtnetlink` and the packet crates; what carries them here blocks, because
//! the plugin is a process without a runtime and the threads inside a namespace have none either.
//! A socket stays in the network namespace of the thread that opened it, wherever it is used from.

mod addresses;
mod conntrack;
mod links;
mod neighbours;
mod nft;
mod nft_rule;
mod nft_set;
mod route_watch;
mod routes;
mod rules;
mod shaping;
mod watch;

use std::fmt;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

pub use addresses::AddressSpec;
pub use links::{Link, VethSpec, VxlanSpec, format_mac};
pub use nft::Batch;
pub use nft_rule::Rule;
pub use nft_set::{Element, ElementInfo, Family, SetSpec};
pub use route_watch::{tells_of_routes, watch_routes};
pub use routes::{MAIN_TABLE, RouteSpec};
pub use rules::RuleSpec;
pub use shaping::Bucket;
pub use watch::LinkWatch;

/// A dump's datagrams are at most 32 KiB since Linux 3.15.
const BUFFER_BYTES: usize = 32 * 1024;

/// How often a listing is begun anew when what is listed changes meanwhile.
const LISTING_TRIES: usize = 16;

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// What the kernel, or the way to it, answered to a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NetlinkError {
    /// What was asked, as a phrase: `create veth x`.
    pub what: String,
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words (extended acknowledgement), if it said any.
    pub words: Option<String>,
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.errno.desc())?;
        self.words.as_ref().map_or(Ok(()), |words| write!(f, " ({words})"))
    }
}

impl NetlinkError {
    fn new(what: &str, errno: Errno) -> Self {
        Self { what: what.to_owned(), errno, words: None }
    }

    fn io(what: &str, error: &std::io::Error) -> Self {
        Self::new(what, Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

/// Turns "already there" or "already gone" into success.
pub fn unless<T: Default>(result: Result<T, NetlinkError>, fine: &[Errno]) -> Result<T, NetlinkError> {
    match result {
        Err(e) if fine.contains(&e.errno) => Ok(T::default()),
        other => other,
    }
}

/// A netlink socket and its sequence number.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// Whether what was listed last changed meanwhile.
    interrupted: bool,
}

impl Channel {
    /// A socket for links, addresses, routes and queues.
    ///
    /// # Errors
    /// The socket could not be opened.
    pub fn route() -> Result<Self, NetlinkError> {
        let channel = Self::open(NETLINK_ROUTE, "open a route netlink socket")?;
        // Dumps then honour the filter in the request. Kernels before 4.20 lack it and send everything.
        let _ = channel.socket.set_netlink_get_strict_chk(true);
        Ok(channel)
    }

    /// A socket for nftables and connection tracking.
    ///
    /// # Errors
    /// The socket could not be opened.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(NETLINK_NETFILTER, "open a netfilter netlink socket")
    }

    fn open(protocol: isize, what: &str) -> Result<Self, NetlinkError> {
        let io = |e: std::io::Error| NetlinkError::io(what, &e);
        let mut socket = Socket::new(protocol).map_err(io)?;
        socket.bind_auto().map_err(io)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(io)?;
        socket.set_cap_ack(true).map_err(io)?;
        socket.set_ext_ack(true).map_err(io)?;
        Ok(Self { socket, sequence: 1, buffer: Vec::with_capacity(BUFFER_BYTES), interrupted: false })
    }

    /// Sends a request and waits until the kernel has carried it out.
    fn ack<M: NetlinkSerializable>(
        &mut self,
        what: &str,
        message: M,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let sequence = self.send(what, message, flags | NLM_F_ACK)?;
        self.read_until_end(what, sequence, |_| Ok(()))
    }

    /// Sends a request and returns every object the kernel answers with.
    fn dump<M>(&mut self, what: &str, message: &M) -> Result<Vec<M>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        let mut found = Vec::new();
        for _ in 0..LISTING_TRIES {
            let sequence = self.send(what, message.clone(), NLM_F_DUMP)?;
            found = self.collect(what, sequence)?;
            if !self.interrupted {
                break;
            }
        }
        Ok(found)
    }

    /// Like [`Channel::dump`], with the answers as they are: `each` gets every frame, and may see some twice.
    fn dump_frames<M>(
        &mut self,
        what: &str,
        message: &M,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError>
    where
        M: NetlinkSerializable + Clone,
    {
        for _ in 0..LISTING_TRIES {
            let sequence = self.send(what, message.clone(), NLM_F_DUMP)?;
            self.read_until_end(what, sequence, |frame| {
                each(frame);
                Ok(())
            })?;
            if !self.interrupted {
                break;
            }
        }
        Ok(())
    }

    /// Sends a request for one object.
    fn get<M>(&mut self, what: &str, message: M) -> Result<Vec<M>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let sequence = self.send(what, message, NLM_F_ACK)?;
        self.collect(what, sequence)
    }

    fn collect<M: NetlinkDeserializable>(
        &mut self,
        what: &str,
        sequence: u32,
    ) -> Result<Vec<M>, NetlinkError> {
        let mut found = Vec::new();
        self.read_until_end(what, sequence, |frame| {
            match NetlinkMessage::<M>::deserialize(frame) {
                Ok(message) => {
                    if let NetlinkPayload::InnerMessage(inner) = message.payload {
                        found.push(inner);
                    }
                }
                Err(e) => {
                    return Err(NetlinkError {
                        words: Some(e.to_string()),
                        ..NetlinkError::new(what, Errno::EBADMSG)
                    });
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn send<M: NetlinkSerializable>(
        &mut self,
        what: &str,
        message: M,
        flags: u16,
    ) -> Result<u32, NetlinkError> {
        let sequence = self.next_sequence();
        let frame = frame(message, flags, sequence);
        self.send_bytes(what, &frame)?;
        Ok(sequence)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send_bytes(&mut self, what: &str, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(NetlinkError::io(what, &e)),
            }
        }
    }

    /// Reads frames until the one that ends the request `sequence`; the others go to `each`.
    ///
    /// Frames with another sequence number are left over from a request that failed early, and dropped.
    fn read_until_end(
        &mut self,
        what: &str,
        sequence: u32,
        mut each: impl FnMut(&[u8]) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        self.interrupted = false;
        loop {
            self.receive(what)?;
            for frame in Frames(&self.buffer) {
                if frame.sequence != sequence {
                    continue;
                }
                self.interrupted |= frame.flags & NLM_F_DUMP_INTR != 0;
                match frame.end(what) {
                    Some(end) => return end,
                    None => each(frame.bytes)?,
                }
            }
        }
    }

    /// Like [`Channel::read_until_end`] for a batch: the first refusal of any of its commands ends it, else the
    /// acknowledgement of the command `acked`.
    fn read_batch_end(&mut self, what: &str, first: u32, acked: u32) -> Result<(), NetlinkError> {
        loop {
            self.receive(what)?;
            for frame in Frames(&self.buffer) {
                // Sequence numbers wrap, so their distance is what is compared.
                if frame.sequence.wrapping_sub(first) > acked.wrapping_sub(first) {
                    continue;
                }
                match frame.end(what) {
                    Some(Ok(())) if frame.sequence != acked => {}
                    Some(end) => return end,
                    None => {}
                }
            }
        }
    }

    /// Waits for one datagram.
    fn receive(&mut self, what: &str) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(NetlinkError::io(what, &e)),
            }
        }
    }
}

/// One request as bytes.
fn frame<M: NetlinkSerializable>(message: M, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = NetlinkMessage::new(Default::default(), NetlinkPayload::InnerMessage(message));
    message.header.flags = flags | NLM_F_REQUEST;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The kernel's mark on a listing that is not of one moment.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;

struct Frame<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    bytes: &'a [u8],
}

impl Frame<'_> {
    /// The outcome of the request, if this frame ends it.
    fn end(&self, what: &str) -> Option<Result<(), NetlinkError>> {
        match self.kind {
            NLMSG_DONE | NLMSG_ERROR => {}
            _ => return None,
        }
        let code = self
            .bytes
            .get(HEADER_BYTES..HEADER_BYTES + 4)
            .map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        if code == 0 {
            return Some(Ok(()));
        }
        Some(Err(NetlinkError { words: self.words(), ..NetlinkError::new(what, Errno::from_raw(-code)) }))
    }

    /// `NLMSGERR_ATTR_MSG` of an extended acknowledgement.
    fn words(&self) -> Option<String> {
        const ATTR_MSG: u16 = 1;
        let mut rest = self.bytes.get(HEADER_BYTES + 4 + HEADER_BYTES..)?;
        while rest.len() >= 4 {
            let len = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            let value = rest.get(4..len)?;
            if u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff == ATTR_MSG {
                return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
            }
            rest = rest.get(len.next_multiple_of(4)..)?;
        }
        None
    }
}

/// The frames of one datagram.
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let head = self.0.get(..HEADER_BYTES)?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = usize::try_from(word(0)).ok().filter(|l| *l >= HEADER_BYTES)?;
        let bytes = self.0.get(..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        Some(Frame { kind: half(4), flags: half(6), sequence: word(8), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_in_any_namespace() {
        let mut channel = Channel::route().unwrap();
        let lo = channel.link("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.name.as_str()), (1, "lo"));
        assert!(channel.links().unwrap().iter().any(|l| l.name == "lo"));
        assert_eq!(channel.link("no-such-link").unwrap(), None);
    }

    #[test]
    fn a_refusal_carries_the_kernel_s_errno() {
        let mut channel = Channel::route().unwrap();
        let error = channel.delete_link("no-such-link").unwrap_err();
        assert!(matches!(error.errno, Errno::ENODEV | Errno::EPERM), "{error}");
        assert!(error.to_string().starts_with("delete link no-such-link: "));
    }

    #[test]
    fn truncated_frames_end_the_reading() {
        assert_eq!(Frames(&[0; 15]).count(), 0);
        assert_eq!(Frames(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
    }
}
