//! Kubernetes services as nftables elements.
//!
//! ```text
//!  events ─► Table (compact objects) ─► PortProgram (one record for each service port) ─► elements
//!                                              │ difference to the record before
//!                                              ▼
//!                                       one transaction ─► Backend: netlink, or the fake
//! ```
//! Owns: everything kube-proxy 1.36 does in nftables mode. A change of one endpoint touches its elements and nothing
//! else; the number of sets and chains does not grow with the number of services; nothing is done by the clock.
//! Architecture invariant: synchronous, no async runtime, no HTTP, no child process to program
//! anything (`stock` asks nft for a second opinion when told to); it knows nobody. Who feeds it
//! events, and who serves its health and metrics, is somebody else.

mod backend;
mod claims;
mod config;
mod endpoints;
mod explain;
pub mod fake;
mod frontends;
mod health;
mod metrics;
pub mod netlink;
pub mod objects;
mod program;
mod proxy;
pub mod ruleset;
mod slots;
mod stock;
mod table;
mod trace;

pub use backend::{
    Backend, BackendError, Flow, FlowFilter, FoundChain, FoundRule, FoundTable, Operation, Transaction,
};
pub use config::{Config, DetectLocal, NodePortAddresses};
pub use explain::{Explanation, Query, Status, Verification};
pub use health::{Answer, HEALTH_TIMEOUT, Health};
pub use metrics::Metrics;
pub use proxy::{Changes, Error, Event, HealthCheck, Proxy, SyncReport};
pub use trace::{Contents, Outcome, Packet, Sets, Trace, trace};
