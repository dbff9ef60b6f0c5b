//! The Lease that tells the cluster this node is alive (KEP-589).
//!
//! Owns: renewing it every quarter of its duration. Reads: the Node's UID, its owner. Never: looks at the node's
//! health (that is the status's business).

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::task::Registered;
use crate::api::backoff::random;
use crate::api::client::Client;
use crate::api::error::ApiError;
use crate::api::path::LEASES;

const NAMESPACE: &str = "kube-node-lease";
/// Renewals that may fail one after the other before connections are opened anew: one of them may hang unseen.
const FAILURES: u32 = 2;

/// The renewer.
pub struct LeaseTask {
    client: Client,
    node: String,
    duration: Duration,
    registered: Registered,
    /// The Lease as the server last had it.
    latest: Option<Value>,
    failures: u32,
    complaint: Option<String>,
}

impl LeaseTask {
    /// For the Lease of this node, once it is registered.
    pub fn new(client: Client, node: String, duration: Duration, registered: Registered) -> Self {
        Self { client, node, duration, registered, latest: None, failures: 0, complaint: None }
    }

    /// Runs until dropped. Cancel-safe: a renewal stands for itself.
    pub async fn run(mut self) {
        if self.registered.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let every = self.duration / 4;
        loop {
            match self.renew(every).await {
                Ok(()) => {
                    self.failures = 0;
                    self.complaint = None;
                }
                Err(error) => self.failed(&error),
            }
            // A lost renewal is made up for quickly at first: the Lease holds for three more periods.
            let pause =
                if self.failures == 0 { every } else { (every / 10 * self.failures.min(10)).min(every) };
            tokio::time::sleep(pause.mul_f64(1.0 + 0.04 * random())).await;
        }
    }

    async fn renew(&mut self, timeout: Duration) -> Result<(), ApiError> {
        let path = LEASES.object(Some(NAMESPACE), &self.node);
        if let Some(latest) = self.latest.take() {
            match self.client.replace(&path, &self.lease(latest), timeout).await {
                Ok(lease) => {
                    self.latest = Some(compact(lease));
                    return Ok(());
                }
                // Nobody was there to refuse; any refusal means that the Lease is not what it was: look at it.
                Err(error @ (ApiError::Transport(_) | ApiError::TooMany { .. })) => return Err(error),
                Err(_) => {}
            }
        }
        let lease = match self.client.get_bytes(&path, timeout).await {
            Ok(bytes) => {
                let found: Value = serde_json::from_slice(&bytes)
                    .map_err(|e| ApiError::Decode { path: path.clone(), reason: e.to_string() })?;
                self.client.replace(&path, &self.lease(compact(found)), timeout).await?
            }
            Err(ApiError::NotFound(_)) => {
                let fresh = json!({ "metadata": { "name": self.node, "namespace": NAMESPACE } });
                self.client.create(&LEASES.collection(Some(NAMESPACE)), &self.lease(fresh)).await?
            }
            Err(error) => return Err(error),
        };
        self.latest = Some(compact(lease));
        Ok(())
    }

    /// `base` renewed now. The Node is its owner, so that the Lease goes with it.
    fn lease(&self, mut base: Value) -> Value {
        base["apiVersion"] = "coordination.k8s.io/v1".into();
        base["kind"] = "Lease".into();
        base["spec"]["holderIdentity"] = self.node.as_str().into();
        base["spec"]["leaseDurationSeconds"] = self.duration.as_secs().into();
        base["spec"]["renewTime"] = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().into();
        if let Some(node) = self.registered.borrow().as_ref() {
            base["metadata"]["ownerReferences"] =
                json!([{ "apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid }]);
        }
        base
    }

    fn failed(&mut self, error: &ApiError) {
        self.failures += 1;
        let text = error.to_string();
        if !matches!(error, ApiError::Transport(_)) && self.complaint.as_ref() != Some(&text) {
            tracing::warn!(node = %self.node, %error, "Lease is not renewed; trying again");
            self.complaint = Some(text);
        }
        if self.failures.is_multiple_of(FAILURES) {
            self.client.reconnect();
        }
    }
}

/// Without what only the server needs.
fn compact(mut lease: Value) -> Value {
    if let Some(Value::Object(metadata)) = lease.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    lease
}
