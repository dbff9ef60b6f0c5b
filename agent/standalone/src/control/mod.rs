//! The controllers: scheduling, endpoint slices, address ranges and health of nodes, namespaces, owners, old events,
//! certificates for nodes, bootstrap tokens.
//!
//! One task takes work from one queue. A change of an object puts work there at once; nothing is looked at by period, and
//! the only clocks are the ages of leases and events.

pub mod bootstrap;
pub mod cluster_info;
mod endpoints;
mod events;
pub mod namespace;
mod node;
pub mod scheduler;
mod signing;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::registry::Registry;
use crate::status::ApiResult;

pub use signing::Signer;

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Work {
    /// Find a node for a pod: namespace, name.
    Schedule(String, String),
    /// Find nodes for the pods that wait.
    ScheduleWaiting,
    /// Bring the slices of a service up to date: namespace, name.
    Endpoints(String, String),
    /// Address range and taints of a node.
    Node(String),
    /// Empty a namespace that is being deleted.
    Namespace(String),
    /// Delete what the object with this UID owned.
    Collect(String),
    /// A lease changed: the health of nodes may.
    Leases,
    /// A request for a certificate changed: its name.
    SigningRequest(String),
    /// `cluster-info` or a bootstrap token changed.
    ClusterInfo,
}

/// Work, each piece at most once, in the order in which it came.
#[derive(Default)]
pub struct Queue {
    inner: Mutex<(std::collections::VecDeque<Work>, HashSet<Work>)>,
    filled: Notify,
}

impl Queue {
    /// Adds a piece.
    pub fn push(&self, work: Work) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.1.insert(work.clone()) {
            inner.0.push_back(work);
            self.filled.notify_one();
        }
    }

    fn pop(&self) -> Option<Work> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let work = inner.0.pop_front()?;
        inner.1.remove(&work);
        Some(work)
    }

    /// Takes the next piece, waits if there is none. Cancel-safe: nothing is taken before it returns.
    async fn next(&self) -> Work {
        loop {
            if let Some(work) = self.pop() {
                return work;
            }
            self.filled.notified().await;
        }
    }
}

/// Runs the controllers until the server ends.
pub async fn run(registry: Arc<Registry>, signer: Signer) {
    let mut controllers = Controllers {
        nodes: node::Health::default(),
        scheduler: scheduler::Scheduler::default(),
        tokens: cluster_info::Tokens::default(),
        signer,
    };
    let mut expiry = events::Expiry::default();
    if let Err(error) = namespace::find_orphans(&registry) {
        tracing::warn!(%error, "look for what has no owner any longer");
    }
    loop {
        let due = controllers.nodes.next_check();
        tokio::select! {
            () = registry.ending.cancelled() => return,
            work = registry.queue.next() => {
                if let Err(error) = controllers.act(&registry, &work) {
                    tracing::warn!(?work, %error, "controller");
                }
            }
            () = tokio::time::sleep_until(due) => controllers.nodes.check(&registry),
            () = tokio::time::sleep_until(controllers.tokens.next()) => {
                if let Err(error) = controllers.tokens.sync(&registry) {
                    tracing::warn!(%error, "bootstrap tokens");
                }
            }
            () = tokio::time::sleep_until(expiry.next()) => expiry.sweep(&registry),
        }
    }
}

/// Each does one kind of work.
struct Controllers {
    nodes: node::Health,
    scheduler: scheduler::Scheduler,
    tokens: cluster_info::Tokens,
    signer: Signer,
}

impl Controllers {
    fn act(&mut self, registry: &Registry, work: &Work) -> ApiResult<()> {
        match work {
            Work::Schedule(namespace, name) => self.scheduler.schedule(registry, namespace, name),
            Work::ScheduleWaiting => self.scheduler.retry(registry),
            Work::Endpoints(namespace, name) => endpoints::sync(registry, namespace, name),
            Work::Node(name) => {
                node::sync(registry, &mut self.nodes, name)?;
                self.signer.node_changed(registry, name)
            }
            Work::Namespace(name) => namespace::empty(registry, name),
            Work::Collect(uid) => namespace::collect(registry, uid),
            Work::Leases => {
                self.nodes.follow(registry);
                Ok(())
            }
            Work::SigningRequest(name) => self.signer.sync(registry, name),
            Work::ClusterInfo => self.tokens.sync(registry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_once_in_the_order_it_came() {
        let queue = Queue::default();
        for name in ["a", "b", "a"] {
            queue.push(Work::Node(name.into()));
        }
        assert_eq!(queue.pop(), Some(Work::Node("a".into())));
        queue.push(Work::Node("a".into()));
        assert_eq!(queue.pop(), Some(Work::Node("b".into())));
        assert_eq!(queue.pop(), Some(Work::Node("a".into())));
        assert_eq!(queue.pop(), None);
    }
}
