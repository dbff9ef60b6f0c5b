//! A backend in memory.
//!
//! Owns: tables as maps, with the kernel's own rules: names must exist (ENOENT), must not exist twice (EEXIST), things
//! referred to cannot go (EBUSY), keys and values must be of the set's kind (EINVAL), a rule may only be appended where
//! everything it names exists. A transaction that fails leaves nothing behind.
//! Never: sees a packet (see `trace`).

use std::collections::BTreeMap;

use nix::Error as Errno;

use crate::backend::{
    Backend, BackendError, Flow, FlowFilter, FoundChain, FoundRule, FoundTable, Operation, Transaction,
};
use crate::objects::Family;
use crate::ruleset::{Chain, DataKind, Element, Key, KeyKind, Rule, SetName, Statement, Value, Verdict};

/// A table in memory.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct FakeTable {
    /// Its sets.
    pub sets: BTreeMap<SetName, BTreeMap<Key, Value>>,
    /// Its chains.
    pub chains: BTreeMap<Chain, Vec<Rule>>,
}

/// The backend.
#[derive(Default, Debug)]
pub struct Fake {
    /// All tables, by name and family.
    pub tables: BTreeMap<(String, Family), FakeTable>,
    /// Connection tracking entries.
    pub flows: Vec<Flow>,
    /// Transactions that succeeded, most recent last.
    pub log: Vec<Transaction>,
    /// When set, the next transactions fail with this as long as it returns an error.
    pub refuse: Option<Refuse>,
}

/// Decides whether a transaction is refused: the error, and the operation at fault.
pub type Refuse = fn(&Transaction) -> Option<(Errno, usize)>;

type Refusal = Result<(), Errno>;

impl FakeTable {
    fn apply(&mut self, family: Family, operation: &Operation) -> Refusal {
        match operation {
            Operation::CreateTable(_) | Operation::ClaimTable(_) | Operation::DeleteTable(_) => Ok(()),
            Operation::CreateSet(_, set) => fresh(self.sets.insert(set.clone(), BTreeMap::new()).is_none()),
            Operation::DeleteSet(_, set) => {
                idle(!self.mentions(set))?;
                known(self.sets.remove(set).is_some())
            }
            Operation::CreateChain(_, chain) => {
                fresh(self.chains.insert(chain.clone(), Vec::new()).is_none())
            }
            Operation::FlushChain(_, chain) => self.rules(chain).map(Vec::clear),
            Operation::AddRule(_, chain, rule) => {
                self.check_rule(rule)?;
                self.rules(chain).map(|rules| rules.push(rule.clone()))
            }
            Operation::DeleteChain(_, chain) => {
                idle(self.rules(chain)?.is_empty() && !self.goes_to(chain))?;
                known(self.chains.remove(chain).is_some())
            }
            Operation::AddElements(_, set, elements) => {
                elements.iter().try_for_each(|element| self.add(family, set, element))
            }
            Operation::DeleteElements(_, set, elements) => {
                let map = self.sets.get_mut(set).ok_or(Errno::ENOENT)?;
                elements.iter().try_for_each(|element| known(map.remove(&element.key).is_some()))
            }
        }
    }

    fn add(&mut self, family: Family, set: &SetName, element: &Element) -> Refusal {
        let map = self.sets.get_mut(set).ok_or(Errno::ENOENT)?;
        if !element.key.fits(family) || key_kind(&element.key) != set.key_kind() {
            return Err(Errno::EINVAL);
        }
        let right = match (&element.value, set.data_kind()) {
            (Value::None, DataKind::None) | (Value::Verdict(_), DataKind::Verdict) => true,
            (Value::Target(target), DataKind::Target) => Family::of(&target.address) == family,
            _ => false,
        };
        if !right {
            return Err(Errno::EINVAL);
        }
        if let Value::Verdict(Verdict::Goto(chain)) = &element.value {
            known(self.chains.contains_key(chain))?;
        }
        if let Key::Source(vip, net) = &element.key {
            // Intervals that overlap are refused (ENOTEMPTY from nft_set_pipapo).
            let overlaps = |other: &Key| match other {
                Key::Source(v, n) => v == vip && n != net && (n.contains(net) || net.contains(n)),
                _ => false,
            };
            if map.keys().any(overlaps) {
                return Err(Errno::ENOTEMPTY);
            }
        }
        fresh(map.insert(element.key, element.value.clone()).is_none())
    }

    fn rules(&mut self, chain: &Chain) -> Result<&mut Vec<Rule>, Errno> {
        self.chains.get_mut(chain).ok_or(Errno::ENOENT)
    }

    fn check_rule(&self, rule: &Rule) -> Refusal {
        rule.targets().try_for_each(|chain| known(self.chains.contains_key(chain)))?;
        rule.0
            .iter()
            .try_for_each(|statement| known(set_of(statement).is_none_or(|set| self.sets.contains_key(set))))
    }

    fn mentions(&self, set: &SetName) -> bool {
        let all = self.chains.values().flatten().flat_map(|rule| &rule.0);
        all.filter_map(set_of).any(|used| used == set)
    }

    fn goes_to(&self, chain: &Chain) -> bool {
        let by_rule = self.chains.values().flatten().any(|rule| rule.targets().any(|target| target == chain));
        let verdict = Value::Verdict(Verdict::Goto(chain.clone()));
        by_rule || self.sets.values().any(|map| map.values().any(|value| *value == verdict))
    }
}

fn set_of(statement: &Statement) -> Option<&SetName> {
    match statement {
        Statement::In(_, set, _)
        | Statement::Dispatch(_, set)
        | Statement::Translate(_, set)
        | Statement::Remember(set, _) => Some(set),
        _ => None,
    }
}

const fn key_kind(key: &Key) -> KeyKind {
    match key {
        Key::Vip(_) => KeyKind::Vip,
        Key::VipSlot(..) => KeyKind::VipSlot,
        Key::Port(_) => KeyKind::Port,
        Key::PortSlot(..) => KeyKind::PortSlot,
        Key::Address(_) => KeyKind::Address,
        Key::Hairpin(_) => KeyKind::Hairpin,
        Key::Source(..) => KeyKind::Source,
    }
}

const fn known(it_is: bool) -> Refusal {
    if it_is { Ok(()) } else { Err(Errno::ENOENT) }
}

const fn fresh(it_is: bool) -> Refusal {
    if it_is { Ok(()) } else { Err(Errno::EEXIST) }
}

const fn idle(it_is: bool) -> Refusal {
    if it_is { Ok(()) } else { Err(Errno::EBUSY) }
}

const fn family_of(operation: &Operation) -> Family {
    match operation {
        Operation::CreateTable(family)
        | Operation::ClaimTable(family)
        | Operation::DeleteTable(family)
        | Operation::CreateSet(family, _)
        | Operation::DeleteSet(family, _)
        | Operation::CreateChain(family, _)
        | Operation::FlushChain(family, _)
        | Operation::AddRule(family, ..)
        | Operation::DeleteChain(family, _)
        | Operation::AddElements(family, ..)
        | Operation::DeleteElements(family, ..) => *family,
    }
}

impl Backend for Fake {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), BackendError> {
        let refused = |errno: Errno, index: usize| BackendError::Kernel {
            action: format!("operation {index} of a transaction on table {}", transaction.table),
            errno,
            operation: Some(index),
        };
        if let Some((errno, index)) = self.refuse.and_then(|refuse| refuse(transaction)) {
            return Err(refused(errno, index));
        }
        let before = self.tables.clone();
        for (index, operation) in transaction.operations.iter().enumerate() {
            let family = family_of(operation);
            let name = (transaction.table.clone(), family);
            let result = match operation {
                Operation::CreateTable(_) => fresh(self.tables.insert(name, FakeTable::default()).is_none()),
                Operation::DeleteTable(_) => known(self.tables.remove(&name).is_some()),
                _ => match self.tables.get_mut(&name) {
                    Some(table) => table.apply(family, operation),
                    None => Err(Errno::ENOENT),
                },
            };
            if let Err(errno) = result {
                self.tables = before;
                return Err(refused(errno, index));
            }
        }
        self.log.push(transaction.clone());
        Ok(())
    }

    fn inspect(&mut self, table: &str, family: Family) -> Result<Option<FoundTable>, BackendError> {
        Ok(self.tables.get(&(table.to_owned(), family)).map(|table| FoundTable {
            foreign_owner: false,
            protected: true,
            sets: table.sets.keys().map(|set| (set.to_string(), true)).collect(),
            chains: table
                .chains
                .iter()
                .map(|(chain, rules)| {
                    let rules = rules.iter().cloned().map(FoundRule::Typed).collect();
                    (chain.to_string(), FoundChain { hook: chain.hook(), rules })
                })
                .collect(),
        }))
    }

    fn elements(&mut self, table: &str, family: Family, set: &SetName) -> Result<Vec<Element>, BackendError> {
        let map = self.tables.get(&(table.to_owned(), family)).and_then(|table| table.sets.get(set));
        let map = map.ok_or_else(|| BackendError::Kernel {
            action: format!("list set {set}"),
            errno: Errno::ENOENT,
            operation: None,
        })?;
        Ok(map.iter().map(|(key, value)| Element { key: *key, value: value.clone() }).collect())
    }

    fn same_rule(&self, _: Family, found: &FoundRule, wanted: &Rule) -> bool {
        matches!(found, FoundRule::Typed(rule) if rule == wanted)
    }

    fn flows(&mut self, filter: &FlowFilter) -> Result<Vec<Flow>, BackendError> {
        let fits = |flow: &&Flow| {
            Family::of(&flow.destination.address) == filter.family
                && flow.protocol == filter.protocol
                && filter.address.is_none_or(|address| flow.destination.address == address)
                && filter.port.is_none_or(|port| flow.destination.port == port)
        };
        Ok(self.flows.iter().filter(fits).copied().collect())
    }

    fn forget_flows(&mut self, flows: &[Flow]) -> Result<(), BackendError> {
        self.flows.retain(|flow| !flows.contains(flow));
        Ok(())
    }
}
