//! What the proxy says of itself: health checks, latencies, counts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_netproxy::fake::Fake;
use orlop_netproxy::objects::{EndpointSlice, Family, ObjectName, Service};
use orlop_netproxy::{Changes, Config, Event, NodePortAddresses, Proxy};
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

#[test]
fn health_checks_are_answered_where_node_ports_are() {
    let at = |ranges: Option<&[&str]>| -> Vec<String> {
        let parse = |range: &&str| range.parse().unwrap();
        let config = Config {
            node_addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            node_port_addresses: match ranges {
                None => NodePortAddresses::Primary,
                Some(ranges) => NodePortAddresses::Ranges(ranges.iter().map(parse).collect()),
            },
            ..Config::default()
        };
        let mut proxy = Proxy::new(config, Fake::default());
        let own = ["127.0.0.1", "10.1.0.1", "10.2.0.1", "192.0.2.1"];
        proxy.apply(Event::InterfaceAddresses(own.iter().map(|address| address.parse().unwrap()).collect()));
        proxy.health_check_addresses().iter().map(ToString::to_string).collect()
    };
    assert_eq!(at(None), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(at(Some(&["10.1.0.0/16", "127.0.0.0/8"])), ["10.1.0.1"]);
    assert_eq!(at(Some(&["0.0.0.0/0"])), ["0.0.0.0"]);
    assert_eq!(at(Some(&["0.0.0.0/0", "::/0"])), ["0.0.0.0", "::"]);
}

#[test]
fn the_number_of_sets_and_chains_does_not_follow_the_number_of_services() {
    let shape = |count: u8, affinity: &str| {
        let mut proxy = proxy();
        for number in 0..count {
            let name = format!("s{number}");
            let mut spec = load_balancer("Local");
            spec["clusterIP"] = json!(format!("10.96.1.{number}"));
            for port in 0..2u16 {
                spec["ports"][usize::from(port)]["nodePort"] = json!(30000 + u16::from(number) * 2 + port);
            }
            if number == 0 {
                spec["sessionAffinity"] = json!(affinity);
            }
            proxy.apply(service(&name, &spec));
            let addresses = ["here", "there"].map(
                |node| json!({ "addresses": [format!("10.{}.0.{number}", node.len())], "nodeName": node }),
            );
            proxy.apply(slice(&name, &name, None, &json!(addresses)));
        }
        proxy.sync(UNIX_EPOCH).unwrap();
        let tables = &proxy.backend().tables;
        let sum = |each: &dyn Fn(&orlop_netproxy::fake::FakeTable) -> usize| {
            tables.values().map(each).sum::<usize>()
        };
        (
            sum(&|table| table.sets.len()),
            sum(&|table| table.chains.len()),
            sum(&|table| table.sets.values().map(|set| set.len()).sum()),
        )
    };
    let (few, many, sticky) = (shape(2, "None"), shape(200, "None"), shape(200, "ClientIP"));
    assert_eq!((few.0, few.1), (many.0, many.1));
    assert!(many.2 > 50 * few.2, "the elements are what grows: {few:?}, {many:?}");
    // Its two ports, each with those everyone may use and those on this node.
    assert_eq!(sticky.0 - many.0, 4, "a map of clients for each choice");
}
