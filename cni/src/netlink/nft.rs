//! nftables: one batch is one transaction.
//!
//! Owns: the framing of a batch, sets and their elements, and reading elements back.
//! Never: reads rules back. What a chain holds is recognised by the comment it was made with.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NlasIterator};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::errno::Errno;

use super::nft_rule::{Rule, address_bytes, attr, data, nested, number, text};
use super::{Channel, HEADER_BYTES, NetlinkError, frame, unless};

const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const GET_CHAIN: u8 = 4;
const DELETE_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const NEW_SET: u8 = 9;
const DELETE_SET: u8 = 11;
const NEW_ELEMENT: u8 = 12;
const GET_ELEMENT: u8 = 13;
const DELETE_ELEMENT: u8 = 14;
const SET_IS_MAP: u32 = 8;
const SET_HAS_INTERVALS: u32 = 4;
const ELEMENT_ENDS_INTERVAL: u32 = 1;
/// Netfilter's own header in front of the attributes.
const FAMILY_HEADER_BYTES: usize = 4;
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
    fn flags(self) -> u32 {
        match self {
            Self::Addresses(_) | Self::Pairs(_) => 0,
            Self::Networks(_) => SET_HAS_INTERVALS,
            Self::PortMap(_) | Self::AddressPortMap(_) => SET_IS_MAP,
        }
    }

    /// Types (for people reading `nft list`) and lengths in bytes of key and data.
    fn layout(self) -> ((u32, u32), Option<(u32, u32)>) {
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub fn bounds(net: IpNet) -> Vec<Self> {
        let after = match net.broadcast() {
            IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::from(n.to_be_bytes())),
            IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::from(n.to_be_bytes())),
        };
        let end = after.map(|ip| Self { ends_interval: true, ..Self::address(ip) });
        std::iter::once(Self::address(net.network())).chain(end).collect()
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

    fn attributes(&self, for_adding: bool) -> DefaultNla {
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
fn comment_bytes(comment: &str) -> Vec<u8> {
    let len = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, len];
    bytes.extend(&comment.as_bytes()[..usize::from(len) - 1]);
    bytes.push(0);
    bytes
}

fn read_comment(bytes: &[u8]) -> Option<String> {
    let len = usize::from(*bytes.get(1)?);
    let text = bytes.get(2..2 + len)?.strip_suffix(&[0])?;
    (bytes[0] == 0).then(|| String::from_utf8_lossy(text).into_owned())
}

/// Commands that take effect together or not at all.
#[derive(Debug)]
pub struct Batch {
    table: String,
    commands: Vec<(u8, u16, Vec<DefaultNla>)>,
    sets: u32,
}

impl Batch {
    /// An empty batch for the `inet` table `table`.
    #[must_use]
    pub fn new(table: &str) -> Self {
        Self { table: table.to_owned(), commands: Vec::new(), sets: 0 }
    }

    fn push(&mut self, kind: u8, flags: u16, mut attributes: Vec<DefaultNla>) {
        attributes.insert(0, text(1, &self.table));
        self.commands.push((kind, flags, attributes));
    }

    /// Makes the table unless it exists.
    pub fn table(&mut self) {
        self.push(NEW_TABLE, NLM_F_CREATE, vec![]);
    }

    /// Deletes the table with everything in it.
    pub fn delete_table(&mut self) {
        self.push(DELETE_TABLE, 0, vec![]);
    }

    /// Makes a chain that is only jumped to, unless it exists.
    pub fn chain(&mut self, name: &str) {
        self.push(NEW_CHAIN, NLM_F_CREATE, vec![text(3, name)]);
    }

    /// Makes a chain at a hook: `kind` is `nat` or `filter`, `hook` and `priority` as the kernel numbers them.
    pub fn base_chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32, comment: &str) {
        let place = nested(4, &[number(1, hook), attr(2, &priority.to_be_bytes())]);
        self.push(
            NEW_CHAIN,
            NLM_F_CREATE,
            vec![text(3, name), place, text(7, kind), attr(12, &comment_bytes(comment))],
        );
    }

    /// Deletes a chain with its rules. It must exist.
    pub fn delete_chain(&mut self, name: &str) {
        self.push(DELETE_CHAIN, 0, vec![text(3, name)]);
    }

    /// Appends a rule.
    pub fn rule(&mut self, chain: &str, rule: &Rule) {
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, vec![text(2, chain), nested(4, rule.expressions())]);
    }

    /// Makes a set or map unless it exists.
    pub fn set(&mut self, name: &str, spec: SetSpec) {
        let ((kind, len), value) = spec.layout();
        self.sets += 1;
        let mut attributes = vec![
            text(2, name),
            number(3, spec.flags()),
            number(4, kind),
            number(5, len),
            number(10, self.sets),
        ];
        if let Some((kind, len)) = value {
            attributes.extend([number(6, kind), number(7, len)]);
        }
        self.push(NEW_SET, NLM_F_CREATE, attributes);
    }

    /// Deletes a set that no rule uses. It must exist.
    pub fn delete_set(&mut self, name: &str) {
        self.push(DELETE_SET, 0, vec![text(2, name)]);
    }

    /// Adds an element. One that is there with another value makes the batch fail with `EEXIST`.
    pub fn add(&mut self, set: &str, element: &Element) {
        self.push(NEW_ELEMENT, NLM_F_CREATE, vec![text(2, set), nested(3, &[element.attributes(true)])]);
    }

    /// Deletes an element. It must exist.
    pub fn remove(&mut self, set: &str, element: &Element) {
        self.push(DELETE_ELEMENT, 0, vec![text(2, set), nested(3, &[element.attributes(false)])]);
    }

    /// Deletes every element of a set, which must exist.
    pub fn clear(&mut self, set: &str) {
        self.push(DELETE_ELEMENT, 0, vec![text(2, set)]);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

fn message(kind: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
    let inner =
        NetfilterMessageInner::Other { subsys: NetfilterSubsystem::NfTables, message_type: kind, attributes };
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), inner)
}

fn control(message: ControlMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), message)
}

impl Channel {
    /// Carries a batch out.
    ///
    /// # Errors
    /// The first command the kernel refused; nothing of the batch is then in force.
    pub fn commit(&mut self, what: &str, batch: Batch) -> Result<(), NetlinkError> {
        let Some(last) = batch.commands.len().checked_sub(1) else { return Ok(()) };
        let first = self.next_sequence();
        let mut bytes = frame(control(ControlMessage::BatchBegin), 0, first);
        for (position, (kind, flags, attributes)) in batch.commands.into_iter().enumerate() {
            let flags = if position == last { flags | NLM_F_ACK } else { flags };
            let sequence = self.next_sequence();
            bytes.extend(frame(message(kind, attributes), flags, sequence));
        }
        let acked = self.sequence;
        let end = self.next_sequence();
        bytes.extend(frame(control(ControlMessage::BatchEnd), 0, end));
        self.send_bytes(what, &bytes)?;
        self.read_batch_end(what, first, acked)
    }

    /// Whether a chain exists, and the comment it was made with.
    ///
    /// # Errors
    /// As the kernel answers; a missing table or chain is `None`.
    pub fn chain_comment(&mut self, table: &str, chain: &str) -> Result<Option<String>, NetlinkError> {
        let what = format!("look for chain {chain} of table {table}");
        let request = message(GET_CHAIN, vec![text(1, table), text(3, chain)]);
        let mut found = None;
        let sequence = self.send(&what, request, NLM_F_ACK)?;
        let answer = self.read_until_end(&what, sequence, |frame| {
            let comment = attributes(frame).find(|(kind, _)| *kind == 12).and_then(|(_, v)| read_comment(&v));
            found = Some(comment.unwrap_or_default());
            Ok(())
        });
        unless(answer, &[Errno::ENOENT])?;
        Ok(found)
    }

    /// How many chains a table has.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn chains(&mut self, table: &str) -> Result<usize, NetlinkError> {
        let what = format!("list the chains of table {table}");
        let mut found = HashSet::new();
        let named = [table.as_bytes(), &[0]].concat();
        self.dump_frames(&what, &message(GET_CHAIN, Vec::new()), |frame| {
            let parts: Vec<_> = attributes(frame).collect();
            if parts.iter().any(|(kind, value)| *kind == 1 && *value == named) {
                found.extend(parts.into_iter().find(|(kind, _)| *kind == 3).map(|(_, name)| name));
            }
        })?;
        Ok(found.len())
    }

    /// The elements of a set.
    ///
    /// # Errors
    /// As the kernel answers; a missing table or set has no elements.
    pub fn elements(&mut self, table: &str, set: &str) -> Result<Vec<ElementInfo>, NetlinkError> {
        let what = format!("list set {set} of table {table}");
        let request = message(GET_ELEMENT, vec![text(1, table), text(2, set)]);
        let mut found: Vec<ElementInfo> = Vec::new();
        let answer = self.dump_frames(&what, &request, |frame| {
            for (_, list) in attributes(frame).filter(|(kind, _)| *kind == 3) {
                found.extend(split(&list).filter_map(|(_, element)| read_element(&element)));
            }
        });
        unless(answer, &[Errno::ENOENT])?;
        // A listing that had to be begun anew shows some twice.
        let mut seen = HashSet::new();
        found.retain(|info| seen.insert(info.element.key.clone()));
        Ok(found)
    }
}

fn read_element(bytes: &[u8]) -> Option<ElementInfo> {
    let value_of = |wrapped: &[u8]| split(wrapped).find(|(kind, _)| *kind == 1).map(|(_, v)| v);
    let mut element =
        Element { key: Vec::new(), value: Vec::new(), comment: String::new(), ends_interval: false };
    let mut comment = String::new();
    for (kind, value) in split(bytes) {
        match kind {
            1 => element.key = value_of(&value)?,
            2 => element.value = value_of(&value)?,
            6 => comment = read_comment(&value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(ElementInfo { element, comment })
}

/// The attributes of a whole netfilter frame.
pub(super) fn attributes(frame: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> + '_ {
    split(frame.get(HEADER_BYTES + FAMILY_HEADER_BYTES..).unwrap_or_default())
}

pub(super) fn split(bytes: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> + '_ {
    NlasIterator::new(bytes).map_while(Result::ok).map(|nla| (nla.kind(), nla.value().to_vec()))
}
