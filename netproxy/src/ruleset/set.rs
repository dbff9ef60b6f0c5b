//! The sets and maps, by name, and the kinds of their keys and values.
//!
//! Owns: which sets exist and what is in each.
//! Never: holds elements.

use std::fmt;
use std::sync::Arc;

use super::Policy;

/// A set or map of the table.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum SetName {
    /// VIP -> where to go on. Every VIP has exactly one element here or in `Refused`.
    Services,
    /// VIPs without any endpoint.
    Refused,
    /// VIP and slot -> endpoint.
    Endpoints,
    /// Node port -> where to go on.
    NodePorts,
    /// Node ports without any endpoint.
    NodePortRefused,
    /// Node port and slot -> endpoint.
    NodePortEndpoints,
    /// VIP of a service with `externalTrafficPolicy: Local` -> what pods and the node itself see.
    Inside,
    /// The same VIP -> what everyone else sees.
    Outside,
    /// As `Inside`, for node ports.
    NodePortInside,
    /// As `Outside`, for node ports.
    NodePortOutside,
    /// External VIP -> whose connections are masqueraded.
    Masquerade,
    /// Node port -> whose connections are masqueraded.
    NodePortMasquerade,
    /// VIP of a service with session affinity -> the chain that remembers its clients.
    Learn,
    /// As `Learn`, for node ports.
    NodePortLearn,
    /// All cluster addresses.
    ClusterIps,
    /// The node's addresses that serve node ports.
    NodePortIps,
    /// Local endpoints, as both ends of a connection.
    Hairpin,
    /// Load balancer VIPs with `loadBalancerSourceRanges`.
    Firewall,
    /// Who may reach them.
    FirewallSources,
    /// Client address -> endpoint, filled by packets, one for each service port with session affinity and each way
    /// it chooses endpoints. The text is `namespace/name/protocol/port`.
    Clients(Policy, Arc<str>),
}

/// What a set's keys are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyKind {
    /// address . protocol . port
    Vip,
    /// address . protocol . port . slot
    VipSlot,
    /// protocol . port
    Port,
    /// protocol . port . slot
    PortSlot,
    /// address
    Address,
    /// address . address . protocol . port
    Hairpin,
    /// address . protocol . port . interval of addresses
    Source,
}

/// What a map's values are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataKind {
    /// A plain set.
    None,
    /// address . port
    Target,
    /// drop or goto
    Verdict,
}

impl SetName {
    /// The sets that always exist.
    pub const STATIC: [Self; 19] = [
        Self::Services,
        Self::Refused,
        Self::NodePortRefused,
        Self::Endpoints,
        Self::NodePorts,
        Self::NodePortEndpoints,
        Self::Inside,
        Self::Outside,
        Self::NodePortInside,
        Self::NodePortOutside,
        Self::Masquerade,
        Self::NodePortMasquerade,
        Self::Learn,
        Self::NodePortLearn,
        Self::ClusterIps,
        Self::NodePortIps,
        Self::Hairpin,
        Self::Firewall,
        Self::FirewallSources,
    ];

    /// What its keys are made of.
    pub const fn key_kind(&self) -> KeyKind {
        match self {
            Self::Services
            | Self::Refused
            | Self::Inside
            | Self::Outside
            | Self::Masquerade
            | Self::Learn
            | Self::Firewall => KeyKind::Vip,
            Self::Endpoints => KeyKind::VipSlot,
            Self::NodePorts
            | Self::NodePortRefused
            | Self::NodePortInside
            | Self::NodePortOutside
            | Self::NodePortMasquerade
            | Self::NodePortLearn => KeyKind::Port,
            Self::NodePortEndpoints => KeyKind::PortSlot,
            Self::ClusterIps | Self::NodePortIps | Self::Clients(..) => KeyKind::Address,
            Self::Hairpin => KeyKind::Hairpin,
            Self::FirewallSources => KeyKind::Source,
        }
    }

    /// What its values are.
    pub const fn data_kind(&self) -> DataKind {
        match self {
            Self::Endpoints | Self::NodePortEndpoints | Self::Clients(..) => DataKind::Target,
            Self::Refused
            | Self::NodePortRefused
            | Self::ClusterIps
            | Self::NodePortIps
            | Self::Hairpin
            | Self::Firewall
            | Self::FirewallSources => DataKind::None,
            Self::Services
            | Self::NodePorts
            | Self::Inside
            | Self::Outside
            | Self::NodePortInside
            | Self::NodePortOutside
            | Self::Masquerade
            | Self::NodePortMasquerade
            | Self::Learn
            | Self::NodePortLearn => DataKind::Verdict,
        }
    }

    /// Whether packets, not the proxy, fill it.
    pub const fn is_dynamic(&self) -> bool {
        matches!(self, Self::Clients(..))
    }

    /// The set of that name, if it is one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(rest) = name.strip_prefix("clients/") {
            let (policy, service) = rest.split_once('/')?;
            return Some(Self::Clients(Policy::parse(policy)?, service.into()));
        }
        Self::STATIC.iter().find(|set| set.static_name() == name).cloned()
    }

    const fn static_name(&self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Refused => "refused",
            Self::NodePortRefused => "refused-node-ports",
            Self::Endpoints => "endpoints",
            Self::NodePorts => "node-ports",
            Self::NodePortEndpoints => "node-port-endpoints",
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::NodePortInside => "node-port-inside",
            Self::NodePortOutside => "node-port-outside",
            Self::Masquerade => "masquerade-vips",
            Self::NodePortMasquerade => "masquerade-node-ports",
            Self::Learn => "learn-vips",
            Self::NodePortLearn => "learn-node-ports",
            Self::ClusterIps => "cluster-ips",
            Self::NodePortIps => "node-port-ips",
            Self::Hairpin => "hairpin",
            Self::Firewall => "firewall",
            Self::FirewallSources => "firewall-sources",
            Self::Clients(..) => "clients",
        }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clients(policy, service) => write!(f, "clients/{}/{service}", policy.as_str()),
            _ => f.write_str(self.static_name()),
        }
    }
}
