//! What is wanted of one pod, and what the node is, as far as planning needs it.
//!
//! Owns: the input types of `plan`. Never: says how they came about (that is `manager`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::spec::Pod;

/// What is wanted of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The pod as last seen.
    pub pod: Arc<Pod>,
    /// Whether its object still exists where the pod came from.
    pub object: Object,
    /// The node does not take it.
    pub rejected: Option<Rejection>,
}

impl Wanted {
    /// A pod that is there and was taken.
    pub fn present(pod: Arc<Pod>) -> Self {
        Self { pod, object: Object::Present, rejected: None }
    }

    /// The pod is to go away entirely.
    pub fn is_deleted(&self) -> bool {
        self.object == Object::Gone || self.pod.metadata.deletion_timestamp.is_some()
    }
}

/// Whether a pod's object exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// It does.
    Present,
    /// Force-deleted at the API server, or its manifest was removed.
    Gone,
}

/// Why the node does not take a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Becomes `status.reason`: `OutOfcpu`, `NodeAffinity`, ...
    pub reason: &'static str,
    /// Becomes `status.message`.
    pub message: String,
}

/// What planning needs to know of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's addresses, the primary one first, one for each family.
    pub host_ips: Vec<IpAddr>,
    /// `crashLoopBackOff.maxContainerRestartPeriod`, 300 s by default.
    pub max_restart_period: Duration,
}

impl Default for NodeFacts {
    fn default() -> Self {
        Self { host_ips: Vec::new(), max_restart_period: Duration::from_secs(300) }
    }
}
