//! The kernel, by netlink: complete, and needing no program at run time.
//!
//! Owns: the socket (and with it, where the kernel has the flags `owner` and `persist`, since 6.9, the tables: nobody
//! else can change them, `nft flush ruleset` passes them by, and they outlive this process). The socket belongs to the
//! network namespace of the thread that opened it.
//! Never: decides what to change.

mod conntrack;
mod element;
mod encode;
mod expression;
mod inspect;
mod monitor;
mod probe;
mod socket;
mod typeof_data;

use std::net::IpAddr;

use nix::Error as Errno;

pub use monitor::Monitor;

use crate::backend::{
    Backend, BackendError, Flow, FlowFilter, FoundRule, FoundTable, Operation, Transaction,
};
use crate::objects::Family;
use crate::ruleset::{Element, Rule, SetName};
use socket::Socket;

/// The addresses of all interfaces in the network namespace of the calling thread, for
/// [`Event::InterfaceAddresses`](crate::Event::InterfaceAddresses).
///
/// # Errors
/// When the kernel cannot be asked.
pub fn interface_addresses() -> Result<Vec<IpAddr>, BackendError> {
    let failed = |errno| BackendError::Kernel {
        action: "list interface addresses".to_owned(),
        errno,
        operation: None,
    };
    let all = nix::ifaddrs::getifaddrs().map_err(failed)?;
    let mut addresses: Vec<IpAddr> = all
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// How often a dump that a change interrupted is begun again.
const DUMP_ATTEMPTS: u32 = 20;

/// The backend.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    /// Whether tables get the flags `owner` and `persist`.
    protect: bool,
}

impl Netlink {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Without nf_tables in the kernel, or without the right to use it.
    pub fn open() -> Result<Self, BackendError> {
        let mut netlink = Self { socket: Socket::open(0)?, protect: true };
        match netlink.probe_owners() {
            Err(BackendError::Kernel { errno: Errno::EOPNOTSUPP | Errno::EINVAL, .. }) => {
                tracing::info!("the kernel has no table owners (they came with 6.9)");
                netlink.protect = false;
            }
            tried => tried?,
        }
        Ok(netlink)
    }

    /// Does not ask for table owners: others may change the tables, and a [`Monitor`] has to tell of it. For kernels
    /// whose owners are not wanted; those without the flags are noticed by themselves.
    #[must_use]
    pub fn unprotected(self) -> Self {
        Self { protect: false, ..self }
    }

    /// Whether tables are protected from others. Where they are not, a [`Monitor`] tells of foreign changes.
    pub const fn protects(&self) -> bool {
        self.protect
    }

    /// A second socket that hears of changes others make to this table. It opens in the network namespace of the
    /// calling thread, which should be the backend's.
    ///
    /// # Errors
    /// When the kernel refuses another socket.
    pub fn monitor(&self, table: &str) -> Result<Monitor, BackendError> {
        Monitor::open(table, self.socket.port())
    }

    /// Removes a table whoever made it, in both families; one that is not there is no error. For leftovers of
    /// kube-proxy (`kube-proxy`).
    ///
    /// # Errors
    /// When the kernel refuses, for example because a living process owns the table.
    pub fn remove_table(&mut self, table: &str) -> Result<Vec<Family>, BackendError> {
        let mut removed = Vec::new();
        for family in Family::ALL {
            if self.inspect(table, family)?.is_some() {
                let operations = vec![Operation::DeleteTable(family)];
                self.commit(&Transaction { table: table.to_owned(), operations })?;
                removed.push(family);
            }
        }
        Ok(removed)
    }

    fn try_commit(&mut self, transaction: &Transaction) -> Result<(), (Errno, Option<usize>)> {
        let encoded = encode::transaction(transaction, self.protect);
        if encoded.operations.is_empty() {
            return Ok(());
        }
        self.socket.batch(&encoded.batch).map_err(|(errno, message)| {
            (errno, message.and_then(|index| encoded.operations.get(index).copied()))
        })
    }

    /// Dumps, and begins again when a change came between.
    fn dump_consistent<T>(
        &mut self,
        action: &str,
        mut attempt: impl FnMut(&mut Socket) -> Result<T, Errno>,
    ) -> Result<T, BackendError> {
        let mut errno = Errno::EINTR;
        for _ in 0..DUMP_ATTEMPTS {
            match attempt(&mut self.socket) {
                Ok(found) => return Ok(found),
                Err(Errno::EINTR) => {}
                Err(other) => {
                    errno = other;
                    break;
                }
            }
        }
        Err(BackendError::Kernel { action: action.to_owned(), errno, operation: None })
    }
}

impl Backend for Netlink {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), BackendError> {
        self.try_commit(transaction).map_err(|(errno, operation)| BackendError::Kernel {
            action: match operation.and_then(|index| transaction.operations.get(index)) {
                Some(operation) => format!("table {}: {}", transaction.table, describe(operation)),
                None => format!("table {}: transaction", transaction.table),
            },
            errno,
            operation,
        })
    }

    fn inspect(&mut self, table: &str, family: Family) -> Result<Option<FoundTable>, BackendError> {
        let (protect, own_port) = (self.protect, self.socket.port());
        self.dump_consistent(&format!("read table {family} {table}"), |socket| {
            inspect::table(socket, table, family, (protect, own_port))
        })
    }

    fn elements(&mut self, table: &str, family: Family, set: &SetName) -> Result<Vec<Element>, BackendError> {
        self.dump_consistent(&format!("list set {family} {table} {set}"), |socket| {
            inspect::elements(socket, table, family, set)
        })
    }

    fn same_rule(&self, family: Family, found: &FoundRule, wanted: &Rule) -> bool {
        match found {
            FoundRule::Raw(bytes) => inspect::same_rule(family, bytes, wanted),
            FoundRule::Typed(rule) => rule == wanted,
        }
    }

    fn flows(&mut self, filter: &FlowFilter) -> Result<Vec<Flow>, BackendError> {
        self.dump_consistent("list connections", |socket| conntrack::list(socket, filter))
    }

    fn forget_flows(&mut self, flows: &[Flow]) -> Result<(), BackendError> {
        flows.iter().try_for_each(|flow| {
            conntrack::delete(&mut self.socket, flow).map_err(|errno| BackendError::Kernel {
                action: format!("forget connection {} -> {}", flow.source, flow.destination),
                errno,
                operation: None,
            })
        })
    }
}

fn describe(operation: &Operation) -> String {
    match operation {
        Operation::CreateTable(family) => format!("create table {family}"),
        Operation::ClaimTable(family) => format!("claim table {family}"),
        Operation::DeleteTable(family) => format!("delete table {family}"),
        Operation::CreateSet(family, set) => format!("create set {family} {set}"),
        Operation::DeleteSet(family, set) => format!("delete set {family} {set}"),
        Operation::CreateChain(family, chain) => format!("create chain {family} {chain}"),
        Operation::FlushChain(family, chain) => format!("flush chain {family} {chain}"),
        Operation::AddRule(family, chain, _) => format!("add rule to chain {family} {chain}"),
        Operation::DeleteChain(family, chain) => format!("delete chain {family} {chain}"),
        Operation::AddElements(family, set, elements) => {
            format!("add {} elements to set {family} {set}", elements.len())
        }
        Operation::DeleteElements(family, set, elements) => {
            format!("delete {} elements from set {family} {set}", elements.len())
        }
    }
}
