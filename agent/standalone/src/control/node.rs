//! Nodes: a range of pod addresses for each, taints by condition, and what happens when one stops renewing its lease.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::object::{self, items, items_mut, list_mut, text, text_at};
use crate::registry::{DeleteOptions, Registry, Target, WriteOptions};
use crate::resource::{Kind, NODES, PODS};
use crate::status::ApiResult;
use crate::strategy::Part;

/// A node that is silent for so long is Unknown (`--node-monitor-grace-period`).
const SILENCE: Duration = Duration::from_secs(40);
/// Pods of a node that was deleted are removed after this, in case it comes back.
const QUARANTINE: Duration = Duration::from_secs(40);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// When each node was heard of, and which are gone.
#[derive(Default)]
pub struct Health {
    heard: HashMap<String, (String, Instant)>,
    gone: HashMap<String, Instant>,
}

impl Health {
    /// When the next node would be overdue.
    pub fn next_check(&self) -> Instant {
        let silent = self.heard.values().map(|(_, at)| *at + SILENCE);
        let gone = self.gone.values().map(|at| *at + QUARANTINE);
        silent.chain(gone).min().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    /// Reads the leases and the status: what was renewed is a sign of life.
    pub fn follow(&mut self, registry: &Registry) {
        let names: Vec<String> = registry.index.read().nodes.keys().cloned().collect();
        for name in names {
            let Ok(lease) = registry.find(Kind::Lease, "kube-node-lease", &name) else { continue };
            let Ok(Some(node)) = registry.find(Kind::Node, "", &name) else { continue };
            let renewed = lease.map(|l| text_at(&l, &["spec", "renewTime"]).to_owned()).unwrap_or_default();
            let ready = items(&node["status"], "conditions").iter().find(|c| text(c, "type") == "Ready");
            let beat = ready.map_or("", |c| text(c, "lastHeartbeatTime"));
            self.hear(&name, format!("{renewed} {beat}"));
        }
    }

    fn hear(&mut self, name: &str, renewed: String) {
        match self.heard.get_mut(name) {
            Some(known) if known.0 == renewed => {}
            Some(known) => *known = (renewed, Instant::now()),
            None => {
                self.heard.insert(name.to_owned(), (renewed, Instant::now()));
            }
        }
    }

    /// Marks the nodes that are silent for too long and removes the pods of those that are gone.
    pub fn check(&mut self, registry: &Registry) {
        self.follow(registry);
        let now = Instant::now();
        let overdue: Vec<String> =
            self.heard.iter().filter(|(_, (_, at))| *at + SILENCE <= now).map(|(n, _)| n.clone()).collect();
        for name in overdue {
            // It is looked at again when it renews its lease.
            self.heard.insert(name.clone(), (self.heard[&name].0.clone(), now + Duration::from_secs(3600)));
            if let Err(error) = mark_unknown(registry, &name)
                && error.code != 404
            {
                tracing::warn!(node = name, %error, "mark node unknown");
            }
        }
        let gone: Vec<String> =
            self.gone.iter().filter(|(_, at)| **at + QUARANTINE <= now).map(|(n, _)| n.clone()).collect();
        for name in gone {
            self.gone.remove(&name);
            if let Err(error) = remove_pods(registry, &name) {
                tracing::warn!(node = name, %error, "remove pods of a deleted node");
            }
        }
    }
}

/// Looks at one node after a change.
pub fn sync(registry: &Registry, health: &mut Health, name: &str) -> ApiResult<()> {
    let Some(node) = registry.find(Kind::Node, "", name)? else {
        health.heard.remove(name);
        health.gone.insert(name.to_owned(), Instant::now());
        return Ok(());
    };
    health.gone.remove(name);
    if !health.heard.contains_key(name) {
        health.follow(registry);
    }
    let ranges =
        if text_at(&node, &["spec", "podCIDR"]).is_empty() { free_ranges(registry) } else { Vec::new() };
    let target = Target { api: NODES, namespace: "", name, part: Part::Main };
    let change = |now: &Value| {
        let mut new = now.clone();
        if let Some(first) = ranges.first() {
            new["spec"]["podCIDR"] = first.to_string().into();
            new["spec"]["podCIDRs"] = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().into();
        }
        taint_by_condition(&mut new);
        Ok(new)
    };
    registry.update(target, WriteOptions::default(), change).map(|_| ())
}

fn taint_by_condition(node: &mut Value) {
    let ready = items(&node["status"], "conditions").iter().find(|c| text(c, "type") == "Ready");
    let wanted = match ready.map(|c| text(c, "status")) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    let unschedulable = node["spec"]["unschedulable"] == true;
    let taints = list_mut(&mut node["spec"], "taints");
    let set = |taints: &mut Vec<Value>, key: &str, on: bool| {
        let has = taints.iter().any(|t| text(t, "key") == key && text(t, "effect") == "NoSchedule");
        if on && !has {
            taints.push(json!({"key": key, "effect": "NoSchedule", "timeAdded": object::now()}));
        } else if !on {
            taints.retain(|t| text(t, "key") != key);
        }
    };
    set(taints, NOT_READY, wanted == Some(NOT_READY));
    set(taints, UNREACHABLE, wanted == Some(UNREACHABLE));
    set(taints, "node.kubernetes.io/unschedulable", unschedulable);
    if taints.is_empty() {
        object::remove(&mut node["spec"], "taints");
    }
}

/// The first free part of each network.
fn free_ranges(registry: &Registry) -> Vec<IpNet> {
    let taken: Vec<IpNet> = {
        let entries = registry.index.read();
        entries.nodes.values().flat_map(|n| n.cidrs.iter().filter_map(|c| c.parse().ok())).collect()
    };
    registry.settings.cluster_cidrs.iter().filter_map(|network| free_range(network, &taken)).collect()
}

fn free_range(network: &IpNet, taken: &[IpNet]) -> Option<IpNet> {
    let size = if matches!(network.addr(), IpAddr::V4(_)) { 24 } else { 64 };
    let prefix = size.max(network.prefix_len());
    let overlaps = |a: &IpNet| taken.iter().any(|t| t.contains(a) || a.contains(t));
    network.subnets(prefix).ok()?.take(1 << 16).find(|range| !overlaps(range))
}

fn mark_unknown(registry: &Registry, name: &str) -> ApiResult<()> {
    let target = Target { api: NODES, namespace: "", name, part: Part::Status };
    let change = |now: &Value| {
        let mut new = now.clone();
        let stamp = object::now();
        for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
            let conditions = list_mut(&mut new["status"], "conditions");
            if !conditions.iter().any(|c| text(c, "type") == kind) {
                conditions.push(json!({"type": kind, "status": "", "lastHeartbeatTime": stamp}));
            }
            let Some(condition) = conditions.iter_mut().find(|c| text(c, "type") == kind) else { continue };
            if text(condition, "status") != "Unknown" {
                condition["status"] = "Unknown".into();
                condition["reason"] = "NodeStatusUnknown".into();
                condition["message"] = "Kubelet stopped posting node status.".into();
                condition["lastTransitionTime"] = stamp.clone().into();
            }
        }
        Ok(new)
    };
    registry.update(target, WriteOptions::default(), change)?;
    tracing::warn!(node = name, "node stopped renewing its lease");
    mark_pods_not_ready(registry, name)
}

fn pods_of(registry: &Registry, node: &str) -> Vec<(String, String)> {
    let entries = registry.index.read();
    entries.pods.iter().filter(|(_, p)| p.node == node).map(|(key, _)| key.clone()).collect()
}

fn mark_pods_not_ready(registry: &Registry, node: &str) -> ApiResult<()> {
    for (namespace, name) in pods_of(registry, node) {
        let target = Target { api: PODS, namespace: &namespace, name: &name, part: Part::Status };
        let change = |now: &Value| {
            let mut new = now.clone();
            for condition in items_mut(&mut new["status"], "conditions") {
                if text(condition, "type") == "Ready" && text(condition, "status") == "True" {
                    condition["status"] = "False".into();
                    condition["lastTransitionTime"] = object::now().into();
                }
            }
            Ok(new)
        };
        match registry.update(target, WriteOptions::default(), change) {
            Err(error) if error.code != 404 => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn remove_pods(registry: &Registry, node: &str) -> ApiResult<()> {
    if registry.find(Kind::Node, "", node)?.is_some() {
        return Ok(());
    }
    let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    for (namespace, name) in pods_of(registry, node) {
        match registry.delete(PODS, &namespace, &name, &options) {
            Err(error) if error.code != 404 => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(dir: &tempfile::TempDir) -> std::sync::Arc<Registry> {
        let settings = crate::registry::Settings {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            advertise: ([127, 0, 0, 1].into(), 6443),
            ca_pem: String::new(),
        };
        let store = crate::store::Store::open(dir.path()).unwrap();
        let registry = Registry::new(store, settings, tokio_util::sync::CancellationToken::new()).unwrap();
        super::super::bootstrap::ensure(&registry).unwrap();
        registry
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_unknown_and_its_pods_are_not_ready() {
        let dir = tempfile::tempdir().unwrap();
        let registry = registry(&dir);
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let write = WriteOptions::default();
        let node = json!({"metadata": {"name": "n"}, "status": {"conditions": ready}});
        registry.create(NODES, "", node, write).unwrap();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i:1"}]}});
        registry.create(PODS, "default", pod, write).unwrap();
        let target = Target { api: PODS, namespace: "default", name: "p", part: Part::Status };
        let running = |now: &Value| {
            let mut new = now.clone();
            new["status"]["conditions"] = ready.clone();
            Ok(new)
        };
        registry.update(target, write, running).unwrap();
        let mut health = Health::default();
        let state = |registry: &Registry| {
            let status = |kind, namespace, name| {
                let object = registry.find(kind, namespace, name).unwrap().unwrap();
                text(&items(&object["status"], "conditions")[0], "status").to_owned()
            };
            (status(Kind::Node, "", "n"), status(Kind::Pod, "default", "p"))
        };
        sync(&registry, &mut health, "n").unwrap();
        tokio::time::advance(SILENCE - Duration::from_secs(1)).await;
        let lease = json!({"metadata": {"name": "n"}, "spec": {"renewTime": "2026-01-01T00:00:00Z"}});
        registry.create(Kind::Lease.api(), "kube-node-lease", lease, write).unwrap();
        health.follow(&registry);
        tokio::time::advance(Duration::from_secs(2)).await;
        health.check(&registry);
        assert_eq!(state(&registry), ("True".into(), "True".into()), "it renewed its lease");
        tokio::time::advance(SILENCE).await;
        assert!(health.next_check() <= Instant::now());
        health.check(&registry);
        assert_eq!(state(&registry), ("Unknown".into(), "False".into()));
        sync(&registry, &mut health, "n").unwrap();
        assert_eq!(
            registry.find(Kind::Node, "", "n").unwrap().unwrap()["spec"]["taints"][0]["key"],
            UNREACHABLE
        );
    }

    #[tokio::test(start_paused = true)]
    async fn pods_of_a_deleted_node_go_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let registry = registry(&dir);
        let write = WriteOptions::default();
        registry.create(NODES, "", json!({"metadata": {"name": "n"}}), write).unwrap();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i:1"}]}});
        registry.create(PODS, "default", pod, write).unwrap();
        let mut health = Health::default();
        registry.delete(NODES, "", "n", &DeleteOptions::default()).unwrap();
        sync(&registry, &mut health, "n").unwrap();
        health.check(&registry);
        assert!(registry.find(Kind::Pod, "default", "p").unwrap().is_some(), "it may come back");
        tokio::time::advance(QUARANTINE).await;
        health.check(&registry);
        assert!(registry.find(Kind::Pod, "default", "p").unwrap().is_none());
    }

    #[test]
    fn each_node_gets_the_first_free_range() {
        let network: IpNet = "10.244.0.0/16".parse().unwrap();
        let taken: Vec<IpNet> = vec!["10.244.0.0/24".parse().unwrap(), "10.244.2.0/24".parse().unwrap()];
        assert_eq!(free_range(&network, &taken), "10.244.1.0/24".parse().ok());
        let small: IpNet = "10.9.0.0/26".parse().unwrap();
        assert_eq!(free_range(&small, &[]), Some(small));
        assert_eq!(free_range(&small, &[small]), None);
    }

    #[test]
    fn taints_follow_the_ready_condition() {
        let mut node =
            json!({"spec": {}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        taint_by_condition(&mut node);
        assert_eq!(node["spec"]["taints"][0]["key"], UNREACHABLE);
        node["status"]["conditions"][0]["status"] = "True".into();
        taint_by_condition(&mut node);
        assert_eq!(node["spec"], json!({}));
    }
}
