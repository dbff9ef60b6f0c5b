//! Clients with session affinity whose endpoint is gone.
//!
//! Owns: forgetting them, after the endpoints were changed. A client that connects in between is sent to its old
//! endpoint once more; the next time it gets a new one.
//! Never: touches a client whose endpoint is still chosen from.

use std::collections::HashSet;

use nix::Error as Errno;

use super::{Error, Proxy, SyncReport};
use crate::backend::{Backend, BackendError, Operation};
use crate::objects::Family;
use crate::ruleset::{Element, Policy, SetName, Target, Value};

/// A map of clients, and the endpoints that are still chosen from.
pub(super) type Gone = (Family, SetName, Box<[Target]>);

/// A client's time can run out between reading the map and removing it; then it is read again.
const ATTEMPTS: u32 = 5;

impl<B: Backend> Proxy<B> {
    /// Forgets the clients of all endpoints but those named.
    pub(super) fn forget_clients(&mut self, gone: &[Gone], report: &mut SyncReport) {
        for (family, set, chosen) in gone {
            if !self.known.clients.contains(&(*family, set.clone())) {
                continue;
            }
            match self.forget_clients_of(*family, set, chosen) {
                Ok(removed) => report.clients_removed += removed,
                // They are forgotten when their time is over, or with the endpoint's next change.
                Err(error) => tracing::warn!(%set, %error, "clients of endpoints that are gone stay for now"),
            }
        }
    }

    /// After a resync: all maps of clients against all records.
    pub(super) fn forget_all_gone_clients(&mut self, report: &mut SyncReport) {
        let mut gone: Vec<Gone> = Vec::new();
        for program in self.programs.iter().flat_map(|programmed| &programmed.ports) {
            let Some((_, service)) = &program.affinity else { continue };
            for (policy, chosen) in [(Policy::Cluster, &program.cluster), (Policy::Local, &program.local)] {
                gone.push((program.family, SetName::Clients(policy, service.clone()), chosen.clone()));
            }
        }
        self.forget_clients(&gone, report);
    }

    fn forget_clients_of(
        &mut self,
        family: Family,
        set: &SetName,
        chosen: &[Target],
    ) -> Result<usize, Error> {
        let chosen: HashSet<&Target> = chosen.iter().collect();
        for _ in 0..ATTEMPTS {
            let clients = self.backend.elements(&self.config.table, family, set)?;
            let stranded = |client: &Element| match &client.value {
                Value::Target(target) => !chosen.contains(target),
                Value::None | Value::Verdict(_) => false,
            };
            let stranded: Vec<Element> = clients.into_iter().filter(stranded).collect();
            if stranded.is_empty() {
                return Ok(0);
            }
            let count = stranded.len();
            match self.commit(vec![Operation::DeleteElements(family, set.clone(), stranded)]) {
                Ok(_) => return Ok(count),
                Err(Error::Backend(BackendError::Kernel { errno: Errno::ENOENT, .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }
}
