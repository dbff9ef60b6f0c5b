//! Objects that the tests create, and what they read from them.
//!
//! Owns: small builders over JSON. Never: talks to a server.

use serde_json::{Value, json};

/// A pod with one container running a shell script in the busybox image.
pub fn pod(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "main", "image": crate::image::BUSYBOX, "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", script],
            }],
        },
    })
}

/// A pod that sleeps until it is told to end, and ends at once then.
pub fn sleeper(name: &str) -> Value {
    pod(name, "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")
}

/// The path of a pod in the default namespace.
pub fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

/// The pods of the default namespace.
pub const PODS: &str = "/api/v1/namespaces/default/pods";

/// Whether the pod's Ready condition is True.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// `status.phase`.
pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// The status of a container.
pub fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["status"]["containerStatuses"].as_array()?.iter().find(|status| status["name"] == name)
}
