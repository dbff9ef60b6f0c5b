//! The embedded Kubernetes API server of orlop, for one machine and for tests.
//!
//! ```text
//! TLS ─► who ─► may they ─► verb ─► strategy (defaults, admission, checks) ─► store ─► watchers
//!                                                                              └─► index ─► queue ─► controllers
//! ```
//! It serves pods, nodes, services, endpoint slices, config maps, secrets, namespaces, service accounts, events, leases and
//! certificate signing requests, as a real kube-apiserver does in what a node and `kubectl` see. Beside it run what such a
//! cluster cannot do without: a scheduler, endpoint slices from selectors, address ranges and health of nodes, the end of
//! namespaces and of what is owned; and what a machine needs to join: bootstrap tokens, a signed `cluster-info`, certificates.
//!
//! Guarantees: an answered write survives SIGKILL of the process. A power cut can take back the last second of writes, ten
//! seconds of leases and events. Versions never go back.
//!
//! Architecture invariant: nothing here knows orlop's agent. Objects are JSON values while a request lasts and bytes for the
//! rest of their lives; there are no typed caches.

mod auth;
mod control;
mod http;
mod index;
mod object;
mod patch;
mod pki;
mod quantity;
mod registry;
mod resource;
mod schema;
mod selector;
mod server;
mod status;
mod store;
mod strategy;
mod table;

pub use pki::PkiError;
pub use server::{Approval, Config, Server, Signing, StartError, ca_hash, node_kubeconfig};
pub use store::StoreError;
