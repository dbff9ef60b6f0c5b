//! What the API server said: services and their endpoint slices, compact, and which of them changed.
//!
//! Owns: the objects, and the list of services that need another look. Applying an event is bookkeeping only.
//! Never: decides what a change means for the kernel (see `proxy`), and forgets nothing before both first lists came.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::endpoints::{Candidate, Facts, merge};
use crate::objects::{EndpointSlice, Family, ObjectName, Problem, Protocol, Service, SlicePort};
use crate::ruleset::Target;

/// An endpoint as it is kept: what it is, relative to this node.
#[derive(Clone, PartialEq, Eq)]
struct Kept {
    address: IpAddr,
    facts: Facts,
    zones: u64,
}

#[derive(Clone, PartialEq, Eq)]
struct KeptSlice {
    name: ObjectName,
    family: Family,
    ports: Box<[SlicePort]>,
    endpoints: Box<[Kept]>,
}

/// A service and its slices.
pub struct Entry {
    /// `namespace/name`.
    pub name: ObjectName,
    /// The service; slices can be there before it.
    pub service: Option<Box<Service>>,
    slices: Vec<KeptSlice>,
}

/// All objects.
pub struct Table {
    node_name: Box<str>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_name: HashMap<ObjectName, u32>,
    slice_owner: HashMap<ObjectName, u32>,
    zones: Vec<Box<str>>,
    dirty: HashSet<u32>,
    triggers: Vec<(Family, u64)>,
    complaints: Complaints,
    changes: Changes,
    services_listed: bool,
    slices_listed: bool,
}

/// How many objects changed since the start, and how many of these changes are not programmed yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Services.
    pub services: u64,
    /// Endpoint slices.
    pub endpoints: u64,
    /// Services, not programmed.
    pub services_pending: usize,
    /// Endpoint slices, not programmed.
    pub endpoints_pending: usize,
}

impl Changes {
    const fn count_service(&mut self) {
        self.services += 1;
        self.services_pending += 1;
    }

    const fn count_endpoints(&mut self) {
        self.endpoints += 1;
        self.endpoints_pending += 1;
    }
}

/// Problems of objects, each told once.
#[derive(Default)]
pub struct Complaints {
    told: HashSet<(ObjectName, Problem)>,
    fresh: Vec<(ObjectName, Problem)>,
    total: u64,
}

/// More different complaints than this are counted, but neither told nor remembered.
const COMPLAINTS_MAX: usize = 4096;
/// Zones from this number on share a bit, and hints for them are not followed.
const ZONES_MAX: usize = 63;

impl Complaints {
    /// Notes one; it will be handed out by `take` unless it was before.
    pub fn add(&mut self, name: &ObjectName, problem: &Problem) {
        let entry = (name.clone(), problem.clone());
        if self.told.contains(&entry) {
            return;
        }
        self.total += 1;
        if self.told.len() >= COMPLAINTS_MAX {
            return;
        }
        self.told.insert(entry.clone());
        self.fresh.push(entry);
    }

    /// Those not handed out before.
    pub fn take(&mut self) -> Vec<(ObjectName, Problem)> {
        std::mem::take(&mut self.fresh)
    }

    /// How many there ever were.
    pub const fn total(&self) -> u64 {
        self.total
    }
}

impl Table {
    /// An empty table for the node of this name.
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            entries: Vec::new(),
            free: Vec::new(),
            by_name: HashMap::new(),
            slice_owner: HashMap::new(),
            zones: Vec::new(),
            dirty: HashSet::new(),
            triggers: Vec::new(),
            complaints: Complaints::default(),
            changes: Changes::default(),
            services_listed: false,
            slices_listed: false,
        }
    }

    /// Whether both complete lists have been seen.
    pub const fn is_complete(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// How many services were touched since the last `take_dirty`.
    pub fn pending(&self) -> usize {
        self.dirty.len()
    }

    /// The services touched since the last call, in order.
    pub fn take_dirty(&mut self) -> Vec<u32> {
        (self.changes.services_pending, self.changes.endpoints_pending) = (0, 0);
        let mut dirty: Vec<u32> = std::mem::take(&mut self.dirty).into_iter().collect();
        dirty.sort_unstable();
        dirty
    }

    /// Every service needs another look.
    pub fn touch_all(&mut self) {
        self.dirty.extend(self.by_name.values());
    }

    /// When the causes of the changes since the last call happened, milliseconds since the epoch.
    pub fn take_triggers(&mut self) -> Vec<(Family, u64)> {
        std::mem::take(&mut self.triggers)
    }

    /// How much changed.
    pub const fn changes(&self) -> Changes {
        self.changes
    }

    /// What is wrong with objects.
    pub const fn complaints(&mut self) -> &mut Complaints {
        &mut self.complaints
    }

    /// An entry by its number.
    pub fn entry(&self, service: u32) -> Option<&Entry> {
        self.entries.get(service as usize)?.as_ref()
    }

    /// An entry's number by its name.
    pub fn find(&self, name: &ObjectName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// All entries with their numbers.
    pub fn entries(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0u32..).zip(&self.entries).filter_map(|(number, entry)| Some((number, entry.as_ref()?)))
    }

    /// One past the highest number an entry ever had.
    pub const fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Forgets an entry that has neither service nor slices, so that its number can be used again. Called when
    /// nothing in the kernel belongs to it any more.
    pub fn retire(&mut self, service: u32) {
        let Some(slot) = self.entries.get_mut(service as usize) else { return };
        if let Some(entry) = slot.take_if(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.by_name.remove(&entry.name);
            self.free.push(service);
        }
    }

    /// A service was added or changed.
    pub fn apply_service(&mut self, mut service: Service) {
        for problem in &service.problems {
            self.complaints.add(&service.name, problem);
        }
        let number = self.number(&service.name);
        let entry = self.entries[number as usize].as_mut().expect("a number handed out has an entry");
        if entry.service.as_deref() != Some(&service) {
            service.name = entry.name.clone();
            entry.service = Some(Box::new(service));
            self.dirty.insert(number);
            self.changes.count_service();
        }
    }

    /// A service is gone.
    pub fn delete_service(&mut self, name: &ObjectName) {
        let Some(number) = self.find(name) else { return };
        let entry = self.entries[number as usize].as_mut().expect("a number in the index has an entry");
        if entry.service.take().is_some() {
            self.dirty.insert(number);
            self.changes.count_service();
        }
    }

    /// The complete list of services.
    pub fn reset_services(&mut self, services: Vec<Service>) {
        let listed: HashSet<ObjectName> = services.iter().map(|service| service.name.clone()).collect();
        let gone: Vec<ObjectName> = self
            .entries()
            .filter(|(_, entry)| entry.service.is_some() && !listed.contains(&entry.name))
            .map(|(_, entry)| entry.name.clone())
            .collect();
        for name in gone {
            self.delete_service(&name);
        }
        for service in services {
            self.apply_service(service);
        }
        self.services_listed = true;
    }

    /// A slice was added or changed.
    pub fn apply_slice(&mut self, slice: EndpointSlice) {
        for problem in &slice.problems {
            self.complaints.add(&slice.name, problem);
        }
        let owner = slice.service.as_ref().filter(|_| slice.family.is_some()).cloned();
        let old = self.slice_owner.get(&slice.name).copied();
        let Some((owner, family)) = owner.zip(slice.family) else {
            self.delete_slice(&slice.name);
            return;
        };
        let number = self.number(&owner);
        if old.is_some_and(|old| old != number) {
            self.delete_slice(&slice.name);
        }
        let endpoints = slice.endpoints.iter().map(|endpoint| self.keep(endpoint)).collect();
        let kept = KeptSlice { name: slice.name.clone(), family, ports: slice.ports, endpoints };
        let entry = self.entries[number as usize].as_mut().expect("a number handed out has an entry");
        match entry.slices.iter_mut().find(|known| known.name == kept.name) {
            Some(known) if *known == kept => return,
            Some(known) => *known = kept,
            None => {
                let place = entry.slices.partition_point(|known| known.name < kept.name);
                entry.slices.insert(place, kept);
                entry.slices.shrink_to_fit();
            }
        }
        self.slice_owner.insert(slice.name, number);
        self.dirty.insert(number);
        self.changes.count_endpoints();
        if self.is_complete() {
            self.triggers.extend(slice.triggered_ms.map(|trigger| (family, trigger)));
        }
    }

    /// A slice is gone.
    pub fn delete_slice(&mut self, name: &ObjectName) {
        let Some(number) = self.slice_owner.remove(name) else { return };
        let entry = self.entries[number as usize].as_mut().expect("the owner of a slice has an entry");
        entry.slices.retain(|slice| slice.name != *name);
        self.dirty.insert(number);
        self.changes.count_endpoints();
    }

    /// The complete list of slices.
    pub fn reset_slices(&mut self, slices: Vec<EndpointSlice>) {
        let listed: HashSet<&ObjectName> = slices.iter().map(|slice| &slice.name).collect();
        let gone: Vec<ObjectName> =
            self.slice_owner.keys().filter(|name| !listed.contains(name)).cloned().collect();
        for name in gone {
            self.delete_slice(&name);
        }
        for slice in slices {
            self.apply_slice(slice);
        }
        self.slices_listed = true;
    }

    /// The bit of a zone in `Candidate::zones`, if hints for it can be followed.
    pub fn zone_bit(&self, zone: &str) -> Option<u64> {
        self.zones.iter().position(|known| **known == *zone).map(|index| 1 << index)
    }

    /// The endpoints of a service port, merged over its slices.
    pub fn candidates(&self, service: u32, port: &str, protocol: Protocol, family: Family) -> Vec<Candidate> {
        let slices = self.entry(service).map(|entry| entry.slices.as_slice()).unwrap_or_default();
        let of_family = slices.iter().filter(|slice| slice.family == family);
        merge(of_family.flat_map(|slice| {
            let matching =
                slice.ports.iter().filter(move |entry| *entry.name == *port && entry.protocol == protocol);
            matching.flat_map(|entry| {
                slice.endpoints.iter().map(|endpoint| Candidate {
                    target: Target { address: endpoint.address, port: entry.port.get() },
                    facts: endpoint.facts,
                    zones: endpoint.zones,
                })
            })
        }))
    }

    fn number(&mut self, name: &ObjectName) -> u32 {
        if let Some(number) = self.by_name.get(name) {
            return *number;
        }
        let entry = Some(Entry { name: name.clone(), service: None, slices: Vec::new() });
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).expect("fewer than four billion services fit in memory")
            }
        };
        self.by_name.insert(name.clone(), number);
        number
    }

    fn keep(&mut self, endpoint: &crate::objects::Endpoint) -> Kept {
        let zones = endpoint.zone_hints.iter().fold(0, |bits, zone| bits | self.number_zone(zone));
        let is_me = |name: &str| name == &*self.node_name;
        Kept {
            address: endpoint.address,
            zones,
            facts: Facts::default()
                .with(Facts::READY, endpoint.ready)
                .with(Facts::SERVING, endpoint.serving)
                .with(Facts::TERMINATING, endpoint.terminating)
                .with(Facts::LOCAL, endpoint.node.as_deref().is_some_and(is_me))
                .with(Facts::NODE_HINTED, !endpoint.node_hints.is_empty())
                .with(Facts::HINTS_THIS_NODE, endpoint.node_hints.iter().any(|name| is_me(name))),
        }
    }

    fn number_zone(&mut self, zone: &str) -> u64 {
        if let Some(bit) = self.zone_bit(zone) {
            return bit;
        }
        if self.zones.len() >= ZONES_MAX {
            return 1 << ZONES_MAX;
        }
        self.zones.push(zone.into());
        1 << (self.zones.len() - 1)
    }
}
