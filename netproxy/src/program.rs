//! One service port as the kernel sees it, and the elements that follow from it.
//!
//! Owns: the small record the proxy keeps for each service port and family, and the one function that turns it into
//! elements. What is in the kernel for a service is always `elements` of the records it was last programmed from, so
//! a change is the difference of two calls.
//! Never: looks at other services; talks to the kernel.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::objects::{Family, Protocol};
use crate::ruleset::{
    Chain, ChainDefinition, ChainKind, Element, Key, LOCAL_SLOTS, Network, NodePort, Policy, SetName, Target,
    Value, Verdict, Vip, sticky,
};

/// What clients connect to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Address {
    /// An address, protocol and port.
    Vip(Vip),
    /// A protocol and port at the node's addresses of a family.
    NodePort(Family, NodePort),
}

/// Which endpoints a frontend uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Traffic {
    /// All.
    Cluster,
    /// Those here.
    Local,
    /// All for pods and the node itself, those here for everyone else.
    Split,
}

/// Whose connections are masqueraded, beside those that always are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Masquerade {
    /// Decided by the cluster address.
    Internal,
    /// Everyone's: `externalTrafficPolicy: Cluster`.
    Everyone,
    /// The node's own: `externalTrafficPolicy: Local`.
    Node,
}

/// One way to reach a service port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Frontend {
    /// What clients connect to.
    pub address: Address,
    /// Which endpoints they get.
    pub traffic: Traffic,
    /// Whose connections are masqueraded.
    pub masquerade: Masquerade,
    /// Who may connect, if not everyone.
    pub sources: Option<Box<[IpNet]>>,
}

/// A service port in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortProgram {
    /// `ip` or `ip6`.
    pub family: Family,
    /// The service port's name.
    pub port_name: Box<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The ways to reach it, those this service has won.
    pub frontends: Box<[Frontend]>,
    /// Its endpoints for `Traffic::Cluster`, by slot.
    pub cluster: Box<[Target]>,
    /// Its endpoints for `Traffic::Local`, by slot.
    pub local: Box<[Target]>,
    /// Those that run here.
    pub here: Box<[Target]>,
    /// UDP only: endpoints that get nothing new but still answer. Nothing of them is in the kernel but the connections
    /// they have, which become stale when they stop answering.
    pub lingering: Box<[Target]>,
    /// Whether there is a usable endpoint anywhere.
    pub any: bool,
    /// Session affinity: seconds, and `namespace/name/protocol/port`.
    pub affinity: Option<(u32, Arc<str>)>,
}

/// Receives the elements of a program.
pub type Sink<'a> = dyn FnMut(Family, SetName, Element) + 'a;

impl PortProgram {
    /// Hands every element of this service port to `sink`. A cluster address is handed out by [`cluster_ips`]: the
    /// ports of a service share it.
    ///
    /// [`cluster_ips`]: Self::cluster_ips
    pub fn elements(&self, sink: &mut Sink<'_>) {
        for frontend in &self.frontends {
            self.dispatch(frontend, sink);
            self.slots(frontend, sink);
            if self.any {
                self.masquerade(frontend, sink);
                self.learn(frontend, sink);
            }
            self.firewall(frontend, sink);
        }
        for target in &self.here {
            let ends = Vip { address: target.address, protocol: self.protocol, port: target.port };
            sink(self.family, SetName::Hairpin, Element { key: Key::Hairpin(ends), value: Value::None });
        }
    }

    /// The cluster addresses among the frontends.
    pub fn cluster_ips(&self) -> impl Iterator<Item = std::net::IpAddr> + '_ {
        self.frontends.iter().filter_map(|frontend| match (frontend.masquerade, frontend.address) {
            (Masquerade::Internal, Address::Vip(vip)) => Some(vip.address),
            _ => None,
        })
    }

    /// Frontends that have endpoints, but none here where only those count.
    pub fn frontends_without_local(&self) -> impl Iterator<Item = &Frontend> {
        let none = self.any && self.local.is_empty();
        self.frontends.iter().filter(move |frontend| none && frontend.traffic != Traffic::Cluster)
    }

    /// The chains only this service port has.
    pub fn chains(&self, network: &Network) -> Vec<ChainDefinition> {
        let Some((seconds, service)) = &self.affinity else { return Vec::new() };
        let mut chains = Vec::new();
        let uses = |traffic: &[Traffic]| self.frontends.iter().any(|f| traffic.contains(&f.traffic));
        let mut with_policy = |policy: Policy, traffic: &[Traffic], targets: &[Target]| {
            if targets.is_empty() || !uses(traffic) {
                return;
            }
            for kind in [ChainKind::Vip, ChainKind::NodePort] {
                let used = |f: &&Frontend| traffic.contains(&f.traffic) && f.address.kind() == kind;
                if self.frontends.iter().any(|f| used(&f)) {
                    chains.push(sticky::choose(kind, policy, service, self.protocol, count(targets)));
                }
            }
        };
        with_policy(Policy::Cluster, &[Traffic::Cluster, Traffic::Split], &self.cluster);
        with_policy(Policy::Local, &[Traffic::Local, Traffic::Split], &self.local);
        if self.any {
            if uses(&[Traffic::Cluster, Traffic::Split]) {
                chains.push(sticky::remember(Policy::Cluster, service, *seconds));
            }
            if uses(&[Traffic::Local, Traffic::Split]) {
                chains.push(sticky::remember(Policy::Local, service, *seconds));
            }
            if uses(&[Traffic::Split]) {
                chains.push(sticky::remember_external(network, service));
            }
        }
        chains
    }

    /// Without any endpoint connections are refused.
    fn dispatch(&self, frontend: &Frontend, sink: &mut Sink<'_>) {
        let kind = frontend.address.kind();
        let (first, inside, outside, refused) = match kind {
            ChainKind::Vip => (SetName::Services, SetName::Inside, SetName::Outside, SetName::Refused),
            ChainKind::NodePort => {
                let (inside, outside) = (SetName::NodePortInside, SetName::NodePortOutside);
                (SetName::NodePorts, inside, outside, SetName::NodePortRefused)
            }
        };
        if !self.any {
            sink(self.family, refused, Element { key: frontend.address.key(), value: Value::None });
            return;
        }
        let mut put = |set, verdict| self.put(frontend, set, verdict, sink);
        match frontend.traffic {
            Traffic::Cluster => put(first, self.verdict(kind, Policy::Cluster)),
            Traffic::Local => put(first, self.verdict(kind, Policy::Local)),
            Traffic::Split => {
                let external = match kind {
                    ChainKind::Vip => Chain::External,
                    ChainKind::NodePort => Chain::NodePortExternal,
                };
                put(first, Verdict::Goto(external));
                put(inside, self.verdict(kind, Policy::Cluster));
                put(outside, self.verdict(kind, Policy::Local));
            }
        }
    }

    /// With endpoints elsewhere but none here, where only those here count, connections are dropped: clients are
    /// told by the load balancer's health check, not by resets.
    fn verdict(&self, kind: ChainKind, policy: Policy) -> Verdict {
        let targets = self.targets(policy);
        match (&self.affinity, targets.len()) {
            (_, 0) => Verdict::Drop,
            (Some((_, service)), _) => Verdict::Goto(Chain::Sticky(kind, policy, service.clone())),
            (None, _) => Verdict::Goto(Chain::Spread(kind, policy, count(targets))),
        }
    }

    fn targets(&self, policy: Policy) -> &[Target] {
        match policy {
            Policy::Cluster => &self.cluster,
            Policy::Local => &self.local,
        }
    }

    fn slots(&self, frontend: &Frontend, sink: &mut Sink<'_>) {
        let mut fill = |first: u32, targets: &[Target]| {
            for (slot, target) in (first..).zip(targets) {
                let (set, key) = match frontend.address {
                    Address::Vip(vip) => (SetName::Endpoints, Key::VipSlot(vip, slot)),
                    Address::NodePort(_, port) => (SetName::NodePortEndpoints, Key::PortSlot(port, slot)),
                };
                sink(self.family, set, Element { key, value: Value::Target(*target) });
            }
        };
        if matches!(frontend.traffic, Traffic::Cluster | Traffic::Split) {
            fill(0, &self.cluster);
        }
        if matches!(frontend.traffic, Traffic::Local | Traffic::Split) {
            fill(LOCAL_SLOTS, &self.local);
        }
    }

    fn masquerade(&self, frontend: &Frontend, sink: &mut Sink<'_>) {
        let chain = match frontend.masquerade {
            Masquerade::Internal => return,
            Masquerade::Everyone => Chain::MasqueradeAll,
            Masquerade::Node => Chain::MasqueradeNode,
        };
        let set = match frontend.address {
            Address::Vip(_) => SetName::Masquerade,
            Address::NodePort(..) => SetName::NodePortMasquerade,
        };
        self.put(frontend, set, Verdict::Goto(chain), sink);
    }

    fn learn(&self, frontend: &Frontend, sink: &mut Sink<'_>) {
        let Some((_, service)) = &self.affinity else { return };
        let chain = match frontend.traffic {
            Traffic::Cluster => Chain::Remember(Policy::Cluster, service.clone()),
            Traffic::Local => Chain::Remember(Policy::Local, service.clone()),
            Traffic::Split => Chain::RememberExternal(service.clone()),
        };
        let set = match frontend.address {
            Address::Vip(_) => SetName::Learn,
            Address::NodePort(..) => SetName::NodePortLearn,
        };
        self.put(frontend, set, Verdict::Goto(chain), sink);
    }

    fn firewall(&self, frontend: &Frontend, sink: &mut Sink<'_>) {
        let (Some(sources), Address::Vip(vip)) = (&frontend.sources, frontend.address) else { return };
        sink(self.family, SetName::Firewall, Element { key: Key::Vip(vip), value: Value::None });
        for range in sources {
            let key = Key::Source(vip, *range);
            sink(self.family, SetName::FirewallSources, Element { key, value: Value::None });
        }
    }

    fn put(&self, frontend: &Frontend, set: SetName, verdict: Verdict, sink: &mut Sink<'_>) {
        sink(self.family, set, Element { key: frontend.address.key(), value: Value::Verdict(verdict) });
    }
}

impl Address {
    /// How its slots are looked up.
    pub const fn kind(&self) -> ChainKind {
        match self {
            Self::Vip(_) => ChainKind::Vip,
            Self::NodePort(..) => ChainKind::NodePort,
        }
    }

    /// Its key in the maps of addresses or of node ports.
    pub const fn key(&self) -> Key {
        match self {
            Self::Vip(vip) => Key::Vip(*vip),
            Self::NodePort(_, port) => Key::Port(*port),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vip(vip) => vip.fmt(f),
            Self::NodePort(family, port) => write!(f, "node port {family} {port}"),
        }
    }
}

fn count(targets: &[Target]) -> u32 {
    u32::try_from(targets.len()).unwrap_or(u32::MAX).min(LOCAL_SLOTS)
}
