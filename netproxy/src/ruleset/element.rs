//! Keys and values of set elements.
//!
//! Owns: the typed forms; ordering and equality are what diffs are made of.
//! Never: encodes for the kernel (see `netlink`).

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Chain;
use crate::objects::{Family, Protocol};

/// An address, protocol and port that clients connect to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Vip {
    /// Cluster, external or load balancer address.
    pub address: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The service's port.
    pub port: u16,
}

/// A protocol and port at the node's own addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodePort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The node port.
    pub port: u16,
}

/// An endpoint: where a connection is sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Target {
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's port.
    pub port: u16,
}

/// The key of an element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Key {
    /// address . protocol . port
    Vip(Vip),
    /// address . protocol . port . slot
    VipSlot(Vip, u32),
    /// protocol . port
    Port(NodePort),
    /// protocol . port . slot
    PortSlot(NodePort, u32),
    /// address
    Address(IpAddr),
    /// address . address . protocol . port: an endpoint talking to itself
    Hairpin(Vip),
    /// address . protocol . port . range of sources
    Source(Vip, IpNet),
}

/// What an element maps its key to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Value {
    /// A plain set has no values.
    None,
    /// address . port
    Target(Target),
    /// Where to go on.
    Verdict(Verdict),
}

/// A verdict in a map.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// The packet ends here, silently.
    Drop,
    /// Go on in this chain.
    Goto(Chain),
}

/// One element.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Element {
    /// Its key, unique in its set.
    pub key: Key,
    /// Its value.
    pub value: Value,
}

impl Vip {
    /// The family of the address.
    pub const fn family(&self) -> Family {
        Family::of(&self.address)
    }
}

impl Key {
    /// Whether the key can be in a table of this family.
    pub fn fits(&self, family: Family) -> bool {
        match self {
            Self::Vip(vip) | Self::VipSlot(vip, _) | Self::Hairpin(vip) => vip.family() == family,
            Self::Source(vip, net) => vip.family() == family && Family::of(&net.addr()) == family,
            Self::Address(address) => Family::of(address) == family,
            Self::Port(_) | Self::PortSlot(..) => true,
        }
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {} . {}", self.address, self.protocol, self.port)
    }
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {}", self.protocol, self.port)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vip(vip) => vip.fmt(f),
            Self::VipSlot(vip, slot) => write!(f, "{vip} . {slot}"),
            Self::Port(port) => port.fmt(f),
            Self::PortSlot(port, slot) => write!(f, "{port} . {slot}"),
            Self::Address(address) => address.fmt(f),
            Self::Hairpin(vip) => write!(f, "{} . {vip}", vip.address),
            Self::Source(vip, net) => write!(f, "{vip} . {net}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Target(target) => target.fmt(f),
            Self::Verdict(Verdict::Drop) => f.write_str("drop"),
            Self::Verdict(Verdict::Goto(chain)) => write!(f, "goto {chain}"),
        }
    }
}
