//! Cluster addresses with real packets: TCP, UDP, IPv4 and IPv6, listing by stock nft.

mod lab;

use std::collections::BTreeSet;
use std::time::SystemTime;

use lab::{Lab, Outcome};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::{Config, DetectLocal, Event, Proxy};
use serde_json::{Value, json};

fn service(name: &str, spec: Value) -> Event {
    let object = json!({ "metadata": { "namespace": "ns", "name": name }, "spec": spec });
    Event::ServiceApplied(Box::new(serde_json::from_value(object).unwrap()))
}

fn slice(service: &str, kind: &str, ports: Value, endpoints: Value) -> Event {
    let object = json!({
        "metadata": { "namespace": "ns", "name": format!("{service}-{kind}"),
                      "labels": { "kubernetes.io/service-name": service } },
        "addressType": kind, "ports": ports, "endpoints": endpoints,
    });
    Event::SliceApplied(Box::new(serde_json::from_value(object).unwrap()))
}

fn config() -> Config {
    Config {
        node_name: "here".to_owned(),
        node_addresses: vec![lab::NODE_IP.parse().unwrap(), lab::NODE_IP6.parse().unwrap()],
        detect_local: DetectLocal::ClusterCidr(vec![
            "10.180.0.0/16".parse().unwrap(),
            "fd00:180::/32".parse().unwrap(),
        ]),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        ..Config::default()
    }
}

#[test]
fn cluster_ips_reach_every_endpoint_over_tcp_and_udp_in_both_families() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = lab.on_node(|| Proxy::new(config(), Netlink::open().unwrap()));
    proxy.apply(Event::ServicesReset(Vec::new()));
    proxy.apply(Event::SlicesReset(Vec::new()));
    proxy.apply(service(
        "web",
        json!({ "clusterIPs": ["10.96.0.1", "fd00:96::1"], "ports": [
            { "name": "t", "port": 80 }, { "name": "u", "port": 53, "protocol": "UDP" } ] }),
    ));
    proxy.apply(service("empty", json!({ "clusterIP": "10.96.0.2", "ports": [{ "port": 80 }] })));
    let ports = json!([{ "name": "t", "port": 8080 }, { "name": "u", "port": 443, "protocol": "UDP" }]);
    let endpoints = |addresses: [&str; 2]| json!(addresses.map(|address| json!({ "addresses": [address] })));
    proxy.apply(slice("web", "IPv4", ports.clone(), endpoints(["10.180.0.10", "10.180.1.10"])));
    proxy.apply(slice("web", "IPv6", ports, endpoints(["fd00:180::10", "fd00:180:0:1::10"])));
    let report = proxy.sync(SystemTime::now()).unwrap();
    println!("{report:?}");
    let listing = lab.nft(&["list", "ruleset"]).unwrap();
    println!("{listing}");
    for address in ["10.96.0.1", "fd00:96::1"] {
        let mut seen = BTreeSet::new();
        for _ in 0..12 {
            for outcome in [lab.tcp("client", address, 80), lab.udp("client", address, 53)] {
                let Outcome::Answered(pod, source) = outcome else { panic!("{address}: {outcome:?}") };
                assert!(["10.180.0.12", "fd00:180::12"].contains(&source.to_string().as_str()), "{source}");
                seen.insert(pod);
            }
        }
        assert_eq!(seen, BTreeSet::from(["a".to_owned(), "far".to_owned()]), "{address}");
    }
    for from in ["client", "node", "outside"] {
        assert_eq!(lab.tcp(from, "10.96.0.1", 81), Outcome::Refused, "undefined port from {from}");
        assert_eq!(lab.udp(from, "10.96.0.1", 81), Outcome::Refused, "undefined port from {from}");
        assert_eq!(lab.tcp(from, "10.96.0.2", 80), Outcome::Refused, "no endpoints from {from}");
        assert_eq!(lab.tcp(from, "10.96.7.7", 80), Outcome::Silence, "unallocated address from {from}");
    }
}
