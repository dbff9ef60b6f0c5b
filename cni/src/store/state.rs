//! What the log says, in memory. Pure.
//!
//! Owns: leases by address and by owner, and the order in which addresses were released.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::log::Record;
use super::{Lease, Owner};

/// How many released addresses are remembered in order. More than this many rest only in very large networks, where
/// addresses never used are plenty.
const RESTING: usize = 65_536;

/// The sum of all records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    owners: HashMap<Owner, Vec<Lease>>,
    leased: HashMap<IpAddr, Owner>,
    /// When an address was released, counted in releases; and the other way round.
    resting: HashMap<IpAddr, u64>,
    by_age: BTreeMap<u64, IpAddr>,
    releases: u64,
    last: HashMap<usize, IpAddr>,
    /// Records applied since the state was empty.
    pub(super) records: usize,
}

impl State {
    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::Boot(_) => return,
            Record::Leased { set, address, owner } => {
                self.wake(*address);
                self.leased.insert(*address, owner.clone());
                self.last.insert(*set, *address);
                let lease = Lease { set: *set, address: *address };
                self.owners.entry(owner.clone()).or_default().push(lease);
            }
            Record::Attached(owner) => {
                self.owners.entry(owner.clone()).or_default();
            }
            Record::Released(owner) => {
                for lease in self.owners.remove(owner).unwrap_or_default() {
                    self.leased.remove(&lease.address);
                    self.rest(lease.address);
                }
            }
            Record::Resting(address) => self.rest(*address),
            Record::Last { set, address } => {
                self.last.insert(*set, *address);
            }
        }
        self.records += 1;
    }

    fn wake(&mut self, address: IpAddr) {
        if let Some(at) = self.resting.remove(&address) {
            self.by_age.remove(&at);
        }
    }

    fn rest(&mut self, address: IpAddr) {
        self.wake(address);
        self.releases += 1;
        self.resting.insert(address, self.releases);
        self.by_age.insert(self.releases, address);
        if self.by_age.len() > RESTING
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.resting.remove(&oldest);
        }
    }

    /// The fewest records that make this state.
    pub(super) fn summary(&self) -> Vec<Record> {
        let mut records: Vec<_> = self.by_age.values().map(|address| Record::Resting(*address)).collect();
        let mut owners: Vec<_> = self.owners.iter().collect();
        owners.sort();
        for (owner, leases) in owners {
            if leases.is_empty() {
                records.push(Record::Attached(owner.clone()));
            }
            records.extend(leases.iter().map(|l| Record::Leased {
                set: l.set,
                address: l.address,
                owner: owner.clone(),
            }));
        }
        records.extend(self.last.iter().map(|(set, address)| Record::Last { set: *set, address: *address }));
        records
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.owners.keys()
    }

    pub(super) fn leases(&self, owner: &Owner) -> Option<&[Lease]> {
        self.owners.get(owner).map(Vec::as_slice)
    }

    pub(super) fn owner_of(&self, address: IpAddr) -> Option<&Owner> {
        self.leased.get(&address)
    }

    pub(super) fn is_fresh(&self, address: IpAddr) -> bool {
        !self.leased.contains_key(&address) && !self.resting.contains_key(&address)
    }

    /// Released addresses, the longest released first.
    pub(super) fn resting(&self) -> impl Iterator<Item = IpAddr> {
        self.by_age.values().copied()
    }

    pub(super) fn last(&self, set: usize) -> Option<IpAddr> {
        self.last.get(&set).copied()
    }

    /// How many owners there are.
    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }
}

impl PartialOrd for Lease {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Lease {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.set, self.address).cmp(&(other.set, other.address))
    }
}
