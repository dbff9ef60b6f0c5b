//! The edge towards the node. The real one is `crate::host`; the fake one in the tests fails on demand.
//!
//! Owns: the trait. Never: holds logic.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use super::action::{Action, ActionError, Done};
use super::names::PodUid;
use super::observed::Observed;
use super::spec::Pod;

/// Sees and does. One implementation serves every pod.
pub trait Host: Send + Sync + 'static {
    /// What is known of this pod now. Cheap: called after every action and every change.
    fn observe(&self, pod: &Arc<Pod>) -> impl Future<Output = Observed> + Send;

    /// Carry one action out. Called again for a later attempt if it fails; cancelled (dropped) only at shutdown of
    /// the daemon, except for [`Action::PullImage`], which is dropped too when the pod no longer wants the image.
    fn execute(
        &self,
        pod: &Arc<Pod>,
        action: &Action,
    ) -> impl Future<Output = Result<Done, ActionError>> + Send;

    /// Changes whenever something happened by itself to this pod (a container ended, the supervisor was lost). Stays
    /// open for as long as the host lives.
    fn changes(&self, uid: &PodUid) -> watch::Receiver<u64>;

    /// Keep this as the pod's snapshot, which [`Host::residents`] gives back after the next start: its object or its
    /// status has changed in a way that matters then. Only called while the node holds something of the pod.
    fn remember(&self, pod: &Arc<Pod>) -> impl Future<Output = ()> + Send {
        let _ = pod;
        std::future::ready(())
    }

    /// The pods that the node still holds something of, as they were last wanted; read once at start.
    fn residents(&self) -> impl Future<Output = Vec<Arc<Pod>>> + Send;
}
