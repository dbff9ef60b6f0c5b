//! Sets and maps of nftables and their elements.
//!
//! Owns: the layout of keys and values, and how `nft` keeps comments.

use std::net::IpAddr;

use netlink_packet_core::DefaultNla;

use super::nft::split;
use super::nft_rule::{address_bytes, attr, data, nested, number};

const SET_IS_MAP: u32 = 8;
const SET_HAS_INTERVALS: u32 = 4;
const ELEMENT_ENDS_INTERVAL: u32 = 1;
/// `nft` shows at most this much of a comment.
const COMMENT_BYTES: usize = 127;

/// IPv4 or IPv6, inside an `inet` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// How many 32-bit words an address takes.
    pub(super) fn words(self) -> u32 {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }

    /// `nft`'s number for the type of an address.
    fn kind(self) -> u32 {
        match self {
            Self::V4 => 7,
            Self::V6 => 8,
        }
    }
}

/// What the keys of a set are made of; maps lead to an address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetSpec {
    /// Addresses.
    Addresses(Family),
    /// Ranges of addresses.
    Networks(Family),
    /// Pairs of addresses.
    Pairs(Family),
    /// From protocol and port.
    PortMap(Family),
    /// From address, protocol and port.
    AddressPortMap(Family),
}

const KIND_PROTOCOL: u32 = 12;
const KIND_PORT: u32 = 13;

impl SetSpec {
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::Addresses(_) | Self::Pairs(_) => 0,
            Self::Networks(_) => SET_HAS_INTERVALS,
            Self::PortMap(_) | Self::AddressPortMap(_) => SET_IS_MAP,
        }
    }

    /// Types (for people reading `nft list`) and lengths in bytes of key and data.
    pub(super) fn layout(self) -> ((u32, u32), Option<(u32, u32)>) {
        let concat = |kinds: &[u32]| kinds.iter().fold(0, |all, kind| all << 6 | kind);
        let target = |f: Family| Some((concat(&[f.kind(), KIND_PORT]), (f.words() + 1) * 4));
        match self {
            Self::Addresses(f) | Self::Networks(f) => ((f.kind(), f.words() * 4), None),
            Self::Pairs(f) => ((concat(&[f.kind(), f.kind()]), f.words() * 8), None),
            Self::PortMap(f) => ((concat(&[KIND_PROTOCOL, KIND_PORT]), 8), target(f)),
            Self::AddressPortMap(f) => {
                ((concat(&[f.kind(), KIND_PROTOCOL, KIND_PORT]), (f.words() + 2) * 4), target(f))
            }
        }
    }
}

/// An element to add to or delete from a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    key: Vec<u8>,
    value: Vec<u8>,
    comment: String,
    ends_interval: bool,
}

impl Element {
    /// An address.
    #[must_use]
    pub fn address(address: IpAddr) -> Self {
        Self { key: address_bytes(address), value: Vec::new(), comment: String::new(), ends_interval: false }
    }

    /// The bounds of a range of addresses: its first, and the one after its last if there is one.
    #[must_use]
    pub fn range(first: IpAddr, last: IpAddr) -> Vec<Self> {
        let after = match last {
            IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::from(n.to_be_bytes())),
            IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::from(n.to_be_bytes())),
        };
        let end = after.map(|ip| Self { ends_interval: true, ..Self::address(ip) });
        std::iter::once(Self::address(first)).chain(end).collect()
    }

    /// Whether this is the end of a range rather than an element of its own.
    #[must_use]
    pub fn ends_range(&self) -> bool {
        self.ends_interval
    }

    /// A pair of addresses.
    #[must_use]
    pub fn pair(source: IpAddr, destination: IpAddr) -> Self {
        let key = [address_bytes(source), address_bytes(destination)].concat();
        Self { key, value: Vec::new(), comment: String::new(), ends_interval: false }
    }

    /// `[address,] protocol, port` leading to `target` and its port.
    #[must_use]
    pub fn port(address: Option<IpAddr>, protocol: u8, port: u16, target: (IpAddr, u16)) -> Self {
        let mut key = address.map(address_bytes).unwrap_or_default();
        key.extend([protocol, 0, 0, 0]);
        key.extend(port.to_be_bytes());
        key.extend([0, 0]);
        let mut value = address_bytes(target.0);
        value.extend(target.1.to_be_bytes());
        value.extend([0, 0]);
        Self { key, value, comment: String::new(), ends_interval: false }
    }

    /// The same with a comment, by which its owner is found again. Only ASCII, at most 127 bytes are kept.
    #[must_use]
    pub fn comment(mut self, comment: &str) -> Self {
        self.comment = comment.chars().filter(char::is_ascii).take(COMMENT_BYTES).collect();
        self
    }

    pub(super) fn attributes(&self, for_adding: bool) -> DefaultNla {
        let mut parts = vec![data(1, &self.key)];
        if self.ends_interval {
            parts.push(number(3, ELEMENT_ENDS_INTERVAL));
        }
        if for_adding && !self.value.is_empty() {
            parts.push(data(2, &self.value));
        }
        if for_adding && !self.comment.is_empty() {
            parts.push(attr(6, &comment_bytes(&self.comment)));
        }
        nested(1, &parts)
    }
}

/// An element read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementInfo {
    /// The element; deleting it deletes what was read.
    pub element: Element,
    /// Its comment.
    pub comment: String,
}

impl ElementInfo {
    /// Whether this map element leads to `address`.
    #[must_use]
    pub fn leads_to(&self, address: IpAddr) -> bool {
        let bytes = address_bytes(address);
        self.element.value.len() == bytes.len() + 4 && self.element.value.starts_with(&bytes)
    }

    /// The protocol and port a map element is for.
    #[must_use]
    pub fn protocol_and_port(&self) -> Option<(u8, u16)> {
        let key = &self.element.key;
        let tail = key.get(key.len().checked_sub(8)?..)?;
        Some((tail[0], u16::from_be_bytes([tail[4], tail[5]])))
    }

    /// Where a map element leads.
    #[must_use]
    pub fn target(&self) -> Option<IpAddr> {
        let value = &self.element.value;
        match value.len() {
            8 => Some(IpAddr::from(<[u8; 4]>::try_from(&value[..4]).ok()?)),
            20 => Some(IpAddr::from(<[u8; 16]>::try_from(&value[..16]).ok()?)),
            _ => None,
        }
    }
}

/// User data the way `nft` keeps comments: type 0, length, bytes with a final zero.
pub(super) fn comment_bytes(comment: &str) -> Vec<u8> {
    let len = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, len];
    bytes.extend(&comment.as_bytes()[..usize::from(len) - 1]);
    bytes.push(0);
    bytes
}

pub(super) fn read_comment(bytes: &[u8]) -> Option<String> {
    let len = usize::from(*bytes.get(1)?);
    let text = bytes.get(2..2 + len)?.strip_suffix(&[0])?;
    (bytes[0] == 0).then(|| String::from_utf8_lossy(text).into_owned())
}

/// Reads one element of a listing.
pub(super) fn read_element(bytes: &[u8]) -> Option<ElementInfo> {
    let value_of = |wrapped: &[u8]| split(wrapped).find(|(kind, _)| *kind == 1).map(|(_, v)| v);
    let mut element =
        Element { key: Vec::new(), value: Vec::new(), comment: String::new(), ends_interval: false };
    let mut comment = String::new();
    for (kind, value) in split(bytes) {
        match kind {
            1 => element.key = value_of(&value)?,
            2 => element.value = value_of(&value)?,
            3 => {
                element.ends_interval =
                    value.last().is_some_and(|b| u32::from(*b) & ELEMENT_ENDS_INTERVAL != 0)
            }
            6 => comment = read_comment(&value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(ElementInfo { element, comment })
}
