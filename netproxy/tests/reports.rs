//! What the proxy says of itself: health checks, latencies, counts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_netproxy::fake::Fake;
use orlop_netproxy::objects::{EndpointSlice, Family, ObjectName, Service};
use orlop_netproxy::{Changes, Config, Event, Proxy};
use serde_json::{Value, json};

fn proxy() -> Proxy<Fake> {
    let mut proxy = Proxy::new(Config { node_name: "here".to_owned(), ..Config::default() }, Fake::default());
    proxy.apply(Event::ServicesReset(Vec::new()));
    proxy.apply(Event::SlicesReset(Vec::new()));
    proxy
}

fn service(name: &str, spec: &Value) -> Event {
    let object = json!({ "metadata": { "namespace": "ns", "name": name }, "spec": spec });
    Event::ServiceApplied(Box::new(serde_json::from_value::<Service>(object).unwrap()))
}

fn slice(name: &str, service: &str, trigger: Option<&str>, endpoints: &Value) -> Event {
    let mut object = json!({
        "metadata": { "namespace": "ns", "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "ports": [{ "name": "a", "port": 8080 }, { "name": "b", "port": 8081 }], "endpoints": endpoints,
    });
    if let Some(trigger) = trigger {
        object["metadata"]["annotations"] =
            json!({ "endpoints.kubernetes.io/last-change-trigger-time": trigger });
    }
    Event::SliceApplied(Box::new(serde_json::from_value::<EndpointSlice>(object).unwrap()))
}

fn load_balancer(policy: &str) -> Value {
    json!({ "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalTrafficPolicy": policy, "healthCheckNodePort": 32000,
            "ports": [{ "name": "a", "port": 80, "nodePort": 30080 }, { "name": "b", "port": 81, "nodePort": 30081 }] })
}

#[test]
fn health_checks_count_ready_endpoints_on_this_node_once() {
    let mut proxy = proxy();
    proxy.apply(service("web", &load_balancer("Local")));
    let endpoint = |address: &str, node: &str, ready: bool| {
        json!({ "addresses": [address], "nodeName": node,
                "conditions": { "ready": ready, "serving": true, "terminating": !ready } })
    };
    let count = |proxy: &Proxy<Fake>| -> Vec<usize> {
        proxy.health_checks().iter().map(|check| check.local_endpoints).collect()
    };
    assert_eq!(count(&proxy), [0]);
    let two = json!([
        endpoint("10.0.0.1", "here", true),
        endpoint("10.0.0.2", "there", true),
        endpoint("10.0.0.3", "here", true)
    ]);
    proxy.apply(slice("web", "web", None, &two));
    assert_eq!(count(&proxy), [2], "each once, although both ports have it");
    let one = |name| proxy.health_check(&ObjectName::new("ns", name)).map(|check| check.local_endpoints);
    assert_eq!((one("web"), one("other")), (Some(2), None));
    let terminating = json!([endpoint("10.0.0.1", "here", false), endpoint("10.0.0.2", "there", true)]);
    proxy.apply(slice("web", "web", None, &terminating));
    assert_eq!(count(&proxy), [0], "one that terminates still answers, but load balancers should turn away");
    proxy.apply(service("web", &load_balancer("Cluster")));
    assert_eq!(count(&proxy), [] as [usize; 0]);
}

#[test]
fn latencies_run_from_the_trigger_to_the_commit_but_not_for_first_lists() {
    let mut proxy = Proxy::new(Config::default(), Fake::default());
    let Event::SliceApplied(old) = slice("old", "web", Some("1970-01-01T00:00:10Z"), &json!([])) else {
        unreachable!()
    };
    proxy.apply(Event::ServicesReset(Vec::new()));
    proxy.apply(Event::SlicesReset(vec![*old]));
    let at = |seconds: u64| -> SystemTime { UNIX_EPOCH + Duration::from_secs(seconds) };
    assert_eq!(proxy.sync(at(100)).unwrap().latencies, []);
    proxy.apply(slice("new", "web", Some("1970-01-01T00:01:50Z"), &json!([{ "addresses": ["10.0.0.1"] }])));
    proxy.apply(slice("plain", "web", None, &json!([{ "addresses": ["10.0.0.2"] }])));
    assert_eq!(proxy.sync(at(112)).unwrap().latencies, [(Family::V4, Duration::from_secs(2))]);
    assert_eq!(proxy.sync(at(113)).unwrap().latencies, []);
}

#[test]
fn changes_are_counted_and_what_changes_nothing_is_not() {
    let mut proxy = proxy();
    let endpoints = json!([{ "addresses": ["10.0.0.1"] }]);
    for _ in 0..3 {
        proxy.apply(service("web", &load_balancer("Local")));
        proxy.apply(slice("web", "web", None, &endpoints));
        proxy.apply(slice("web", "web", Some("1970-01-01T00:01:50Z"), &endpoints));
    }
    let once = Changes { services: 1, endpoints: 1, services_pending: 1, endpoints_pending: 1 };
    assert_eq!(proxy.changes(), once);
    assert!(proxy.is_pending());
    proxy.sync(UNIX_EPOCH).unwrap();
    assert_eq!(proxy.changes(), Changes { services_pending: 0, endpoints_pending: 0, ..once });
    assert!(!proxy.is_pending() && proxy.is_synced());
    proxy.apply(slice("web", "web", None, &endpoints));
    assert!(!proxy.is_pending());
}

#[test]
fn the_status_says_what_has_no_endpoints_where() {
    let mut proxy = proxy();
    proxy.apply(service("away", &load_balancer("Local")));
    proxy.apply(slice("away", "away", None, &json!([{ "addresses": ["10.0.0.1"], "nodeName": "there" }])));
    let inside = json!({ "clusterIP": "10.96.0.2", "internalTrafficPolicy": "Local", "ports": [{ "name": "a", "port": 80 }] });
    proxy.apply(service("inside", &inside));
    proxy.apply(slice(
        "inside",
        "inside",
        None,
        &json!([{ "addresses": ["10.0.0.1"], "nodeName": "there" }]),
    ));
    proxy.apply(service("empty", &json!({ "clusterIP": "10.96.0.3", "ports": [{ "port": 80 }] })));
    proxy.sync(UNIX_EPOCH).unwrap();
    let status = proxy.status();
    assert!(status.synced);
    assert_eq!((status.services, status.frontends, status.without_endpoints), (3, 6, 1));
    assert_eq!(status.without_local_external.get(&Family::V4), Some(&2), "two node ports");
    assert_eq!(status.without_local_internal.get(&Family::V4), Some(&1));
    assert_eq!(status.chains.len(), 2);
}
