//! Endpoint slices from selectors, as the endpointslice controller writes them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::index::{Entries, PodEntry, selects};
use crate::object::{self, at, items, text, text_at};
use crate::registry::{DeleteOptions, Registry, Target, WriteOptions};
use crate::resource::{ApiResource, Kind};
use crate::status::ApiResult;
use crate::strategy::Part;

/// Value of the label `endpointslice.kubernetes.io/managed-by`.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The API allows a thousand in one slice.
const MAX_ENDPOINTS: usize = 1000;

/// Brings the slices of a service up to date. Slices of a service that is gone are collected with it.
pub fn sync(registry: &Registry, namespace: &str, name: &str) -> ApiResult<()> {
    let Some(service) = registry.find(Kind::Service, namespace, name)? else { return Ok(()) };
    let selected = at(&service, &["spec", "selector"]).as_object().is_some_and(|s| !s.is_empty());
    if !selected || text_at(&service, &["spec", "type"]) == "ExternalName" {
        return Ok(());
    }
    let api = Kind::EndpointSlice.api();
    let mut wanted = wanted(&registry.index.read(), &service);
    for (slice_name, present) in managed(registry, &service)? {
        match wanted.remove(&slice_name) {
            Some(want) if same(&present, &want) => {}
            Some(want) => update(registry, api, &want)?,
            None => {
                let options = DeleteOptions::default();
                registry.delete(api, namespace, &slice_name, &options)?;
            }
        }
    }
    for (_, want) in wanted {
        registry.create(api, namespace, want, WriteOptions::default())?;
    }
    Ok(())
}

/// The present slices of a service that are this controller's.
fn managed(registry: &Registry, service: &Value) -> ApiResult<Vec<(String, Value)>> {
    let owned = registry.index.read().owned.get(object::uid(service)).cloned().unwrap_or_default();
    let mut out = Vec::new();
    for (kind, namespace, name) in owned {
        if kind != Kind::EndpointSlice {
            continue;
        }
        let Some(slice) = registry.find(kind, &namespace, &name)? else { continue };
        if text_at(&slice, &["metadata", "labels", "endpointslice.kubernetes.io/managed-by"]) == MANAGER {
            out.push((name, slice));
        }
    }
    Ok(out)
}

fn same(present: &Value, want: &Value) -> bool {
    ["endpoints", "ports", "addressType"].iter().all(|k| present[*k] == want[*k])
        && at(present, &["metadata", "labels"]) == at(want, &["metadata", "labels"])
}

fn update(registry: &Registry, api: &'static ApiResource, want: &Value) -> ApiResult<()> {
    let target =
        Target { api, namespace: object::namespace(want), name: object::name(want), part: Part::Main };
    let change = |now: &Value| {
        let mut new = now.clone();
        new["metadata"]["labels"] = want["metadata"]["labels"].clone();
        new["endpoints"] = want["endpoints"].clone();
        new["ports"] = want["ports"].clone();
        Ok(new)
    };
    registry.update(target, WriteOptions::default(), change).map(|_| ())
}

fn wanted(entries: &Entries, service: &Value) -> BTreeMap<String, Value> {
    let namespace = object::namespace(service);
    let selector = entries
        .services
        .get(&(namespace.to_owned(), object::name(service).to_owned()))
        .map(|s| s.selector.clone())
        .unwrap_or_default();
    let pods: Vec<&PodEntry> = entries
        .pods
        .range((namespace.to_owned(), String::new())..)
        .take_while(|((ns, _), _)| ns == namespace)
        .map(|(_, p)| p)
        .filter(|p| selects(&selector, &p.labels) && !p.over && !p.addresses.is_empty())
        .collect();
    let families = items(&service["spec"], "ipFamilies");
    let mut out = BTreeMap::new();
    for (f, family) in families.iter().filter_map(Value::as_str).enumerate() {
        // Pods whose named ports have different numbers come in different slices.
        let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
        for pod in &pods {
            let Some(endpoint) = endpoint(entries, service, pod, family) else { continue };
            let ports = ports_for(service, pod);
            groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
        }
        if groups.is_empty() {
            groups.insert(String::new(), (json!([]), Vec::new()));
        }
        let mut number = 0;
        for (ports, endpoints) in groups.into_values() {
            let chunks: Vec<&[Value]> =
                if endpoints.is_empty() { vec![&[]] } else { endpoints.chunks(MAX_ENDPOINTS).collect() };
            for chunk in chunks {
                let name = slice_name(service, f, number);
                number += 1;
                let mut slice = frame(service, &name);
                slice["addressType"] = family.into();
                slice["endpoints"] = chunk.into();
                slice["ports"] = ports.clone();
                out.insert(name, slice);
            }
        }
    }
    out
}

/// The same name for the same service, family and number, so that a restart finds its own slices.
fn slice_name(service: &Value, family: usize, number: usize) -> String {
    let seed = format!("{}/{family}/{number}", object::uid(service));
    let digest = ring::digest::digest(&ring::digest::SHA256, seed.as_bytes());
    let alphabet = b"bcdfghjklmnpqrstvwxz2456789";
    let suffix: String =
        digest.as_ref()[..5].iter().map(|b| char::from(alphabet[usize::from(*b) % alphabet.len()])).collect();
    let name = object::name(service);
    format!("{}-{suffix}", &name[..name.len().min(57)])
}

fn frame(service: &Value, name: &str) -> Value {
    let mut labels = at(service, &["metadata", "labels"]).as_object().cloned().unwrap_or_default();
    labels.insert("kubernetes.io/service-name".into(), object::name(service).into());
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), MANAGER.into());
    if text_at(service, &["spec", "clusterIP"]) == "None" {
        labels.insert("service.kubernetes.io/headless".into(), "".into());
    }
    json!({"metadata": {
        "name": name, "namespace": object::namespace(service), "labels": labels,
        "generateName": format!("{}-", object::name(service)),
        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": object::name(service),
            "uid": object::uid(service), "controller": true, "blockOwnerDeletion": true}]}})
}

fn endpoint(entries: &Entries, service: &Value, pod: &PodEntry, family: &str) -> Option<Value> {
    let address = pod.addresses.iter().find(|a| a.contains(':') == (family == "IPv6"))?;
    let anyway = service["spec"]["publishNotReadyAddresses"] == true;
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {
            "ready": anyway || pod.ready && !pod.terminating, "serving": pod.ready, "terminating": pod.terminating,
        },
        "targetRef": {"kind": "Pod", "name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
    });
    if !pod.node.is_empty() {
        endpoint["nodeName"] = pod.node.as_str().into();
    }
    if let Some(zone) = entries.nodes.get(&pod.node).and_then(|n| n.labels.get("topology.kubernetes.io/zone"))
    {
        endpoint["zone"] = zone.as_str().into();
    }
    if let Some((hostname, subdomain)) = &pod.hostname
        && subdomain == object::name(service)
    {
        endpoint["hostname"] = hostname.as_str().into();
    }
    Some(endpoint)
}

fn ports_for(service: &Value, pod: &PodEntry) -> Value {
    let one = |port: &Value| {
        let protocol = text(port, "protocol");
        let number = match &port["targetPort"] {
            Value::String(name) => pod.ports.iter().find(|p| p.0 == *name && p.1 == protocol)?.2.into(),
            Value::Number(n) => Value::Number(n.clone()),
            _ => port["port"].clone(),
        };
        let mut out = json!({"name": text(port, "name"), "port": number, "protocol": protocol});
        if let Some(app) = port.get("appProtocol") {
            out["appProtocol"] = app.clone();
        }
        Some(out)
    };
    items(&service["spec"], "ports").iter().filter_map(one).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::ServiceEntry;

    fn setting() -> (Entries, Value) {
        let service = json!({"metadata": {"name": "s", "namespace": "d", "uid": "u"},
            "spec": {"ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}]}});
        let mut entries = Entries::default();
        let selector = [("a".to_owned(), "b".to_owned())].into();
        entries.services.insert(("d".into(), "s".into()), ServiceEntry { selector });
        (entries, service)
    }

    fn add(entries: &mut Entries, name: &str, port: u16, ready: bool) {
        let pod = PodEntry {
            namespace: "d".into(),
            name: name.into(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            ready,
            addresses: vec![format!("10.0.0.{port}")],
            ports: vec![("http".into(), "TCP".into(), port)],
            ..PodEntry::default()
        };
        entries.pods.insert(("d".into(), name.into()), pod);
    }

    #[test]
    fn pods_are_grouped_by_what_their_named_ports_are() {
        let (mut entries, service) = setting();
        add(&mut entries, "p1", 80, true);
        add(&mut entries, "p2", 80, false);
        add(&mut entries, "p3", 81, true);
        let slices: Vec<Value> = wanted(&entries, &service).into_values().collect();
        assert_eq!(slices.len(), 2);
        let eighty = slices.iter().find(|s| s["ports"][0]["port"] == 80).unwrap();
        let ready: Vec<&Value> =
            items(eighty, "endpoints").iter().map(|e| &e["conditions"]["ready"]).collect();
        assert_eq!(ready, [&json!(true), &json!(false)]);
    }

    #[test]
    fn a_service_without_pods_has_one_empty_slice() {
        let (entries, service) = setting();
        let slices: Vec<Value> = wanted(&entries, &service).into_values().collect();
        assert_eq!(slices.len(), 1);
        assert_eq!((&slices[0]["endpoints"], &slices[0]["ports"]), (&json!([]), &json!([])));
    }
}
