//! What the proxy can be asked about its own state.
//!
//! Owns: read access for `explain`, health and tests.
//! Never: changes the kernel; `look` only reads it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use super::{Belief, Programmed, Proxy};
use crate::backend::{Backend, BackendError};
use crate::endpoints::{Wants, choose};
use crate::objects::{Family, ObjectName, ServiceKind};
use crate::program::PortProgram;
use crate::ruleset::{Chain, Element, Key, NodePortMatch, Rule, SetName, Value};
use crate::trace::Contents;

/// What a load balancer asks of a service's `healthCheckNodePort`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The service.
    pub service: ObjectName,
    /// Where it is asked.
    pub port: NonZeroU16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

impl<B: Backend> Proxy<B> {
    /// What should be in the kernel.
    pub fn wanted(&self) -> Contents {
        let mut contents = Contents { chains: self.known.chains.clone(), ..Contents::default() };
        let sets = &mut contents.sets;
        for program in self.programs.iter().flat_map(|programmed| &programmed.ports) {
            program.elements(&mut |family, set, Element { key, value }| {
                sets.entry((family, set)).or_default().insert(key, value);
            });
        }
        for key in self.known.shared.keys() {
            if let Key::Address(address) = key {
                sets.entry((Family::of(address), SetName::ClusterIps)).or_default().insert(*key, Value::None);
            }
        }
        for (family, addresses) in &self.known.node_port_ips {
            let set = sets.entry((*family, SetName::NodePortIps)).or_default();
            set.extend(addresses.iter().map(|address| (Key::Address(*address), Value::None)));
        }
        contents
    }

    /// The services with a health check port, and how many of their endpoints here would take traffic.
    pub fn health_checks(&self) -> Vec<HealthCheck> {
        self.table.entries().filter_map(|(number, _)| self.health_check_of(number)).collect()
    }

    /// The same of one service.
    pub fn health_check(&self, service: &ObjectName) -> Option<HealthCheck> {
        self.health_check_of(self.table.find(service)?)
    }

    /// Where health check ports are answered: at the addresses that serve node ports; an unspecified one stands for all
    /// of its family.
    pub fn health_check_addresses(&self) -> Vec<IpAddr> {
        let of = |family: &Family| match (self.networks.get(family).map(|network| network.node_ports), family)
        {
            (Some(NodePortMatch::AnyLocal), Family::V4) => vec![Ipv4Addr::UNSPECIFIED.into()],
            (Some(NodePortMatch::AnyLocal), Family::V6) => vec![Ipv6Addr::UNSPECIFIED.into()],
            (Some(NodePortMatch::Listed), _) => self.config.node_port_ips(*family, &self.surroundings),
            (None, _) => Vec::new(),
        };
        self.config.families.iter().flat_map(of).collect()
    }

    fn health_check_of(&self, number: u32) -> Option<HealthCheck> {
        let entry = self.table.entry(number)?;
        let service = entry.service.as_deref().filter(|service| service.is_served())?;
        let port = service.health_check_node_port?;
        if service.kind != ServiceKind::LoadBalancer || !service.external_local {
            return None;
        }
        let wants = Wants { cluster: false, local: true };
        let mut here: Vec<IpAddr> = Vec::new();
        for (port, family) in service
            .ports
            .iter()
            .flat_map(|port| self.config.families.iter().map(move |family| (port, *family)))
        {
            let candidates = self.table.candidates(number, &port.name, port.protocol, family);
            let ready: Vec<_> = candidates
                .into_iter()
                .filter(|candidate| candidate.facts.has(crate::endpoints::Facts::READY))
                .collect();
            here.extend(choose(&ready, wants, None).local.iter().map(|target| target.address));
        }
        here.sort_unstable();
        here.dedup();
        Some(HealthCheck { service: entry.name.clone(), port, local_endpoints: here.len() })
    }

    /// Computes the records without programming them, if this proxy has not synced.
    pub(crate) fn look(&mut self) -> Result<(), BackendError> {
        if self.belief == Belief::Known && self.table.pending() == 0 && !self.networks_changed {
            return Ok(());
        }
        let seats = self.present_seats()?;
        let mut delta = self.rebuild(&seats);
        self.networks_changed = true;
        let mut structure = delta.settle(&mut self.known);
        self.settle_networks(&mut structure, &mut delta);
        self.belief = Belief::Unknown;
        Ok(())
    }

    /// Chains whose rules in the kernel are not what they should be, in words.
    pub(crate) fn wrong_chains(&mut self, family: Family) -> Result<Vec<String>, BackendError> {
        let Some(found) = self.backend.inspect(&self.config.table, family)? else {
            return Ok(vec![format!("{family} table {} is missing", self.config.table)]);
        };
        let mut wrong = Vec::new();
        for ((of, chain), rules) in &self.known.chains {
            if *of != family {
                continue;
            }
            match found.chains.get(&chain.to_string()) {
                None => wrong.push(format!("{family} chain {chain} is missing")),
                Some(present) => {
                    let same = present.rules.len() == rules.len()
                        && present.rules.iter().zip(rules).all(|(f, w)| self.backend.same_rule(family, f, w));
                    if !same {
                        wrong.push(format!("{family} chain {chain} has other rules"));
                    }
                }
            }
        }
        wrong.extend(found.chains.keys().filter_map(|name| {
            let known = Chain::parse(name).is_some_and(|chain| {
                let place = (family, chain);
                matches!(place.1, Chain::Spread(..))
                    || self.known.chains.contains_key(&place)
                    || self.known.doomed.contains(&place)
            });
            (!known).then(|| format!("{family} chain {name} should not be there"))
        }));
        wrong.sort_unstable();
        Ok(wrong)
    }

    pub(crate) fn programs(&self) -> &[Programmed] {
        &self.programs
    }

    pub(crate) const fn chains(&self) -> &HashMap<(Family, Chain), Vec<Rule>> {
        &self.known.chains
    }

    pub(crate) fn client_maps(&self, family: Family) -> Vec<SetName> {
        self.known.clients.iter().filter(|(of, _)| *of == family).map(|(_, set)| set.clone()).collect()
    }

    pub(crate) fn named_programs(&self) -> impl Iterator<Item = (&ObjectName, &[PortProgram])> {
        self.table
            .entries()
            .filter_map(|(number, entry)| Some((&entry.name, &*self.programs.get(number as usize)?.ports)))
    }

    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let named = self.config.node_addresses(&self.surroundings);
        named.iter().chain(&self.surroundings.interface_addresses).copied()
    }

    pub(crate) fn is_node_address(&self, address: &IpAddr) -> bool {
        address.is_loopback() || self.own_addresses().any(|own| own == *address)
    }
}
