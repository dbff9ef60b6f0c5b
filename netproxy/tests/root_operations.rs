//! What people and tools see: explain, verify, stock nft, the probe, leftovers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::time::SystemTime;

use lab::Lab;
use lab::cluster::{A, B, FAR, VIP, proxy, slice, tcp_port, web};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::{Family, Protocol};
use orlop_netproxy::ruleset::{SetName, Target};
use orlop_netproxy::{Event, Query};
use serde_json::{Value as Json, json};

#[test]
fn stock_nft_reads_the_same() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    let spec = json!({ "type": "LoadBalancer", "clusterIP": VIP, "externalIPs": ["198.51.100.1"],
        "loadBalancerSourceRanges": ["10.0.0.0/8", "192.0.2.0/24"], "externalTrafficPolicy": "Local",
        "ports": [{ "name": "t", "port": 80, "nodePort": 30080 }, { "name": "s", "port": 81, "protocol": "SCTP" }] });
    let mut object = json!({ "metadata": { "namespace": "ns", "name": "web" }, "spec": spec });
    object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } });
    proxy.apply(Event::ServiceApplied(Box::new(serde_json::from_value(object).unwrap())));
    let ports = json!([{ "name": "t", "port": 8080 }, { "name": "s", "port": 9, "protocol": "SCTP" }]);
    proxy.apply(slice("web", &ports, &[A, B, FAR]));
    proxy.sync(SystemTime::now()).unwrap();
    assert_eq!(lab.on_node(|| proxy.verify_with_nft()).unwrap(), Vec::<String>::new());
    let listing: Json =
        serde_json::from_str(&lab.nft(&["-j", "list", "table", "ip", "orlop"]).unwrap()).unwrap();
    let mut elements = std::collections::BTreeMap::new();
    for object in listing["nftables"].as_array().unwrap() {
        for kind in ["set", "map"] {
            if let Some(name) = object[kind]["name"].as_str() {
                elements.insert(name.to_owned(), object[kind]["elem"].as_array().map_or(0, Vec::len));
            }
        }
    }
    let wanted = proxy.wanted();
    for set in SetName::STATIC {
        let count = wanted.sets.get(&(Family::V4, set.clone())).map_or(0, std::collections::BTreeMap::len);
        assert_eq!(elements.get(&set.to_string()), Some(&count), "{set}");
    }
    lab::end(proxy);
    lab.nft(&["add", "chain", "ip", "orlop", "stranger"]).unwrap();
    let mut looking = self::proxy(&lab);
    looking.verify().unwrap();
    let differences = lab.on_node(|| looking.verify_with_nft()).unwrap();
    assert!(
        differences.contains(&"nft sees ip chain stranger, which is not ours".to_owned()),
        "{differences:?}"
    );
}

#[test]
fn explain_says_what_the_kernel_does() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    proxy.apply(web());
    proxy.apply(slice("web", &tcp_port(), &[A]));
    proxy.sync(SystemTime::now()).unwrap();
    let query = Query {
        destination: Target { address: VIP.parse().unwrap(), port: 80 },
        protocol: Protocol::Tcp,
        source: Some(lab::OUTSIDE_IP.parse().unwrap()),
        interface: None,
    };
    let explanation = proxy.explain(query.clone()).unwrap();
    assert!(explanation.agrees());
    // Another process may look while the first one owns the table, and changes nothing.
    let mut looking = self::proxy(&lab);
    looking.apply(web());
    looking.apply(slice("web", &tcp_port(), &[A]));
    assert_eq!(looking.explain(query).unwrap(), explanation);
    assert_eq!(looking.verify().unwrap().differences, Vec::<String>::new());
    looking.apply(slice("web", &tcp_port(), &[A, B]));
    assert!(!looking.verify().unwrap().differences.is_empty());
    let text = explanation.to_string();
    for part in ["ns/web", "sent to 10.180.0.10:8080 (masqueraded)", "kernel    the same"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(proxy.status().to_string().contains("services                 1"));
}

#[test]
fn the_kernel_is_probed_without_a_trace_and_interfaces_are_listed() {
    require_root!();
    let lab = Lab::new();
    let mut netlink = lab.on_node(|| Netlink::open().unwrap());
    for family in Family::ALL {
        netlink.probe(family).unwrap();
    }
    assert_eq!(netlink.families(), Family::ALL);
    assert_eq!(lab.nft(&["list", "tables"]).unwrap(), "");
    let addresses = lab.on_node(|| orlop_netproxy::netlink::interface_addresses().unwrap());
    for own in [lab::NODE_IP, lab::NODE_OTHER_IP, lab::NODE_IP6, "127.0.0.1"] {
        assert!(addresses.contains(&own.parse().unwrap()), "{own} in {addresses:?}");
    }
}

#[test]
fn leftovers_of_kube_proxy_go_when_asked() {
    require_root!();
    let lab = Lab::bare();
    for family in ["ip", "ip6"] {
        lab.nft(&["add", "table", family, "kube-proxy"]).unwrap();
    }
    let mut netlink = lab.on_node(|| Netlink::open().unwrap());
    assert_eq!(netlink.remove_table("kube-proxy").unwrap(), [Family::V4, Family::V6]);
    assert_eq!(netlink.remove_table("kube-proxy").unwrap(), []);
    assert_eq!(lab.nft(&["list", "tables"]).unwrap(), "");
}
