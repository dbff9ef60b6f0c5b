//! The defaults of a pod spec, as the API server writes them into every pod.

use serde_json::{Value, json};

use crate::object::{default, items_mut, map_mut};

/// Fills in everything that a pod spec leaves open.
pub fn fill(spec: &mut Value) {
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "enableServiceLinks", true);
    map_mut(spec, "securityContext");
    let host_network = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            fill_container(container, host_network);
        }
    }
    for volume in items_mut(spec, "volumes") {
        fill_volume(volume);
    }
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        default(constraint, "nodeAffinityPolicy", "Honor");
        default(constraint, "nodeTaintsPolicy", "Ignore");
    }
}

fn fill_container(container: &mut Value, host_network: bool) {
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    let resources = map_mut(container, "resources");
    if let Some(Value::Object(limits)) = resources.get("limits").cloned() {
        let requests = resources.entry("requests").or_insert_with(|| json!({}));
        for (name, limit) in limits {
            if requests.get(&name).is_none() {
                requests[name] = limit;
            }
        }
    }
    for port in items_mut(container, "ports") {
        default(port, "protocol", "TCP");
        if host_network && port["hostPort"].as_i64().unwrap_or(0) == 0 {
            port["hostPort"] = port["containerPort"].clone();
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(field) = variable.get_mut("valueFrom").and_then(|f| f.get_mut("fieldRef")) {
            default(field, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).filter(|p| p.is_object()) {
            fill_probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(http) =
            container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)).and_then(|h| h.get_mut("httpGet"))
        {
            fill_http(http);
        }
    }
}

fn fill_probe(probe: &mut Value) {
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe[key].as_i64().unwrap_or(0) == 0 {
            probe[key] = value.into();
        }
    }
    if let Some(http) = probe.get_mut("httpGet") {
        fill_http(http);
    }
    if let Some(grpc) = probe.get_mut("grpc").filter(|g| g["service"].is_null()) {
        grpc["service"] = "".into();
    }
}

fn fill_http(http: &mut Value) {
    default(http, "path", "/");
    default(http, "scheme", "HTTP");
}

fn fill_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|v| v.len() == 1 && v.contains_key("name")) {
        volume["emptyDir"] = json!({});
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).filter(|s| s.is_object()) {
            default(source, "defaultMode", 420);
        }
    }
    if let Some(host) = volume.get_mut("hostPath").filter(|h| h["type"].is_null()) {
        host["type"] = "".into();
    }
    if let Some(image) = volume.get_mut("image").filter(|h| h.is_object()) {
        let policy = pull_policy(image["reference"].as_str().unwrap_or_default());
        default(image, "pullPolicy", policy);
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        fill_field_refs(downward);
    }
    for source in volume.get_mut("projected").map_or(&mut [][..], |p| items_mut(p, "sources")) {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            default(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = source.get_mut("downwardAPI") {
            fill_field_refs(downward);
        }
    }
}

fn fill_field_refs(downward: &mut Value) {
    for item in items_mut(downward, "items") {
        if let Some(field) = item.get_mut("fieldRef") {
            default(field, "apiVersion", "v1");
        }
    }
}

/// `Always` for the tag `latest`, spelled out or implied; `IfNotPresent` for every other tag and for digests.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_pod_gets_the_defaults_of_the_api_server() {
        let mut spec = json!({
            "containers": [{"name": "a", "image": "x:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "e"}, {"name": "c", "configMap": {"name": "m"}}, {"name": "h", "hostPath": {"path": "/"}}]
        });
        fill(&mut spec);
        let want = json!({
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "schedulerName": "default-scheduler", "enableServiceLinks": true, "securityContext": {},
            "containers": [{"name": "a", "image": "x:1", "imagePullPolicy": "IfNotPresent",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "m", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}}]
        });
        assert_eq!(spec, want);
        let again = spec.clone();
        fill(&mut spec);
        assert_eq!(spec, again, "defaults are stable");
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, want) in [
            ("busybox", "Always"),
            ("r:5000/busybox", "Always"),
            ("busybox:latest", "Always"),
            ("busybox:1", "IfNotPresent"),
            ("busybox@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }
}
