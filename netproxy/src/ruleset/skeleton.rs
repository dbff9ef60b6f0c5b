//! The rules.
//!
//! Owns: every rule there is, as functions of the node's network and of counts, never of services.
//! ```text
//! a packet's first hook            -> firewall: may this source reach this load balancer?
//! destination NAT                  -> services: VIP -> spread/N | sticky | external | drop
//!                                     spread/N: slot = random mod N; dnat to endpoints[VIP, slot]
//! ten later, translated            -> learn: remember the endpoint a client got (session affinity)
//! ten later, not translated        -> refusing: nobody there? unknown port? unallocated address?
//! before it leaves                 -> masquerading: hairpin, external policies, cluster addresses from outside
//! ```
//! All of it runs on the first packet of a connection only, and no packet is marked: what masquerading needs to know
//! it reads from the connection's original destination.
//! Never: mentions a service's address or port.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    Chain, ChainDefinition, ChainKind, LOCAL_SLOTS, Load, Policy, RejectWith, Rule, SetName, Statement as S,
};
use crate::objects::{Family, Protocol};

/// How a pod of this node is told from everyone else (kube-proxy's `--detect-local-mode`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum LocalSource {
    /// It cannot be told: nothing is masqueraded for being from outside.
    #[default]
    Unknown,
    /// By source address: `ClusterCIDR` and `NodeCIDR`.
    Ranges(Vec<IpNet>),
    /// By the bridge it comes from: `BridgeInterface`.
    Interface(Box<str>),
    /// By how its interface's name begins: `InterfaceNamePrefix`.
    InterfacePrefix(Box<str>),
}

/// Which addresses serve node ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodePortMatch {
    /// The addresses in the set `node-port-ips`.
    Listed,
    /// Every address of the node but loopback.
    AnyLocal,
}

/// What the rules need to know of the node's network, for one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// How a pod is recognised.
    pub local: LocalSource,
    /// `--masquerade-all`: masquerade everything sent to a cluster address.
    pub masquerade_all: bool,
    /// Ranges that cluster addresses are taken from.
    pub service_ranges: Vec<IpNet>,
    /// Which addresses serve node ports.
    pub node_ports: NodePortMatch,
}

impl LocalSource {
    /// One condition for each way to be a pod; empty when pods cannot be told.
    fn is_pod(&self) -> Vec<S> {
        match self {
            Self::Unknown => Vec::new(),
            Self::Ranges(ranges) => ranges.iter().map(|range| S::SourceIn(*range, true)).collect(),
            Self::Interface(name) => vec![S::Interface { name: name.clone(), prefix: false, is: true }],
            Self::InterfacePrefix(name) => vec![S::Interface { name: name.clone(), prefix: true, is: true }],
        }
    }
}

fn vip() -> Vec<Load> {
    vec![Load::DestinationAddress, Load::Protocol, Load::DestinationPort]
}

fn port() -> Vec<Load> {
    vec![Load::Protocol, Load::DestinationPort]
}

fn original_vip() -> Vec<Load> {
    vec![Load::OriginalAddress, Load::Protocol, Load::OriginalPort]
}

fn original_port() -> Vec<Load> {
    vec![Load::Protocol, Load::OriginalPort]
}

fn kind_key(kind: ChainKind) -> Vec<Load> {
    match kind {
        ChainKind::Vip => vip(),
        ChainKind::NodePort => port(),
    }
}

/// The chains that exist whatever services there are.
pub fn skeleton(family: Family, network: &Network) -> Vec<ChainDefinition> {
    Chain::STATIC
        .into_iter()
        .map(|chain| ChainDefinition { rules: rules(&chain, family, network), chain })
        .collect()
}

fn rules(chain: &Chain, family: Family, network: &Network) -> Vec<Rule> {
    let bodies = match chain {
        Chain::Refuse => vec![
            vec![S::ProtocolIs(Protocol::Tcp), S::Reject(RejectWith::TcpReset)],
            vec![S::Reject(RejectWith::PortUnreachable)],
        ],
        Chain::Refusing => vec![
            vec![S::In(vip(), SetName::Refused, true), S::Goto(Chain::Refuse)],
            vec![S::In(vec![Load::DestinationAddress], SetName::ClusterIps, true), S::Goto(Chain::Refuse)],
            vec![S::Jump(Chain::Unallocated)],
            at_node_port(
                family,
                network.node_ports,
                [S::In(port(), SetName::NodePortRefused, true), S::Goto(Chain::Refuse)],
            ),
        ],
        Chain::Unallocated => {
            network.service_ranges.iter().map(|range| vec![S::DestinationIn(*range, true), S::Drop]).collect()
        }
        Chain::External => inside_or_outside(network, &vip(), &SetName::Inside, &SetName::Outside),
        Chain::NodePortExternal => {
            inside_or_outside(network, &port(), &SetName::NodePortInside, &SetName::NodePortOutside)
        }
        Chain::Services => vec![
            vec![S::Dispatch(vip(), SetName::Services)],
            at_node_port(family, network.node_ports, [S::Dispatch(port(), SetName::NodePorts)]),
        ],
        Chain::Firewall => {
            let source =
                vec![Load::DestinationAddress, Load::Protocol, Load::DestinationPort, Load::SourceAddress];
            let forbidden = S::In(source, SetName::FirewallSources, false);
            vec![vec![S::In(vip(), SetName::Firewall, true), forbidden, S::Drop]]
        }
        Chain::MasqueradeAll => vec![vec![S::Masquerade]],
        Chain::MasqueradeNode => vec![vec![S::FromNode, S::Masquerade]],
        Chain::MasqueradeCluster => masquerade_cluster(network),
        Chain::Masquerading => masquerading(),
        Chain::Learn => vec![
            vec![S::Dispatch(original_vip(), SetName::Learn)],
            vec![S::In(vec![Load::OriginalAddress], SetName::ClusterIps, true), S::Return],
            vec![S::Dispatch(original_port(), SetName::NodePortLearn)],
        ],
        Chain::FirewallPrerouting | Chain::FirewallOutput => vec![vec![S::New, S::Jump(Chain::Firewall)]],
        Chain::Prerouting | Chain::Output => vec![vec![S::Jump(Chain::Services)]],
        Chain::AfterPrerouting | Chain::AfterOutput => {
            vec![vec![S::New, S::Translated, S::Goto(Chain::Learn)], vec![S::New, S::Jump(Chain::Refusing)]]
        }
        Chain::Postrouting => vec![vec![S::Translated, S::Jump(Chain::Masquerading)]],
        Chain::Spread(..) | Chain::Sticky(..) | Chain::Remember(..) | Chain::RememberExternal(_) => {
            Vec::new()
        }
    };
    bodies.into_iter().map(Rule).collect()
}

/// What applies to node ports, at the addresses that serve them.
fn at_node_port<const N: usize>(family: Family, node_ports: NodePortMatch, then: [S; N]) -> Vec<S> {
    let mut rule = match node_ports {
        NodePortMatch::Listed => vec![S::In(vec![Load::DestinationAddress], SetName::NodePortIps, true)],
        NodePortMatch::AnyLocal => vec![S::ToNode, S::DestinationIn(loopback(family), false)],
    };
    rule.extend(then);
    rule
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8)),
        Family::V6 => IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128)),
    }
}

/// `externalTrafficPolicy: Local`: pods and the node itself may use every endpoint, others only those here.
fn inside_or_outside(network: &Network, key: &[Load], inside: &SetName, outside: &SetName) -> Vec<Vec<S>> {
    let conditions = network.local.is_pod().into_iter().chain([S::FromNode]);
    let mut rules: Vec<_> =
        conditions.map(|condition| vec![condition, S::Dispatch(key.to_vec(), inside.clone())]).collect();
    rules.push(vec![S::Dispatch(key.to_vec(), outside.clone())]);
    rules
}

fn masquerading() -> Vec<Vec<S>> {
    let itself = vec![Load::SourceAddress, Load::DestinationAddress, Load::Protocol, Load::DestinationPort];
    let to_cluster_ip = S::In(vec![Load::OriginalAddress], SetName::ClusterIps, true);
    vec![
        vec![S::In(itself, SetName::Hairpin, true), S::Masquerade],
        vec![S::Dispatch(original_vip(), SetName::Masquerade)],
        vec![to_cluster_ip, S::Goto(Chain::MasqueradeCluster)],
        vec![S::Dispatch(original_port(), SetName::NodePortMasquerade)],
    ]
}

fn masquerade_cluster(network: &Network) -> Vec<Vec<S>> {
    if network.masquerade_all {
        return vec![vec![S::Masquerade]];
    }
    let mut rules: Vec<_> = network.local.is_pod().into_iter().map(|pod| vec![pod, S::Return]).collect();
    if !rules.is_empty() {
        rules.push(vec![S::Masquerade]);
    }
    rules
}

/// The chain that chooses among `count` endpoints. A packet can be on its way through the rules just when a transaction
/// removes the slot it drew: then it takes the first one, which is there as long as any endpoint is.
pub fn spread(kind: ChainKind, policy: Policy, count: u32) -> ChainDefinition {
    let first = if policy == Policy::Local { LOCAL_SLOTS } else { 0 };
    let key = kind_key(kind);
    let map = match kind {
        ChainKind::Vip => SetName::Endpoints,
        ChainKind::NodePort => SetName::NodePortEndpoints,
    };
    let choose = |count| {
        let key = key.iter().copied().chain([Load::Random { count, first }]).collect();
        Rule(vec![S::Translate(key, map.clone())])
    };
    let mut rules = vec![choose(count)];
    if count > 1 {
        rules.push(choose(1));
    }
    ChainDefinition { chain: Chain::Spread(kind, policy, count), rules }
}

/// The chains of a service port with session affinity.
pub mod sticky {
    use super::{Arc, Chain, ChainDefinition, ChainKind, Load, Network, Policy, Protocol, Rule, S, SetName};

    /// The endpoint this client had, else one of `count`.
    pub fn choose(
        kind: ChainKind,
        policy: Policy,
        service: &Arc<str>,
        protocol: Protocol,
        count: u32,
    ) -> ChainDefinition {
        let known = S::Translate(vec![Load::SourceAddress], SetName::Clients(policy, service.clone()));
        ChainDefinition {
            chain: Chain::Sticky(kind, policy, service.clone()),
            rules: vec![
                Rule(vec![S::ProtocolIs(protocol), known]),
                Rule(vec![S::Goto(Chain::Spread(kind, policy, count))]),
            ],
        }
    }

    /// Remember the endpoint, for this long after the client's last connection.
    pub fn remember(policy: Policy, service: &Arc<str>, seconds: u32) -> ChainDefinition {
        let update = S::Remember(SetName::Clients(policy, service.clone()), seconds);
        ChainDefinition { chain: Chain::Remember(policy, service.clone()), rules: vec![Rule(vec![update])] }
    }

    /// Remember the endpoint where it was chosen: inside among all, outside among those on this node.
    pub fn remember_external(network: &Network, service: &Arc<str>) -> ChainDefinition {
        let conditions = network.local.is_pod().into_iter().chain([S::FromNode]);
        let inside = Chain::Remember(Policy::Cluster, service.clone());
        let mut rules: Vec<_> =
            conditions.map(|condition| Rule(vec![condition, S::Goto(inside.clone())])).collect();
        rules.push(Rule(vec![S::Goto(Chain::Remember(Policy::Local, service.clone()))]));
        ChainDefinition { chain: Chain::RememberExternal(service.clone()), rules }
    }
}
