//! The ways to the pods of other nodes, following all Nodes.
//!
//! Owns: the watch of Nodes, decoded to the few fields that matter, and the kernel state that `orlop_cni::nodes` makes of
//! them, which is put right when a link comes up again or somebody removed our routes. Changes that arrive together are applied together; a Node's heartbeat changes nothing and costs nothing.
//! Never: decides which way is taken (`orlop_cni::nodes` does), or blocks the runtime's threads.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use orlop_cni::nodes::{Local, Mode, Nodes, NodesConfig, Peer, Problem, disturbances, is_disturbance};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::Network;
use crate::api::client::Client;
use crate::api::list::Selection;
use crate::api::path::NODES;
use crate::api::watch::{Change, watch as watch_objects};
use crate::config::network::PodRoutes;
use crate::node::NodeView;

/// After a request that the kernel refused, the next attempt waits this long.
const RETRY: Duration = Duration::from_secs(1);
/// What is told of a link that comes up is told in several pieces.
const SETTLE: Duration = Duration::from_millis(20);
/// The kernel tells of one route at a time; bytes.
const DATAGRAM: usize = 8 << 10;

/// The mode of the crate that does it; `None` where another network does.
pub(super) fn mode(routes: Option<PodRoutes>) -> Option<Mode> {
    match routes {
        Some(PodRoutes::Auto) | None => Some(Mode::Auto),
        Some(PodRoutes::Direct) => Some(Mode::Direct),
        Some(PodRoutes::Vxlan) => Some(Mode::Tunnel),
        Some(PodRoutes::None) => None,
    }
}

/// The MTU of pods whose packets fit on every way to other nodes; `None` where that of the default route does.
pub(super) fn pod_mtu(routes: Option<PodRoutes>, addresses: &[IpAddr]) -> Option<u32> {
    let config = NodesConfig { mode: mode(routes)?, ..NodesConfig::default() };
    let local = Local { addresses: addresses.to_vec(), pod_cidrs: vec![] };
    match Nodes::new(config).and_then(|mut nodes| nodes.pod_mtu(&local)) {
        Ok(mtu) => mtu,
        Err(error) => {
            tracing::warn!(%error, "pods get the MTU of the default route");
            None
        }
    }
}

/// Follows the Nodes.
pub struct NodesTask {
    /// This node's name.
    pub node_name: String,
    /// This node's addresses where its Node tells none.
    pub addresses: Vec<IpAddr>,
    /// This node's podCIDRs where its Node tells none.
    pub pod_cidrs: Vec<IpNet>,
    /// `--pod-routes`.
    pub routes: Option<PodRoutes>,
    /// Whose plugin is in force matters where `routes` is not given.
    pub network: Arc<Network>,
}

/// What the kernel should know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    local: Local,
    peers: Vec<Peer>,
}

impl NodesTask {
    /// Runs until it is dropped. What is in the kernel stays there: pods go on without a daemon.
    pub async fn run(self, client: Client) {
        let config = NodesConfig { mode: mode(self.routes).unwrap_or_default(), ..NodesConfig::default() };
        let mut kernel = Kernel { config, nodes: None, told: Told::default() };
        if mode(self.routes).is_none() {
            // An earlier life may have been told otherwise.
            while !kernel.apply(Wanted::default()).await {
                tokio::time::sleep(RETRY).await;
            }
            return;
        }
        let (sender, changes) = mpsc::channel(64);
        let source = watch_objects(client, Selection::all(NODES), decode, sender);
        tokio::join!(source, self.follow(changes, kernel));
    }

    async fn follow(&self, mut changes: mpsc::Receiver<Change<Peer>>, mut kernel: Kernel) {
        let mut known = Known::default();
        let mut reloads = self.network.reloads();
        let mut applied = None;
        let mut disturbances = Disturbances::open();
        loop {
            let wanted = self.wanted(&known);
            if wanted.is_some() && wanted != applied {
                let done = kernel.apply(wanted.clone().unwrap_or_default()).await;
                applied = wanted.clone().filter(|_| done);
            }
            // Cancel-safe, all: a change not taken stays in its channel, and the sleep only paces attempts.
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => known.take(change),
                    None => return,
                },
                () = disturbances.wait() => applied = None,
                changed = reloads.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(RETRY), if applied != wanted => {}
            }
            while let Ok(change) = changes.try_recv() {
                known.take(change);
            }
        }
    }

    /// `None` until all Nodes are known: what an earlier life left in the kernel is better than a part of them.
    fn wanted(&self, known: &Known) -> Option<Wanted> {
        if !known.complete {
            return None;
        }
        if self.routes.is_none() && !self.network.is_own() {
            return Some(Wanted::default());
        }
        let own = known.nodes.get(&self.node_name);
        let told = |own: Option<&Peer>| own.cloned().unwrap_or_default();
        let Peer { mut addresses, mut pod_cidrs, .. } = told(own);
        if addresses.is_empty() {
            addresses.clone_from(&self.addresses);
        }
        if pod_cidrs.is_empty() {
            pod_cidrs.clone_from(&self.pod_cidrs);
        }
        let peers = known.nodes.values().filter(|peer| peer.name != self.node_name).cloned().collect();
        Some(Wanted { local: Local { addresses, pod_cidrs }, peers })
    }
}

/// What others do to the kernel's routes.
struct Disturbances {
    /// Nothing, where they cannot be heard of; that has been logged.
    socket: Option<pipe::Receiver>,
    /// Something that matters has been told.
    told: bool,
}

impl Disturbances {
    fn open() -> Self {
        // A socket is read as a pipe is; tokio has no other safe type for descriptors of its owner.
        let opened = disturbances().map_err(|error| error.to_string()).and_then(|socket| {
            pipe::Receiver::from_owned_fd_unchecked(socket).map_err(|error| error.to_string())
        });
        let opened = opened.inspect_err(|error| complain(error));
        Self { socket: opened.ok(), told: false }
    }

    /// Until something matters. Cancel-safe: what was told is remembered until the last await is over.
    async fn wait(&mut self) {
        let mut datagram = vec![0; DATAGRAM];
        while !self.told {
            let Some(socket) = &self.socket else { return std::future::pending().await };
            if let Err(error) = socket.readable().await {
                complain(&error.to_string());
                self.socket = None;
                continue;
            }
            match socket.try_read(&mut datagram) {
                Ok(length) => self.told = is_disturbance(&datagram[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // More was told than the socket holds, so anything may have been.
                Err(_) => self.told = true,
            }
        }
        tokio::time::sleep(SETTLE).await;
        self.told = false;
    }
}

fn complain(error: &str) {
    tracing::warn!(%error, "routes that are lost come back only with the next change of a Node");
}

/// All Nodes, by name.
#[derive(Debug, Default)]
struct Known {
    nodes: BTreeMap<String, Peer>,
    complete: bool,
}

impl Known {
    fn take(&mut self, change: Change<Peer>) {
        match change {
            Change::Synced(all) => {
                self.nodes = all.into_iter().map(|peer| (peer.name.clone(), peer)).collect();
                self.complete = true;
            }
            Change::Applied(peer) => {
                self.nodes.insert(peer.name.clone(), peer);
            }
            Change::Deleted(key) => {
                self.nodes.remove(&key.name);
            }
        }
    }
}

/// The same object as [`NodeView`], most of it dropped at once.
fn decode(json: &str) -> Result<Peer, String> {
    let view = NodeView::decode(json)?;
    Ok(Peer { name: view.name, addresses: view.internal_ips, pod_cidrs: view.pod_cidrs })
}

/// The blocking half.
struct Kernel {
    config: NodesConfig,
    /// Its sockets; made at the first use, and anew after an error.
    nodes: Option<Nodes>,
    told: Told,
}

/// What has been logged last, so that nothing is logged twice.
#[derive(Default)]
struct Told {
    error: Option<String>,
    problems: Vec<Problem>,
}

impl Kernel {
    /// Whether it is in the kernel now.
    async fn apply(&mut self, wanted: Wanted) -> bool {
        let (held, config) = (self.nodes.take(), self.config.clone());
        let count = wanted.peers.len();
        let work = tokio::task::spawn_blocking(move || {
            let mut nodes = match held {
                Some(nodes) => nodes,
                None => Nodes::new(config).map_err(|error| error.to_string())?,
            };
            let problems = nodes.apply(&wanted.local, &wanted.peers).map_err(|error| error.to_string())?;
            Ok::<_, String>((nodes, problems))
        });
        match work.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok((nodes, problems)) => {
                self.nodes = Some(nodes);
                self.told.error = None;
                for problem in problems.iter().filter(|problem| !self.told.problems.contains(problem)) {
                    tracing::warn!(%problem, "pods of another node are not reached");
                }
                self.told.problems = problems;
                tracing::debug!(nodes = count, "the ways to other nodes are in place");
                true
            }
            Err(error) => {
                if self.told.error.as_ref() != Some(&error) {
                    tracing::error!(%error, "cannot make the ways to other nodes; trying again every second");
                }
                self.told.error = Some(error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::list::ObjectKey;

    fn node(name: &str, cidr: &str) -> Peer {
        decode(&format!(
            r#"{{"metadata":{{"name":"{name}","uid":"u"}},"spec":{{"podCIDRs":["{cidr}"]}},
                "status":{{"addresses":[{{"type":"InternalIP","address":"192.0.2.1"}},
                    {{"type":"ExternalIP","address":"198.51.100.1"}}]}}}}"#
        ))
        .expect("a node")
    }

    #[test]
    fn only_internal_addresses_and_ranges_count() {
        let peer = node("a", "10.0.1.0/24");
        assert_eq!(peer.addresses, ["192.0.2.1".parse::<IpAddr>().expect("an address")]);
        assert_eq!(peer.pod_cidrs, ["10.0.1.0/24".parse::<IpNet>().expect("a network")]);
    }

    #[test]
    fn nodes_come_change_and_go() {
        let mut known = Known::default();
        known.take(Change::Applied(node("early", "10.0.9.0/24")));
        assert!(!known.complete);
        known.take(Change::Synced(vec![node("a", "10.0.1.0/24"), node("b", "10.0.2.0/24")]));
        assert!(known.complete && !known.nodes.contains_key("early"));
        known.take(Change::Applied(node("b", "10.0.3.0/24")));
        assert_eq!(known.nodes["b"], node("b", "10.0.3.0/24"));
        let key = ObjectKey { namespace: String::new(), name: "a".into(), uid: "u".into() };
        known.take(Change::Deleted(key));
        assert_eq!(known.nodes.keys().collect::<Vec<_>>(), ["b"]);
    }
}
