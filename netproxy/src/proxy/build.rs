//! From objects to the records that elements are made of.
//!
//! Owns: putting together service, endpoints, claims and slots.
//! Never: changes anything; `claim` is the one exception, and only the claims.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Programmed, Proxy};
use crate::backend::Backend;
use crate::claims::Claim;
use crate::endpoints::{Wants, choose};
use crate::frontends::{self, Context};
use crate::objects::{Family, ObjectName, Problem, Protocol, Service, ServicePort};
use crate::program::{Address, Frontend, PortProgram};
use crate::ruleset::{Policy, Target};
use crate::slots;

/// Who sits where: for an address and policy, the endpoints by slot.
pub(super) type Seats = HashMap<(Address, Policy), Vec<Target>>;

impl<B: Backend> Proxy<B> {
    /// Renews the claims of touched services, and adds to them the services that won or lost an address by it.
    pub(super) fn claim(&mut self, touched: Vec<u32>) -> Vec<u32> {
        let mut affected: BTreeSet<u32> = touched.iter().copied().collect();
        self.programs.resize_with(self.table.capacity().max(self.programs.len()), Programmed::default);
        for service in touched {
            let wanted = self.wanted_claims(service);
            let programmed = &mut self.programs[service as usize];
            programmed.quarantined = false;
            for address in std::mem::take(&mut programmed.claimed) {
                affected.extend(self.claims.remove(&address, service));
            }
            let (table, mut claimed) = (&self.table, Vec::with_capacity(wanted.len()));
            let name = |service: u32| match table.entry(service) {
                Some(entry) => entry.name.clone(),
                None => ObjectName::new("", ""),
            };
            let mut seen = HashSet::with_capacity(wanted.len());
            for (address, claim) in wanted {
                affected.extend(self.claims.add(address, claim, &name));
                if seen.insert(address) {
                    claimed.push(address);
                }
            }
            self.programs[service as usize].claimed = claimed.into();
        }
        affected.into_iter().collect()
    }

    fn wanted_claims(&self, service: u32) -> Vec<(Address, Claim)> {
        let Some(object) = self.served(service) else { return Vec::new() };
        let mut wanted = Vec::new();
        for (index, port) in (0u32..).zip(&object.ports) {
            for family in &self.config.families {
                for (class, frontend) in self.frontends(object, port, *family) {
                    let claim = Claim { class, created_ms: object.created_ms, service, port: index };
                    wanted.push((frontend.address, claim));
                }
            }
        }
        wanted
    }

    fn served(&self, service: u32) -> Option<&Service> {
        self.table.entry(service)?.service.as_deref().filter(|service| service.is_served())
    }

    fn frontends(
        &self,
        service: &Service,
        port: &ServicePort,
        family: Family,
    ) -> Vec<(frontends::Class, Frontend)> {
        let context = Context {
            external_ips: self.config.external_ips,
            node_addresses: self.config.node_addresses(&self.surroundings),
        };
        frontends::of(service, port, family, context)
    }

    /// What should be programmed for a service. Slots follow `seats` where it knows the addresses, else the present
    /// record.
    pub(super) fn build(&mut self, service: u32, seats: Option<&Seats>) -> Box<[PortProgram]> {
        let Some(object) = self.served(service) else { return Box::default() };
        let zone = self.surroundings.node.as_ref().and_then(|node| node.zone.as_deref());
        let zone = zone.and_then(|zone| self.table.zone_bit(zone));
        let (mut programs, mut lost) = (Vec::with_capacity(object.ports.len()), Vec::new());
        for (index, port) in (0u32..).zip(&object.ports) {
            for family in &self.config.families {
                let mut won = Vec::new();
                for (_, frontend) in self.frontends(object, port, *family) {
                    match self.claims.wins(&frontend.address, service, index) {
                        true => won.push(frontend),
                        false => lost.push(frontend.address),
                    }
                }
                if !won.is_empty() {
                    programs.push(self.build_port(service, object, port, (*family, won, zone, seats)));
                }
            }
        }
        if !lost.is_empty() {
            let name = object.name.clone();
            for address in lost {
                let value = format!("{address} is taken").into();
                self.table.complaints().add(&name, &Problem { field: "address", value });
            }
        }
        programs.into()
    }

    fn build_port(
        &self,
        service: u32,
        object: &Service,
        port: &ServicePort,
        (family, frontends, zone, seats): (Family, Vec<Frontend>, Option<u64>, Option<&Seats>),
    ) -> PortProgram {
        let external = object.is_external();
        let wants = Wants {
            cluster: !object.internal_local || external,
            local: object.internal_local || (object.external_local && external),
        };
        let candidates = self.table.candidates(service, &port.name, port.protocol, family);
        let chosen = choose(&candidates, wants, zone);
        let present = self.programs.get(service as usize).and_then(|programmed| {
            programmed.ports.iter().find(|known| {
                (known.family, &known.port_name, known.protocol) == (family, &port.name, port.protocol)
            })
        });
        let seated = |policy: Policy| -> &[Target] {
            let by_address = seats.and_then(|seats| {
                frontends.iter().find_map(|frontend| seats.get(&(frontend.address, policy)))
            });
            match (by_address, present, policy) {
                (Some(seats), ..) => seats,
                (None, Some(present), Policy::Cluster) => &present.cluster,
                (None, Some(present), Policy::Local) => &present.local,
                (None, None, _) => &[],
            }
        };
        let affinity = object.affinity_seconds.map(|seconds| {
            let name = format!("{}/{}/{}", object.name, port.protocol, port.name);
            (seconds, Arc::from(short(name)))
        });
        let idle = |target: &Target| {
            chosen.cluster.binary_search(target).is_err() && chosen.local.binary_search(target).is_err()
        };
        let lingering = match port.protocol {
            Protocol::Udp => chosen.serving.iter().copied().filter(idle).collect(),
            Protocol::Tcp | Protocol::Sctp => Box::default(),
        };
        PortProgram {
            family,
            port_name: port.name.clone(),
            protocol: port.protocol,
            lingering,
            cluster: slots::assign(seated(Policy::Cluster), &chosen.cluster).into(),
            local: slots::assign(seated(Policy::Local), &chosen.local).into(),
            here: chosen.here.into(),
            any: chosen.any,
            frontends: frontends.into(),
            affinity,
        }
    }

    /// Every endpoint of a service port that still answers.
    pub(super) fn serving(&self, service: u32, program: &PortProgram) -> Vec<Target> {
        let candidates = self.table.candidates(service, &program.port_name, program.protocol, program.family);
        choose(&candidates, Wants { cluster: false, local: false }, None).serving
    }
}

/// A name for nf_tables, which takes at most 255 bytes with what is put before it.
fn short(name: String) -> String {
    const LONGEST: usize = 220;
    if name.len() <= LONGEST {
        return name;
    }
    // FNV-1a: the same on every start.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let kept: String = name.chars().take(LONGEST - 17).collect();
    format!("{kept}-{hash:016x}")
}
