//! How each other node's pods are reached. Pure.
//!
//! Owns: the choice between a direct route and a tunnel, and everything that follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{Local, Mode, Peer};

/// The hardware address of a node's tunnel end. It follows from the node's address, so nothing has to be announced.
pub(super) fn tunnel_mac(node: IpAddr) -> [u8; 6] {
    let hash = Sha256::digest(format!("tunnel {node}").as_bytes());
    [hash[0] & 0xfc | 0x02, hash[1], hash[2], hash[3], hash[4], hash[5]]
}

/// By which way a destination is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// By a node on a link of ours: the gateway and the link's index.
    Direct(IpAddr, u32),
    /// Through the tunnel: the far end's address inside it.
    Tunnel(IpAddr),
}

/// Why a peer's pods, or some of them, are not reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The range is this node's, or another peer's.
    #[error("pod range {range} of node {node} overlaps one of node {other}")]
    Overlap {
        /// The peer.
        node: String,
        /// Its range.
        range: IpNet,
        /// Who has it too; empty for this node.
        other: String,
    },
    /// There is no way to the peer that may be taken.
    #[error("pod range {range} of node {node} is not reached: {why}")]
    Unreachable {
        /// The peer.
        node: String,
        /// Its range.
        range: IpNet,
        /// What is missing.
        why: &'static str,
    },
}

/// What the kernel should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Routes of the main table.
    pub(super) pods: BTreeMap<IpNet, Way>,
    /// Routes for what pods send to nodes behind the tunnel.
    pub(super) nodes: BTreeMap<IpNet, Way>,
    /// Addresses inside the tunnel and their hardware addresses.
    pub(super) neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// Hardware addresses and the nodes they are behind.
    pub(super) forwardings: BTreeMap<[u8; 6], IpAddr>,
    /// Addresses of other nodes.
    pub(super) node_addresses: BTreeSet<IpAddr>,
    /// Pod ranges of other nodes.
    pub(super) pod_ranges: BTreeSet<IpNet>,
    /// What is not reached.
    pub(super) problems: Vec<Problem>,
}

impl Plan {
    pub(super) fn needs_tunnel(&self) -> bool {
        !self.forwardings.is_empty()
    }
}

/// What is known of this node's links.
#[derive(Debug, Clone, Default)]
pub(super) struct Links {
    /// Addresses of links that are up, with their index.
    pub(super) addresses: Vec<(u32, IpNet)>,
}

impl Links {
    /// The link `address` is a neighbour on.
    fn of(&self, address: IpAddr) -> Option<u32> {
        let near = self
            .addresses
            .iter()
            .find(|(_, net)| net.prefix_len() < net.max_prefix_len() && net.contains(&address));
        near.map(|(index, _)| *index)
    }

    /// The link that has `address` itself.
    pub(super) fn holding(&self, address: IpAddr) -> Option<u32> {
        self.addresses.iter().find(|(_, net)| net.addr() == address).map(|(index, _)| *index)
    }
}

/// Decides.
pub(super) fn plan(mode: Mode, local: &Local, links: &Links, peers: &[Peer]) -> Plan {
    let mut plan = Plan::default();
    let mut taken: Vec<(IpNet, &str)> = local.pod_cidrs.iter().map(|net| (net.trunc(), "")).collect();
    let mut peers: Vec<&Peer> = peers.iter().collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    for peer in peers {
        plan.node_addresses.extend(peer.addresses.iter().copied());
        for range in peer.pod_cidrs.iter().map(IpNet::trunc) {
            let overlapping = |(net, _): &&(IpNet, &str)| net.contains(&range) || range.contains(net);
            if let Some((_, other)) = taken.iter().find(overlapping) {
                let (node, other) = (peer.name.clone(), (*other).to_owned());
                plan.problems.push(Problem::Overlap { node, range, other });
                continue;
            }
            taken.push((range, &peer.name));
            plan.pod_ranges.insert(range);
            match way(mode, local, links, peer, range) {
                Ok(way) => plan.add(way, local, peer, range),
                Err(why) => plan.problems.push(Problem::Unreachable { node: peer.name.clone(), range, why }),
            }
        }
    }
    plan
}

fn way(mode: Mode, local: &Local, links: &Links, peer: &Peer, range: IpNet) -> Result<Way, &'static str> {
    if mode != Mode::Tunnel {
        let same_family = peer.addresses.iter().filter(|ip| ip.is_ipv4() == range.addr().is_ipv4());
        let near = same_family.filter_map(|ip| links.of(*ip).map(|index| Way::Direct(*ip, index))).next();
        if let Some(way) = near {
            return Ok(way);
        }
    }
    if mode == Mode::Direct {
        return Err("the node is not on a link of this node, and tunnels are not allowed");
    }
    far_end(local, peer).map(|_| Way::Tunnel(range.network()))
}

/// The peer's address at which tunnels to it end.
fn far_end(local: &Local, peer: &Peer) -> Result<IpAddr, &'static str> {
    let near_end = local.addresses.first().ok_or("this node has no address")?;
    let far_end = peer.addresses.iter().find(|ip| ip.is_ipv4() == near_end.is_ipv4());
    far_end.copied().ok_or("the node has no address of the family of this node's first address")
}

impl Plan {
    fn add(&mut self, way: Way, local: &Local, peer: &Peer, range: IpNet) {
        self.pods.insert(range, way);
        let Way::Tunnel(inside) = way else { return };
        let Ok(node) = far_end(local, peer) else { return };
        let mac = tunnel_mac(node);
        self.neighbours.insert(inside, mac);
        self.forwardings.insert(mac, node);
        // What pods send to that node takes the tunnel too, or it would cross strange links with a pod's address.
        for address in peer.addresses.iter().filter(|ip| ip.is_ipv4() == inside.is_ipv4()) {
            self.nodes.insert(IpNet::from(*address), way);
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
