//! The chains, by name.
//!
//! Owns: names, hooks and priorities. Priorities follow kube-proxy's: destination NAT at -100, source NAT at 100, the
//! load balancer firewall ten before destination NAT.
//! Never: holds rules (see `skeleton`).

use std::fmt;
use std::sync::Arc;

use super::{Rule, SetName};

/// Which endpoints a connection chooses from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Policy {
    /// All usable endpoints.
    Cluster,
    /// Those on this node.
    Local,
}

impl Policy {
    /// `cluster` or `local`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
        }
    }

    /// From `cluster` or `local`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "cluster" => Some(Self::Cluster),
            "local" => Some(Self::Local),
            _ => None,
        }
    }
}

/// What a chain's slots are looked up by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ChainKind {
    /// By VIP.
    Vip,
    /// By node port.
    NodePort,
}

impl ChainKind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::NodePort => "node-port",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "vip" => Some(Self::Vip),
            "node-port" => Some(Self::NodePort),
            _ => None,
        }
    }
}

/// A chain of the table.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Chain {
    /// Base chain: source ranges, packets from elsewhere.
    FirewallPrerouting,
    /// Base chain: source ranges, packets of the node itself.
    FirewallOutput,
    /// Base chain: destination NAT, packets from elsewhere.
    Prerouting,
    /// Base chain: destination NAT, packets of the node itself.
    Output,
    /// Base chain: what was translated is learned, what was not may be refused; packets from elsewhere.
    AfterPrerouting,
    /// Base chain: the same for packets of the node itself.
    AfterOutput,
    /// Base chain: source NAT.
    Postrouting,
    /// Source ranges of load balancers.
    Firewall,
    /// The dispatch: which VIP, which node port.
    Services,
    /// Addresses of the service ranges that belong to no service.
    Unallocated,
    /// A VIP with `externalTrafficPolicy: Local`: inside or outside?
    External,
    /// A node port with `externalTrafficPolicy: Local`: inside or outside?
    NodePortExternal,
    /// Which untranslated connections are refused. A chain of type `nat` cannot do it: in the output hook the answer
    /// would be lost.
    Refusing,
    /// Reject.
    Refuse,
    /// Which translated connections are masqueraded.
    Masquerading,
    /// All of them.
    MasqueradeAll,
    /// Those of the node itself.
    MasqueradeNode,
    /// To cluster addresses: those from outside the pod network.
    MasqueradeCluster,
    /// Which clients are remembered, and where.
    Learn,
    /// Choose among this many endpoints. One chain for each count, shared by all services.
    Spread(ChainKind, Policy, u32),
    /// The endpoint this client had, else choose.
    Sticky(ChainKind, Policy, Arc<str>),
    /// Remember this client's endpoint.
    Remember(Policy, Arc<str>),
    /// Remember this client's endpoint, for a service with `externalTrafficPolicy: Local`.
    RememberExternal(Arc<str>),
}

/// When a base chain runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookPoint {
    /// Packets from elsewhere, before routing.
    Prerouting,
    /// Packets of the node itself, before routing.
    Output,
    /// All packets, before they leave.
    Postrouting,
}

/// Where a base chain is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hook {
    /// When it runs.
    pub point: HookPoint,
    /// Whether it is a `nat` chain (sees the first packet of each connection) or a `filter` chain.
    pub nat: bool,
    /// Its place among other chains; lower runs earlier.
    pub priority: i32,
}

/// A chain with its rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChainDefinition {
    /// Its name.
    pub chain: Chain,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

impl Chain {
    /// The chains of the skeleton, in an order in which each only names earlier ones.
    pub const STATIC: [Self; 19] = [
        Self::Refuse,
        Self::Unallocated,
        Self::Refusing,
        Self::External,
        Self::NodePortExternal,
        Self::Services,
        Self::Firewall,
        Self::MasqueradeAll,
        Self::MasqueradeNode,
        Self::MasqueradeCluster,
        Self::Masquerading,
        Self::Learn,
        Self::FirewallPrerouting,
        Self::FirewallOutput,
        Self::Prerouting,
        Self::Output,
        Self::AfterPrerouting,
        Self::AfterOutput,
        Self::Postrouting,
    ];

    /// Where it is attached, if it is a base chain.
    pub const fn hook(&self) -> Option<Hook> {
        let (point, nat, priority) = match self {
            Self::FirewallPrerouting => (HookPoint::Prerouting, false, DSTNAT - 10),
            Self::FirewallOutput => (HookPoint::Output, false, DSTNAT - 10),
            Self::Prerouting => (HookPoint::Prerouting, true, DSTNAT),
            Self::Output => (HookPoint::Output, true, DSTNAT),
            Self::AfterPrerouting => (HookPoint::Prerouting, false, DSTNAT + 10),
            Self::AfterOutput => (HookPoint::Output, false, DSTNAT + 10),
            Self::Postrouting => (HookPoint::Postrouting, true, SRCNAT),
            _ => return None,
        };
        Some(Hook { point, nat, priority })
    }

    /// Whether it comes and goes with the services that need it.
    pub const fn is_dynamic(&self) -> bool {
        matches!(self, Self::Spread(..) | Self::Sticky(..) | Self::Remember(..) | Self::RememberExternal(..))
    }

    /// The chain of that name, if it is one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(4, '/');
        match parts.next()? {
            "spread" => {
                let (kind, policy) = (ChainKind::parse(parts.next()?)?, Policy::parse(parts.next()?)?);
                Some(Self::Spread(kind, policy, parts.next()?.parse().ok()?))
            }
            "sticky" => {
                let (kind, policy) = (ChainKind::parse(parts.next()?)?, Policy::parse(parts.next()?)?);
                Some(Self::Sticky(kind, policy, parts.next()?.into()))
            }
            "remember" => match name.split('/').nth(1)? {
                "external" => Some(Self::RememberExternal(name.strip_prefix("remember/external/")?.into())),
                policy => {
                    let policy = Policy::parse(policy)?;
                    let service = name.strip_prefix("remember/")?.split_once('/')?.1;
                    Some(Self::Remember(policy, service.into()))
                }
            },
            _ => Self::STATIC.iter().find(|chain| chain.static_name() == name).cloned(),
        }
    }

    /// The map of clients a sticky or remembering chain works with.
    pub fn clients(&self) -> Option<SetName> {
        match self {
            Self::Sticky(_, policy, service) | Self::Remember(policy, service) => {
                Some(SetName::Clients(*policy, service.clone()))
            }
            _ => None,
        }
    }

    const fn static_name(&self) -> &'static str {
        match self {
            Self::FirewallPrerouting => "firewall-prerouting",
            Self::FirewallOutput => "firewall-output",
            Self::Prerouting => "dnat-prerouting",
            Self::Output => "dnat-output",
            Self::AfterPrerouting => "after-dnat-prerouting",
            Self::AfterOutput => "after-dnat-output",
            Self::Postrouting => "snat-postrouting",
            Self::Firewall => "source-ranges",
            Self::Services => "services",
            Self::Unallocated => "unallocated",
            Self::External => "external",
            Self::NodePortExternal => "node-port-external",
            Self::Refusing => "refusing",
            Self::Refuse => "refuse",
            Self::Masquerading => "masquerading",
            Self::MasqueradeAll => "masquerade-all",
            Self::MasqueradeNode => "masquerade-node",
            Self::MasqueradeCluster => "masquerade-cluster",
            Self::Learn => "learn",
            Self::Spread(..) => "spread",
            Self::Sticky(..) => "sticky",
            Self::Remember(..) | Self::RememberExternal(_) => "remember",
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spread(kind, policy, count) => {
                write!(f, "spread/{}/{}/{count}", kind.prefix(), policy.as_str())
            }
            Self::Sticky(kind, policy, service) => {
                write!(f, "sticky/{}/{}/{service}", kind.prefix(), policy.as_str())
            }
            Self::Remember(policy, service) => write!(f, "remember/{}/{service}", policy.as_str()),
            Self::RememberExternal(service) => write!(f, "remember/external/{service}"),
            _ => f.write_str(self.static_name()),
        }
    }
}
