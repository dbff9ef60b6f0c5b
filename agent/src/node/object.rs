//! The Node object: what it is created with, and its status. Pure.
//!
//! Owns: which field says what. Never: reads the machine or the clock, talks to a server.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use crate::config::Config;

use super::conditions::{NodeCondition, NodeImage};
use super::facts::Facts;
use super::resources::{self, Amounts};

/// The Kubernetes release whose node behaviour this is, and who behaves so. The API machinery reads it as a semantic
/// version (version skew checks, `kubectl get nodes`, kubeadm), where what follows `+` is for people.
pub const KUBELET_VERSION: &str = concat!("v1.36.0+orlop.", env!("CARGO_PKG_VERSION"));
const RUNTIME_VERSION: &str = concat!("orlop://", env!("CARGO_PKG_VERSION"));
/// Tells the attach-detach controller that it, and not this node, attaches volumes.
const CONTROLLER_ATTACHES: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// Tells the cloud controller manager the addresses of `--node-ip`.
const PROVIDED_ADDRESSES: &str = "alpha.kubernetes.io/provided-node-ip";

/// Everything a Node is made of.
#[derive(Debug)]
pub struct Material<'a> {
    /// Names, reserved amounts, labels and taints.
    pub config: &'a Config,
    /// The machine.
    pub facts: &'a Facts,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// Its conditions.
    pub conditions: &'a [NodeCondition],
    /// Its images.
    pub images: &'a [NodeImage],
}

impl Material<'_> {
    /// The labels every node gives itself. On an existing Node only these are brought up to date.
    pub fn default_labels(&self) -> BTreeMap<String, String> {
        let labels = [
            ("kubernetes.io/hostname", self.config.hostname.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", self.facts.architecture),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", self.facts.architecture),
        ];
        labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    /// The Node to create.
    pub fn node(&self, now: Timestamp) -> core::Node {
        let mut labels = self.default_labels();
        labels.extend(self.config.node.labels.clone());
        let taints: Vec<_> = self
            .config
            .node
            .taints
            .iter()
            .map(|taint| core::Taint {
                key: taint.key.clone(),
                value: Some(taint.value.clone()).filter(|v| !v.is_empty()),
                effect: taint.effect.as_str().to_owned(),
                time_added: None,
            })
            .collect();
        let mut annotations = BTreeMap::from([(CONTROLLER_ATTACHES.to_owned(), "true".to_owned())]);
        let mut status = self.status(Some(now));
        if self.config.node.external_cloud && !self.config.node_ips.is_empty() {
            // The administrator knows better than to wait; the cloud controller manager picks its own from these.
            let given: Vec<String> = self.config.node_ips.iter().map(ToString::to_string).collect();
            annotations.insert(PROVIDED_ADDRESSES.to_owned(), given.join(","));
            status.addresses = Some(self.node_addresses());
        }
        core::Node {
            metadata: ObjectMeta {
                name: Some(self.config.node_name.clone()),
                labels: Some(labels),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            spec: Some(core::NodeSpec {
                taints: (!taints.is_empty()).then_some(taints),
                provider_id: self.config.node.provider_id.clone(),
                ..core::NodeSpec::default()
            }),
            status: Some(status),
        }
    }

    /// The status. Without `heartbeat`, the form to compare with an earlier one.
    pub fn status(&self, heartbeat: Option<Timestamp>) -> core::NodeStatus {
        let capacity = resources::capacity(self.facts, &self.config.pods);
        let allocatable = resources::allocatable(&capacity, self.facts, &self.config.reserved);
        let port = self.config.server.address.map(|a| i32::from(a.port()));
        core::NodeStatus {
            // With a cloud controller manager they are its to set: a status that leaves them out leaves them alone.
            addresses: (!self.config.node.external_cloud).then(|| self.node_addresses()),
            capacity: Some(quantities(&capacity)),
            allocatable: Some(quantities(&allocatable)),
            conditions: Some(self.conditions.iter().map(|c| condition(c, heartbeat)).collect()),
            daemon_endpoints: port.map(|port| core::NodeDaemonEndpoints {
                kubelet_endpoint: Some(core::DaemonEndpoint { port }),
            }),
            images: Some(self.listed_images()),
            node_info: Some(self.info()),
            runtime_handlers: Some(vec![core::NodeRuntimeHandler {
                name: Some(String::new()),
                features: Some(core::NodeRuntimeHandlerFeatures {
                    recursive_read_only_mounts: Some(false),
                    user_namespaces: Some(false),
                }),
            }]),
            features: Some(core::NodeFeatures { supplemental_groups_policy: Some(false) }),
            ..core::NodeStatus::default()
        }
    }

    fn node_addresses(&self) -> Vec<core::NodeAddress> {
        let ips = self.addresses.iter().map(|ip| ("InternalIP", ip.to_string()));
        let names = std::iter::once(("Hostname", self.config.hostname.clone()));
        ips.chain(names)
            .map(|(kind, address)| core::NodeAddress { type_: kind.to_owned(), address })
            .collect()
    }

    /// The largest first, as kubelet lists them, for the scheduler's image locality.
    fn listed_images(&self) -> Vec<core::ContainerImage> {
        let mut images: Vec<&NodeImage> = self.images.iter().collect();
        images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
        images.truncate(self.config.node.max_images.unwrap_or(usize::MAX));
        // The API takes at most five names for each.
        let listed = |image: &NodeImage| core::ContainerImage {
            names: Some(image.names.iter().take(5).cloned().collect()),
            size_bytes: i64::try_from(image.size_bytes).ok(),
        };
        images.into_iter().map(listed).collect()
    }

    fn info(&self) -> core::NodeSystemInfo {
        let facts = self.facts;
        core::NodeSystemInfo {
            machine_id: facts.machine_id.clone(),
            system_uuid: facts.system_uuid.clone(),
            boot_id: facts.boot_id.clone(),
            kernel_version: facts.kernel.clone(),
            os_image: facts.os_image.clone(),
            container_runtime_version: RUNTIME_VERSION.to_owned(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            // Not used since 1.31, and still required.
            kube_proxy_version: String::new(),
            operating_system: "linux".to_owned(),
            architecture: facts.architecture.to_owned(),
            swap: (facts.swap > 0).then(|| core::NodeSwapStatus { capacity: i64::try_from(facts.swap).ok() }),
        }
    }
}

/// The body of a status PATCH. Addresses are replaced, since the API would merge them by type and lose one of two
/// families; conditions of others stay.
pub fn status_patch(status: &core::NodeStatus) -> Result<Value, serde_json::Error> {
    let mut status = serde_json::to_value(status)?;
    if let Some(Value::Array(addresses)) = status.get_mut("addresses") {
        addresses.insert(0, json!({ "$patch": "replace" }));
    }
    Ok(json!({ "status": status }))
}

fn quantities(amounts: &Amounts) -> BTreeMap<String, Quantity> {
    amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.to_string()))).collect()
}

fn condition(condition: &NodeCondition, heartbeat: Option<Timestamp>) -> core::NodeCondition {
    core::NodeCondition {
        type_: condition.kind.clone(),
        status: condition.status.clone(),
        reason: Some(condition.reason.clone()),
        message: Some(condition.message.clone()),
        last_heartbeat_time: heartbeat.map(Time),
        last_transition_time: condition.since.map(Time),
    }
}
