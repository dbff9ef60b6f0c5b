//! The one door to the kernel, as a trait.
//!
//! Owns: transactions as plain values, what can be read back, and the errors. Two implementations: `netlink` (the
//! kernel) and `fake` (in memory, refusing what the kernel would refuse).
//! Never: knows services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::objects::{Family, Protocol};
use crate::ruleset::{Chain, Element, Hook, Rule, SetName, Target};

/// One change. Within a transaction they take effect in order, and all or none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Make the table; it must not exist.
    CreateTable(Family),
    /// Take over a table that a former process of ours left behind.
    ClaimTable(Family),
    /// Remove the table with everything in it; it must exist.
    DeleteTable(Family),
    /// Make a set.
    CreateSet(Family, SetName),
    /// Remove a set nothing refers to.
    DeleteSet(Family, SetName),
    /// Make an empty chain, attached if its name says so.
    CreateChain(Family, Chain),
    /// Remove all rules of a chain.
    FlushChain(Family, Chain),
    /// Append a rule.
    AddRule(Family, Chain, Rule),
    /// Remove an empty chain nothing refers to.
    DeleteChain(Family, Chain),
    /// Add elements; none of them may exist.
    AddElements(Family, SetName, Vec<Element>),
    /// Remove elements; all of them must exist.
    DeleteElements(Family, SetName, Vec<Element>),
}

/// Changes that are made together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// Name of the tables.
    pub table: String,
    /// The changes, in order.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// How many elements are added and how many removed.
    pub fn element_counts(&self) -> (usize, usize) {
        self.operations.iter().fold((0, 0), |(added, removed), operation| match operation {
            Operation::AddElements(_, _, elements) => (added + elements.len(), removed),
            Operation::DeleteElements(_, _, elements) => (added, removed + elements.len()),
            _ => (added, removed),
        })
    }
}

/// A rule read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FoundRule {
    /// As it was given (the fake keeps rules as they are).
    Typed(Rule),
    /// Its expressions as the kernel dumps them.
    Raw(Vec<u8>),
}

/// A chain read back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FoundChain {
    /// Where it is attached.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<FoundRule>,
}

/// A table read back, without the elements of its sets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FoundTable {
    /// Whether another living process owns it.
    pub foreign_owner: bool,
    /// Whether it is protected as this backend would protect a table it makes.
    pub protected: bool,
    /// Its sets; `false` marks one whose types are not what its name says.
    pub sets: BTreeMap<String, bool>,
    /// Its chains.
    pub chains: BTreeMap<String, FoundChain>,
}

/// Which connection tracking entries of a family to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowFilter {
    /// Address family.
    pub family: Family,
    /// Protocol, always given.
    pub protocol: Protocol,
    /// The original destination address.
    pub address: Option<IpAddr>,
    /// The original destination port.
    pub port: Option<u16>,
}

/// A connection tracking entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// Protocol.
    pub protocol: Protocol,
    /// Who sent the first packet.
    pub source: Target,
    /// Where it was sent.
    pub destination: Target,
    /// Who answers: the endpoint it was translated to, or the destination itself.
    pub answered_by: Target,
}

/// What a backend can fail with.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A call to the kernel failed.
    #[error("{action}: {errno}")]
    Kernel {
        /// What was attempted, naming the object.
        action: String,
        /// The kernel's answer.
        errno: nix::Error,
        /// Index of the operation it refused, if it said so.
        operation: Option<usize>,
    },
    /// An answer of the kernel that cannot be understood.
    #[error("{action}: unexpected answer: {detail}")]
    Protocol {
        /// What was attempted.
        action: String,
        /// What is wrong with the answer.
        detail: String,
    },
}

impl BackendError {
    /// The operation the kernel refused, if it said which.
    pub const fn operation(&self) -> Option<usize> {
        match self {
            Self::Kernel { operation, .. } => *operation,
            Self::Protocol { .. } => None,
        }
    }
}

/// Reads and changes what is in the kernel.
pub trait Backend {
    /// Makes all changes or none.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing was changed.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), BackendError>;

    /// Reads a table's shape; `None` if there is none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn inspect(&mut self, table: &str, family: Family) -> Result<Option<FoundTable>, BackendError>;

    /// Reads the elements of a set. Elements that are none of ours by their form are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or there is no such set.
    fn elements(&mut self, table: &str, family: Family, set: &SetName) -> Result<Vec<Element>, BackendError>;

    /// Whether a rule read back is this rule.
    fn same_rule(&self, family: Family, found: &FoundRule, wanted: &Rule) -> bool;

    /// Reads connection tracking entries.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn flows(&mut self, filter: &FlowFilter) -> Result<Vec<Flow>, BackendError>;

    /// Removes connection tracking entries; those already gone are no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn forget_flows(&mut self, flows: &[Flow]) -> Result<(), BackendError>;
}
