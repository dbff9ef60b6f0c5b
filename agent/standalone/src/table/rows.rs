//! The rows of everything but pods.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, human, since};
use crate::object::{self, at, items, text, text_at};

const NAME: Column = ("Name", "string", 0);
const AGE: Column = ("Age", "string", 0);

fn age(object: &Value) -> Value {
    since(text_at(object, &["metadata", "creationTimestamp"])).into()
}

fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>, otherwise: &str) -> String {
    let parts: Vec<&str> = parts.filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { otherwise.to_owned() } else { parts.join(",") }
}

/// At most three, then how many more.
fn shortened(parts: &[String], otherwise: &str) -> String {
    match parts {
        [] => otherwise.to_owned(),
        few if few.len() <= 3 => few.join(","),
        many => format!("{} + {} more...", many[..3].join(","), many.len() - 3),
    }
}

/// Columns of nodes.
pub const NODE: &[Column] = &[
    NAME,
    ("Status", "string", 0),
    ("Roles", "string", 0),
    AGE,
    ("Version", "string", 0),
    ("Internal-IP", "string", 1),
    ("External-IP", "string", 1),
    ("OS-Image", "string", 1),
    ("Kernel-Version", "string", 1),
    ("Container-Runtime", "string", 1),
];

/// A node.
pub fn node(node: &Value) -> Vec<Value> {
    let ready = items(&node["status"], "conditions").iter().find(|c| text(c, "type") == "Ready");
    let mut status = match ready.map(|c| text(c, "status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let labels = at(node, &["metadata", "labels"]).as_object();
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        _ if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        _ => None,
    };
    let roles: Vec<String> = labels.into_iter().flatten().filter_map(role).collect();
    let address = |kind: &str| {
        let found = items(&node["status"], "addresses").iter().find(|a| text(a, "type") == kind);
        or(found.map_or("", |a| text(a, "address")), "<none>")
    };
    let info = |key: &str| or(text_at(node, &["status", "nodeInfo", key]), "<unknown>");
    vec![
        object::name(node).into(),
        status.into(),
        joined(roles.iter().map(String::as_str), "<none>").into(),
        age(node),
        text_at(node, &["status", "nodeInfo", "kubeletVersion"]).into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

/// Columns of services.
pub const SERVICE: &[Column] = &[
    NAME,
    ("Type", "string", 0),
    ("Cluster-IP", "string", 0),
    ("External-IP", "string", 0),
    ("Port(s)", "string", 0),
    AGE,
    ("Selector", "string", 1),
];

/// A service.
pub fn service(service: &Value) -> Vec<Value> {
    let spec = &service["spec"];
    let port = |p: &Value| {
        let (number, protocol) = (p["port"].as_i64().unwrap_or(0), text(p, "protocol"));
        match p["nodePort"].as_i64().filter(|n| *n > 0) {
            Some(outside) => format!("{number}:{outside}/{protocol}"),
            None => format!("{number}/{protocol}"),
        }
    };
    let ports: Vec<String> = items(spec, "ports").iter().map(port).collect();
    let external = match text(spec, "type") {
        "ExternalName" => text(spec, "externalName").to_owned(),
        "LoadBalancer" => {
            let given = items(&service["status"]["loadBalancer"], "ingress");
            let shown = given
                .iter()
                .map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") });
            joined(shown.chain(items(spec, "externalIPs").iter().filter_map(Value::as_str)), "<pending>")
        }
        _ => joined(items(spec, "externalIPs").iter().filter_map(Value::as_str), "<none>"),
    };
    let selector: Vec<String> = spec["selector"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    vec![
        object::name(service).into(),
        text(spec, "type").into(),
        or(text(spec, "clusterIP"), "<none>").into(),
        external.into(),
        joined(ports.iter().map(String::as_str), "<none>").into(),
        age(service),
        joined(selector.iter().map(String::as_str), "<none>").into(),
    ]
}

/// Columns of endpoint slices.
pub const ENDPOINT_SLICE: &[Column] =
    &[NAME, ("AddressType", "string", 0), ("Ports", "string", 0), ("Endpoints", "string", 0), AGE];

/// An endpoint slice.
pub fn endpoint_slice(slice: &Value) -> Vec<Value> {
    let ports: Vec<String> = items(slice, "ports")
        .iter()
        .map(|p| p["port"].as_i64().map_or("*".into(), |n| n.to_string()))
        .collect();
    let addresses: Vec<String> = items(slice, "endpoints")
        .iter()
        .flat_map(|e| items(e, "addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    vec![
        object::name(slice).into(),
        text(slice, "addressType").into(),
        shortened(&ports, "<unset>").into(),
        shortened(&addresses, "<unset>").into(),
        age(slice),
    ]
}

/// Columns of config maps.
pub const CONFIG_MAP: &[Column] = &[NAME, ("Data", "string", 0), AGE];

fn entries(object: &Value, key: &str) -> usize {
    object[key].as_object().map_or(0, serde_json::Map::len)
}

/// A config map.
pub fn config_map(map: &Value) -> Vec<Value> {
    vec![
        object::name(map).into(),
        (entries(map, "data") + entries(map, "binaryData")).to_string().into(),
        age(map),
    ]
}

/// Columns of secrets.
pub const SECRET: &[Column] = &[NAME, ("Type", "string", 0), ("Data", "string", 0), AGE];

/// A secret.
pub fn secret(secret: &Value) -> Vec<Value> {
    vec![
        object::name(secret).into(),
        text(secret, "type").into(),
        entries(secret, "data").to_string().into(),
        age(secret),
    ]
}

/// Columns of namespaces.
pub const NAMESPACE: &[Column] = &[NAME, ("Status", "string", 0), AGE];

/// A namespace.
pub fn namespace(namespace: &Value) -> Vec<Value> {
    vec![object::name(namespace).into(), text_at(namespace, &["status", "phase"]).into(), age(namespace)]
}

/// Columns of service accounts.
pub const SERVICE_ACCOUNT: &[Column] = &[NAME, ("Secrets", "string", 0), AGE];

/// A service account.
pub fn service_account(account: &Value) -> Vec<Value> {
    vec![object::name(account).into(), items(account, "secrets").len().to_string().into(), age(account)]
}

/// Columns of leases.
pub const LEASE: &[Column] = &[NAME, ("Holder", "string", 0), AGE];

/// A lease.
pub fn lease(lease: &Value) -> Vec<Value> {
    vec![object::name(lease).into(), text_at(lease, &["spec", "holderIdentity"]).into(), age(lease)]
}

/// Columns of signing requests.
pub const SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    ("SignerName", "string", 0),
    ("Requestor", "string", 0),
    ("RequestedDuration", "string", 0),
    ("Condition", "string", 0),
];

/// A signing request: its condition is the decision, then what became of it.
pub fn signing_request(request: &Value) -> Vec<Value> {
    let conditions = items(&request["status"], "conditions").iter().map(|c| text(c, "type"));
    let issued = if text_at(request, &["status", "certificate"]).is_empty() { "" } else { "Issued" };
    let seconds = request["spec"]["expirationSeconds"].as_i64();
    let duration = seconds.map_or("<none>".into(), human);
    vec![
        object::name(request).into(),
        age(request),
        or(text_at(request, &["spec", "signerName"]), "<none>").into(),
        text_at(request, &["spec", "username"]).into(),
        duration.into(),
        joined(conditions.chain([issued]), "Pending").into(),
    ]
}

/// Columns of events.
pub const EVENT: &[Column] = &[
    ("Last Seen", "string", 0),
    ("Type", "string", 0),
    ("Reason", "string", 0),
    ("Object", "string", 0),
    ("Subobject", "string", 1),
    ("Source", "string", 1),
    ("Message", "string", 0),
    ("First Seen", "string", 1),
    ("Count", "string", 1),
    ("Name", "string", 1),
];

/// An event.
pub fn event(event: &Value) -> Vec<Value> {
    let first = text(event, "firstTimestamp");
    let first = if first.is_empty() { text(event, "eventTime") } else { first };
    let series = text_at(event, &["series", "lastObservedTime"]);
    let last =
        [series, text(event, "lastTimestamp"), first].into_iter().find(|t| !t.is_empty()).unwrap_or_default();
    let count =
        at(event, &["series", "count"]).as_i64().or_else(|| event["count"].as_i64()).unwrap_or(1).max(1);
    let about = &event["involvedObject"];
    let (component, host) = (text_at(event, &["source", "component"]), text_at(event, &["source", "host"]));
    let component = if component.is_empty() { text(event, "reportingComponent") } else { component };
    let host = if host.is_empty() { text(event, "reportingInstance") } else { host };
    let source = joined([component, host].into_iter(), "").replace(',', ", ");
    let seen = |t: &str| {
        object::parse_time(t)
            .map_or_else(|| "<unknown>".into(), |at| human(Timestamp::now().as_second() - at.as_second()))
    };
    vec![
        seen(last).into(),
        text(event, "type").into(),
        text(event, "reason").into(),
        format!("{}/{}", text(about, "kind").to_lowercase(), text(about, "name")).into(),
        text(about, "fieldPath").into(),
        source.into(),
        text(event, "message").trim().into(),
        seen(first).into(),
        count.to_string().into(),
        object::name(event).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(cells: &[Value]) -> Vec<&str> {
        cells.iter().map(|c| c.as_str().unwrap_or_default()).collect()
    }

    #[test]
    fn rows_have_a_cell_for_each_column() {
        let none = json!({});
        for kind in crate::resource::ALL_KINDS {
            assert_eq!(super::super::columns(kind).len(), super::super::cells(kind, &none).len(), "{kind:?}");
        }
    }

    #[test]
    fn nodes_show_roles_and_state() {
        let n = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"}}});
        assert_eq!(shown(&node(&n))[..3], ["n", "Ready,SchedulingDisabled", "control-plane"]);
    }

    #[test]
    fn signing_requests_show_how_far_they_came() {
        let mut r = json!({"metadata": {"name": "r"}, "spec": {"signerName": "s/t", "username": "u"}});
        assert_eq!(shown(&signing_request(&r))[2..], ["s/t", "u", "<none>", "Pending"]);
        r["status"] = json!({"conditions": [{"type": "Approved"}], "certificate": "eA=="});
        r["spec"]["expirationSeconds"] = 3600.into();
        assert_eq!(shown(&signing_request(&r))[4..], ["60m", "Approved,Issued"]);
    }

    #[test]
    fn services_and_slices_show_ports() {
        let s = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1",
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        assert_eq!(shown(&service(&s))[1..5], ["NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP"]);
        let e = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["a", "b"]}, {"addresses": ["c"]}, {"addresses": ["d"]}], "ports": []});
        assert_eq!(shown(&endpoint_slice(&e))[1..4], ["IPv4", "<unset>", "a,b,c + 1 more..."]);
    }
}
