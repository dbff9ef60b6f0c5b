//! The difference between two sets of records, and the transaction that makes it.
//!
//! Owns: which elements, chains and sets come and go, and the order in which the kernel can do it: what is referred to
//! is made first and removed last.
//! Never: asks the kernel.

use std::collections::{BTreeMap, BTreeSet};

use super::Known;
use crate::backend::Operation;
use crate::objects::Family;
use crate::program::PortProgram;
use crate::ruleset::{Chain, ChainDefinition, Element, Key, Network, Rule, SetName, Value, Verdict, spread};

/// Elements by family and set.
pub(super) type Lanes = BTreeMap<(Family, SetName), Vec<Element>>;

/// Chains for at most this many endpoints are kept when no service has that many any more: another soon will.
const KEPT_SPREAD: u32 = 64;

/// What is to change.
#[derive(Default)]
pub(super) struct Delta {
    pub add: Lanes,
    pub delete: Lanes,
    shared: BTreeMap<Key, i64>,
    spread: BTreeMap<(Family, Chain), i64>,
    old_chains: BTreeMap<(Family, Chain), Vec<Rule>>,
    new_chains: BTreeMap<(Family, Chain), Vec<Rule>>,
}

/// Changes of chains and sets.
#[derive(Default)]
pub(super) struct Structure {
    pub new_sets: Vec<(Family, SetName)>,
    pub new_chains: Vec<(Family, Chain)>,
    /// Chains whose rules are replaced; with no rules, emptied.
    pub rewritten: Vec<(Family, Chain, Vec<Rule>)>,
    /// Chains that nothing uses any more. They are emptied here, and removed afterwards by a transaction of their own:
    /// kernels before 6.2 hold a chain for a moment after the map element that named it went.
    pub old_chains: Vec<(Family, Chain)>,
    pub old_sets: Vec<(Family, SetName)>,
}

impl Delta {
    /// One service changes from `old` to `new`.
    pub fn change(
        &mut self,
        old: &[PortProgram],
        new: &[PortProgram],
        network: impl Fn(Family) -> Option<Network>,
    ) {
        let mut before = self.collect(old, -1);
        let mut after = self.collect(new, 1);
        for (programs, chains) in [(old, &mut self.old_chains), (new, &mut self.new_chains)] {
            for program in programs.iter().filter(|program| program.affinity.is_some()) {
                let Some(network) = network(program.family) else { continue };
                let definitions = program.chains(&network).into_iter();
                chains.extend(definitions.map(|defined| ((program.family, defined.chain), defined.rules)));
            }
        }
        if !before.is_empty() && !after.is_empty() {
            before.sort_unstable();
            after.sort_unstable();
            drop_common(&mut before, &mut after);
        }
        for (family, set, element) in before {
            self.delete.entry((family, set)).or_default().push(element);
        }
        for (family, set, element) in after {
            self.add.entry((family, set)).or_default().push(element);
        }
    }

    /// The elements only these records have; those that several may share are counted instead.
    fn collect(&mut self, programs: &[PortProgram], sign: i64) -> Vec<(Family, SetName, Element)> {
        let mut found = Vec::new();
        for program in programs {
            for address in program.cluster_ips() {
                *self.shared.entry(Key::Address(address)).or_default() += sign;
            }
            let (shared, spread) = (&mut self.shared, &mut self.spread);
            program.elements(&mut |family, set, element| {
                if matches!(element.key, Key::Hairpin(_)) {
                    *shared.entry(element.key).or_default() += sign;
                    return;
                }
                if let Value::Verdict(Verdict::Goto(chain @ Chain::Spread(..))) = &element.value {
                    *spread.entry((family, chain.clone())).or_default() += sign;
                }
                found.push((family, set, element));
            });
        }
        found
    }

    /// Brings `known` to what will be, and tells which chains and sets change for it. Afterwards `add` and `delete`
    /// are complete.
    pub fn settle(&mut self, known: &mut Known) -> Structure {
        let mut structure = Structure::default();
        self.settle_shared(known);
        self.settle_sticky(known, &mut structure);
        self.settle_spread(known, &mut structure);
        structure
    }

    fn settle_shared(&mut self, known: &mut Known) {
        for (key, change) in std::mem::take(&mut self.shared) {
            let (set, family) = match key {
                Key::Hairpin(vip) => (SetName::Hairpin, vip.family()),
                Key::Address(address) => (SetName::ClusterIps, Family::of(&address)),
                _ => continue,
            };
            let before = known.shared.get(&key).copied().unwrap_or(0);
            let after = u32::try_from(i64::from(before) + change).unwrap_or(0);
            let lane = match (before, after) {
                (0, 1..) => &mut self.add,
                (1.., 0) => &mut self.delete,
                _ => {
                    known.shared.insert(key, after);
                    continue;
                }
            };
            lane.entry((family, set)).or_default().push(Element { key, value: Value::None });
            match after {
                0 => known.shared.remove(&key),
                _ => known.shared.insert(key, after),
            };
        }
    }

    fn settle_sticky(&mut self, known: &mut Known, structure: &mut Structure) {
        let (old, new) = (std::mem::take(&mut self.old_chains), std::mem::take(&mut self.new_chains));
        for (chains, sign) in [(&old, -1), (&new, 1)] {
            for ((family, _), rules) in chains {
                for target in rules.iter().flat_map(Rule::targets) {
                    if matches!(target, Chain::Spread(..)) {
                        *self.spread.entry((*family, target.clone())).or_default() += sign;
                    }
                }
            }
        }
        let clients = |chains: &BTreeMap<(Family, Chain), Vec<Rule>>| -> BTreeSet<(Family, SetName)> {
            chains.keys().filter_map(|(family, chain)| Some((*family, chain.clients()?))).collect()
        };
        let (old_clients, new_clients) = (clients(&old), clients(&new));
        structure.new_sets.extend(new_clients.difference(&old_clients).cloned());
        structure.old_sets.extend(old_clients.difference(&new_clients).cloned());
        known.clients.retain(|set| !structure.old_sets.contains(set));
        known.clients.extend(structure.new_sets.iter().cloned());
        for ((family, chain), rules) in new.clone() {
            define(known, structure, family, ChainDefinition { chain, rules });
        }
        for (place, _) in old.into_iter().filter(|(place, _)| !new.contains_key(place)) {
            known.chains.remove(&place);
            structure.old_chains.push(place);
        }
    }

    fn settle_spread(&mut self, known: &mut Known, structure: &mut Structure) {
        for (place, change) in std::mem::take(&mut self.spread) {
            let before = known.spread_uses.get(&place).copied().unwrap_or(0);
            let after = u32::try_from(i64::from(before) + change).unwrap_or(0);
            let Chain::Spread(kind, policy, count) = place.1 else { continue };
            match after {
                0 => known.spread_uses.remove(&place),
                _ => known.spread_uses.insert(place.clone(), after),
            };
            if after > 0 && !known.chains.contains_key(&place) {
                define(known, structure, place.0, spread(kind, policy, count));
            }
            if after == 0 && count > KEPT_SPREAD && known.chains.remove(&place).is_some() {
                structure.old_chains.push(place);
            }
        }
    }
}

/// Makes a chain say what it should.
pub(super) fn define(known: &mut Known, structure: &mut Structure, family: Family, wanted: ChainDefinition) {
    let place = (family, wanted.chain);
    match known.chains.get(&place) {
        Some(rules) if *rules == wanted.rules => return,
        Some(_) => {}
        None => structure.new_chains.push(place.clone()),
    }
    structure.rewritten.push((family, place.1.clone(), wanted.rules.clone()));
    known.chains.insert(place, wanted.rules);
}

/// Takes out what both sorted lists have.
fn drop_common<T: Ord>(left: &mut Vec<T>, right: &mut Vec<T>) {
    let (mut a, mut b) =
        (std::mem::take(left).into_iter().peekable(), std::mem::take(right).into_iter().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x == y => {
                a.next();
                b.next();
            }
            (Some(x), Some(y)) if x < y => left.extend(a.next()),
            (Some(_), None) => left.extend(a.next()),
            (_, Some(_)) => right.extend(b.next()),
            (None, None) => return,
        }
    }
}

/// The operations, in an order the kernel accepts.
pub(super) fn operations(structure: Structure, delete: Lanes, add: Lanes) -> Vec<Operation> {
    let mut operations = Vec::new();
    let made: BTreeSet<(Family, Chain)> = structure.new_chains.iter().cloned().collect();
    operations.extend(structure.new_sets.into_iter().map(|(family, set)| Operation::CreateSet(family, set)));
    operations.extend(
        structure.new_chains.into_iter().map(|(family, chain)| Operation::CreateChain(family, chain)),
    );
    operations.extend(
        delete.into_iter().map(|((family, set), elements)| Operation::DeleteElements(family, set, elements)),
    );
    for (family, chain) in &structure.old_chains {
        operations.push(Operation::FlushChain(*family, chain.clone()));
    }
    for (family, chain, rules) in structure.rewritten {
        if !made.contains(&(family, chain.clone())) {
            operations.push(Operation::FlushChain(family, chain.clone()));
        }
        operations.extend(rules.into_iter().map(|rule| Operation::AddRule(family, chain.clone(), rule)));
    }
    operations.extend(
        add.into_iter().map(|((family, set), elements)| Operation::AddElements(family, set, elements)),
    );
    operations.extend(structure.old_sets.into_iter().map(|(family, set)| Operation::DeleteSet(family, set)));
    operations
}
