//! The first two packets of an SCTP association over raw sockets: not every kernel can open SCTP sockets, but
//! netfilter translates SCTP all the same.
//!
//! Owns: INIT and INIT ACK (RFC 9260, 3.3.2 and 3.3.3), with the checksum that connection tracking verifies.
//! Never: goes on with the association.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::Error as Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, recv, recvfrom, send,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Outcome;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const IP_HEADER: usize = 20;
const COMMON_HEADER: usize = 12;
const CHUNK: usize = 20;

/// A raw socket that waits at most so long.
pub fn open(patience: Duration) -> OwnedFd {
    let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)
        .expect("root may open raw sockets");
    let wait = TimeVal::milliseconds(i64::try_from(patience.as_millis()).expect("a short time"));
    setsockopt(&fd, sockopt::ReceiveTimeout, &wait).expect("a timeout can be set");
    fd
}

fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    };
    !bytes.iter().fold(!0, step)
}

fn packet(ports: (u16, u16), tag: u32, chunk: u8, text: &str) -> Vec<u8> {
    let mut bytes = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    let parameter = if text.is_empty() { 0 } else { 4 + text.len() };
    bytes.extend([chunk, 0]);
    bytes.extend(u16::try_from(CHUNK + parameter).expect("short").to_be_bytes());
    // Initiate tag, window, streams out and in, first number.
    bytes.extend([0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    if parameter > 0 {
        // A state cookie (type 7).
        bytes.extend([0, 7]);
        bytes.extend(u16::try_from(parameter).expect("short").to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let sum = checksum(&bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn ports_of(packet: &[u8]) -> Option<(u16, u16)> {
    let half = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    Some((half(IP_HEADER)?, half(IP_HEADER + 2)?))
}

/// Answers one INIT, if one comes in time.
pub fn answer(fd: &OwnedFd, name: &str, port: u16) {
    let mut buffer = [0; 512];
    let Ok((length, Some(peer))) = recvfrom::<SockaddrIn>(fd.as_raw_fd(), &mut buffer) else { return };
    let received = &buffer[..length];
    let chunk = received.get(IP_HEADER + COMMON_HEADER).copied();
    if let (Some((from, to)), Some(INIT)) = (ports_of(received), chunk)
        && to == port
    {
        let text = format!("{name} {}", peer.ip());
        let _ = sendto(fd.as_raw_fd(), &packet((to, from), 7, INIT_ACK, &text), &peer, MsgFlags::empty());
    }
}

/// Sends an INIT and waits for what comes back.
pub fn probe(from: u16, to: Ipv4Addr, port: u16, patience: Duration) -> Outcome {
    let fd = open(patience);
    connect(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(to, 0))).expect("a route");
    let _ = send(fd.as_raw_fd(), &packet((from, port), 0, INIT, ""), MsgFlags::empty());
    let mut buffer = [0; 512];
    loop {
        let length = match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::ECONNREFUSED) => return Outcome::Refused,
            Err(_) => return Outcome::Silence,
        };
        let received = &buffer[..length];
        if ports_of(received) != Some((port, from)) {
            continue;
        }
        let text = received.get(IP_HEADER + COMMON_HEADER + CHUNK + 4..).unwrap_or_default();
        let text = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
        let (pod, seen) = text.split_once(' ').expect("the answer names the pod and the client");
        return Outcome::Answered(pod.to_owned(), seen.parse::<IpAddr>().expect("an address"));
    }
}
