//! Permanent neighbour and forwarding entries, for VXLAN without learning.
//!
//! Owns: the shapes of the RTM_*NEIGH requests this crate makes.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Channel, NetlinkError, PUT};

impl Channel {
    /// Says for good which hardware address `ip` has on a link.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn put_neighbour(&mut self, index: u32, ip: IpAddr, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let what = format!("put neighbour {ip} on link {index}");
        self.ack(&what, RouteNetlinkMessage::NewNeighbour(neighbour(index, ip, Some(mac))), PUT)
    }

    /// Forgets a neighbour.
    ///
    /// # Errors
    /// `ENOENT` when it is not there, else as the kernel answers.
    pub fn delete_neighbour(&mut self, index: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        let what = format!("delete neighbour {ip} on link {index}");
        self.ack(&what, RouteNetlinkMessage::DelNeighbour(neighbour(index, ip, None)), 0)
    }

    /// Says for good behind which tunnel end a hardware address is.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn put_forwarding(&mut self, index: u32, mac: [u8; 6], to: IpAddr) -> Result<(), NetlinkError> {
        let what = format!("put forwarding entry to {to} on link {index}");
        self.ack(&what, RouteNetlinkMessage::NewNeighbour(forwarding(index, mac, to)), PUT)
    }

    /// Forgets a forwarding entry.
    ///
    /// # Errors
    /// `ENOENT` when it is not there, else as the kernel answers.
    pub fn delete_forwarding(&mut self, index: u32, mac: [u8; 6], to: IpAddr) -> Result<(), NetlinkError> {
        let what = format!("delete forwarding entry to {to} on link {index}");
        self.ack(&what, RouteNetlinkMessage::DelNeighbour(forwarding(index, mac, to)), 0)
    }

    /// The permanent neighbours of a link.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<(IpAddr, [u8; 6])>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            found.extend(self.permanent(index, family)?);
        }
        Ok(found)
    }

    /// The permanent forwarding entries of a link: the tunnel end and the hardware address behind it.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn forwardings(&mut self, index: u32) -> Result<Vec<(IpAddr, [u8; 6])>, NetlinkError> {
        self.permanent(index, AddressFamily::Bridge)
    }

    fn permanent(
        &mut self,
        index: u32,
        family: AddressFamily,
    ) -> Result<Vec<(IpAddr, [u8; 6])>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        let found = self.dump("list neighbours", &RouteNetlinkMessage::GetNeighbour(message))?;
        Ok(found.into_iter().filter_map(|m| describe(m, index)).collect())
    }
}

fn neighbour(index: u32, ip: IpAddr, mac: Option<[u8; 6]>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(ip.into()));
    message.attributes.extend(mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.to_vec())));
    message
}

fn forwarding(index: u32, mac: [u8; 6], to: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::Destination(to.into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}

fn describe(message: RouteNetlinkMessage, index: u32) -> Option<(IpAddr, [u8; 6])> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    if message.header.ifindex != index || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            // Forwarding entries come in the bridge family, whose destinations the crate leaves as bytes.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => ip = from_bytes(bytes),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok(),
            _ => {}
        }
    }
    Some((ip?, mac?))
}

fn from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}
