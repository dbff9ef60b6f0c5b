//! Addresses of interfaces.
//!
//! Owns: the shapes of the RTM_*ADDR requests this crate makes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use super::{Channel, NEW, NetlinkError};

/// An address to give to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressSpec {
    /// The interface.
    pub index: u32,
    /// The address and its prefix length.
    pub address: IpNet,
    /// The kernel adds no route for the prefix.
    pub no_prefix_route: bool,
    /// IPv6: wait for duplicate address detection.
    pub detect_duplicates: bool,
}

impl AddressSpec {
    /// An address with its prefix route, usable at once.
    #[must_use]
    pub fn new(index: u32, address: IpNet) -> Self {
        Self { index, address, no_prefix_route: false, detect_duplicates: false }
    }

    fn message(&self) -> AddressMessage {
        let mut message = match self.address {
            IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(self.index)
                .address(net.addr(), net.prefix_len())
                .build(),
            IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(self.index)
                .address(net.addr(), net.prefix_len())
                .build(),
        };
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Noprefixroute, self.no_prefix_route);
        flags.set(AddressFlags::Nodad, self.address.addr().is_ipv6() && !self.detect_duplicates);
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        message
    }
}

impl Channel {
    /// Gives an address to an interface.
    ///
    /// # Errors
    /// `EEXIST` when it has it already, else as the kernel answers.
    pub fn add_address(&mut self, spec: &AddressSpec) -> Result<(), NetlinkError> {
        let what = format!("add address {} to link {}", spec.address, spec.index);
        self.ack(&what, RouteNetlinkMessage::NewAddress(spec.message()), NEW)
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` when it does not have it, else as the kernel answers.
    pub fn delete_address(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let what = format!("delete address {address} of link {index}");
        let message = AddressSpec { detect_duplicates: true, ..AddressSpec::new(index, address) }.message();
        self.ack(&what, RouteNetlinkMessage::DelAddress(message), 0)
    }

    /// The addresses of an interface, or of every interface when `index` is 0, with the index they belong to.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let found = self.dump("list addresses", &RouteNetlinkMessage::GetAddress(message))?;
        let described = found.into_iter().filter_map(describe);
        Ok(described.filter(|(i, _)| index == 0 || *i == index).collect())
    }
}

fn describe(message: RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut address): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}
