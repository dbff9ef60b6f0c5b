//! Changes under traffic: endpoints come and go, UDP clients move on, no connection fails.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::collections::BTreeSet;
use std::time::SystemTime;

use lab::cluster::{A, B, FAR, VIP, pod, proxy, service, slice, tcp_port, web};
use lab::{Lab, Outcome};
use orlop_netproxy::objects::{Family, ObjectName, Protocol};
use orlop_netproxy::ruleset::{Element, Key, SetName, Value, Verdict, Vip};
use orlop_netproxy::{Backend, Event, Operation, Transaction};
use serde_json::json;

#[test]
fn a_change_of_one_endpoint_touches_its_elements_only() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    proxy.apply(web());
    proxy.apply(slice("web", &tcp_port(), &[A, FAR]));
    proxy.sync(SystemTime::now()).unwrap();
    proxy.apply(slice("web", &tcp_port(), &[B, FAR]));
    let report = proxy.sync(SystemTime::now()).unwrap();
    // The slot, and the hairpin elements of the two local pods.
    assert_eq!((report.added, report.removed), (2, 2));
    let seen: BTreeSet<String> = (0..20).map(|_| pod(&lab.tcp("client", VIP, 80)).to_owned()).collect();
    assert_eq!(seen, BTreeSet::from(["b".to_owned(), "far".to_owned()]));
    proxy.apply(slice("web", &tcp_port(), &[FAR]));
    proxy.sync(SystemTime::now()).unwrap();
    assert_eq!(pod(&lab.tcp("client", VIP, 80)), "far");
    proxy.apply(slice("web", &tcp_port(), &[]));
    proxy.sync(SystemTime::now()).unwrap();
    assert_eq!(lab.tcp("client", VIP, 80), Outcome::Refused);
    proxy.apply(Event::ServiceDeleted(ObjectName::new("ns", "web")));
    proxy.sync(SystemTime::now()).unwrap();
    assert!(proxy.verify().unwrap().differences.is_empty());
    let listing = lab.nft(&["list", "ruleset"]).unwrap();
    assert!(!listing.contains("elements = { 10.96"), "{listing}");
}

#[test]
fn udp_clients_move_on_when_their_endpoint_goes_also_the_last_one() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    let ports = json!([{ "name": "", "port": 443, "protocol": "UDP" }]);
    let spec = json!({ "type": "NodePort", "clusterIP": VIP,
                       "ports": [{ "port": 53, "nodePort": 30053, "protocol": "UDP" }] });
    proxy.apply(service("dns", &spec));
    proxy.apply(slice("dns", &ports, &[A]));
    proxy.sync(SystemTime::now()).unwrap();
    let both = |lab: &Lab| {
        (lab.udp_from("client", 4444, VIP, 53), lab.udp_from("outside", 4445, lab::NODE_IP, 30053))
    };
    let (cluster, node_port) = both(&lab);
    assert_eq!((pod(&cluster), pod(&node_port)), ("a", "a"));
    proxy.apply(slice("dns", &ports, &[FAR]));
    let report = proxy.sync(SystemTime::now()).unwrap();
    assert_eq!(report.flows_removed, 2);
    let (cluster, node_port) = both(&lab);
    assert_eq!((pod(&cluster), pod(&node_port)), ("far", "far"));
    proxy.apply(slice("dns", &ports, &[]));
    let report = proxy.sync(SystemTime::now()).unwrap();
    assert_eq!(report.flows_removed, 2);
    assert_eq!(both(&lab), (Outcome::Refused, Outcome::Refused));
    proxy.apply(slice("dns", &ports, &[B]));
    proxy.sync(SystemTime::now()).unwrap();
    let (cluster, node_port) = both(&lab);
    assert_eq!((pod(&cluster), pod(&node_port)), ("b", "b"));
    proxy.apply(Event::ServiceDeleted(ObjectName::new("ns", "dns")));
    assert_eq!(proxy.sync(SystemTime::now()).unwrap().flows_removed, 2);
}

#[test]
fn a_terminating_udp_endpoint_that_still_answers_keeps_its_clients() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    let ports = json!([{ "name": "", "port": 443, "protocol": "UDP" }]);
    proxy.apply(service("dns", &json!({ "clusterIP": VIP, "ports": [{ "port": 53, "protocol": "UDP" }] })));
    proxy.apply(slice("dns", &ports, &[A]));
    proxy.sync(SystemTime::now()).unwrap();
    assert_eq!(pod(&lab.udp_from("client", 4444, VIP, 53)), "a");
    let object = json!({
        "metadata": { "namespace": "ns", "name": "dns", "labels": { "kubernetes.io/service-name": "dns" } },
        "addressType": "IPv4", "ports": ports, "endpoints": [
            { "addresses": [A], "nodeName": "here", "conditions": { "ready": false, "serving": true, "terminating": true } },
            { "addresses": [B], "nodeName": "here" } ],
    });
    proxy.apply(Event::SliceApplied(Box::new(serde_json::from_value(object).unwrap())));
    assert_eq!(proxy.sync(SystemTime::now()).unwrap().flows_removed, 0);
    assert_eq!(pod(&lab.udp_from("client", 4444, VIP, 53)), "a", "the flow goes on");
    assert_eq!(pod(&lab.udp_from("client", 4446, VIP, 53)), "b", "a new one goes elsewhere");
    // The way every pod goes: first it terminates, then it is gone. Only the flows to it have to move then.
    proxy.apply(slice("dns", &ports, &[B]));
    let report = proxy.sync(SystemTime::now()).unwrap();
    assert_eq!((report.flows_removed, report.added, report.removed), (1, 0, 0));
    assert_eq!(pod(&lab.udp_from("client", 4444, VIP, 53)), "b", "the flow moves on");
}

#[test]
fn a_restart_forgets_flows_to_endpoints_that_went_meanwhile() {
    require_root!();
    let lab = Lab::new();
    let ports = json!([{ "name": "", "port": 443, "protocol": "UDP" }]);
    // More addresses than are looked at one by one.
    let spec = json!({ "clusterIP": VIP, "externalIPs": (1..12).map(|n| format!("198.51.100.{n}")).collect::<Vec<_>>(),
                       "ports": [{ "port": 53, "protocol": "UDP" }] });
    let mut first = proxy(&lab);
    first.apply(service("dns", &spec));
    first.apply(slice("dns", &ports, &[A]));
    first.sync(SystemTime::now()).unwrap();
    for to in [VIP, "198.51.100.7"] {
        assert_eq!(pod(&lab.udp_from("client", 4444, to, 53)), "a");
    }
    assert_eq!(pod(&lab.udp_from("client", 4445, FAR, 443)), "far", "a flow of no service");
    lab::end(first);
    let mut second = proxy(&lab);
    second.apply(service("dns", &spec));
    second.apply(slice("dns", &ports, &[B]));
    let report = second.sync(SystemTime::now()).unwrap();
    assert_eq!((report.adopted.len(), report.flows_removed), (2, 2));
    assert_eq!(report.flows_removed_by_family, [(Family::V4, 2)]);
    for to in [VIP, "198.51.100.7"] {
        assert_eq!(pod(&lab.udp_from("client", 4444, to, 53)), "b");
    }
}

#[test]
fn no_connection_fails_while_endpoints_come_and_go_and_tables_are_replaced() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    proxy.apply(web());
    proxy.apply(slice("web", &tcp_port(), &[A]));
    proxy.sync(SystemTime::now()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = ["client", "outside", "node"]
            .into_iter()
            .map(|from| {
                let (lab, done) = (&lab, &done);
                scope.spawn(move || {
                    let mut tried = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let outcome = lab.tcp(from, VIP, 80);
                        assert!(matches!(outcome, Outcome::Answered(..)), "from {from}: {outcome:?}");
                        tried += 1;
                    }
                    tried
                })
            })
            .collect();
        let lists: [&[&str]; 5] = [&[A, B, FAR], &[A], &[FAR, B], &[B], &[A, FAR]];
        let mut replaced = 0;
        for round in 0..400 {
            proxy.apply(slice("web", &tcp_port(), lists[round % lists.len()]));
            if round % 50 == 49 {
                // Collides with the next transaction, so that the one after it replaces both tables.
                let address = [10, 97, 0, u8::try_from(round / 50).unwrap()];
                let vip = Vip { address: address.into(), protocol: Protocol::Tcp, port: 80 };
                let element = Element { key: Key::Vip(vip), value: Value::Verdict(Verdict::Drop) };
                let add = Operation::AddElements(Family::V4, SetName::Services, vec![element]);
                let transaction = Transaction { table: "orlop".to_owned(), operations: vec![add] };
                proxy.backend_mut().commit(&transaction).unwrap();
                let name = format!("other-{round}");
                let spec = json!({ "clusterIP": std::net::IpAddr::from(address), "ports": [{ "port": 80 }] });
                proxy.apply(service(&name, &spec));
                proxy.apply(slice(&name, &tcp_port(), &[B]));
                assert!(proxy.sync(SystemTime::now()).is_err());
                assert_eq!(proxy.sync(SystemTime::now()).unwrap().replaced.len(), 2);
                replaced += 1;
            }
            proxy.sync(SystemTime::now()).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(replaced, 8);
        for client in clients {
            assert!(client.join().unwrap() > 0);
        }
    });
}

#[test]
fn unallocated_addresses_are_dropped_while_they_are_in_a_service_range() {
    require_root!();
    let lab = Lab::new();
    // What is not dropped goes outside, where the address exists and nobody listens.
    let outside = lab.namespace("outside");
    lab::ip(&format!("-n {outside} addr add 10.96.0.99/32 dev lo"));
    let mut proxy = proxy(&lab);
    proxy.apply(web());
    proxy.apply(slice("web", &tcp_port(), &[A]));
    proxy.sync(SystemTime::now()).unwrap();
    let ranges =
        |all: &[&str]| Event::ServiceRanges(all.iter().map(|range| range.parse().unwrap()).collect());
    let none: &[&str] = &[];
    for (announced, outcome) in [
        (none, Outcome::Refused),
        (&["10.97.0.0/16"], Outcome::Refused),
        (&["10.97.0.0/16", "10.96.0.0/16", "fd00:96::/112"], Outcome::Silence),
        (&["fd00:96::/112"], Outcome::Refused),
    ] {
        proxy.apply(ranges(announced));
        let report = proxy.sync(SystemTime::now()).unwrap();
        assert_eq!((report.added, report.removed), (0, 0), "no element knows of ranges");
        for from in ["client", "node"] {
            assert_eq!(lab.tcp(from, "10.96.0.99", 80), outcome, "from {from} with {announced:?}");
        }
        assert_eq!(pod(&lab.tcp("client", VIP, 80)), "a");
        assert_eq!(lab.tcp("client", VIP, 81), Outcome::Refused, "an undefined port is refused all the same");
        assert_eq!(proxy.verify().unwrap().differences, Vec::<String>::new());
    }
}
