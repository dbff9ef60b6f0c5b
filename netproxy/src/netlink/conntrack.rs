//! Connection tracking entries.
//!
//! Owns: listing them (the kernel filters, since 5.8; older ones send all and the filter is applied here) and
//! removing one.
//! Never: decides which are stale (see `stale`).

use netlink_packet_core::NlasIterator;
use netlink_packet_core::{DefaultNla, Parseable};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as TupleProtocol, Tuple,
};
use nix::Error as Errno;

use super::element::attribute;
use super::socket::Socket;
use crate::backend::{Flow, FlowFilter};
use crate::objects::{Family, Protocol};
use crate::ruleset::Target;

const CTA_FILTER: u16 = 25 | (1 << 15);
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_PORT: u32 = 1 << 5;

fn filter_attributes(filter: &FlowFilter) -> Vec<ConntrackAttribute> {
    let mut flags = BY_PROTOCOL;
    let mut tuple = Vec::new();
    if let Some(address) = filter.address {
        flags |= BY_DESTINATION;
        tuple.push(Tuple::Ip(vec![IPTuple::DestinationAddress(address)]));
    }
    let mut transport = vec![ProtoTuple::Protocol(TupleProtocol::from(filter.protocol.number()))];
    if let Some(port) = filter.port {
        flags |= BY_PORT;
        transport.push(ProtoTuple::DestinationPort(port));
    }
    tuple.push(Tuple::Proto(transport));
    let mut bits = Vec::new();
    attribute(&mut bits, FILTER_ORIG_FLAGS, |bytes| bytes.extend(flags.to_ne_bytes()));
    attribute(&mut bits, FILTER_REPLY_FLAGS, |bytes| bytes.extend(0u32.to_ne_bytes()));
    vec![
        ConntrackAttribute::CtaTupleOrig(tuple),
        ConntrackAttribute::Other(DefaultNla::new(CTA_FILTER, bits)),
    ]
}

/// Lists the entries a filter lets through.
pub fn list(socket: &mut Socket, filter: &FlowFilter) -> Result<Vec<Flow>, Errno> {
    let mut found = Vec::new();
    let mut keep = |flow: Flow| {
        let fits = flow.protocol == filter.protocol
            && Family::of(&flow.destination.address) == filter.family
            && filter.address.is_none_or(|address| address == flow.destination.address)
            && filter.port.is_none_or(|port| port == flow.destination.port);
        if fits {
            found.push(flow);
        }
    };
    let request = ConntrackMessage::Get(filter_attributes(filter));
    let filtered =
        socket.dump(filter.family, request.into(), |raw| read(raw.attributes).map_or((), &mut keep));
    if matches!(filtered, Err(Errno::EOPNOTSUPP | Errno::EINVAL)) {
        let everything = ConntrackMessage::Get(Vec::new());
        socket.dump(filter.family, everything.into(), |raw| read(raw.attributes).map_or((), &mut keep))?;
    } else {
        filtered?;
    }
    Ok(found)
}

/// Removes an entry; one that is gone already is no error.
pub fn delete(socket: &mut Socket, flow: &Flow) -> Result<(), Errno> {
    let original = vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(flow.source.address),
            IPTuple::DestinationAddress(flow.destination.address),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(TupleProtocol::from(flow.protocol.number())),
            ProtoTuple::SourcePort(flow.source.port),
            ProtoTuple::DestinationPort(flow.destination.port),
        ]),
    ];
    let message = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original)]);
    match socket.request(Family::of(&flow.destination.address), message.into()) {
        Err(Errno::ENOENT) | Ok(()) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn read(attributes: &[u8]) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    for nla in NlasIterator::new(attributes).flatten() {
        match ConntrackAttribute::parse(&nla) {
            Ok(ConntrackAttribute::CtaTupleOrig(tuple)) => original = ends(&tuple),
            Ok(ConntrackAttribute::CtaTupleReply(tuple)) => reply = ends(&tuple),
            _ => {}
        }
    }
    let ((protocol, source, destination), (_, answered_by, _)) = (original?, reply?);
    Some(Flow { protocol, source, destination, answered_by })
}

fn ends(tuple: &[Tuple]) -> Option<(Protocol, Target, Target)> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(number) => protocol = Protocol::from_number((*number).into()),
                        ProtoTuple::SourcePort(port) => source_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => destination_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((
        protocol?,
        Target { address: source?, port: source_port? },
        Target { address: destination?, port: destination_port? },
    ))
}
