//! Permanent neighbour and forwarding entries, for VXLAN without learning.
//!
//! Owns: the shapes of the RTM_*NEIGH requests this crate makes.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
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
    pub fn put_forwarding(&mut self, index: u32, mac: [u8; 6], to: Ipv4Addr) -> Result<(), NetlinkError> {
        let what = format!("put forwarding entry to {to} on link {index}");
        self.ack(&what, RouteNetlinkMessage::NewNeighbour(forwarding(index, mac, to)), PUT)
    }

    /// Forgets a forwarding entry.
    ///
    /// # Errors
    /// `ENOENT` when it is not there, else as the kernel answers.
    pub fn delete_forwarding(&mut self, index: u32, mac: [u8; 6], to: Ipv4Addr) -> Result<(), NetlinkError> {
        let what = format!("delete forwarding entry to {to} on link {index}");
        self.ack(&what, RouteNetlinkMessage::DelNeighbour(forwarding(index, mac, to)), 0)
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

fn forwarding(index: u32, mac: [u8; 6], to: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::Destination(IpAddr::V4(to).into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}
