//! The kinds that need little: nodes, namespaces, secrets, config maps, slices, events, leases.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::object::{self, at, default, items_mut, map_mut, metadata, text, text_at};
use crate::status::Cause;

/// A Node may come with its status, as a kubelet registers it.
pub fn node_create(node: &mut Value, causes: &mut Vec<Cause>) {
    map_mut(node, "spec");
    let status = node.get_mut("status").filter(|s| s.is_object());
    if let Some(status) = status
        && status["allocatable"].is_null()
        && !status["capacity"].is_null()
    {
        status["allocatable"] = status["capacity"].clone();
    }
    object::map_mut(node, "status");
    check_taints(node, causes);
    let ready = object::items(&node["status"], "conditions")
        .iter()
        .any(|c| text(c, "type") == "Ready" && text(c, "status") == "True");
    let taints = object::list_mut(&mut node["spec"], "taints");
    // Admission plugin TaintNodesByCondition: nothing is scheduled before the node said it is ready.
    if !ready && !taints.iter().any(|t| text(t, "key") == "node.kubernetes.io/not-ready") {
        taints.push(json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}));
    }
    if taints.is_empty() {
        object::remove(&mut node["spec"], "taints");
    }
}

/// The addresses of a node's pods are given once.
pub fn node_update(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    map_mut(new, "spec");
    check_taints(new, causes);
    for key in ["podCIDR", "providerID"] {
        let before = text_at(old, &["spec", key]);
        let given = at(new, &["spec", key]).clone();
        if !before.is_empty() && given.as_str() != Some(before) {
            if given.is_null() && key == "podCIDR" {
                new["spec"]["podCIDR"] = old["spec"]["podCIDR"].clone();
                new["spec"]["podCIDRs"] = old["spec"]["podCIDRs"].clone();
                continue;
            }
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            causes.push(Cause::forbidden(format!("spec.{key}"), detail));
        }
    }
}

fn check_taints(node: &Value, causes: &mut Vec<Cause>) {
    for (i, taint) in object::items(&node["spec"], "taints").iter().enumerate() {
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if text(taint, "key").is_empty() {
            causes.push(Cause::required(format!("spec.taints[{i}].key"), ""));
        }
        if !effects.contains(&text(taint, "effect")) {
            causes.push(Cause::not_supported(
                format!("spec.taints[{i}].effect"),
                at(taint, &["effect"]),
                &effects,
            ));
        }
    }
}

/// A namespace is held by the finalizer of its content.
pub fn namespace_create(namespace: &mut Value) {
    let name = object::name(namespace).to_owned();
    map_mut(metadata_value(namespace), "labels").insert("kubernetes.io/metadata.name".into(), name.into());
    let finalizers = object::list_mut(&mut namespace["spec"], "finalizers");
    if !finalizers.iter().any(|f| f == "kubernetes") {
        finalizers.push("kubernetes".into());
    }
    namespace["status"] = json!({"phase": "Active"});
}

fn metadata_value(object: &mut Value) -> &mut Value {
    metadata(object);
    &mut object["metadata"]
}

/// Only the `finalize` subresource changes `spec.finalizers`.
pub fn namespace_update(old: &Value, new: &mut Value) {
    new["spec"] = old["spec"].clone();
    let name = object::name(new).to_owned();
    map_mut(metadata_value(new), "labels").insert("kubernetes.io/metadata.name".into(), name.into());
}

/// Types, and text that becomes data.
pub fn secret(secret: &mut Value, causes: &mut Vec<Cause>) {
    default(secret, "type", "Opaque");
    if let Some(Value::Object(strings)) = object::remove(secret, "stringData") {
        let data = map_mut(secret, "data");
        for (key, value) in strings {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }
    check_keys(secret, "data", causes);
    let needed: &[&str] = match text(secret, "type") {
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        match secret["data"].get(*key).and_then(Value::as_str) {
            None => causes.push(Cause::required(format!("data[{key}]"), "")),
            Some(value) if key.starts_with(".docker") => {
                let decoded = STANDARD.decode(value).unwrap_or_default();
                if serde_json::from_slice::<serde::de::IgnoredAny>(&decoded).is_err() {
                    let shown = "<secret contents redacted>".into();
                    causes.push(Cause::invalid(format!("data[{key}]"), &shown, "not valid JSON"));
                }
            }
            Some(_) => {}
        }
    }
}

/// An update of a secret.
pub fn secret_update(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    if text(new, "type").is_empty() {
        new["type"] = old["type"].clone();
    }
    secret(new, causes);
    if old["type"] != new["type"] {
        causes.push(Cause::invalid("type", &new["type"], "field is immutable"));
    }
    immutable(old, new, &["data"], causes);
}

/// Keys of a config map.
pub fn config_map(map: &mut Value, causes: &mut Vec<Cause>) {
    check_keys(map, "data", causes);
    check_keys(map, "binaryData", causes);
    if let (Some(data), Some(binary)) = (map["data"].as_object(), map["binaryData"].as_object()) {
        for key in data.keys().filter(|k| binary.contains_key(*k)) {
            let field = format!("data[{key}]");
            causes.push(Cause::invalid(
                field,
                &key.as_str().into(),
                "duplicate of key present in binaryData",
            ));
        }
    }
}

/// An update of a config map.
pub fn config_map_update(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    config_map(new, causes);
    immutable(old, new, &["data", "binaryData"], causes);
}

fn immutable(old: &Value, new: &Value, keys: &[&str], causes: &mut Vec<Cause>) {
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        causes.push(Cause::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for key in keys.iter().filter(|k| at(old, &[k]) != at(new, &[k])) {
        causes.push(Cause::forbidden(*key, "field is immutable when `immutable` is set"));
    }
}

fn check_keys(object: &Value, field: &str, causes: &mut Vec<Cause>) {
    let Some(map) = at(object, &[field]).as_object() else { return };
    let fine = |k: &str| {
        !k.is_empty()
            && k.len() <= 253
            && k != "."
            && !k.starts_with("..")
            && k.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    for key in map.keys().filter(|k| !fine(k)) {
        let detail = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                      'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
        causes.push(Cause::invalid(format!("{field}[{key}]"), &key.as_str().into(), detail));
    }
    let size: usize = map.values().map(|v| v.as_str().map_or(0, str::len)).sum();
    if size > 1024 * 1024 * if field == "binaryData" { 2 } else { 1 } {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: field.into(),
            message: "Too long: may not be more than 1048576 bytes".into(),
        });
    }
}

/// Defaults of a slice.
pub fn endpoint_slice(slice: &mut Value, causes: &mut Vec<Cause>) {
    let types = ["FQDN", "IPv4", "IPv6"];
    match text(slice, "addressType") {
        "" => causes.push(Cause::required("addressType", "")),
        other if !types.contains(&other) => {
            causes.push(Cause::not_supported("addressType", &other.into(), &types));
        }
        _ => {}
    }
    object::list_mut(slice, "endpoints");
    for port in items_mut(slice, "ports") {
        default(port, "protocol", "TCP");
        if port["name"].is_null() {
            port["name"] = "".into();
        }
    }
    for (i, endpoint) in object::items(slice, "endpoints").iter().enumerate() {
        if object::items(endpoint, "addresses").is_empty() {
            let field = format!("endpoints[{i}].addresses");
            causes.push(Cause::required(field, "must contain at least 1 address"));
        }
    }
}

/// An update of a slice: its type stays, and what it says counts as a new generation.
pub fn endpoint_slice_update(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    endpoint_slice(new, causes);
    if old["addressType"] != new["addressType"] {
        causes.push(Cause::invalid("addressType", at(new, &["addressType"]), "field is immutable"));
    }
    if old["endpoints"] != new["endpoints"] || old["ports"] != new["ports"] {
        object::bump_generation(new);
    }
}

/// An event belongs to the namespace of what it is about.
pub fn event(event: &mut Value, causes: &mut Vec<Cause>) {
    let about = text_at(event, &["involvedObject", "namespace"]);
    let lives = object::namespace(event);
    if about.is_empty() && lives != "default" && lives != "kube-system" || !about.is_empty() && about != lives
    {
        let field = "involvedObject.namespace";
        causes.push(Cause::invalid(field, &about.into(), "does not match event.namespace"));
    }
    for key in ["source", "involvedObject"] {
        map_mut(event, key);
    }
    for key in ["reportingComponent", "reportingInstance"] {
        if event[key].is_null() {
            event[key] = "".into();
        }
    }
    for key in ["firstTimestamp", "lastTimestamp", "eventTime"] {
        if event[key].is_null() {
            object::object_of(event).insert(key.into(), Value::Null);
        }
    }
}

/// Durations of a lease are positive.
pub fn lease(lease: &mut Value, causes: &mut Vec<Cause>) {
    map_mut(lease, "spec");
    let seconds = &lease["spec"]["leaseDurationSeconds"];
    if seconds.as_i64().is_some_and(|s| s <= 0) {
        causes.push(Cause::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut s = json!({"metadata": {"name": "a"}, "stringData": {"k": "v"}, "data": {"o": "eA=="}});
        let mut causes = Vec::new();
        secret(&mut s, &mut causes);
        assert_eq!(
            s,
            json!({"metadata": {"name": "a"}, "type": "Opaque", "data": {"k": "dg==", "o": "eA=="}})
        );
        assert!(causes.is_empty());
    }

    #[test]
    fn an_immutable_config_map_does_not_change() {
        let old = json!({"metadata": {"name": "a"}, "immutable": true, "data": {"k": "1"}});
        let mut causes = Vec::new();
        config_map_update(&old, &mut old.clone(), &mut causes);
        assert!(causes.is_empty());
        config_map_update(
            &old,
            &mut json!({"metadata": {"name": "a"}, "immutable": true, "data": {"k": "2"}}),
            &mut causes,
        );
        assert_eq!(causes[0].field, "data");
    }

    #[test]
    fn a_new_node_that_is_not_ready_is_tainted() {
        let mut node = json!({"metadata": {"name": "n"}});
        node_create(&mut node, &mut Vec::new());
        assert_eq!(node["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
        let mut ready = json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]}});
        node_create(&mut ready, &mut Vec::new());
        assert_eq!(ready["spec"], json!({}));
        assert_eq!(ready["status"]["allocatable"]["cpu"], "2");
    }
}
