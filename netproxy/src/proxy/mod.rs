//! The proxy: events in, transactions out.
//!
//! Owns: the table of objects, the record of what is in the kernel, and the backend.
//! ```text
//!   waiting ── both first lists seen ──► unknown ── resync ──► known ◄── one transaction per sync
//!                                           ▲                    │
//!                                           └── refused, or changed by someone else
//! ```
//! Guarantees: nothing is programmed before both lists are complete; what is recorded is what the last successful
//! transaction made; after a refused one nothing is believed, and the next sync replaces everything.
//! Never: sleeps, or does anything by the clock.

mod build;
mod clients;
mod delta;
mod quarantine;
mod resync;
mod stale;
mod view;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

pub use view::HealthCheck;

use crate::backend::{Backend, BackendError, Operation, Transaction};
use crate::claims::Claims;
use crate::config::{Config, Surroundings};
use crate::objects::{EndpointSlice, Family, Node, ObjectName, Service};
use crate::program::{Address, PortProgram};
use crate::ruleset::{Chain, Key, Network, Rule, SetName};
use crate::table::Table;

pub use crate::table::Changes;

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A service was added or changed.
    ServiceApplied(Box<Service>),
    /// A service is gone.
    ServiceDeleted(ObjectName),
    /// The complete list of services.
    ServicesReset(Vec<Service>),
    /// An endpoint slice was added or changed.
    SliceApplied(Box<EndpointSlice>),
    /// An endpoint slice is gone.
    SliceDeleted(ObjectName),
    /// The complete list of endpoint slices.
    SlicesReset(Vec<EndpointSlice>),
    /// The own node.
    NodeApplied(Box<Node>),
    /// The addresses of the node's interfaces; needed for `nodePortAddresses` with ranges.
    InterfaceAddresses(Vec<IpAddr>),
    /// The ranges of all `ServiceCIDR` objects.
    ServiceRanges(Vec<IpNet>),
    /// Somebody else changed our table.
    ForeignChange,
}

/// What a sync did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SyncReport {
    /// Nothing was done: a first list is still missing.
    pub waiting: bool,
    /// Elements added.
    pub added: usize,
    /// Elements removed.
    pub removed: usize,
    /// Families whose table was made, or replaced as a whole.
    pub replaced: Vec<Family>,
    /// Families whose table was found and kept.
    pub adopted: Vec<Family>,
    /// Whether there was anything to commit.
    pub committed: bool,
    /// UDP connections whose endpoint is gone, removed.
    pub flows_removed: usize,
    /// Clients with session affinity to an endpoint that is gone, forgotten.
    pub clients_removed: usize,
    /// Services left out because the kernel refuses them.
    pub quarantined: usize,
    /// The same by family.
    pub flows_removed_by_family: Vec<(Family, usize)>,
    /// For each changed slice with a trigger time: from the trigger to the commit.
    pub latencies: Vec<(Family, Duration)>,
}

/// What a sync fails with. The next one replaces everything.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Another process lives and owns the table.
    #[error("table {family} {table} is owned by another running process")]
    Owned {
        /// The family.
        family: Family,
        /// The table.
        table: String,
    },
}

/// What is programmed for one service.
#[derive(Clone, Default, Debug)]
pub(crate) struct Programmed {
    /// Its ports, one for each family.
    pub ports: Box<[PortProgram]>,
    /// The addresses it claims, won or not.
    pub claimed: Box<[Address]>,
    /// The kernel refused it; it is left out until it changes.
    pub quarantined: bool,
}

/// What is in the kernel, beside the elements of services.
#[derive(Default, Debug)]
pub(crate) struct Known {
    /// Chains with their rules.
    pub chains: HashMap<(Family, Chain), Vec<Rule>>,
    /// Maps of clients.
    pub clients: Vec<(Family, SetName)>,
    /// How many elements and rules go to a spread chain.
    pub spread_uses: HashMap<(Family, Chain), u32>,
    /// How many service ports share an element of `cluster-ips` or `hairpin`.
    pub shared: HashMap<Key, u32>,
    /// Chains that are empty and unused, but still there.
    pub doomed: BTreeSet<(Family, Chain)>,
    /// The elements of `node-port-ips`.
    pub node_port_ips: HashMap<Family, Vec<IpAddr>>,
}

/// How much is believed of what is in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Belief {
    /// `Known` is right.
    Known,
    /// The kernel has to be read first.
    Unknown,
    /// Whatever is there has to be replaced.
    Broken,
    /// Even replacing everything was refused: some service must be at fault.
    Refused,
}

/// The service proxy.
pub struct Proxy<B> {
    config: Config,
    surroundings: Surroundings,
    networks: HashMap<Family, Network>,
    networks_changed: bool,
    table: Table,
    claims: Claims,
    programs: Vec<Programmed>,
    known: Known,
    belief: Belief,
    /// Addresses whose connections could not be looked at; tried again with the next sync.
    unchecked: Vec<stale::Check>,
    backend: B,
}

impl<B: Backend> Proxy<B> {
    /// A proxy that has not touched anything yet.
    pub fn new(config: Config, backend: B) -> Self {
        let table = Table::new(&config.node_name);
        let mut proxy = Self {
            config,
            surroundings: Surroundings::default(),
            networks: HashMap::new(),
            networks_changed: false,
            table,
            claims: Claims::default(),
            programs: Vec::new(),
            known: Known::default(),
            belief: Belief::Unknown,
            unchecked: Vec::new(),
            backend,
        };
        proxy.refresh_networks();
        proxy
    }

    /// The configuration.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The backend.
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend. Changes made behind the proxy's back must be followed by [`Event::ForeignChange`].
    pub const fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Takes note of an event. Nothing reaches the kernel before the next [`sync`](Self::sync).
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::ServiceApplied(service) => self.table.apply_service(*service),
            Event::ServiceDeleted(name) => self.table.delete_service(&name),
            Event::ServicesReset(services) => self.table.reset_services(services),
            Event::SliceApplied(slice) => self.table.apply_slice(*slice),
            Event::SliceDeleted(name) => self.table.delete_slice(&name),
            Event::SlicesReset(slices) => self.table.reset_slices(slices),
            Event::NodeApplied(node) => {
                let zone = |node: Option<&Node>| node.and_then(|node| node.zone.clone());
                if zone(self.surroundings.node.as_ref()) != node.zone {
                    self.table.touch_all();
                }
                self.surroundings.node = Some(*node);
                self.refresh_networks();
            }
            Event::InterfaceAddresses(addresses) => {
                self.surroundings.interface_addresses = addresses;
                self.refresh_networks();
            }
            Event::ServiceRanges(ranges) => {
                self.surroundings.service_cidrs = Some(ranges);
                self.refresh_networks();
            }
            Event::ForeignChange => {
                if self.belief == Belief::Known {
                    self.belief = Belief::Unknown;
                }
            }
        }
    }

    /// How many objects changed.
    pub const fn changes(&self) -> Changes {
        self.table.changes()
    }

    /// Whether a [`sync`](Self::sync) would do anything.
    pub fn is_pending(&self) -> bool {
        self.table.is_complete()
            && (self.belief != Belief::Known || self.networks_changed || self.table.pending() > 0)
    }

    /// Whether both first lists were seen and the kernel has what they say.
    pub fn is_synced(&self) -> bool {
        self.table.is_complete() && self.belief == Belief::Known && !self.is_pending()
    }

    /// Brings the kernel to what the events say, in one transaction. `now` only serves the report's latencies.
    ///
    /// # Errors
    /// When the kernel refuses, or another process owns the table. The proxy stays usable; the next sync replaces
    /// everything.
    pub fn sync(&mut self, now: SystemTime) -> Result<SyncReport, Error> {
        if !self.table.is_complete() {
            return Ok(SyncReport { waiting: true, ..SyncReport::default() });
        }
        let triggers = self.table.take_triggers();
        let outcome = match self.belief {
            Belief::Known => self.sync_changes(),
            Belief::Unknown => self.resync(false),
            Belief::Broken => self.resync(true),
            Belief::Refused => self.resync_one_by_one(),
        };
        self.log_complaints();
        match outcome {
            Ok(mut report) => {
                let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
                report.latencies = triggers
                    .into_iter()
                    .filter_map(|(family, at)| Some((family, now.checked_sub(Duration::from_millis(at))?)))
                    .collect();
                Ok(report)
            }
            Err(error) => {
                self.belief = match (self.belief, &error) {
                    (Belief::Known | Belief::Unknown, Error::Backend(_)) => Belief::Broken,
                    (Belief::Broken | Belief::Refused, Error::Backend(_)) => Belief::Refused,
                    (_, Error::Owned { .. }) => Belief::Unknown,
                };
                Err(error)
            }
        }
    }

    /// Removes our tables.
    ///
    /// # Errors
    /// When the kernel refuses, for example because another living process owns a table.
    pub fn cleanup(&mut self) -> Result<(), Error> {
        self.belief = Belief::Unknown;
        let mut operations = Vec::new();
        for family in Family::ALL {
            if self.backend.inspect(&self.config.table, family)?.is_some() {
                operations.push(Operation::DeleteTable(family));
            }
        }
        self.backend.commit(&Transaction { table: self.config.table.clone(), operations })?;
        Ok(())
    }

    /// How many parts of objects were unusable so far, each counted once.
    pub fn problems_total(&mut self) -> u64 {
        self.table.complaints().total()
    }

    fn refresh_networks(&mut self) {
        let families = self.config.families.clone();
        let fresh: HashMap<Family, Network> = families
            .iter()
            .map(|family| (*family, self.config.network(*family, &self.surroundings)))
            .collect();
        let ips = |family: &Family| self.config.node_port_ips(*family, &self.surroundings);
        let ips_changed =
            families.iter().any(|family| self.known.node_port_ips.get(family) != Some(&ips(family)));
        if fresh != self.networks || ips_changed {
            self.networks = fresh;
            self.networks_changed = true;
            // Source ranges depend on the node's addresses, remembering chains on what a pod is.
            self.table.touch_all();
        }
    }

    fn log_complaints(&mut self) {
        for (name, problem) in self.table.complaints().take() {
            tracing::warn!(object = %name, %problem, "part of an object is left out");
        }
    }
}
