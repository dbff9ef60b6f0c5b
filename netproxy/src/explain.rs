//! Answers for people: what is programmed, whether the kernel has it, and what happens to a packet.
//!
//! Owns: `status`, `verify` and `explain`. They also work in a process that only looks: fed with the same events, a
//! proxy that never synced compares with the kernel and changes nothing.
//! Never: writes.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::backend::{Backend, BackendError};
use crate::objects::{Family, Protocol};
use crate::program::{Address, Masquerade, PortProgram};
use crate::proxy::Proxy;
use crate::ruleset::{Element, NodePort, Policy, SetName, Target, Value, Vip};
use crate::trace::{Contents, Packet, Sets, Trace, trace};

/// A question about a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    /// Where it is sent.
    pub destination: Target,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Who sends it; none for the node itself.
    pub source: Option<IpAddr>,
    /// The interface it comes in by, where pods are told by it.
    pub interface: Option<String>,
}

/// `address:port` or `address:port/protocol`, TCP when it is not said; an IPv6 address stands in brackets.
impl FromStr for Query {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let address: SocketAddr = address
            .parse()
            .map_err(|_| format!("{address:?} is not an address and port like 10.96.0.1:80"))?;
        let upper = protocol.to_ascii_uppercase();
        let protocol =
            Protocol::parse(Some(&upper)).ok_or_else(|| format!("{protocol:?} is not tcp, udp or sctp"))?;
        let destination = Target { address: address.ip().to_canonical(), port: address.port() };
        Ok(Self { destination, protocol, source: None, interface: None })
    }
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The question.
    pub query: Query,
    /// `namespace/name:port`, if it is the address of a service.
    pub service: Option<String>,
    /// Endpoints anyone may be sent to.
    pub endpoints: Vec<Target>,
    /// Endpoints on this node, where only those count for some.
    pub local_endpoints: Vec<Target>,
    /// By the table.
    pub expected: Trace,
    /// By the kernel's elements.
    pub found: Trace,
}

/// What `verify` found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verification {
    /// Elements in the kernel.
    pub elements: usize,
    /// Differences, each in words.
    pub differences: Vec<String>,
}

/// Counts of what is programmed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Whether both first lists were seen and the kernel has what they say.
    pub synced: bool,
    /// Services this proxy serves.
    pub services: usize,
    /// Addresses and node ports clients can connect to.
    pub frontends: usize,
    /// Different endpoints of service ports.
    pub endpoints: usize,
    /// Frontends without any endpoint.
    pub without_endpoints: usize,
    /// Cluster addresses for which there are endpoints, but none on this node where only those count.
    pub without_local_internal: BTreeMap<Family, usize>,
    /// External addresses and node ports of that kind.
    pub without_local_external: BTreeMap<Family, usize>,
    /// Services left out because the kernel refuses them.
    pub quarantined: usize,
    /// Parts of objects that were unusable, each counted once.
    pub problems: u64,
    /// Chains in each table.
    pub chains: BTreeMap<Family, usize>,
}

impl<B: Backend> Proxy<B> {
    /// Counts of what is programmed.
    pub fn status(&mut self) -> Status {
        let mut status =
            Status { synced: self.is_synced(), problems: self.problems_total(), ..Status::default() };
        for programmed in self.programs() {
            status.quarantined += usize::from(programmed.quarantined);
            status.services += usize::from(!programmed.ports.is_empty());
            for port in &programmed.ports {
                status.frontends += port.frontends.len();
                status.endpoints += port.cluster.len().max(port.local.len());
                if !port.any {
                    status.without_endpoints += port.frontends.len();
                }
                for frontend in port.frontends_without_local() {
                    let lane = match frontend.masquerade {
                        Masquerade::Internal => &mut status.without_local_internal,
                        Masquerade::Everyone | Masquerade::Node => &mut status.without_local_external,
                    };
                    *lane.entry(port.family).or_default() += 1;
                }
            }
        }
        for (family, _) in self.chains().keys() {
            *status.chains.entry(*family).or_default() += 1;
        }
        status
    }

    /// Compares every rule and element with the kernel's.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn verify(&mut self) -> Result<Verification, BackendError> {
        self.look()?;
        let wanted = self.wanted();
        let mut verification = Verification::default();
        for family in self.config().families.clone() {
            verification.differences.extend(self.wrong_chains(family)?);
            for set in SetName::STATIC {
                let table = self.config().table.clone();
                let found = match self.backend_mut().elements(&table, family, &set) {
                    Ok(elements) => elements,
                    Err(error) => {
                        verification.differences.push(error.to_string());
                        continue;
                    }
                };
                verification.elements += found.len();
                let empty = BTreeMap::new();
                let wanted = wanted.sets.get(&(family, set.clone())).unwrap_or(&empty);
                let mut missing = wanted.clone();
                for Element { key, value } in found {
                    match missing.remove(&key) {
                        Some(other) if other == value => {}
                        Some(other) => verification
                            .differences
                            .push(format!("{family} {set}: {key} is {value}, should be {other}")),
                        None => verification
                            .differences
                            .push(format!("{family} {set}: {key} should not be there")),
                    }
                }
                verification
                    .differences
                    .extend(missing.keys().map(|key| format!("{family} {set}: {key} is missing")));
            }
        }
        Ok(verification)
    }

    /// What happens to a packet, by the table and by the kernel.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn explain(&mut self, query: Query) -> Result<Explanation, BackendError> {
        self.look()?;
        let packet = self.packet(&query);
        let found = Contents { chains: self.chains().clone(), sets: self.kernel_sets(&packet)? };
        let mut wanted = self.wanted();
        wanted.sets.extend(self.rightful_clients(&found.sets));
        let owner = self.owner(&query);
        let name = |(service, program): &(String, &PortProgram)| match &*program.port_name {
            "" => service.clone(),
            port => format!("{service}:{port}"),
        };
        Ok(Explanation {
            service: owner.as_ref().map(name),
            endpoints: owner.as_ref().map(|(_, program)| program.cluster.to_vec()).unwrap_or_default(),
            local_endpoints: owner.as_ref().map(|(_, program)| program.local.to_vec()).unwrap_or_default(),
            expected: trace(&wanted, &packet),
            found: trace(&found, &packet),
            query,
        })
    }

    fn owner(&self, query: &Query) -> Option<(String, &PortProgram)> {
        let (Target { address, port }, protocol) = (query.destination, query.protocol);
        let vip = Address::Vip(Vip { address, protocol, port });
        let node_port = Address::NodePort(Family::of(&address), NodePort { protocol, port });
        let has = |wanted: Address| {
            self.named_programs().find_map(move |(name, programs)| {
                let serves = |p: &&PortProgram| p.frontends.iter().any(|f| f.address == wanted);
                programs.iter().find(serves).map(|program| (name.to_string(), program))
            })
        };
        has(vip).or_else(|| has(node_port).filter(|_| self.is_node_address(&address)))
    }

    fn packet(&self, query: &Query) -> Packet {
        let family = Family::of(&query.destination.address);
        let unspecified: IpAddr = match family {
            Family::V4 => [0, 0, 0, 0].into(),
            Family::V6 => [0u16; 8].into(),
        };
        let own = || self.own_addresses().find(|address| Family::of(address) == family);
        let source = query.source.or_else(own).unwrap_or(unspecified);
        Packet {
            source,
            destination: query.destination.address,
            protocol: query.protocol,
            port: query.destination.port,
            interface: query.interface.clone(),
            from_node: query.source.is_none() || self.is_node_address(&source),
            to_node: self.is_node_address(&query.destination.address),
        }
    }

    /// Clients with session affinity are learned by the kernel alone. Right is what it has of them, as long as their
    /// endpoint is one that is chosen from.
    fn rightful_clients(&self, found: &Sets) -> Sets {
        let mut rightful = Sets::new();
        for program in self.named_programs().flat_map(|(_, programs)| programs) {
            let Some((_, service)) = &program.affinity else { continue };
            for (policy, chosen) in [(Policy::Cluster, &program.cluster), (Policy::Local, &program.local)] {
                let place = (program.family, SetName::Clients(policy, service.clone()));
                let chosen: HashSet<Value> = chosen.iter().copied().map(Value::Target).collect();
                let Some(clients) = found.get(&place) else { continue };
                let right = clients.iter().filter(|(_, endpoint)| chosen.contains(*endpoint));
                rightful.insert(place, right.map(|(key, value)| (*key, value.clone())).collect());
            }
        }
        rightful
    }

    fn kernel_sets(&mut self, packet: &Packet) -> Result<Sets, BackendError> {
        let (family, table) = (Family::of(&packet.destination), self.config().table.clone());
        let clients: Vec<SetName> = self.client_maps(family);
        let mut sets = Sets::new();
        for set in SetName::STATIC.into_iter().chain(clients) {
            let elements = self.backend_mut().elements(&table, family, &set)?;
            let by_key = elements.into_iter().map(|element| (element.key, element.value)).collect();
            sets.insert((family, set), by_key);
        }
        Ok(sets)
    }
}

impl Explanation {
    /// Whether the kernel does what the table says.
    pub fn agrees(&self) -> bool {
        self.expected.outcome == self.found.outcome
    }
}

fn list(targets: &[Target]) -> String {
    targets.iter().map(Target::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source =
            self.query.source.map_or_else(|| "the node itself".to_owned(), |source| source.to_string());
        writeln!(f, "packet    {} to {}, from {source}", self.query.protocol, self.query.destination)?;
        writeln!(f, "service   {}", self.service.as_deref().unwrap_or("none"))?;
        if !self.endpoints.is_empty() {
            writeln!(f, "endpoints {}", list(&self.endpoints))?;
        }
        if !self.local_endpoints.is_empty() {
            writeln!(f, "    local {}", list(&self.local_endpoints))?;
        }
        writeln!(f, "outcome   {}", self.expected.outcome)?;
        for step in &self.expected.path {
            writeln!(f, "          {step}")?;
        }
        match self.agrees() {
            true => write!(f, "kernel    the same"),
            false => {
                write!(f, "kernel    DIFFERENT: {}", self.found.outcome)?;
                self.found.path.iter().try_for_each(|step| write!(f, "\n          {step}"))
            }
        }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.differences.len() {
            0 => write!(f, "{} elements, all as they should be", self.elements),
            count => {
                write!(f, "{} elements, {count} differences", self.elements)?;
                self.differences.iter().try_for_each(|difference| write!(f, "\n  {difference}"))
            }
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "synced                   {}", if self.synced { "yes" } else { "no" })?;
        writeln!(f, "services                 {}", self.services)?;
        writeln!(f, "frontends                {}", self.frontends)?;
        writeln!(f, "  without endpoints      {}", self.without_endpoints)?;
        let away = self.without_local_internal.values().chain(self.without_local_external.values());
        writeln!(f, "  without local ones     {}", away.sum::<usize>())?;
        writeln!(f, "endpoints                {}", self.endpoints)?;
        writeln!(f, "refused by the kernel    {}", self.quarantined)?;
        write!(f, "unusable object fields   {}", self.problems)?;
        self.chains.iter().try_for_each(|(family, count)| write!(f, "\nchains in {family:<15}{count}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_from_the_command_line() {
        let query =
            |text: &str| text.parse::<Query>().map(|query| (query.destination.to_string(), query.protocol));
        assert_eq!(query("10.96.0.1:80"), Ok(("10.96.0.1:80".to_owned(), Protocol::Tcp)));
        assert_eq!(query("[fd00::1]:53/UDP"), Ok(("[fd00::1]:53".to_owned(), Protocol::Udp)));
        assert_eq!(query("10.96.0.1:9/sctp").map(|(_, protocol)| protocol), Ok(Protocol::Sctp));
        for wrong in ["10.96.0.1", "web:80", "10.96.0.1:80/quic", "10.96.0.1:70000", ""] {
            assert!(query(wrong).is_err_and(|error| error.contains('"')), "{wrong}");
        }
    }
}
