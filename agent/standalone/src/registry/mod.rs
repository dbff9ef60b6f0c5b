//! The verbs of the API on stored objects: what a request does after it was understood and allowed.
//!
//! Every write runs under the store's one writer lock, so what it reads stays true until it is done: there are no retries.

mod create;
mod delete;
mod update;

use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use delete::{DeleteOptions, Deleted};
pub use update::Target;

use crate::control::Queue;
use crate::index::Index;
use crate::object;
use crate::resource::{ApiResource, Kind};
use crate::status::{ApiError, ApiResult};
use crate::store::{Change, Event, Store, StoreError};
use crate::strategy::Allocator;

/// What of the configuration the API needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Networks from which each node gets a part for its pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// Networks of service addresses.
    pub service_cidrs: Vec<IpNet>,
    /// The address and port under which the server is reached.
    pub advertise: (IpAddr, u16),
    /// The certificate of the CA, PEM.
    pub ca_pem: String,
}

/// Everything that requests and controllers share.
pub struct Registry {
    /// The objects.
    pub store: Store,
    /// What is known about them in short form.
    pub index: Index,
    /// Service addresses and node ports.
    pub allocator: Allocator,
    /// What controllers have to look at.
    pub queue: Queue,
    /// The configuration.
    pub settings: Settings,
    /// Cancelled when the server ends: watches stop then.
    pub ending: CancellationToken,
}

/// How a write is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Check everything, change nothing.
    pub dry_run: bool,
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "store");
        ApiError::internal(error)
    }
}

impl Registry {
    /// Makes the registry of an opened store and fills the index from it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(
        store: Store,
        settings: Settings,
        ending: CancellationToken,
    ) -> Result<std::sync::Arc<Self>, StoreError> {
        let allocator = Allocator::new(settings.service_cidrs.clone());
        let registry = std::sync::Arc::new(Self {
            store,
            index: Index::default(),
            allocator,
            queue: Queue::default(),
            settings,
            ending,
        });
        for kind in crate::resource::ALL_KINDS {
            for (_, bytes) in registry.store.list(kind, None, None, usize::MAX)?.items {
                let event = Event::initial(bytes);
                registry.observe(kind, &event);
            }
        }
        let weak = std::sync::Arc::downgrade(&registry);
        registry.store.observe(Box::new(move |kind, event| {
            if let Some(registry) = weak.upgrade() {
                registry.observe(kind, event);
            }
        }));
        Ok(registry)
    }

    /// Follows each change: index, allocator, work for controllers. Runs under the writer's lock.
    fn observe(&self, kind: Kind, event: &Event) {
        if kind == Kind::Service {
            self.follow_service(event);
        }
        for work in self.index.observe(kind, event) {
            self.queue.push(work);
        }
    }

    fn follow_service(&self, event: &Event) {
        if let Some((before, _)) = &event.before {
            self.allocator.release(&object::parse(before));
        }
        if event.change != Change::Deleted {
            self.allocator.take(&object::parse(&event.object));
        }
    }

    /// The stored bytes of an object.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, api: &ApiResource, namespace: &str, name: &str) -> ApiResult<Bytes> {
        self.store.get(api.kind, namespace, name)?.ok_or_else(|| ApiError::not_found(api, name))
    }

    /// The object, parsed; none if it is not there.
    ///
    /// # Errors
    /// 500, when the store cannot be read.
    pub fn find(&self, kind: Kind, namespace: &str, name: &str) -> ApiResult<Option<Value>> {
        Ok(self.store.get(kind, namespace, name)?.map(|b| object::parse(&b)))
    }
}
