//! What a node may do: the Node authorizer.
//!
//! A node reads what the pods bound to it refer to and writes itself, its lease, its pods' status. Everything else is refused
//! with the reason that the real authorizer gives.

use super::{Attributes, Decision, User};
use crate::registry::Registry;
use crate::resource::Kind;
use crate::selector;

fn deny(why: impl Into<String>) -> Decision {
    Decision::Deny(why.into())
}

/// Decides for a user that is a node.
pub fn authorize(registry: &Registry, user: &User, a: &Attributes) -> Decision {
    let Some(node) = user.node() else { return deny("") };
    let verb = a.verb.as_str();
    let reads = matches!(verb, "get" | "list" | "watch");
    match (a.group.as_str(), a.resource.as_str(), a.subresource.as_str()) {
        ("", "secrets" | "configmaps", "") => referred(registry, node, a),
        ("", "serviceaccounts", "token") => account_of_own_pod(registry, node, a),
        ("", "serviceaccounts", "") if reads => referred(registry, node, a),
        ("", "pods", sub) => pods(registry, node, a, sub),
        ("", "nodes", sub) => nodes(node, a, sub),
        ("coordination.k8s.io", "leases", "") => lease(node, a),
        ("" | "discovery.k8s.io", "services" | "endpointslices" | "endpoints" | "namespaces", "")
            if reads =>
        {
            Decision::Allow
        }
        // A node also programs services. These are not served; who asks is to hear that, and not that it may not ask.
        ("networking.k8s.io", "servicecidrs", "") if reads => Decision::Allow,
        ("" | "events.k8s.io", "events", "") if matches!(verb, "create" | "patch" | "update") => {
            Decision::Allow
        }
        ("authentication.k8s.io", "tokenreviews", "") if verb == "create" => Decision::Allow,
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "")
            if verb == "create" =>
        {
            Decision::Allow
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") if verb == "create" || reads => {
            Decision::Allow
        }
        ("node.k8s.io", "runtimeclasses", "") if reads => Decision::Allow,
        _ => deny(""),
    }
}

fn referred(registry: &Registry, node: &str, a: &Attributes) -> Decision {
    let kind = match a.resource.as_str() {
        "secrets" => Kind::Secret,
        "configmaps" => Kind::ConfigMap,
        _ => Kind::ServiceAccount,
    };
    if !matches!(a.verb.as_str(), "get" | "list" | "watch") {
        return deny("can only read resources of this type");
    }
    let name = if a.name.is_empty() {
        selector::required_field(&a.field_selector, "metadata.name").unwrap_or_default()
    } else {
        a.name.clone()
    };
    if name.is_empty() {
        return deny("No Object name found");
    }
    let reference = (kind, name);
    let entries = registry.index.read();
    let own = entries
        .pods
        .values()
        .any(|p| p.node == node && p.namespace == a.namespace && p.refers.contains(&reference));
    if own {
        Decision::Allow
    } else {
        deny(format!("no relationship found between node '{node}' and this object"))
    }
}

fn account_of_own_pod(registry: &Registry, node: &str, a: &Attributes) -> Decision {
    if a.verb != "create" {
        return deny("can only create tokens for individual service accounts");
    }
    let reference = (Kind::ServiceAccount, a.name.clone());
    let entries = registry.index.read();
    let own = entries
        .pods
        .values()
        .any(|p| p.node == node && p.namespace == a.namespace && p.refers.contains(&reference));
    if own {
        Decision::Allow
    } else {
        deny(format!("no relationship found between node '{node}' and this object"))
    }
}

fn pods(registry: &Registry, node: &str, a: &Attributes, sub: &str) -> Decision {
    let own = || {
        let entries = registry.index.read();
        // A pod that is gone is let through, so that the answer is 404 and not 403.
        entries.pods.get(&(a.namespace.clone(), a.name.clone())).is_none_or(|p| p.node == node)
    };
    match (a.verb.as_str(), sub) {
        ("list" | "watch", "") => {
            let wanted = selector::required_field(&a.field_selector, "spec.nodeName");
            if wanted.as_deref() == Some(node) {
                Decision::Allow
            } else {
                deny("can only list/watch pods with spec.nodeName field selector")
            }
        }
        ("get" | "delete", "") | ("get" | "update" | "patch", "status") | ("create", "eviction") => {
            if own() {
                Decision::Allow
            } else {
                deny(format!("no relationship found between node '{node}' and this object"))
            }
        }
        ("create", "") => Decision::Allow,
        _ => deny(""),
    }
}

fn nodes(node: &str, a: &Attributes, sub: &str) -> Decision {
    match (a.verb.as_str(), sub) {
        ("create", "") => Decision::Allow,
        ("get" | "list" | "watch", "") => {
            let name = if a.name.is_empty() {
                selector::required_field(&a.field_selector, "metadata.name").unwrap_or_default()
            } else {
                a.name.clone()
            };
            if name == node {
                Decision::Allow
            } else if name.is_empty() {
                // Reading all nodes is granted to nodes here: routes between nodes need the ranges of the others.
                Decision::Allow
            } else {
                deny(format!("node '{node}' cannot read '{name}', only its own Node object"))
            }
        }
        ("update" | "patch", "" | "status") if a.name == node => Decision::Allow,
        ("update" | "patch", "" | "status") => {
            deny(format!("node \"{node}\" is not allowed to modify node \"{}\"", a.name))
        }
        ("delete", "") if a.name == node => Decision::Allow,
        _ => deny(""),
    }
}

fn lease(node: &str, a: &Attributes) -> Decision {
    if a.namespace != "kube-node-lease" {
        return deny("can only access leases in the \"kube-node-lease\" system namespace");
    }
    match a.verb.as_str() {
        "create" => Decision::Allow,
        "get" | "update" | "patch" | "delete" if a.name == node => Decision::Allow,
        "get" | "update" | "patch" | "delete" => {
            deny(format!("can only access node lease with the same name as the requesting node (\"{node}\")"))
        }
        _ => deny("can only get, create, update, patch, or delete a node lease"),
    }
}
