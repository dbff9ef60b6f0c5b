//! The admission plugin NodeRestriction: what the authorizer cannot see because it stands in the body.
//!
//! Pure. Messages are those of the real plugin, after `<resource> "<name>" is forbidden: `.

use serde_json::Value;

use super::Attributes;
use crate::object::{self, at, items, text, text_at};

/// Labels below kubernetes.io and k8s.io that a node may set on itself (`kubeletapis.IsKubeletLabel`).
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
];

/// Looks at what a node sends: the object as it would be stored, and as it was.
///
/// # Errors
/// The reason why not.
pub fn restrict(node: &str, a: &Attributes, old: &Value, new: &Value) -> Result<(), String> {
    match (a.verb.as_str(), a.resource.as_str(), a.subresource.as_str()) {
        ("create", "pods", "") => mirror_pod(node, new),
        ("update" | "patch", "pods", "status") if labels(old) != labels(new) => {
            Err(format!("node \"{node}\" cannot update labels through pod status"))
        }
        ("create", "nodes", "") if object::name(new) != node => {
            Err(format!("node \"{node}\" is not allowed to modify node \"{}\"", object::name(new)))
        }
        ("create" | "update" | "patch", "leases", "") if object::name(new) != node => {
            Err(format!("can only access node lease with the same name as the requesting node (\"{node}\")"))
        }
        ("create" | "update" | "patch", "nodes", _) => own_node(node, a, old, new),
        _ => Ok(()),
    }
}

fn labels(object: &Value) -> &Value {
    at(object, &["metadata", "labels"])
}

fn own_node(node: &str, a: &Attributes, old: &Value, new: &Value) -> Result<(), String> {
    if a.verb != "create"
        && a.subresource.is_empty()
        && at(old, &["spec", "taints"]) != at(new, &["spec", "taints"])
    {
        return Err(format!("node \"{node}\" is not allowed to modify taints"));
    }
    let keys = [old, new].into_iter().filter_map(|o| labels(o).as_object()).flat_map(|l| l.keys());
    let changed = keys.filter(|k| labels(old).get(k) != labels(new).get(k));
    let mut bad: Vec<&str> = changed.map(String::as_str).filter(|k| is_forbidden(k)).collect();
    bad.sort_unstable();
    bad.dedup();
    if bad.is_empty() {
        return Ok(());
    }
    Err(format!("node \"{node}\" is not allowed to modify labels: {}", bad.join(", ")))
}

fn is_forbidden(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return false };
    let below =
        |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|p| p.ends_with('.'));
    if below("node-restriction.kubernetes.io") {
        return true;
    }
    let own = OWN_LABELS.contains(&key) || below("kubelet.kubernetes.io") || below("node.kubernetes.io");
    (below("kubernetes.io") || below("k8s.io")) && !own
}

fn mirror_pod(node: &str, pod: &Value) -> Result<(), String> {
    let only = format!("node \"{node}\" can only create pods");
    if text_at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_empty() {
        return Err(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"{node}\" can only create mirror pods"
        ));
    }
    if text_at(pod, &["spec", "nodeName"]) != node {
        return Err(format!("{only} with spec.nodeName set to itself"));
    }
    let [owner] = items(&pod["metadata"], "ownerReferences") else {
        return Err(format!("{only} with an owner reference set to itself"));
    };
    if text(owner, "kind") != "Node" || text(owner, "apiVersion") != "v1" || text(owner, "name") != node {
        return Err(format!("{only} with an owner reference set to itself"));
    }
    if owner["controller"] != true {
        return Err(format!("{only} with a controller owner reference set to itself"));
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!("node \"{node}\" must not set blockOwnerDeletion on an owner reference"));
    }
    if !text_at(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Err(format!("node \"{node}\" can not create pods that reference a service account"));
    }
    let refers =
        |kind: crate::resource::Kind| crate::index::references(&pod["spec"]).iter().any(|(k, _)| *k == kind);
    if refers(crate::resource::Kind::Secret) {
        return Err(format!("node \"{node}\" can not create pods that reference secrets"));
    }
    if refers(crate::resource::Kind::ConfigMap) {
        return Err(format!("node \"{node}\" can not create pods that reference configmaps"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attributes(verb: &str, resource: &str, sub: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: sub.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_node_sets_only_its_own_labels_and_no_taints() {
        let node = |key: &str| json!({"metadata": {"name": "n", "labels": {key: "v"}}});
        for (key, fine) in [
            ("kubernetes.io/hostname", true),
            ("example.com/x", true),
            ("plain", true),
            ("node.kubernetes.io/x", true),
            ("foo.kubelet.kubernetes.io/x", true),
            ("node-role.kubernetes.io/worker", false),
            ("a.node-restriction.kubernetes.io/x", false),
            ("notkubernetes.io/x", true),
        ] {
            let result = restrict("n", &attributes("create", "nodes", ""), &Value::Null, &node(key));
            assert_eq!(result.is_ok(), fine, "{key}: {result:?}");
        }
        let given = node("node-role.kubernetes.io/worker");
        assert_eq!(
            restrict("n", &attributes("patch", "nodes", "status"), &given, &given),
            Ok(()),
            "it was there before"
        );
        let tainted = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a"}]}});
        let plain = json!({"metadata": {"name": "n"}});
        let refused = restrict("n", &attributes("patch", "nodes", ""), &tainted, &plain);
        assert_eq!(refused, Err("node \"n\" is not allowed to modify taints".into()));
    }

    #[test]
    fn a_node_creates_only_mirror_pods_that_it_owns() {
        let mut pod = json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "h"}, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]}, "spec": {"nodeName": "n"}});
        let create = attributes("create", "pods", "");
        assert_eq!(restrict("n", &create, &Value::Null, &pod), Ok(()));
        assert!(restrict("m", &create, &Value::Null, &pod).is_err());
        pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
        assert_eq!(
            restrict("n", &create, &Value::Null, &pod),
            Err("node \"n\" can not create pods that reference secrets".into())
        );
    }
}
