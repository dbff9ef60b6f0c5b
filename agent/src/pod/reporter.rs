//! The edge towards the API server: statuses and events out, the last delete. The real one is in `crate::api`.
//!
//! Owns: the trait and the event type. Never: retries, merges or remembers (its implementations do).

use std::future::Future;
use std::sync::Arc;

use super::names::ContainerName;
use super::spec::Pod;
use super::status::PodStatus;

/// Tells the API server about pods.
pub trait Reporter: Send + Sync + 'static {
    /// The pod's newest status. Never blocks; a newer report replaces one not yet sent. Equal ones are not sent.
    fn report(&self, pod: &Arc<Pod>, status: PodStatus);

    /// Send `last`, then delete the object with grace 0 and the UID as precondition. "Not found" and another UID under
    /// the name are success. An error is retried by the planner.
    fn delete(&self, pod: &Arc<Pod>, last: PodStatus) -> impl Future<Output = Result<(), String>> + Send;

    /// An event about the pod, or about one of its containers. Never blocks; may be dropped under load.
    fn event(&self, pod: &Arc<Pod>, event: PodEvent);
}

/// A Kubernetes event, with kubelet's reasons (`Pulling`, `Started`, `BackOff`, ...).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One of kubelet's 62 words.
    pub reason: &'static str,
    /// The sentence that `kubectl describe` shows.
    pub message: String,
    /// Becomes `involvedObject.fieldPath`: `spec.containers{name}` or `spec.initContainers{name}`.
    pub container: Option<ContainerName>,
}
