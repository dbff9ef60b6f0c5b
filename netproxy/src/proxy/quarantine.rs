//! Finding the service that the kernel refuses.
//!
//! Owns: the search, when even a full replacement was refused, and who is set aside by it until it changes.
//! Never: takes anything from the other services: the search rehearses in a table of another name.

use super::build::Seats;
use super::{Error, Proxy, SyncReport, delta};
use crate::backend::{Backend, Operation, Transaction};
use crate::ruleset::SetName;

/// Only so many services are set aside in one sync.
const QUARANTINE_MAX: usize = 8;

impl<B: Backend> Proxy<B> {
    /// Replacing everything was refused. Finds the services at fault by halving and sets them aside, so that they
    /// cannot block the others. What is in the kernel serves meanwhile: the search only rehearses.
    pub(super) fn resync_one_by_one(&mut self) -> Result<SyncReport, Error> {
        for _ in 0..QUARANTINE_MAX {
            let refused = match self.resync(true) {
                Ok(report) => return Ok(report),
                Err(error) => error,
            };
            let suspects: Vec<u32> = self
                .table
                .entries()
                .map(|(service, _)| service)
                .filter(|service| !self.programs[*service as usize].quarantined)
                .collect();
            let culprit = self.find_culprit(&suspects);
            for service in &suspects {
                self.programs[*service as usize].quarantined = false;
            }
            // No service is at fault: it is the kernel that takes nothing at present.
            let Some(culprit) = culprit else { return Err(refused) };
            self.programs[culprit as usize].quarantined = true;
            if let Some(entry) = self.table.entry(culprit) {
                tracing::error!(service = %entry.name, error = %refused, "the kernel refuses a service, left out");
            }
        }
        self.resync(true)
    }

    /// The first of these services that makes a rehearsal fail; none if it fails without any of them, or with all succeeds.
    fn find_culprit(&mut self, suspects: &[u32]) -> Option<u32> {
        if !self.rehearse_first(suspects, 0) || self.rehearse_first(suspects, suspects.len()) {
            return None;
        }
        let (mut good, mut bad) = (0, suspects.len());
        while bad - good > 1 {
            let middle = good.midpoint(bad);
            if self.rehearse_first(suspects, middle) { good = middle } else { bad = middle }
        }
        suspects.get(bad - 1).copied()
    }

    /// Whether the kernel would take the first `count` of these services without the rest: in a table of another name,
    /// made and removed in one transaction, so that no packet ever sees it.
    fn rehearse_first(&mut self, services: &[u32], count: usize) -> bool {
        for (index, service) in services.iter().enumerate() {
            self.programs[*service as usize].quarantined = index >= count;
        }
        let mut delta = self.rebuild(&Seats::new());
        self.networks_changed = true;
        let mut structure = delta.settle(&mut self.known);
        self.settle_networks(&mut structure, &mut delta);
        let families = self.config.families.clone();
        structure
            .new_sets
            .extend(families.iter().flat_map(|family| SetName::STATIC.map(|set| (*family, set))));
        let mut operations: Vec<_> = families.iter().copied().map(Operation::CreateTable).collect();
        operations.extend(delta::operations(structure, delta.delete, delta.add));
        operations.extend(families.iter().copied().map(Operation::DeleteTable));
        let table = format!("{}-rehearsal", self.config.table);
        self.backend.commit(&Transaction { table, operations }).is_ok()
    }
}
