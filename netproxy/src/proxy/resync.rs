//! Bringing the kernel from whatever it has to what is wanted; and the small steps afterwards.
//!
//! Owns: adoption of an intact table (compare everything, write only what differs), and replacement of anything else.
//! Never: believes a table whose shape is not exactly ours.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::build::Seats;
use super::delta::{self, Delta, Structure};
use super::{Belief, Error, Known, Proxy, SyncReport};
use nix::Error as Errno;

use crate::backend::{Backend, BackendError, FoundTable, Operation, Transaction};
use crate::objects::Family;
use crate::program::Address;
use crate::ruleset::{
    Chain, ChainDefinition, Element, Key, LOCAL_SLOTS, Policy, SetName, Target, Value, skeleton, spread,
};

/// What was found of a table that can be kept.
struct Kept {
    found: FoundTable,
    elements: HashMap<SetName, HashMap<Key, Value>>,
}

impl<B: Backend> Proxy<B> {
    /// One transaction for what the events since the last sync changed.
    pub(super) fn sync_changes(&mut self) -> Result<SyncReport, Error> {
        let touched = self.table.take_dirty();
        let affected = self.claim(touched);
        let (mut delta, mut checks, mut gone) = (Delta::default(), Vec::new(), Vec::new());
        for service in &affected {
            let aside = self.programs[*service as usize].quarantined;
            let new = if aside { Box::default() } else { self.build(*service, None) };
            let old = std::mem::take(&mut self.programs[*service as usize].ports);
            if old != new || self.networks_changed {
                delta.change(&old, &new, |family| self.networks.get(&family).cloned());
                self.check_flows(*service, &old, &new, &mut checks);
                clients_gone(&old, &new, &mut gone);
            }
            self.programs[*service as usize].ports = new;
        }
        let mut structure = delta.settle(&mut self.known);
        self.settle_networks(&mut structure, &mut delta);
        let old_chains = self.spare_doomed(&mut structure);
        let operations = delta::operations(structure, delta.delete, delta.add);
        let mut report = self.commit(operations)?;
        self.networks_changed = false;
        self.remove_chains(old_chains);
        for service in affected {
            let programmed = &self.programs[service as usize];
            if programmed.ports.is_empty() && programmed.claimed.is_empty() {
                self.table.retire(service);
            }
        }
        self.forget_clients(&gone, &mut report);
        self.forget_stale_flows(checks, &mut report);
        Ok(report)
    }

    /// The skeleton's chains and the node port addresses, where the node's network changed them.
    pub(super) fn settle_networks(&mut self, structure: &mut Structure, delta: &mut Delta) {
        if !self.networks_changed {
            return;
        }
        for (family, network) in &self.networks {
            for wanted in skeleton(*family, network) {
                delta::define(&mut self.known, structure, *family, wanted);
            }
        }
        for family in &self.config.families {
            let wanted = self.config.node_port_ips(*family, &self.surroundings);
            let present = self.known.node_port_ips.insert(*family, wanted.clone()).unwrap_or_default();
            let lane = (*family, SetName::NodePortIps);
            let element =
                |address: &std::net::IpAddr| Element { key: Key::Address(*address), value: Value::None };
            for address in present.iter().filter(|address| !wanted.contains(address)) {
                delta.delete.entry(lane.clone()).or_default().push(element(address));
            }
            for address in wanted.iter().filter(|address| !present.contains(address)) {
                delta.add.entry(lane.clone()).or_default().push(element(address));
            }
        }
    }

    /// Reads the kernel, keeps what is intact (unless told not to) and replaces the rest.
    pub(super) fn resync(&mut self, replace: bool) -> Result<SyncReport, Error> {
        let (mut kept, mut present) = (BTreeMap::new(), Vec::new());
        for family in self.config.families.clone() {
            let Some(found) = self.backend.inspect(&self.config.table, family)? else { continue };
            if found.foreign_owner {
                return Err(Error::Owned { family, table: self.config.table.clone() });
            }
            present.push(family);
            if !replace && is_ours(&found) {
                let elements = self.read_elements(family)?;
                kept.insert(family, Kept { found, elements });
            }
        }
        let seats = seats(&kept);
        let mut delta = self.rebuild(&seats);
        self.networks_changed = true;
        let mut structure = delta.settle(&mut self.known);
        self.settle_networks(&mut structure, &mut delta);
        let mut operations = Vec::new();
        for family in self.config.families.clone() {
            match kept.get(&family) {
                Some(_) => operations.push(Operation::ClaimTable(family)),
                None => {
                    operations.extend(present.contains(&family).then_some(Operation::DeleteTable(family)));
                    operations.push(Operation::CreateTable(family));
                    structure.new_sets.extend(SetName::STATIC.map(|set| (family, set)));
                }
            }
        }
        for (family, kept) in &kept {
            self.keep_structure(*family, &kept.found, &mut structure);
        }
        for (family, kept) in &mut kept {
            keep_elements(*family, kept, &mut delta);
        }
        let old_chains = self.spare_doomed(&mut structure);
        operations.extend(delta::operations(structure, delta.delete, delta.add));
        let mut report = self.commit(operations)?;
        self.belief = Belief::Known;
        self.networks_changed = false;
        self.remove_chains(old_chains);
        report.adopted = kept.into_keys().collect();
        report.replaced =
            self.config.families.iter().copied().filter(|family| !report.adopted.contains(family)).collect();
        report.quarantined = self.programs.iter().filter(|programmed| programmed.quarantined).count();
        self.forget_all_gone_clients(&mut report);
        self.forget_all_stale_flows(&mut report);
        Ok(report)
    }

    /// Rebuilds every record, and the difference from nothing to all of them.
    pub(super) fn rebuild(&mut self, seats: &Seats) -> Delta {
        let quarantined: Vec<bool> = self.programs.iter().map(|programmed| programmed.quarantined).collect();
        self.table.take_dirty();
        let all: Vec<u32> = self.table.entries().map(|(service, _)| service).collect();
        self.claim(all.clone());
        self.known = Known::default();
        let mut delta = Delta::default();
        for service in all {
            let aside = quarantined.get(service as usize).copied().unwrap_or(false);
            let ports = if aside { Box::default() } else { self.build(service, Some(seats)) };
            delta.change(&[], &ports, |family| self.networks.get(&family).cloned());
            let programmed = &mut self.programs[service as usize];
            (programmed.ports, programmed.quarantined) = (ports, aside);
        }
        delta
    }

    /// Who sits in which slot in the kernel, as far as it can be told.
    pub(super) fn present_seats(&mut self) -> Result<Seats, BackendError> {
        let mut kept = BTreeMap::new();
        for family in self.config.families.clone() {
            let Some(found) = self.backend.inspect(&self.config.table, family)? else { continue };
            if is_ours(&found) {
                let elements = self.read_elements(family)?;
                kept.insert(family, Kept { found, elements });
            }
        }
        Ok(seats(&kept))
    }

    fn read_elements(
        &mut self,
        family: Family,
    ) -> Result<HashMap<SetName, HashMap<Key, Value>>, BackendError> {
        let mut all = HashMap::new();
        for set in SetName::STATIC {
            let elements = self.backend.elements(&self.config.table, family, &set)?;
            let by_key = elements.into_iter().map(|element| (element.key, element.value)).collect();
            all.insert(set, by_key);
        }
        Ok(all)
    }

    /// Of a table that is kept: chains that are right already are left alone, others are made right, chains and sets
    /// nobody wants go.
    fn keep_structure(&mut self, family: Family, found: &FoundTable, structure: &mut Structure) {
        let backend = &self.backend;
        let is_right = |wanted: &ChainDefinition| -> Option<bool> {
            let chain = found.chains.get(&wanted.chain.to_string())?;
            let same = chain.rules.len() == wanted.rules.len()
                && chain
                    .rules
                    .iter()
                    .zip(&wanted.rules)
                    .all(|(found, rule)| backend.same_rule(family, found, rule));
            Some(same)
        };
        let exists = |chain: &Chain| found.chains.contains_key(&chain.to_string());
        structure.new_chains.retain(|(of, chain)| *of != family || !exists(chain));
        structure.rewritten.retain(|(of, chain, rules)| {
            let wanted = ChainDefinition { chain: chain.clone(), rules: rules.clone() };
            *of != family || is_right(&wanted) != Some(true)
        });
        structure.new_sets.retain(|(of, set)| *of != family || !found.sets.contains_key(&set.to_string()));
        for name in found.chains.keys() {
            let Some(chain) = Chain::parse(name) else { continue };
            let place = (family, chain);
            if self.known.chains.contains_key(&place) {
                continue;
            }
            match &place.1 {
                Chain::Spread(kind, policy, count)
                    if is_right(&spread(*kind, *policy, *count)) == Some(true) =>
                {
                    let rules = spread(*kind, *policy, *count).rules;
                    self.known.chains.insert(place, rules);
                }
                _ => structure.old_chains.push(place),
            }
        }
        for name in found.sets.keys() {
            let Some(set @ SetName::Clients(..)) = SetName::parse(name) else { continue };
            if !self.known.clients.contains(&(family, set.clone())) {
                structure.old_sets.push((family, set));
            }
        }
    }

    /// Chains that are wanted again before they could be removed need not be made. Gives those to be removed.
    fn spare_doomed(&mut self, structure: &mut Structure) -> Vec<(Family, Chain)> {
        let doomed = &mut self.known.doomed;
        structure.new_chains.retain(|place| !doomed.remove(place));
        structure.old_chains.clone()
    }

    /// Removes chains that are empty and unused. A kernel that still holds one is asked again with the next sync.
    fn remove_chains(&mut self, old: Vec<(Family, Chain)>) {
        self.known.doomed.extend(old);
        if self.known.doomed.is_empty() {
            return;
        }
        let doomed = self.known.doomed.iter().cloned();
        let operations = doomed.map(|(family, chain)| Operation::DeleteChain(family, chain)).collect();
        match self.commit(operations) {
            Ok(_) => self.known.doomed.clear(),
            Err(Error::Backend(BackendError::Kernel { errno: Errno::EBUSY, .. })) => {}
            Err(error) => {
                tracing::warn!(%error, "unused chains cannot be removed, the table is read again");
                self.belief = Belief::Unknown;
            }
        }
    }

    pub(super) fn commit(&mut self, operations: Vec<Operation>) -> Result<SyncReport, Error> {
        let transaction = Transaction { table: self.config.table.clone(), operations };
        let (added, removed) = transaction.element_counts();
        let committed = !transaction.operations.is_empty();
        if committed {
            self.backend.commit(&transaction)?;
        }
        Ok(SyncReport { added, removed, committed, ..SyncReport::default() })
    }
}

/// Whether a table has the shape our tables have: exactly our sets with the right types, our base chains in their
/// places, and no chain that is not ours.
fn is_ours(found: &FoundTable) -> bool {
    let sets = SetName::STATIC.iter().all(|set| found.sets.contains_key(&set.to_string()));
    let right = found.sets.values().all(|as_named| *as_named);
    let base = Chain::STATIC.iter().all(|chain| found.chains.contains_key(&chain.to_string()));
    let hooks = found
        .chains
        .iter()
        .all(|(name, chain)| Chain::parse(name).is_some_and(|parsed| parsed.hook() == chain.hook));
    found.protected && sets && right && base && hooks
}

/// Who sits in which slot now.
fn seats(kept: &BTreeMap<Family, Kept>) -> Seats {
    let mut numbered: HashMap<(Address, Policy), BTreeMap<u32, Target>> = HashMap::new();
    for (family, kept) in kept {
        for set in [SetName::Endpoints, SetName::NodePortEndpoints] {
            for (key, value) in kept.elements.get(&set).into_iter().flatten() {
                let (address, slot) = match key {
                    Key::VipSlot(vip, slot) => (Address::Vip(*vip), *slot),
                    Key::PortSlot(port, slot) => (Address::NodePort(*family, *port), *slot),
                    _ => continue,
                };
                let policy = if slot < LOCAL_SLOTS { Policy::Cluster } else { Policy::Local };
                if let Value::Target(target) = value {
                    numbered.entry((address, policy)).or_default().insert(slot, *target);
                }
            }
        }
    }
    numbered.into_iter().map(|(place, slots)| (place, slots.into_values().collect())).collect()
}

/// Of all wanted elements, leaves to be added only those that are not there, and removes those nobody wants.
fn keep_elements(family: Family, kept: &mut Kept, delta: &mut Delta) {
    for (set, present) in &mut kept.elements {
        let place = (family, set.clone());
        let mut obsolete = Vec::new();
        if let Some(wanted) = delta.add.get_mut(&place) {
            wanted.retain(|element| match present.remove(&element.key) {
                Some(value) if value == element.value => false,
                Some(value) => {
                    obsolete.push(Element { key: element.key, value });
                    true
                }
                None => true,
            });
        }
        obsolete.extend(present.drain().map(|(key, value)| Element { key, value }));
        if !obsolete.is_empty() {
            delta.delete.insert(place, obsolete);
        }
    }
    delta.add.retain(|_, elements: &mut Vec<Element>| !elements.is_empty());
}

/// Endpoints that a service port with session affinity does not choose any more.
fn clients_gone(
    old: &[crate::program::PortProgram],
    new: &[crate::program::PortProgram],
    gone: &mut Vec<super::clients::Gone>,
) {
    for before in old {
        let Some((_, service)) = &before.affinity else { continue };
        let Some(after) = new.iter().find(|after| {
            after.family == before.family && after.affinity.as_ref().is_some_and(|(_, name)| name == service)
        }) else {
            continue;
        };
        let lost = |before: &[Target], after: &[Target]| {
            let after: HashSet<&Target> = after.iter().collect();
            before.iter().any(|target| !after.contains(target))
        };
        if lost(&before.cluster, &after.cluster) {
            gone.push((
                after.family,
                SetName::Clients(Policy::Cluster, service.clone()),
                after.cluster.clone(),
            ));
        }
        if lost(&before.local, &after.local) {
            gone.push((after.family, SetName::Clients(Policy::Local, service.clone()), after.local.clone()));
        }
    }
}
