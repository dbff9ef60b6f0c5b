//! Binds pods to nodes.
//!
//! A pod fits a node that is ready and schedulable, whose labels match nodeSelector and required node affinity, whose taints are
//! tolerated, and whose resources, pod count and host ports suffice. Among those that fit, turns are taken.
//! Never: preempts, scores, or spreads by topology.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::events;
use crate::index::{Entries, NodeEntry, PodEntry};
use crate::object::{self, at, items, text, text_at};
use crate::registry::{Registry, Target, WriteOptions};
use crate::resource::{Kind, PODS};
use crate::status::{ApiError, ApiResult};
use crate::strategy::Part;

/// Whose turn it is.
#[derive(Default)]
pub struct Scheduler {
    turn: usize,
}

impl Scheduler {
    /// Looks at every pod that has no node.
    pub fn retry(&mut self, registry: &Registry) -> ApiResult<()> {
        let waiting: Vec<(String, String)> = {
            let entries = registry.index.read();
            let waits = |p: &&PodEntry| p.node.is_empty() && !p.terminating && !p.over;
            entries.pods.values().filter(waits).map(|p| (p.namespace.clone(), p.name.clone())).collect()
        };
        for (namespace, name) in waiting {
            self.schedule(registry, &namespace, &name)?;
        }
        Ok(())
    }

    /// Binds a pod, or says why not.
    pub fn schedule(&mut self, registry: &Registry, namespace: &str, name: &str) -> ApiResult<()> {
        let Some(pod) = registry.find(Kind::Pod, namespace, name)? else { return Ok(()) };
        let spec = &pod["spec"];
        let ours = text(spec, "schedulerName") == "default-scheduler";
        if !text(spec, "nodeName").is_empty() || object::is_terminating(&pod) || !ours {
            return Ok(());
        }
        if !items(spec, "schedulingGates").is_empty() {
            return refuse(
                registry,
                &pod,
                "SchedulingGated",
                "Scheduling is blocked due to non-empty scheduling gates",
            );
        }
        let choice = {
            let entries = registry.index.read();
            entries
                .pods
                .get(&(namespace.to_owned(), name.to_owned()))
                .map(|entry| choose(&entries, &pod, entry, self.turn))
        };
        match choice {
            None => Ok(()),
            Some(Ok(node)) => {
                self.turn = self.turn.wrapping_add(1);
                bind(registry, namespace, name, object::uid(&pod), &node)?;
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                events::record(registry, &pod, "Normal", "Scheduled", &message);
                Ok(())
            }
            Some(Err(why)) => {
                let fresh = refuse(registry, &pod, "Unschedulable", &why);
                if !already_says(&pod, &why) {
                    events::record(registry, &pod, "Warning", "FailedScheduling", &why);
                }
                fresh
            }
        }
    }
}

fn already_says(pod: &Value, why: &str) -> bool {
    items(&pod["status"], "conditions")
        .iter()
        .any(|c| text(c, "type") == "PodScheduled" && text(c, "message") == why)
}

/// Sets `spec.nodeName` and the condition PodScheduled, as the subresource `binding` does.
///
/// # Errors
/// 404, 409 when the pod has a node already or is another one.
pub fn bind(registry: &Registry, namespace: &str, name: &str, uid: &str, node: &str) -> ApiResult<()> {
    registry.store.write(|tx| {
        let bytes = tx.get(Kind::Pod, namespace, name)?.ok_or_else(|| ApiError::not_found(PODS, name))?;
        let mut pod = object::parse(&bytes);
        if !uid.is_empty() && object::uid(&pod) != uid {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object::uid(&pod)
            );
            return Err(ApiError::conflict(PODS, name, &why));
        }
        let present = text_at(&pod, &["spec", "nodeName"]);
        if !present.is_empty() {
            let why = format!("pod {name} is already assigned to node \"{present}\"");
            return Err(ApiError::conflict(PODS, name, &why));
        }
        if object::is_terminating(&pod) {
            let why = format!("pod {name} is being deleted, cannot be assigned to a host");
            return Err(ApiError::conflict(PODS, name, &why));
        }
        pod["spec"]["nodeName"] = node.into();
        set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True"}));
        tx.put(Kind::Pod, pod)?;
        Ok(())
    })
}

fn set_condition(pod: &mut Value, mut condition: Value) {
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = object::now().into();
    if let Some(generation) = at(pod, &["metadata", "generation"]).as_i64() {
        condition["observedGeneration"] = generation.into();
    }
    let conditions = object::list_mut(&mut pod["status"], "conditions");
    match conditions.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(have) => {
            if have["status"] == condition["status"] {
                condition["lastTransitionTime"] = have["lastTransitionTime"].clone();
            }
            *have = condition;
        }
        None => conditions.push(condition),
    }
}

fn refuse(registry: &Registry, pod: &Value, reason: &str, why: &str) -> ApiResult<()> {
    let target =
        Target { api: PODS, namespace: object::namespace(pod), name: object::name(pod), part: Part::Status };
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": why});
    let change = |now: &Value| {
        let mut new = now.clone();
        set_condition(&mut new, condition);
        Ok(new)
    };
    registry.update(target, WriteOptions::default(), change).map(|_| ())
}

fn choose(entries: &Entries, pod: &Value, entry: &PodEntry, turn: usize) -> Result<String, String> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fits: Vec<(usize, &String)> = Vec::new();
    for (name, node) in &entries.nodes {
        match misfit(entries, pod, entry, name, node) {
            None => {
                let load = entries.pods.values().filter(|p| p.node == *name && !p.over).count();
                fits.push((load, name));
            }
            Some(reason) => *reasons.entry(reason).or_default() += 1,
        }
    }
    if fits.is_empty() {
        let parts: Vec<String> = reasons.iter().map(|(why, n)| format!("{n} {why}")).collect();
        let total = entries.nodes.len();
        return Err(if total == 0 {
            "no nodes available to schedule pods".into()
        } else {
            format!("0/{total} nodes are available: {}.", parts.join(", "))
        });
    }
    // Those with the fewest pods; turns among equals.
    let least = fits.iter().map(|(load, _)| *load).min().unwrap_or(0);
    fits.retain(|(load, _)| *load == least);
    Ok(fits[turn % fits.len()].1.clone())
}

fn misfit(entries: &Entries, pod: &Value, entry: &PodEntry, name: &str, node: &NodeEntry) -> Option<String> {
    let spec = &pod["spec"];
    let unschedulable = ("node.kubernetes.io/unschedulable".into(), String::new(), "NoSchedule".into());
    if node.unschedulable && !tolerated(spec, &unschedulable) {
        return Some("node(s) were unschedulable".into());
    }
    if let Some(taint) = node.taints.iter().find(|t| t.2 != "PreferNoSchedule" && !tolerated(spec, t)) {
        return Some(format!("node(s) had untolerated taint {{{}: {}}}", taint.0, taint.1));
    }
    if !node.ready {
        return Some("node(s) were not ready".into());
    }
    let selector = spec["nodeSelector"].as_object();
    let labels_fit =
        selector.into_iter().flatten().all(|(k, v)| node.labels.get(k).map(String::as_str) == v.as_str());
    if !labels_fit || !affinity_fits(spec, name, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".into());
    }
    let on_node = || entries.pods.values().filter(|p| p.node == name && !p.over);
    if on_node().any(|p| p.host_ports.iter().any(|port| entry.host_ports.contains(port))) {
        return Some("node(s) didn't have free ports for the requested pod ports".into());
    }
    let used = on_node().fold([0, 0, 0], |u, p| [u[0] + p.cpu, u[1] + p.memory, u[2] + 1000]);
    let wanted = [entry.cpu, entry.memory, 1000];
    let short = ["Insufficient cpu", "Insufficient memory", "Too many pods"];
    (0..3)
        .find(|&i| wanted[i] > 0 && node.allocatable[i].is_some_and(|a| used[i] + wanted[i] > a))
        .map(|i| short[i].into())
}

fn tolerated(spec: &Value, (key, value, effect): &(String, String, String)) -> bool {
    items(spec, "tolerations").iter().any(|t| {
        let exists = text(t, "operator") == "Exists";
        let key_fits = text(t, "key") == key || text(t, "key").is_empty() && exists;
        key_fits
            && (exists || text(t, "value") == value)
            && (text(t, "effect").is_empty() || text(t, "effect") == effect)
    })
}

fn affinity_fits(spec: &Value, name: &str, node: &NodeEntry) -> bool {
    let required = at(spec, &["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
    if required.is_null() {
        return true;
    }
    items(required, "nodeSelectorTerms").iter().any(|term| {
        let labels =
            items(term, "matchExpressions").iter().all(|e| expression(e, node.labels.get(text(e, "key"))));
        let own = name.to_owned();
        let fields = items(term, "matchFields").iter().all(|e| expression(e, Some(&own)));
        let any = !items(term, "matchExpressions").is_empty() || !items(term, "matchFields").is_empty();
        any && labels && fields
    })
}

fn expression(e: &Value, value: Option<&String>) -> bool {
    let listed = |v: &String| items(e, "values").iter().any(|x| x.as_str() == Some(v));
    let number = |v: &String| v.parse::<i64>().ok();
    let bound = || items(e, "values").first().and_then(|v| v.as_str()?.parse::<i64>().ok());
    match text(e, "operator") {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => matches!((value.and_then(number), bound()), (Some(v), Some(b)) if v > b),
        "Lt" => matches!((value.and_then(number), bound()), (Some(v), Some(b)) if v < b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cpu: i128) -> NodeEntry {
        NodeEntry { ready: true, allocatable: [Some(cpu), None, Some(2000)], ..NodeEntry::default() }
    }

    fn pod(name: &str, node: &str, cpu: i128) -> PodEntry {
        PodEntry { name: name.into(), node: node.into(), cpu, ..PodEntry::default() }
    }

    fn entries(nodes: &[(&str, NodeEntry)], pods: &[PodEntry]) -> Entries {
        let mut e = Entries::default();
        e.nodes = nodes.iter().map(|(n, e)| ((*n).to_owned(), e.clone())).collect();
        e.pods = pods.iter().map(|p| ((String::new(), p.name.clone()), p.clone())).collect();
        e
    }

    #[test]
    fn a_pod_goes_where_it_fits_and_turns_are_taken() {
        let e = entries(&[("a", node(1000)), ("b", node(1000))], &[]);
        let want = pod("p", "", 500);
        assert_eq!(choose(&e, &json!({}), &want, 0), Ok("a".into()));
        assert_eq!(choose(&e, &json!({}), &want, 1), Ok("b".into()));
        let e = entries(&[("a", node(1000)), ("b", node(1000))], &[pod("x", "a", 0)]);
        assert_eq!(choose(&e, &json!({}), &want, 0), Ok("b".into()));
    }

    #[test]
    fn why_it_fits_nowhere_is_said_for_each_node() {
        let mut tainted = node(1000);
        tainted.taints.push(("k".into(), "v".into(), "NoSchedule".into()));
        let mut down = node(1000);
        down.ready = false;
        let e = entries(&[("a", tainted), ("b", node(100)), ("c", down)], &[]);
        let why = choose(&e, &json!({}), &pod("p", "", 500), 0).unwrap_err();
        let want = "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, 1 node(s) were not ready.";
        assert_eq!(why, want);
        let tolerant = json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}});
        assert_eq!(choose(&e, &tolerant, &pod("p", "", 500), 0), Ok("a".into()));
    }

    #[test]
    fn selectors_and_affinity_choose_nodes() {
        let mut a = node(1000);
        a.labels.insert("zone".into(), "1".into());
        let e = entries(&[("a", a), ("b", node(1000))], &[]);
        let by_label = json!({"spec": {"nodeSelector": {"zone": "1"}}});
        let by_name = json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}}});
        for turn in 0..2 {
            assert_eq!(choose(&e, &by_label, &pod("p", "", 0), turn), Ok("a".into()));
            assert_eq!(choose(&e, &by_name, &pod("p", "", 0), turn), Ok("b".into()));
        }
    }
}
