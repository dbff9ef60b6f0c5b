//! Connection tracking: forgetting flows.
//!
//! Owns: the few attributes of `include/uapi/linux/netfilter/nfnetlink_conntrack.h` that name a flow.

use std::collections::HashSet;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::errno::Errno;

use super::nft::{attributes, split};
use super::nft_rule::attr;
use super::{Channel, HEADER_BYTES, NetlinkError, unless};

const CT_GET: u8 = 1;
const CT_DELETE: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const UDP: u8 = 17;

impl Channel {
    /// Forgets every UDP flow that was sent to one of these ports, before any translation.
    ///
    /// # Errors
    /// As the kernel answers; a flow that ended by itself is fine.
    pub fn forget_udp_flows(&mut self, ports: &[u16]) -> Result<(), NetlinkError> {
        let what = "list tracked flows";
        let ports: HashSet<u16> = ports.iter().copied().collect();
        let mut found = Vec::new();
        self.dump_frames(what, &message(NetfilterProtoFamily::Unspec, CT_GET, Vec::new()), |frame| {
            found.extend(flow_to(frame, &ports));
        })?;
        for flow in found {
            unless(self.ack("forget a tracked flow", flow, 0), &[Errno::ENOENT])?;
        }
        Ok(())
    }
}

fn message(family: NetfilterProtoFamily, kind: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
    // The crate's own type for this subsystem knows no zones, so the number is given as it is.
    let subsys = NetfilterSubsystem::Conntrack;
    let inner = NetfilterMessageInner::Other { subsys, message_type: kind, attributes };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// The request that deletes the flow in this frame, if it is one of those to forget.
fn flow_to(frame: &[u8], ports: &HashSet<u16>) -> Option<NetfilterMessage> {
    let family = NetfilterProtoFamily::from(*frame.get(HEADER_BYTES)?);
    let all: Vec<(u16, Vec<u8>)> = attributes(frame).collect();
    let (_, original) = all.iter().find(|(kind, _)| *kind == TUPLE_ORIGINAL)?;
    let (_, protocol) = split(original).find(|(kind, _)| *kind == TUPLE_PROTOCOL)?;
    let number = split(&protocol).find(|(kind, _)| *kind == PROTOCOL_NUMBER)?.1;
    let port = split(&protocol).find(|(kind, _)| *kind == DESTINATION_PORT)?.1;
    let port = u16::from_be_bytes([*port.first()?, *port.get(1)?]);
    if number.first() != Some(&UDP) || !ports.contains(&port) {
        return None;
    }
    let naming = all.iter().filter(|(kind, _)| matches!(*kind, TUPLE_ORIGINAL | ID | ZONE));
    let attributes = naming.map(|(kind, value)| attr(nested_if_tuple(*kind), value)).collect();
    Some(message(family, CT_DELETE, attributes))
}

fn nested_if_tuple(kind: u16) -> u16 {
    if kind == TUPLE_ORIGINAL { kind | netlink_packet_core::NLA_F_NESTED } else { kind }
}
