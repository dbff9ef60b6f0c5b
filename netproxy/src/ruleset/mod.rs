//! The shape of what is in the kernel, as plain values: sets, chains, rules, elements.
//!
//! Owns: the names of sets and chains, the typed keys and values of elements, the typed rules, and the skeleton (the
//! chains that are the same whatever services there are). The number of sets and chains does not depend on the
//! number of services; a service with session affinity adds one map and two chains for each way it is used.
//! Architecture invariant: every rule here can be listed by stock `nft list ruleset`, 1.0.6 and newer. What stock nft
//! cannot print (maps in maps, results of one map as the key of another) is not expressible in [`Rule`].
//! Never: talks to the kernel; knows Kubernetes objects.

mod chain;
mod element;
mod rule;
mod set;
mod skeleton;

pub use chain::{Chain, ChainDefinition, ChainKind, Hook, HookPoint, Policy};
pub use element::{Element, Key, NodePort, Target, Value, Verdict, Vip};
pub use rule::{Load, RejectWith, Rule, Statement};
pub use set::{DataKind, KeyKind, SetName};
pub use skeleton::{LocalSource, Network, NodePortMatch, skeleton, spread, sticky};

/// The slots of local endpoints start here, above those of all endpoints, in the same map.
pub const LOCAL_SLOTS: u32 = 1 << 24;
