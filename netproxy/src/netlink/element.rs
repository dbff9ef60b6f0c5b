//! Elements in the kernel's form, both ways.
//!
//! Owns: the byte layout of keys and values. In a concatenation every part begins at a multiple of four bytes.
//! Written by hand, not with the message crate: a full load has hundreds of thousands of them.
//! Never: sends anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::objects::{Family, Protocol};
use crate::ruleset::{
    Chain, DataKind, Element, Key, KeyKind, NodePort, SetName, Target, Value, Verdict, Vip,
};

const NESTED: u16 = 1 << 15;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const LIST_ELEM: u16 = 1;
const NF_DROP: u32 = 0;
const NFT_GOTO: u32 = -4_i32 as u32;

/// Appends an attribute whose value `body` appends.
pub fn attribute(bytes: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 2]);
    bytes.extend(kind.to_ne_bytes());
    body(bytes);
    let length = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Appends an element as a list entry.
pub fn encode(bytes: &mut Vec<u8>, element: &Element, with_value: bool) {
    attribute(bytes, LIST_ELEM | NESTED, |bytes| {
        nested_value(bytes, ELEM_KEY, |bytes| key(bytes, &element.key, false));
        if matches!(element.key, Key::Source(..)) {
            nested_value(bytes, ELEM_KEY_END, |bytes| key(bytes, &element.key, true));
        }
        if !with_value {
            return;
        }
        match &element.value {
            Value::None => {}
            Value::Target(target) => nested_value(bytes, ELEM_DATA, |bytes| {
                address(bytes, &target.address);
                port(bytes, target.port);
            }),
            Value::Verdict(verdict) => attribute(bytes, ELEM_DATA | NESTED, |bytes| {
                attribute(bytes, DATA_VERDICT | NESTED, |bytes| self::verdict(bytes, verdict));
            }),
        }
    });
}

fn nested_value(bytes: &mut Vec<u8>, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
    attribute(bytes, kind | NESTED, |bytes| attribute(bytes, DATA_VALUE, value));
}

fn verdict(bytes: &mut Vec<u8>, verdict: &Verdict) {
    let code = match verdict {
        Verdict::Drop => NF_DROP,
        Verdict::Goto(_) => NFT_GOTO,
    };
    attribute(bytes, VERDICT_CODE, |bytes| bytes.extend(code.to_be_bytes()));
    if let Verdict::Goto(chain) = verdict {
        attribute(bytes, VERDICT_CHAIN, |bytes| {
            bytes.extend(chain.to_string().as_bytes());
            bytes.push(0);
        });
    }
}

fn key(bytes: &mut Vec<u8>, key: &Key, end: bool) {
    let slot = |bytes: &mut Vec<u8>, slot: u32| bytes.extend(slot.to_ne_bytes());
    match key {
        Key::Vip(vip) => self::vip(bytes, vip),
        Key::VipSlot(vip, number) => {
            self::vip(bytes, vip);
            slot(bytes, *number);
        }
        Key::Port(node_port) => self::node_port(bytes, node_port),
        Key::PortSlot(node_port, number) => {
            self::node_port(bytes, node_port);
            slot(bytes, *number);
        }
        Key::Address(value) => address(bytes, value),
        Key::Hairpin(vip) => {
            address(bytes, &vip.address);
            self::vip(bytes, vip);
        }
        Key::Source(vip, range) => {
            self::vip(bytes, vip);
            address(bytes, &if end { range.broadcast() } else { range.network() });
        }
    }
}

fn vip(bytes: &mut Vec<u8>, vip: &Vip) {
    address(bytes, &vip.address);
    node_port(bytes, &NodePort { protocol: vip.protocol, port: vip.port });
}

fn node_port(bytes: &mut Vec<u8>, value: &NodePort) {
    bytes.extend([value.protocol.number(), 0, 0, 0]);
    port(bytes, value.port);
}

fn port(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend(value.to_be_bytes());
    bytes.extend([0; 2]);
}

fn address(bytes: &mut Vec<u8>, value: &IpAddr) {
    match value {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}

/// Reads the attributes of one element; `None` if it is not of the kind the set should have.
pub fn decode(family: Family, set: &SetName, attributes: &[u8]) -> Option<Element> {
    let key = inner(inner(attributes, ELEM_KEY)?, DATA_VALUE)?;
    let end = inner(attributes, ELEM_KEY_END).and_then(|end| inner(end, DATA_VALUE));
    let value = inner(attributes, ELEM_DATA);
    let value = match set.data_kind() {
        DataKind::None => Value::None,
        DataKind::Target => {
            let mut reader = Reader(inner(value?, DATA_VALUE)?);
            Value::Target(Target { address: reader.address(family)?, port: reader.port()? })
        }
        DataKind::Verdict => Value::Verdict(read_verdict(inner(value?, DATA_VERDICT)?)?),
    };
    Some(Element { key: read_key(family, set.key_kind(), key, end)?, value })
}

/// The value of the attribute of this kind.
fn inner(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let (mut rest, mut found) = (attributes, None);
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        if u16::from_ne_bytes([rest[2], rest[3]]) & !NESTED == kind {
            found = rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn read_verdict(attributes: &[u8]) -> Option<Verdict> {
    let code = u32::from_be_bytes(inner(attributes, VERDICT_CODE)?.try_into().ok()?);
    match code {
        NF_DROP => Some(Verdict::Drop),
        NFT_GOTO => {
            let name = inner(attributes, VERDICT_CHAIN)?;
            let name = std::str::from_utf8(name.strip_suffix(&[0]).unwrap_or(name)).ok()?;
            Chain::parse(name).map(Verdict::Goto)
        }
        _ => None,
    }
}

fn read_key(family: Family, kind: KeyKind, key: &[u8], end: Option<&[u8]>) -> Option<Key> {
    let mut reader = Reader(key);
    let key = match kind {
        KeyKind::Vip => Key::Vip(reader.vip(family)?),
        KeyKind::VipSlot => Key::VipSlot(reader.vip(family)?, reader.slot()?),
        KeyKind::Port => Key::Port(reader.node_port()?),
        KeyKind::PortSlot => Key::PortSlot(reader.node_port()?, reader.slot()?),
        KeyKind::Address => Key::Address(reader.address(family)?),
        KeyKind::Hairpin => {
            reader.address(family)?;
            Key::Hairpin(reader.vip(family)?)
        }
        KeyKind::Source => {
            let (vip, first) = (reader.vip(family)?, reader.address(family)?);
            let mut reader = Reader(end?);
            reader.vip(family)?;
            Key::Source(vip, range(first, reader.address(family)?)?)
        }
    };
    Some(key)
}

/// The range between two addresses, if it is one that a prefix describes.
fn range(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let differing = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => 32 - (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => 128 - (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return None,
    };
    let longest = if first.is_ipv4() { 32 } else { 128 };
    let net = IpNet::new(first, u8::try_from(longest - differing).ok()?).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn address(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::V4 => Ipv4Addr::from(self.take::<4>()?).into(),
            Family::V6 => Ipv6Addr::from(self.take::<16>()?).into(),
        })
    }

    fn port(&mut self) -> Option<u16> {
        // The last part of a value may come without its padding.
        let bytes: [u8; 2] = self.take()?;
        let _ = self.take::<2>();
        Some(u16::from_be_bytes(bytes))
    }

    fn slot(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn node_port(&mut self) -> Option<NodePort> {
        let [number, ..] = self.take::<4>()?;
        Some(NodePort { protocol: Protocol::from_number(number)?, port: self.port()? })
    }

    fn vip(&mut self, family: Family) -> Option<Vip> {
        let address = self.address(family)?;
        let NodePort { protocol, port } = self.node_port()?;
        Some(Vip { address, protocol, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{ChainKind, Policy};

    #[test]
    fn what_is_encoded_reads_back() {
        let vip = |text: &str| Vip { address: text.parse().unwrap(), protocol: Protocol::Udp, port: 53 };
        let target = |text: &str| Value::Target(Target { address: text.parse().unwrap(), port: 5353 });
        let node_port = NodePort { protocol: Protocol::Sctp, port: 30001 };
        let spread = Chain::Spread(ChainKind::NodePort, Policy::Local, 7);
        let table = [
            (Family::V4, SetName::Endpoints, Key::VipSlot(vip("10.0.0.1"), 3), target("10.1.0.1")),
            (Family::V6, SetName::Endpoints, Key::VipSlot(vip("fd00::1"), 1 << 24), target("fd01::1")),
            (Family::V4, SetName::NodePortEndpoints, Key::PortSlot(node_port, 0), target("10.1.0.1")),
            (Family::V4, SetName::NodePorts, Key::Port(node_port), Value::Verdict(Verdict::Goto(spread))),
            (Family::V6, SetName::Services, Key::Vip(vip("fd00::1")), Value::Verdict(Verdict::Drop)),
            (Family::V4, SetName::ClusterIps, Key::Address("10.0.0.1".parse().unwrap()), Value::None),
            (Family::V6, SetName::Hairpin, Key::Hairpin(vip("fd00::1")), Value::None),
            (
                Family::V4,
                SetName::FirewallSources,
                Key::Source(vip("10.0.0.1"), "192.168.4.0/22".parse().unwrap()),
                Value::None,
            ),
            (
                Family::V6,
                SetName::FirewallSources,
                Key::Source(vip("fd00::1"), "fd02::/61".parse().unwrap()),
                Value::None,
            ),
        ];
        for (family, set, key, value) in table {
            let element = Element { key, value };
            let mut bytes = Vec::new();
            encode(&mut bytes, &element, true);
            assert_eq!(decode(family, &set, &bytes[4..]), Some(element));
        }
    }
}
