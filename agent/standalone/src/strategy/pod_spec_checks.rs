//! What is wrong with a pod spec, field by field, in the words of the API server.

use std::collections::HashSet;

use serde_json::Value;

use super::is_dns_label;
use crate::object::{at, items, text};
use crate::quantity;
use crate::status::Cause;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
     end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

/// Checks everything that the schema alone cannot.
pub fn check(pod: &Value, causes: &mut Vec<Cause>) {
    let spec = &pod["spec"];
    one_of(spec, "restartPolicy", "spec", &["Always", "OnFailure", "Never"], causes);
    one_of(
        spec,
        "dnsPolicy",
        "spec",
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        causes,
    );
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        let value = &spec["terminationGracePeriodSeconds"];
        causes.push(Cause::invalid(
            "spec.terminationGracePeriodSeconds",
            value,
            "must be greater than or equal to 0",
        ));
    }
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| !(1..=i64::from(i32::MAX)).contains(&s)) {
        let value = &spec["activeDeadlineSeconds"];
        causes.push(Cause::invalid(
            "spec.activeDeadlineSeconds",
            value,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    if text(spec, "dnsPolicy") == "None" && items(&spec["dnsConfig"], "nameservers").is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.push(Cause::required("spec.dnsConfig.nameservers", detail));
    }
    let volumes = check_volumes(spec, causes);
    if items(spec, "containers").is_empty() {
        causes.push(Cause::required("spec.containers", ""));
    }
    let mut names = HashSet::new();
    let host_network = spec["hostNetwork"] == true;
    for list in ["containers", "initContainers"] {
        for (i, container) in items(spec, list).iter().enumerate() {
            let path = format!("spec.{list}[{i}]");
            check_name(container, &path, &mut names, causes);
            check_container(container, &path, host_network, causes);
            check_mounts(container, &path, &volumes, causes);
            check_lifecycle(container, &path, list == "initContainers", causes);
        }
    }
    check_host_ports(spec, causes);
}

fn one_of(value: &Value, key: &str, path: &str, allowed: &[&str], causes: &mut Vec<Cause>) {
    let given = at(value, &[key]);
    if !given.as_str().is_some_and(|g| allowed.contains(&g)) {
        let mut sorted = allowed.to_vec();
        sorted.sort_unstable();
        causes.push(Cause::not_supported(format!("{path}.{key}"), given, &sorted));
    }
}

fn check_name(item: &Value, path: &str, names: &mut HashSet<String>, causes: &mut Vec<Cause>) {
    let name = text(item, "name");
    let field = format!("{path}.name");
    if name.is_empty() {
        causes.push(Cause::required(field, ""));
    } else if !is_dns_label(name) {
        causes.push(Cause::invalid(field, &name.into(), LABEL));
    } else if !names.insert(name.to_owned()) {
        causes.push(Cause::duplicate(field, &name.into()));
    }
}

fn check_volumes(spec: &Value, causes: &mut Vec<Cause>) -> HashSet<String> {
    let mut names = HashSet::new();
    for (i, volume) in items(spec, "volumes").iter().enumerate() {
        let path = format!("spec.volumes[{i}]");
        check_name(volume, &path, &mut names, causes);
        let sources = volume.as_object().map_or(0, |v| v.len().saturating_sub(1));
        if sources == 0 {
            causes.push(Cause::required(&path, "must specify a volume type"));
        } else if sources > 1 {
            causes.push(Cause::forbidden(&path, "may not specify more than 1 volume type"));
        }
        for (source, key) in [("hostPath", "path"), ("secret", "secretName"), ("configMap", "name")] {
            if volume[source].is_object() && text(&volume[source], key).is_empty() {
                causes.push(Cause::required(format!("{path}.{source}.{key}"), ""));
            }
        }
    }
    names
}

fn check_container(container: &Value, path: &str, host_network: bool, causes: &mut Vec<Cause>) {
    let image = text(container, "image");
    if image.is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid(format!("{path}.image"), &image.into(), detail));
    }
    one_of(container, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], causes);
    one_of(container, "terminationMessagePolicy", path, &["FallbackToLogsOnError", "File"], causes);
    check_ports(container, path, host_network, causes);
    for (i, variable) in items(container, "env").iter().enumerate() {
        let field = format!("{path}.env[{i}]");
        let name = text(variable, "name");
        if name.is_empty() {
            causes.push(Cause::required(format!("{field}.name"), ""));
        } else if name.contains('=') || !name.bytes().all(|c| (b' '..=b'~').contains(&c)) {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            causes.push(Cause::invalid(format!("{field}.name"), &name.into(), detail));
        }
        if variable.get("valueFrom").is_some() && !text(variable, "value").is_empty() {
            let detail = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{field}.valueFrom"), &"".into(), detail));
        }
    }
    check_resources(&container["resources"], &format!("{path}.resources"), causes);
    let context = &container["securityContext"];
    for key in ["runAsUser", "runAsGroup"] {
        if context[key].as_i64().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
            let field = format!("{path}.securityContext.{key}");
            causes.push(Cause::invalid(field, &context[key], "must be between 0 and 2147483647, inclusive"));
        }
    }
    if context["privileged"] == true && context["allowPrivilegeEscalation"] == false {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        causes.push(Cause::invalid(format!("{path}.securityContext"), context, detail));
    }
}

fn check_ports(container: &Value, path: &str, host_network: bool, causes: &mut Vec<Cause>) {
    let mut names = HashSet::new();
    for (i, port) in items(container, "ports").iter().enumerate() {
        let field = format!("{path}.ports[{i}]");
        let range = "must be between 1 and 65535, inclusive";
        match port["containerPort"].as_i64() {
            None | Some(0) => causes.push(Cause::required(format!("{field}.containerPort"), "")),
            Some(1..=65535) => {}
            Some(_) => {
                causes.push(Cause::invalid(format!("{field}.containerPort"), &port["containerPort"], range))
            }
        }
        if port["hostPort"].as_i64().is_some_and(|p| !(0..=65535).contains(&p)) {
            causes.push(Cause::invalid(format!("{field}.hostPort"), &port["hostPort"], range));
        } else if host_network && port["hostPort"] != port["containerPort"] {
            let detail = "must match `hostPort` when `hostNetwork` is true";
            causes.push(Cause::invalid(format!("{field}.containerPort"), &port["containerPort"], detail));
        }
        one_of(port, "protocol", &field, &["SCTP", "TCP", "UDP"], causes);
        let name = text(port, "name");
        if !name.is_empty() {
            let letters = name.bytes().any(|c| c.is_ascii_lowercase());
            if !is_dns_label(name) || name.len() > 15 || !letters || name.contains("--") {
                let detail = "must be no more than 15 characters of lower case letters, digits and '-', with at least one letter";
                causes.push(Cause::invalid(format!("{field}.name"), &name.into(), detail));
            } else if !names.insert(name) {
                causes.push(Cause::duplicate(format!("{field}.name"), &name.into()));
            }
        }
    }
}

fn check_host_ports(spec: &Value, causes: &mut Vec<Cause>) {
    let mut seen = HashSet::new();
    for (i, container) in items(spec, "containers").iter().enumerate() {
        for (j, port) in items(container, "ports").iter().enumerate() {
            let Some(number) = port["hostPort"].as_i64().filter(|n| *n != 0) else { continue };
            let shown = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if !seen.insert(shown.clone()) {
                let field = format!("spec.containers[{i}].ports[{j}].hostPort");
                causes.push(Cause::duplicate(field, &shown.into()));
            }
        }
    }
}

fn check_resources(resources: &Value, path: &str, causes: &mut Vec<Cause>) {
    let amount = |side: &str, name: &str| quantity::parse(text(&resources[side], name));
    for side in ["limits", "requests"] {
        for name in resources[side].as_object().into_iter().flat_map(|m| m.keys()) {
            if amount(side, name).is_some_and(|q| q < 0) {
                let value = &resources[side][name];
                causes.push(Cause::invalid(
                    format!("{path}.{side}[{name}]"),
                    value,
                    "must be greater than or equal to 0",
                ));
            }
        }
    }
    for name in resources["requests"].as_object().into_iter().flat_map(|m| m.keys()) {
        if let (Some(request), Some(limit)) = (amount("requests", name), amount("limits", name))
            && request > limit
        {
            let detail =
                format!("must be less than or equal to {name} limit of {}", text(&resources["limits"], name));
            causes.push(Cause::invalid(format!("{path}.requests"), &resources["requests"][name], &detail));
        }
    }
}

fn check_mounts(container: &Value, path: &str, volumes: &HashSet<String>, causes: &mut Vec<Cause>) {
    let mut paths = HashSet::new();
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let field = format!("{path}.volumeMounts[{i}]");
        let (name, at) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            causes.push(Cause::required(format!("{field}.name"), ""));
        } else if !volumes.contains(name) {
            causes.push(Cause::not_found(format!("{field}.name"), &name.into()));
        }
        if at.is_empty() {
            causes.push(Cause::required(format!("{field}.mountPath"), ""));
        } else if !paths.insert(at) {
            causes.push(Cause::invalid(format!("{field}.mountPath"), &at.into(), "must be unique"));
        }
        let sub = text(mount, "subPath");
        if sub.starts_with('/') {
            causes.push(Cause::invalid(format!("{field}.subPath"), &sub.into(), "must be a relative path"));
        } else if sub.split('/').any(|p| p == "..") {
            causes.push(Cause::invalid(format!("{field}.subPath"), &sub.into(), "must not contain '..'"));
        }
    }
}

fn check_lifecycle(container: &Value, path: &str, init: bool, causes: &mut Vec<Cause>) {
    let sidecar = text(container, "restartPolicy") == "Always";
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(name).filter(|p| p.is_object()) else { continue };
        let field = format!("{path}.{name}");
        if init && !sidecar {
            causes.push(Cause::forbidden(
                field,
                "must not be set for init containers without restartPolicy=Always",
            ));
            continue;
        }
        let handlers =
            ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|h| probe[**h].is_object()).count();
        if handlers == 0 {
            causes.push(Cause::required(&field, "must specify a handler type"));
        } else if handlers > 1 {
            causes.push(Cause::forbidden(&field, "may not specify more than 1 handler type"));
        }
        if name != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
            causes.push(Cause::invalid(
                format!("{field}.successThreshold"),
                &probe["successThreshold"],
                "must be 1",
            ));
        }
    }
    if init && !sidecar && container["lifecycle"].is_object() {
        let field = format!("{path}.lifecycle");
        causes.push(Cause::forbidden(
            field,
            "must not be set for init containers without restartPolicy=Always",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(container: &Value, volumes: &Value) -> Vec<String> {
        let mut pod = json!({"spec": {"containers": [container], "volumes": volumes}});
        super::super::pod_defaults::fill(&mut pod["spec"]);
        let mut causes = Vec::new();
        check(&pod, &mut causes);
        causes.into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn bad_containers_are_named_field_by_field() {
        let none = json!([]);
        let c = |extra: Value| {
            let mut c = json!({"name": "a", "image": "x:1"});
            json_patch::merge(&mut c, &extra);
            fields(&c, &none)
        };
        assert_eq!(c(json!({})), Vec::<String>::new());
        assert_eq!(c(json!({"image": null})), ["spec.containers[0].image"]);
        assert_eq!(c(json!({"name": "A_"})), ["spec.containers[0].name"]);
        assert_eq!(
            c(json!({"ports": [{"containerPort": 70000}]})),
            ["spec.containers[0].ports[0].containerPort"]
        );
        assert_eq!(
            c(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
            ["spec.containers[0].volumeMounts[0].name"]
        );
        assert_eq!(c(json!({"imagePullPolicy": "Maybe"})), ["spec.containers[0].imagePullPolicy"]);
        assert_eq!(c(json!({"livenessProbe": {}})), ["spec.containers[0].livenessProbe"]);
        assert_eq!(
            c(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}})),
            ["spec.containers[0].resources.requests"]
        );
    }

    #[test]
    fn a_volume_has_exactly_one_source() {
        let c = json!({"name": "a", "image": "x:1"});
        let two = json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]);
        assert_eq!(fields(&c, &two), ["spec.volumes[0]"]);
        let twice = json!([{"name": "v"}, {"name": "v"}]);
        assert_eq!(fields(&c, &twice), ["spec.volumes[1].name"]);
    }
}
