//! Services: defaults, checks, and which addresses and ports each asks for.
//!
//! Owns: what a Service is when it is stored. Never: keeps what is given out (that is `allocator`).

use std::collections::HashSet;

use serde_json::{Value, json};

use super::allocator::{Allocator, HEALTH_PORT, NODE_PORTS, addresses_of, ports_of};
use crate::object::{self, at, default, items, items_mut, map_mut, text, text_at};
use crate::registry::Registry;
use crate::status::{ApiError, ApiResult, Cause};

/// Only here a load balancer has to ask each node whether it has endpoints.
fn needs_health_port(service: &Value) -> bool {
    let spec = &service["spec"];
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn fill(service: &mut Value) {
    let spec = &mut service["spec"];
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "ClientIP"
        && at(spec, &["sessionAffinityConfig", "clientIP", "timeoutSeconds"]).is_null()
    {
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10800}});
    }
    for port in items_mut(spec, "ports") {
        default(port, "protocol", "TCP");
        let unset = port["targetPort"].is_null() || port["targetPort"] == "" || port["targetPort"] == 0;
        if unset && !port["port"].is_null() {
            port["targetPort"] = port["port"].clone();
        }
        if port["nodePort"] == 0 {
            object::remove(port, "nodePort");
        }
    }
    if spec[HEALTH_PORT] == 0 {
        object::remove(spec, HEALTH_PORT);
    }
    let outside = matches!(text(spec, "type"), "NodePort" | "LoadBalancer");
    if outside || !items(spec, "externalIPs").is_empty() {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    if text(spec, "type") != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
}

/// Defaults, checks and allocations of a new service.
///
/// # Errors
/// 500, when the addresses or ports are used up.
pub fn create(registry: &Registry, service: &mut Value, causes: &mut Vec<Cause>) -> ApiResult<()> {
    map_mut(service, "spec");
    fill(service);
    service["status"] = json!({"loadBalancer": {}});
    check(service, causes);
    if causes.is_empty() {
        allocate(&registry.allocator, service, None, causes)?;
    }
    Ok(())
}

/// An update: what was allocated stays.
///
/// # Errors
/// 500, when the addresses or ports are used up.
pub fn update(registry: &Registry, old: &Value, new: &mut Value, causes: &mut Vec<Cause>) -> ApiResult<()> {
    map_mut(new, "spec");
    fill(new);
    drop_of_old_type(old, new);
    keep_allocated(old, new);
    check(new, causes);
    let same_kind = (text_at(old, &["spec", "type"]) == "ExternalName")
        == (text_at(new, &["spec", "type"]) == "ExternalName");
    let (before, given) = (text_at(old, &["spec", "clusterIP"]), text_at(new, &["spec", "clusterIP"]));
    if same_kind && !before.is_empty() && before != given {
        let shown = &new["spec"]["clusterIPs"];
        causes.push(Cause::invalid("spec.clusterIPs[0]", shown, "may not change once set"));
    }
    if needs_health_port(old)
        && needs_health_port(new)
        && old["spec"][HEALTH_PORT] != new["spec"][HEALTH_PORT]
    {
        causes.push(Cause::invalid(
            "spec.healthCheckNodePort",
            &new["spec"][HEALTH_PORT],
            "field is immutable",
        ));
    }
    if causes.is_empty() {
        allocate(&registry.allocator, new, Some(old), causes)?;
    }
    Ok(())
}

/// What the old type needed and the new one does not goes, unless it was changed on purpose.
fn drop_of_old_type(old: &Value, new: &mut Value) {
    let outside = |s: &Value| matches!(text_at(s, &["spec", "type"]), "NodePort" | "LoadBalancer");
    if outside(old) && !outside(new) {
        let before = ports_of(old);
        let same = ports_of(new).iter().all(|p| before.contains(p));
        for port in items_mut(&mut new["spec"], "ports").iter_mut().filter(|_| same) {
            object::remove(port, "nodePort");
        }
        if items(&new["spec"], "externalIPs").is_empty() {
            drop_if_same(old, new, "externalTrafficPolicy");
        }
    }
    if needs_health_port(old) && !needs_health_port(new) {
        drop_if_same(old, new, HEALTH_PORT);
    }
    if text_at(new, &["spec", "type"]) != "LoadBalancer" {
        drop_if_same(old, new, "allocateLoadBalancerNodePorts");
        drop_if_same(old, new, "loadBalancerClass");
    }
}

fn drop_if_same(old: &Value, new: &mut Value, key: &str) {
    if old["spec"][key] == new["spec"][key] {
        object::remove(&mut new["spec"], key);
    }
}

fn keep_allocated(old: &Value, new: &mut Value) {
    if text_at(new, &["spec", "type"]) == "ExternalName" || text_at(old, &["spec", "type"]) == "ExternalName"
    {
        return;
    }
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let unset = match &new["spec"][key] {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            _ => false,
        };
        if unset && !old["spec"][key].is_null() {
            new["spec"][key] = old["spec"][key].clone();
        }
    }
    if !matches!(text_at(new, &["spec", "type"]), "NodePort" | "LoadBalancer") {
        return;
    }
    if needs_health_port(old) && needs_health_port(new) && new["spec"][HEALTH_PORT].is_null() {
        new["spec"][HEALTH_PORT] = old["spec"][HEALTH_PORT].clone();
    }
    let before: Vec<Value> = items(&old["spec"], "ports").to_vec();
    for port in items_mut(&mut new["spec"], "ports") {
        let same = before.iter().find(|b| b["port"] == port["port"] && b["protocol"] == port["protocol"]);
        if let Some(number) = same.and_then(|b| b.get("nodePort"))
            && port["nodePort"].is_null()
        {
            port["nodePort"] = number.clone();
        }
    }
}

fn check(service: &Value, causes: &mut Vec<Cause>) {
    let spec = &service["spec"];
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !types.contains(&text(spec, "type")) {
        causes.push(Cause::not_supported("spec.type", &spec["type"], &types));
    }
    let headless = text(spec, "clusterIP") == "None";
    let ports = items(spec, "ports");
    match text(spec, "type") {
        "ExternalName" if super::is_dns_subdomain(text(spec, "externalName").trim_end_matches('.')) => {}
        "ExternalName" => {
            let given = at(spec, &["externalName"]);
            causes.push(Cause::invalid("spec.externalName", given, "must be a DNS name"));
        }
        _ if ports.is_empty() && !headless => causes.push(Cause::required("spec.ports", "")),
        "NodePort" | "LoadBalancer" if headless => {
            let detail = format!("may not be set to 'None' for {} services", text(spec, "type"));
            causes.push(Cause::invalid("spec.clusterIPs[0]", &"None".into(), &detail));
        }
        _ => {}
    }
    if !spec[HEALTH_PORT].is_null() && !needs_health_port(service) {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        causes.push(Cause::invalid("spec.healthCheckNodePort", &spec[HEALTH_PORT], detail));
    }
    let mut seen = HashSet::new();
    let mut names = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        if !port["port"].as_i64().is_some_and(|p| (1..=65535).contains(&p)) {
            let detail = "must be between 1 and 65535, inclusive";
            causes.push(Cause::invalid(format!("{field}.port"), at(port, &["port"]), detail));
        }
        if !["SCTP", "TCP", "UDP"].contains(&text(port, "protocol")) {
            causes.push(Cause::not_supported(
                format!("{field}.protocol"),
                at(port, &["protocol"]),
                &["SCTP", "TCP", "UDP"],
            ));
        }
        if ports.len() > 1 && text(port, "name").is_empty() {
            causes.push(Cause::required(format!("{field}.name"), ""));
        } else if !text(port, "name").is_empty() && !names.insert(text(port, "name")) {
            causes.push(Cause::duplicate(format!("{field}.name"), at(port, &["name"])));
        }
        if !seen.insert((port["port"].as_i64(), text(port, "protocol"))) {
            causes.push(Cause::duplicate(&field, port));
        }
        if !port["nodePort"].is_null() && text(spec, "type") == "ClusterIP" {
            let detail = "may not be used when `type` is 'ClusterIP'";
            causes.push(Cause::forbidden(format!("{field}.nodePort"), detail));
        }
    }
}

/// Gives addresses and ports to what has none. What the old object had is its own already.
fn allocate(
    allocator: &Allocator,
    service: &mut Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
) -> ApiResult<()> {
    let kind = text_at(service, &["spec", "type"]).to_owned();
    if kind == "ExternalName" {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            object::remove(&mut service["spec"], key);
        }
        return Ok(());
    }
    allocate_addresses(allocator, service, old, causes)?;
    let owned: Vec<u16> = old.map(ports_of).unwrap_or_default();
    let skipped = kind == "ClusterIP" || service["spec"]["allocateLoadBalancerNodePorts"] == false;
    if !skipped && causes.is_empty() {
        for (i, port) in items_mut(&mut service["spec"], "ports").iter_mut().enumerate() {
            let field = format!("spec.ports[{i}].nodePort");
            let given = allocate_port(allocator, &port["nodePort"], &owned, (field, causes))?;
            if let Some(number) = given {
                port["nodePort"] = number.into();
            }
        }
    }
    if needs_health_port(service) && causes.is_empty() {
        let field = "spec.healthCheckNodePort".to_owned();
        let given = allocate_port(allocator, &service["spec"][HEALTH_PORT], &owned, (field, causes))?;
        if let Some(number) = given {
            service["spec"][HEALTH_PORT] = number.into();
        }
    }
    Ok(())
}

/// Takes the port that was asked for, or gives one where none was.
fn allocate_port(
    allocator: &Allocator,
    asked: &Value,
    owned: &[u16],
    (field, causes): (String, &mut Vec<Cause>),
) -> ApiResult<Option<u16>> {
    let Some(number) = asked.as_u64() else {
        let number =
            allocator.next_port().ok_or_else(|| ApiError::internal("range of node ports is full"))?;
        return Ok(Some(number));
    };
    let number = u16::try_from(number).unwrap_or(0);
    if !NODE_PORTS.contains(&number) {
        let detail = "provided port is not in the valid range. The range of valid ports is 30000-32767";
        causes.push(Cause::invalid(field, asked, detail));
    } else if !owned.contains(&number) && !allocator.claim_port(number) {
        causes.push(Cause::invalid(field, asked, "provided port is already allocated"));
    }
    Ok(None)
}

fn allocate_addresses(
    allocator: &Allocator,
    service: &mut Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
) -> ApiResult<()> {
    let spec = &mut service["spec"];
    let available = allocator.families();
    let policy = match text(spec, "ipFamilyPolicy") {
        "" if items(spec, "ipFamilies").len() > 1 => "RequireDualStack",
        "" => "SingleStack",
        given => given,
    }
    .to_owned();
    let mut families: Vec<String> =
        items(spec, "ipFamilies").iter().filter_map(|f| f.as_str().map(str::to_owned)).collect();
    if families.is_empty() {
        families.push((*available.first().unwrap_or(&"IPv4")).to_owned());
    }
    if policy != "SingleStack" && families.len() == 1 {
        families.extend(available.iter().find(|f| **f != families[0]).map(|f| (*f).to_owned()));
    }
    if let Some(bad) = families.iter().find(|f| !available.contains(&f.as_str())) {
        let detail = "not configured on this cluster";
        causes.push(Cause::invalid("spec.ipFamilies[0]", &bad.as_str().into(), detail));
        return Ok(());
    }
    if policy == "RequireDualStack" && families.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        causes.push(Cause::invalid("spec.ipFamilyPolicy", &policy.as_str().into(), detail));
        return Ok(());
    }
    spec["ipFamilies"] = families.clone().into();
    spec["ipFamilyPolicy"] = policy.into();
    if text(spec, "clusterIP") == "None" {
        spec["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    let owned = old.map(addresses_of).unwrap_or_default();
    let mut addresses: Vec<String> =
        items(spec, "clusterIPs").iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
    if addresses.is_empty() && !text(spec, "clusterIP").is_empty() {
        addresses.push(text(spec, "clusterIP").to_owned());
    }
    for (i, given) in addresses.iter().enumerate() {
        let fine = given.parse().is_ok_and(|a| owned.contains(&a) || allocator.claim_address(a));
        if !fine {
            let detail = format!(
                "failed to allocate IP {given}: the provided IP is not in the valid range or is already allocated"
            );
            causes.push(Cause::invalid(format!("spec.clusterIPs[{i}]"), &given.as_str().into(), &detail));
            return Ok(());
        }
    }
    for wanted in families.iter().skip(addresses.len()) {
        let address = allocator
            .next_address(wanted)
            .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?;
        addresses.push(address.to_string());
    }
    spec["clusterIP"] = addresses[0].clone().into();
    spec["clusterIPs"] = addresses.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(allocator: &Allocator, spec: &Value) -> (Value, Vec<String>) {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        let mut causes = Vec::new();
        fill(&mut service);
        check(&service, &mut causes);
        if causes.is_empty() {
            allocate(allocator, &mut service, None, &mut causes).unwrap();
        }
        (service["spec"].clone(), causes.into_iter().map(|c| c.field).collect())
    }

    #[test]
    fn a_service_gets_an_address_and_defaults() {
        let allocator = Allocator::new(vec!["10.96.0.0/24".parse().unwrap()]);
        let (spec, causes) = made(&allocator, &json!({"selector": {"a": "b"}, "ports": [{"port": 80}]}));
        assert_eq!(causes, Vec::<String>::new());
        assert_eq!(
            spec,
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "selector": {"a": "b"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"]})
        );
    }

    #[test]
    fn addresses_and_ports_are_given_once_and_come_back() {
        let allocator = Allocator::new(vec!["10.96.0.0/29".parse().unwrap()]);
        let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
        let all: Vec<Value> = (0..5).map(|_| made(&allocator, &spec).0).collect();
        let addresses: HashSet<&str> = all.iter().map(|s| text(s, "clusterIP")).collect();
        assert_eq!(addresses.len(), 5, "{addresses:?}");
        let ports: HashSet<_> = all.iter().map(|s| s["ports"][0]["nodePort"].as_u64()).collect();
        assert_eq!(ports.len(), 5);
        assert_eq!(allocator.next_address("IPv4"), None);
        allocator.release(&json!({"spec": all[0]}));
        assert_eq!(allocator.next_address("IPv4"), Some(text(&all[0], "clusterIP").parse().unwrap()));
    }

    #[test]
    fn a_service_that_is_no_longer_outside_gives_up_its_node_ports() {
        let old = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "nodePort": 30000}]}});
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        drop_of_old_type(&old, &mut new);
        assert_eq!(new, json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80}]}}));
    }

    #[test]
    fn what_was_asked_for_and_is_taken_is_refused() {
        let allocator = Allocator::new(vec!["10.96.0.0/24".parse().unwrap()]);
        let want = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]});
        assert!(made(&allocator, &want).1.is_empty());
        assert_eq!(made(&allocator, &want).1, ["spec.clusterIPs[0]"]);
        assert_eq!(
            made(&allocator, &json!({"clusterIP": "1.2.3.4", "ports": [{"port": 80}]})).1,
            ["spec.clusterIPs[0]"]
        );
        assert_eq!(made(&allocator, &json!({"ports": []})).1, ["spec.ports"]);
        assert_eq!(made(&allocator, &json!({"clusterIP": "None"})).1, Vec::<String>::new());
    }

    #[test]
    fn a_local_load_balancer_gets_a_health_check_port_and_keeps_it() {
        let allocator = Allocator::new(vec!["10.96.0.0/24".parse().unwrap()]);
        let local = |port: Value| {
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
                   "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]})
        };
        let (first, causes) = made(&allocator, &local(0.into()));
        assert_eq!(causes, Vec::<String>::new());
        let number = first[HEALTH_PORT].as_u64().unwrap();
        assert!(NODE_PORTS.contains(&u16::try_from(number).unwrap()), "{number}");
        assert_eq!(made(&allocator, &local(number.into())).1, ["spec.healthCheckNodePort"], "it is taken");
        assert_eq!(made(&allocator, &local(80.into())).1, ["spec.healthCheckNodePort"], "out of range");
        allocator.release(&json!({"spec": first}));
        assert_eq!(made(&allocator, &local(number.into())).0[HEALTH_PORT], number, "it came back");
        for spec in [
            json!({"type": "LoadBalancer", "healthCheckNodePort": 32000, "ports": [{"port": 80}]}),
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "ports": [{"port": 80}]}),
        ] {
            assert_eq!(made(&allocator, &spec).1, ["spec.healthCheckNodePort"], "{spec}");
        }
    }

    #[test]
    fn a_health_check_port_stays_while_it_is_needed_and_goes_with_the_need() {
        let old = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
            "ports": [{"port": 80, "nodePort": 30000}]}});
        let mut same = old.clone();
        object::remove(&mut same["spec"], HEALTH_PORT);
        keep_allocated(&old, &mut same);
        assert_eq!(same, old, "an apply that does not name it changes nothing");
        let mut cluster = old.clone();
        cluster["spec"]["externalTrafficPolicy"] = "Cluster".into();
        drop_of_old_type(&old, &mut cluster);
        assert_eq!(cluster["spec"][HEALTH_PORT], Value::Null);
    }
}
