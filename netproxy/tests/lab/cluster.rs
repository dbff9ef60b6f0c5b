//! Objects and proxies for the lab.
//!
//! Owns: the shorthand the tests share: a service, its slice, a proxy on the node.
//! Never: asserts anything but an answer.

use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::{Config, DetectLocal, Event, Proxy};
use serde_json::{Value as Json, json};

use super::{Lab, NODE_IP, Outcome};

pub fn service(name: &str, spec: &Json) -> Event {
    let object = json!({ "metadata": { "namespace": "ns", "name": name }, "spec": spec });
    Event::ServiceApplied(Box::new(serde_json::from_value(object).expect("the lab is right")))
}

pub fn slice(service: &str, ports: &Json, addresses: &[&str]) -> Event {
    let endpoints: Vec<Json> = addresses
        .iter()
        .map(|address| {
            let node = if address.starts_with("10.180.0.") { "here" } else { "there" };
            json!({ "addresses": [address], "nodeName": node })
        })
        .collect();
    let object = json!({
        "metadata": { "namespace": "ns", "name": service, "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    });
    Event::SliceApplied(Box::new(serde_json::from_value(object).expect("the lab is right")))
}

pub fn config() -> Config {
    Config {
        node_name: "here".to_owned(),
        node_addresses: vec![NODE_IP.parse().expect("the lab is right")],
        detect_local: DetectLocal::ClusterCidr(vec!["10.180.0.0/16".parse().expect("the lab is right")]),
        ..Config::default()
    }
}

/// A proxy on the lab's node that has seen two empty lists.
pub fn proxy(lab: &Lab) -> Proxy<Netlink> {
    let mut proxy = lab.on_node(|| Proxy::new(config(), Netlink::open().expect("the lab is right")));
    proxy.apply(Event::ServicesReset(Vec::new()));
    proxy.apply(Event::SlicesReset(Vec::new()));
    proxy
}

pub const A: &str = "10.180.0.10";
pub const B: &str = "10.180.0.11";
pub const FAR: &str = "10.180.1.10";
pub const VIP: &str = "10.96.0.1";

pub fn web() -> Event {
    service("web", &json!({ "clusterIP": VIP, "ports": [{ "port": 80 }] }))
}

pub fn tcp_port() -> Json {
    json!([{ "name": "", "port": 8080 }])
}

pub fn pod(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Answered(pod, _) => pod,
        Outcome::Refused | Outcome::Silence => panic!("{outcome:?}"),
    }
}
