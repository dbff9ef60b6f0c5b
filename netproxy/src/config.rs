//! What the proxy is told once.
//!
//! Owns: configuration, and how it and the own `Node` become the [`Network`] the rules are made from.
//! Never: reads files, flags or interfaces.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::objects::{Family, Node};
use crate::ruleset::{LocalSource, Network, NodePortMatch};

/// How pods of this node are recognised (kube-proxy's `detectLocalMode`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum DetectLocal {
    /// They are not.
    #[default]
    Off,
    /// `ClusterCIDR`: by the ranges all pods of the cluster have.
    ClusterCidr(Vec<IpNet>),
    /// `NodeCIDR`: by the `spec.podCIDRs` of the own node.
    NodeCidr,
    /// `BridgeInterface`: by the bridge their packets come from.
    BridgeInterface(Box<str>),
    /// `InterfaceNamePrefix`: by how their interfaces' names begin.
    InterfaceNamePrefix(Box<str>),
}

/// `nodePortAddresses`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NodePortAddresses {
    /// `primary`: the node's addresses in its `Node` object. What nftables mode does by default.
    #[default]
    Primary,
    /// Those of the node's addresses that lie in one of these ranges. A range of everything means every address but
    /// loopback.
    Ranges(Vec<IpNet>),
}

/// Everything the proxy is told once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Name of the tables, one in each family.
    pub table: String,
    /// The own node's name: endpoints with this `nodeName` are local.
    pub node_name: String,
    /// The node's addresses, until (or unless) its `Node` object names some.
    pub node_addresses: Vec<IpAddr>,
    /// Which addresses serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// How pods of this node are recognised.
    pub detect_local: DetectLocal,
    /// Masquerade everything sent to a cluster address.
    pub masquerade_all: bool,
    /// Ranges cluster addresses are taken from; addresses in them that belong to no service are dropped.
    pub service_cidrs: Vec<IpNet>,
    /// Whether `spec.externalIPs` is honoured (feature gate `AllowServiceExternalIPs`).
    pub external_ips: bool,
    /// The families to program.
    pub families: Vec<Family>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            table: "orlop".to_owned(),
            node_name: String::new(),
            node_addresses: Vec::new(),
            node_port_addresses: NodePortAddresses::default(),
            detect_local: DetectLocal::default(),
            masquerade_all: false,
            service_cidrs: Vec::new(),
            external_ips: true,
            families: Family::ALL.to_vec(),
        }
    }
}

/// What was learned of the node since.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Surroundings {
    /// The own `Node` object.
    pub node: Option<Node>,
    /// The addresses its interfaces have, loopback included or not.
    pub interface_addresses: Vec<IpAddr>,
    /// Service ranges that were announced (`ServiceCIDR` objects), in place of the configured ones.
    pub service_cidrs: Option<Vec<IpNet>>,
}

impl Config {
    /// What the rules of a family need to know.
    pub fn network(&self, family: Family, surroundings: &Surroundings) -> Network {
        let of_family = |ranges: &[IpNet]| -> Vec<IpNet> {
            let mut ranges: Vec<_> =
                ranges.iter().map(IpNet::trunc).filter(|range| Family::of(&range.addr()) == family).collect();
            ranges.sort_unstable();
            ranges.dedup();
            ranges
        };
        let by_ranges = |ranges: &[IpNet]| match of_family(ranges) {
            none if none.is_empty() => LocalSource::Unknown,
            ranges => LocalSource::Ranges(ranges),
        };
        let local = match &self.detect_local {
            DetectLocal::Off => LocalSource::Unknown,
            DetectLocal::ClusterCidr(ranges) => by_ranges(ranges),
            DetectLocal::NodeCidr => by_ranges(
                surroundings.node.as_ref().map(|node| node.pod_cidrs.as_slice()).unwrap_or_default(),
            ),
            DetectLocal::BridgeInterface(name) => LocalSource::Interface(name.clone()),
            DetectLocal::InterfaceNamePrefix(name) => LocalSource::InterfacePrefix(name.clone()),
        };
        let any = matches!(&self.node_port_addresses, NodePortAddresses::Ranges(ranges)
            if ranges.iter().any(|range| range.prefix_len() == 0 && Family::of(&range.addr()) == family));
        Network {
            local,
            masquerade_all: self.masquerade_all,
            service_ranges: of_family(surroundings.service_cidrs.as_ref().unwrap_or(&self.service_cidrs)),
            node_ports: if any { NodePortMatch::AnyLocal } else { NodePortMatch::Listed },
        }
    }

    /// The node's own addresses, as the API server knows them.
    pub fn node_addresses<'a>(&'a self, surroundings: &'a Surroundings) -> &'a [IpAddr] {
        match &surroundings.node {
            Some(node) if !node.addresses.is_empty() => &node.addresses,
            _ => &self.node_addresses,
        }
    }

    /// The addresses of a family that serve node ports, when they are listed. Never loopback.
    pub fn node_port_ips(&self, family: Family, surroundings: &Surroundings) -> Vec<IpAddr> {
        let own = self.node_addresses(surroundings);
        let mut found: Vec<IpAddr> = match &self.node_port_addresses {
            NodePortAddresses::Primary => {
                own.iter().copied().find(|address| Family::of(address) == family).into_iter().collect()
            }
            NodePortAddresses::Ranges(ranges) => own
                .iter()
                .chain(&surroundings.interface_addresses)
                .copied()
                .filter(|address| Family::of(address) == family)
                .filter(|address| ranges.iter().any(|range| range.contains(address)))
                .collect(),
        };
        found.retain(|address| !address.is_loopback());
        found.sort_unstable();
        found.dedup();
        found
    }
}
