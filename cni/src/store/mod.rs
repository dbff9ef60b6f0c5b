//! Who holds which address of a network: leases in a log on disk.
//!
//! Owns: `<state>/networks/<network>/leases` and the `lock` beside it.
//! Every change is appended to the log under an exclusive `flock`, before it is true for anybody else. Any number of
//! processes may share a store: each remembers how far it has read, and reads what others appended before it acts.
//! A torn last line (a process killed while writing) is cut off by the next one to take the lock. A log of another
//! boot is dropped, for no sandbox survives a reboot.
//!
//! Guarantees: an address has at most one owner; one that was released is given out again only after every other
//! free address of its ranges, and then the longest released first.
//! Never: touches the network.

mod file;
mod log;
mod pick;
mod range;
mod state;

use std::net::IpAddr;
use std::path::Path;

use crate::spec::{CniError, code};

pub use file::Store;
pub(crate) use range::check_sets;
pub use range::{Range, RangeSet};

/// The attachment a lease belongs to: a container and the name of its interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The container's ID.
    pub container: String,
    /// The interface inside the container.
    pub ifname: String,
}

impl Owner {
    /// An owner. Both strings must have been checked by [`crate::spec::valid_container_id`] and
    /// [`crate::spec::valid_ifname`]; they are words of the log's lines.
    #[must_use]
    pub fn new(container: &str, ifname: &str) -> Self {
        Self { container: container.to_owned(), ifname: ifname.to_owned() }
    }
}

/// An address given to an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Position of the range set it was taken from.
    pub set: usize,
    /// The address.
    pub address: IpAddr,
}

/// Why the store could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was done to which file.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A line in the middle of the log is not what was written.
    #[error("address log {path} is damaged at byte {offset}")]
    Damaged {
        /// The log.
        path: String,
        /// Where the bad line starts.
        offset: u64,
    },
    /// Every address of a range set is leased.
    #[error("no address is free in {0}")]
    Exhausted(String),
    /// The requested address has another owner.
    #[error("address {0} is already leased")]
    Taken(IpAddr),
    /// The requested address is in none of the ranges.
    #[error("requested address {0} is in none of the network's ranges")]
    OutOfRange(IpAddr),
    /// The owner has leases from an ADD before this one.
    #[error("container {container} already has an address for {ifname}")]
    AlreadyLeased {
        /// The container's ID.
        container: String,
        /// The interface.
        ifname: String,
    },
}

impl StoreError {
    fn io(what: &str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { what: format!("{what} {}", path.display()), source }
    }
}

impl From<StoreError> for CniError {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::Io { .. } | StoreError::Damaged { .. } => code::IO,
            StoreError::Exhausted(_) => code::NO_ADDRESS,
            StoreError::Taken(_) | StoreError::OutOfRange(_) | StoreError::AlreadyLeased { .. } => {
                code::INVALID_CONFIG
            }
        };
        Self::new(code, error.to_string())
    }
}
