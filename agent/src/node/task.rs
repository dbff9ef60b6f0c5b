//! One task that keeps the Node object true.
//!
//! Owns: registration, the status last posted, the watch of this node's own object. Reads: [`NodeConditions`]. Never:
//! judges health, renews the Lease (that is `lease`).
//!
//! ```text
//! register ──► post ──► wait ──┬─ inputs changed ────────► post if something differs
//!    ▲                         ├─ report_every ──────────► post in any case
//!    │                         ├─ somebody wrote over it ► post
//!    └── Node deleted ◄────────┘
//! ```

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeStatus;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};

use super::conditions::{NodeCondition, NodeConditions, conditions};
use super::facts::{Facts, addresses};
use super::object::{Material, status_patch};
use super::view::NodeView;
use crate::api::backoff::{Backoff, random};
use crate::api::client::{Client, PatchKind};
use crate::api::error::ApiError;
use crate::api::events::{Event, Events, Regarding};
use crate::api::list::Selection;
use crate::api::path::NODES;
use crate::api::watch::{self as api_watch, Change};
use crate::config::Config;

/// What others may know of this node's object; `None` until it is registered.
pub type Registered = watch::Receiver<Option<Arc<NodeView>>>;

/// How long the first look at the node's parts may take before its Node says that it is not over.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// The task, before it runs.
pub struct NodeTask {
    client: Client,
    config: Arc<Config>,
    inputs: watch::Receiver<NodeConditions>,
    events: Events,
    view: watch::Sender<Option<Arc<NodeView>>>,
    facts: Facts,
    addresses: Vec<IpAddr>,
    /// The status last posted, without heartbeats.
    posted: Option<NodeStatus>,
    conditions: Vec<NodeCondition>,
    complaint: Option<String>,
    /// The event `Starting` was sent.
    announced: bool,
}

impl NodeTask {
    /// The task, and what it learns of its Node.
    pub fn new(
        client: Client,
        config: Arc<Config>,
        inputs: watch::Receiver<NodeConditions>,
        events: Events,
    ) -> (Self, Registered) {
        let (view, registered) = watch::channel(None);
        let facts = Facts::read(&config.root_dir);
        let addresses = addresses(&config.node_ips);
        let task = Self {
            client,
            config,
            inputs,
            events,
            view,
            facts,
            addresses,
            posted: None,
            conditions: Vec::new(),
            complaint: None,
            announced: false,
        };
        (task, registered)
    }

    /// Runs until dropped. Cancel-safe: every request stands for itself.
    pub async fn run(mut self) {
        self.register().await;
        // A Node that is Ready from an earlier life of this daemon must not be told that it is not, only because nobody has
        // looked yet. The Lease says meanwhile that it lives.
        let known = self.inputs.wait_for(|inputs| *inputs != NodeConditions::default());
        let looked = tokio::time::timeout(FIRST_LOOK, known).await.is_ok();
        tracing::debug!(looked, "the node's parts were looked at, or take long");
        let (changes, mut changed) = mpsc::channel(8);
        let selection = Selection::all(NODES).fields(format!("metadata.name={}", self.config.node_name));
        let mut watching = pin!(api_watch::watch(self.client.clone(), selection, NodeView::decode, changes));
        let mut backoff =
            Backoff::new(Duration::from_millis(200), Duration::from_secs(10), Duration::from_secs(60));
        let mut report = tokio::time::interval(self.config.node.report_every);
        report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut retry: Option<tokio::time::Instant> = None;
        let mut inputs_open = true;
        loop {
            let retry_at = retry.unwrap_or_else(tokio::time::Instant::now);
            // Every arm waits for a message, a change or a moment: losing the race loses nothing.
            let must = tokio::select! {
                () = &mut watching => return,
                Some(change) = changed.recv() => match self.seen(change).await {
                    true => Must::Post,
                    false => continue,
                },
                changed = self.inputs.changed(), if inputs_open => {
                    inputs_open = changed.is_ok();
                    Must::PostIfDifferent
                }
                _ = report.tick() => {
                    self.facts = Facts::read(&self.config.root_dir);
                    self.addresses = addresses(&self.config.node_ips);
                    Must::Post
                }
                () = tokio::time::sleep_until(retry_at), if retry.is_some() => Must::Post,
            };
            retry = match self.post(must).await {
                Ok(()) => {
                    backoff.succeeded();
                    None
                }
                Err(ApiError::NotFound(_)) => {
                    self.register().await;
                    Some(tokio::time::Instant::now())
                }
                Err(error) => {
                    self.complain("Node status is not accepted; trying again", &error);
                    let delay = backoff.failed(Instant::now(), random());
                    Some(tokio::time::Instant::now() + delay.max(error.retry_after().unwrap_or_default()))
                }
            };
        }
    }

    /// Takes note of the own object. Returns whether it must be posted again.
    async fn seen(&mut self, change: Change<NodeView>) -> bool {
        let found = match change {
            Change::Synced(nodes) => nodes.into_iter().next(),
            Change::Applied(node) => Some(node),
            Change::Deleted(_) => None,
        };
        let Some(node) = found else {
            tracing::warn!(node = %self.config.node_name, "the Node object was deleted; registering again");
            self.register().await;
            return true;
        };
        let differs = self.conditions.iter().any(|c| node.condition(&c.kind) != Some(c.status.as_str()));
        self.publish(node);
        differs
    }

    fn publish(&self, node: NodeView) {
        self.view.send_if_modified(|known| {
            let news = known.as_deref() != Some(&node);
            if news {
                *known = Some(Arc::new(node));
            }
            news
        });
    }

    /// Creates the Node, or finds it and brings its default labels up to date. Tries until it works.
    async fn register(&mut self) {
        let mut delay = Duration::from_millis(100);
        loop {
            match self.try_register().await {
                Ok((node, reasons)) => {
                    tracing::info!(node = %node.name, uid = %node.uid, "registered");
                    self.complaint = None;
                    self.note_reboot(&node);
                    // What the server knows decides which conditions have just changed.
                    self.conditions.clone_from(&node.conditions);
                    self.posted = None;
                    self.publish(node);
                    if !std::mem::replace(&mut self.announced, true) {
                        self.event(false, "Starting", "Starting orlop.".to_owned());
                    }
                    self.tell(&reasons);
                    return;
                }
                Err(error) => {
                    self.complain("Node is not registered yet; trying again", &error);
                    tokio::time::sleep(delay.max(error.retry_after().unwrap_or_default())).await;
                    delay = (delay * 2).min(Duration::from_secs(7));
                }
            }
        }
    }

    /// The Node, and the reasons of the conditions it was created with.
    async fn try_register(&mut self) -> Result<(NodeView, Vec<&'static str>), ApiError> {
        let now = Timestamp::now();
        let inputs = self.inputs.borrow().clone();
        let (conditions, reasons) = conditions(&inputs, &[], now);
        let material = self.material(&conditions, &inputs);
        if self.config.node.register {
            let path = NODES.collection(None);
            match self.client.create::<_, Box<RawValue>>(&path, &material.node(now)).await {
                Ok(node) => return Ok((view(&path, &node)?, reasons)),
                // Creating may be forbidden where an existing Node may still be used, as with kubelet.
                Err(ApiError::AlreadyExists(_) | ApiError::Forbidden(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let path = NODES.object(None, &self.config.node_name);
        let node: Box<RawValue> = self.client.get(&path).await?;
        let node = view(&path, &node)?;
        let wanted = material.default_labels();
        if wanted.iter().all(|(k, v)| node.labels.get(k) == Some(v)) {
            return Ok((node, Vec::new()));
        }
        let patch = json!({ "metadata": { "labels": wanted } });
        let node: Box<RawValue> = self.client.patch(&path, PatchKind::Strategic, &patch).await?;
        Ok((view(&path, &node)?, Vec::new()))
    }

    /// Posts the status, if it must or if it differs from the one posted last.
    async fn post(&mut self, must: Must) -> Result<(), ApiError> {
        let now = Timestamp::now();
        let inputs = self.inputs.borrow_and_update().clone();
        let (conditions, reasons) = conditions(&inputs, &self.conditions, now);
        let material = self.material(&conditions, &inputs);
        let plain = material.status(None);
        if must == Must::PostIfDifferent && self.posted.as_ref() == Some(&plain) {
            return Ok(());
        }
        let body = status_patch(&material.status(Some(now))).map_err(|e| ApiError::Invalid(e.to_string()))?;
        let path = NODES.sub(None, &self.config.node_name, "status");
        let node: Box<RawValue> = self.client.patch(&path, PatchKind::Strategic, &body).await?;
        self.publish(view(&path, &node)?);
        self.posted = Some(plain);
        self.conditions = conditions;
        self.complaint = None;
        self.tell(&reasons);
        Ok(())
    }

    fn tell(&self, reasons: &[&'static str]) {
        for reason in reasons {
            let message = format!("Node {} status is now: {reason}", self.config.node_name);
            tracing::info!(node = %self.config.node_name, reason, "node condition changed");
            self.event(false, reason, message);
        }
    }

    fn material<'a>(&'a self, conditions: &'a [NodeCondition], inputs: &'a NodeConditions) -> Material<'a> {
        Material {
            config: &self.config,
            facts: &self.facts,
            addresses: &self.addresses,
            conditions,
            images: &inputs.images,
        }
    }

    fn note_reboot(&self, node: &NodeView) {
        if !node.boot_id.is_empty() && node.boot_id != self.facts.boot_id {
            let name = &self.config.node_name;
            let message = format!("Node {name} has been rebooted, boot id: {}", self.facts.boot_id);
            self.event(true, "Rebooted", message);
        }
    }

    fn event(&self, warning: bool, reason: &'static str, message: String) {
        let name = self.config.node_name.clone();
        // Events about nodes carry the name in place of the UID; `kubectl describe node` looks for that.
        let regarding = Regarding { kind: "Node", uid: name.clone(), name, ..Regarding::default() };
        self.events.emit(Event { regarding, warning, reason, message });
    }

    /// Says what is wrong once, and again when something else is. An unreachable server is told by the client.
    fn complain(&mut self, what: &str, error: &ApiError) {
        let text = error.to_string();
        if !matches!(error, ApiError::Transport(_)) && self.complaint.as_ref() != Some(&text) {
            tracing::warn!(node = %self.config.node_name, %error, "{what}");
            self.complaint = Some(text);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Must {
    Post,
    PostIfDifferent,
}

fn view(path: &str, node: &RawValue) -> Result<NodeView, ApiError> {
    NodeView::decode(node.get()).map_err(|reason| ApiError::Decode { path: path.to_owned(), reason })
}
