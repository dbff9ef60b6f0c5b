//! What follows from the Node object, and from the parts that make the node Ready.
//!
//! Owns: the flow of podCIDRs to the network, of labels to admission, of health to the Node's conditions. Never: writes
//! the Node object (its task does).

use std::sync::Arc;
use std::time::Duration;

use orlop_netproxy::Event;
use orlop_netproxy::objects::Node as ProxyNode;
use tokio::sync::watch;

use super::notify;
use crate::config::Config;
use crate::image::store::Store;
use crate::network::Network;
use crate::node::{Health, NodeConditions, NodeImage, NodeView, Registered};
use crate::pod::admission::Allocatable;
use crate::services::Handle;

/// While the network is not ready, its plugins are asked this often.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Tells systemd and the log once the node is registered.
pub async fn announce(mut registered: Registered) {
    let name = match registered.wait_for(Option::is_some).await {
        Ok(node) => node.as_ref().map(|node| node.name.clone()).unwrap_or_default(),
        Err(_) => return,
    };
    notify::status(&format!("node {name}"));
    tracing::info!("the node is registered");
}

/// Follows the directory of network configurations.
pub async fn follow_network(network: Arc<Network>) {
    network.follow_configurations().await;
}

/// Follows the own Node object.
pub struct Follow {
    /// Configuration.
    pub config: Arc<Config>,
    /// The Node as it is at the API server.
    pub registered: Registered,
    /// Gets the podCIDRs.
    pub network: Arc<Network>,
    /// Listed in the Node's status.
    pub images: Arc<Store>,
    /// The Node's conditions.
    pub conditions: watch::Sender<NodeConditions>,
    /// What admission knows.
    pub allocatable: watch::Sender<Allocatable>,
    /// The service proxy.
    pub proxy: Handle,
}

impl Follow {
    /// Runs until the Node's task ends.
    pub async fn run(mut self) {
        let mut images = self.images.changes();
        let mut network = self.network.reloads();
        let mut healthy = self.health().await;
        loop {
            let view = self.registered.borrow_and_update().clone();
            if let Some(view) = view {
                healthy = self.take(&view).await;
            }
            loop {
                // Cancel-safe, all: a watch channel keeps its newest value, and the sleep only paces questions.
                tokio::select! {
                    changed = self.registered.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    // Both live as long as this task holds them.
                    _ = images.changed() => healthy = self.health().await,
                    _ = network.changed() => healthy = self.health().await,
                    // Nothing tells that a plugin was installed or that its STATUS is another now.
                    () = tokio::time::sleep(ASK_AGAIN), if !healthy => healthy = self.health().await,
                }
            }
        }
    }

    /// Whether the node's parts are all ready.
    async fn take(&self, view: &NodeView) -> bool {
        let cidrs = if view.pod_cidrs.is_empty() { &self.config.pod_cidrs } else { &view.pod_cidrs };
        if !cidrs.is_empty()
            && let Err(error) = self.network.set_pod_cidrs(cidrs)
        {
            tracing::warn!(%error, "the node's podCIDRs cannot be remembered for a start without an API server");
        }
        self.allocatable.send_if_modified(|known| {
            let changed = known.labels != view.labels;
            known.labels.clone_from(&view.labels);
            changed
        });
        let node = ProxyNode {
            name: view.name.as_str().into(),
            zone: view.labels.get("topology.kubernetes.io/zone").map(|zone| zone.as_str().into()),
            addresses: view.internal_ips.clone(),
            pod_cidrs: cidrs.clone(),
            eligible: view.is_staying(),
        };
        // The proxy's thread ends only with the daemon.
        self.proxy.send(Event::NodeApplied(Box::new(node)));
        self.health().await
    }

    /// As [`Self::take`].
    async fn health(&self) -> bool {
        let network = match self.network.status().await {
            Ok(()) => Health::Ready,
            Err(message) => Health::NotReady { message },
        };
        let healthy = network == Health::Ready;
        let images = self.images.list().unwrap_or_default();
        let images = images
            .into_iter()
            .map(|image| NodeImage {
                names: image.repo_digests.into_iter().chain(image.repo_tags).collect(),
                size_bytes: image.size,
            })
            .collect();
        let conditions =
            NodeConditions { runtime: Health::Ready, network, images, ..NodeConditions::default() };
        self.conditions.send_if_modified(|known| {
            let changed = *known != conditions;
            *known = conditions;
            changed
        });
        healthy
    }
}
