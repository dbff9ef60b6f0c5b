//! What happens over time, with real packets: adoption, protection from others, affinity, fail-over, clean-up.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use lab::{Lab, Outcome};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::{Family, ObjectName, Protocol};
use orlop_netproxy::ruleset::{Element, Key, SetName, Target, Value, Verdict, Vip};
use orlop_netproxy::{Backend, Config, DetectLocal, Error, Event, Operation, Proxy, Query, Transaction};
use serde_json::{Value as Json, json};

fn service(name: &str, spec: &Json) -> Event {
    let object = json!({ "metadata": { "namespace": "ns", "name": name }, "spec": spec });
    Event::ServiceApplied(Box::new(serde_json::from_value(object).unwrap()))
}

fn slice(service: &str, ports: &Json, addresses: &[&str]) -> Event {
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
    Event::SliceApplied(Box::new(serde_json::from_value(object).unwrap()))
}

fn config() -> Config {
    Config {
        node_name: "here".to_owned(),
        node_addresses: vec![lab::NODE_IP.parse().unwrap()],
        detect_local: DetectLocal::ClusterCidr(vec!["10.180.0.0/16".parse().unwrap()]),
        ..Config::default()
    }
}

/// A proxy on the lab's node that has seen two empty lists.
fn proxy(lab: &Lab) -> Proxy<Netlink> {
    let mut proxy = lab.on_node(|| Proxy::new(config(), Netlink::open().unwrap()));
    proxy.apply(Event::ServicesReset(Vec::new()));
    proxy.apply(Event::SlicesReset(Vec::new()));
    proxy
}

const A: &str = "10.180.0.10";
const B: &str = "10.180.0.11";
const FAR: &str = "10.180.1.10";
const VIP: &str = "10.96.0.1";

fn web() -> Event {
    service("web", &json!({ "clusterIP": VIP, "ports": [{ "port": 80 }] }))
}

fn tcp_port() -> Json {
    json!([{ "name": "", "port": 8080 }])
}

fn pod(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Answered(pod, _) => pod,
        Outcome::Refused | Outcome::Silence => panic!("{outcome:?}"),
    }
}

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
fn an_intact_table_is_adopted_without_writing_and_survives_the_process() {
    require_root!();
    let lab = Lab::new();
    let affine =
        json!({ "clusterIP": "10.96.0.2", "sessionAffinity": "ClientIP", "ports": [{ "port": 80 }] });
    let fill = |proxy: &mut Proxy<Netlink>| {
        proxy.apply(web());
        proxy.apply(slice("web", &tcp_port(), &[A, B, FAR]));
        proxy.apply(service("affine", &affine));
        proxy.apply(slice("affine", &tcp_port(), &[A, B, FAR]));
    };
    let mut first = proxy(&lab);
    fill(&mut first);
    assert_eq!(first.sync(SystemTime::now()).unwrap().replaced, [Family::V4, Family::V6]);
    // An order of slots that a fresh start would not choose.
    first.apply(slice("web", &tcp_port(), &[B, FAR]));
    first.sync(SystemTime::now()).unwrap();
    first.apply(slice("web", &tcp_port(), &[A, B, FAR]));
    first.sync(SystemTime::now()).unwrap();
    let before = lab.tcp("client", "10.96.0.2", 80);
    drop(first);
    assert_eq!(lab.tcp("client", "10.96.0.2", 80), before, "the table outlives its owner");
    let mut second = proxy(&lab);
    fill(&mut second);
    let report = second.sync(SystemTime::now()).unwrap();
    assert_eq!(report.adopted, [Family::V4, Family::V6]);
    assert_eq!((report.added, report.removed), (0, 0));
    let operations = |proxy: &mut Proxy<Netlink>| proxy.verify().unwrap().differences;
    assert_eq!(operations(&mut second), Vec::<String>::new());
    assert_eq!(lab.tcp("client", "10.96.0.2", 80), before, "clients are still remembered");
}

#[test]
fn what_differs_is_repaired_and_a_foreign_shape_is_replaced() {
    require_root!();
    let lab = Lab::new();
    let mut first = proxy(&lab);
    first.apply(web());
    first.apply(slice("web", &tcp_port(), &[A]));
    first.sync(SystemTime::now()).unwrap();
    drop(first);
    for damage in
        ["delete element ip orlop services { 10.96.0.1 . tcp . 80 }", "flush chain ip orlop services"]
    {
        lab.nft(&damage.split(' ').collect::<Vec<_>>()).unwrap();
        let mut repairing = proxy(&lab);
        repairing.apply(web());
        repairing.apply(slice("web", &tcp_port(), &[A]));
        let report = repairing.sync(SystemTime::now()).unwrap();
        assert_eq!(report.adopted.len(), 2, "{damage}");
        assert_eq!(repairing.verify().unwrap().differences, Vec::<String>::new(), "{damage}");
        assert_eq!(pod(&lab.tcp("client", VIP, 80)), "a", "{damage}");
    }
    lab.nft(&["add", "chain", "ip", "orlop", "stranger"]).unwrap();
    let mut replacing = proxy(&lab);
    replacing.apply(web());
    replacing.apply(slice("web", &tcp_port(), &[A]));
    let report = replacing.sync(SystemTime::now()).unwrap();
    assert_eq!((report.replaced, report.adopted), (vec![Family::V4], vec![Family::V6]));
    assert_eq!(pod(&lab.tcp("client", VIP, 80)), "a");
}

#[test]
fn others_cannot_change_the_table_and_theirs_is_left_alone() {
    require_root!();
    let lab = Lab::new();
    lab.nft(&["add", "table", "ip", "theirs"]).unwrap();
    let mut first = proxy(&lab);
    first.apply(web());
    first.apply(slice("web", &tcp_port(), &[A]));
    first.sync(SystemTime::now()).unwrap();
    assert!(lab.nft(&["list", "tables"]).unwrap().contains("table ip theirs"));
    if !first.backend().protects() {
        println!("SKIP the kernel has no table owners");
        return;
    }
    lab.nft(&["flush", "ruleset"]).unwrap();
    assert_eq!(pod(&lab.tcp("client", VIP, 80)), "a", "flush ruleset passes it by");
    assert!(lab.nft(&["add", "chain", "ip", "orlop", "stranger"]).is_err());
    let mut second = proxy(&lab);
    let refused = second.sync(SystemTime::now());
    assert!(matches!(refused, Err(Error::Owned { .. })), "{refused:?}");
    drop(first);
    second.sync(SystemTime::now()).unwrap();
    second.cleanup().unwrap();
    assert_eq!(lab.nft(&["list", "tables"]).unwrap(), "");
}

#[test]
fn a_table_of_ones_own_is_repaired_and_replaced_in_place() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    proxy.apply(web());
    proxy.apply(slice("web", &tcp_port(), &[A]));
    proxy.sync(SystemTime::now()).unwrap();
    let key =
        |last: u8| Key::Vip(Vip { address: [10, 96, 0, last].into(), protocol: Protocol::Tcp, port: 80 });
    let element = |last| vec![Element { key: key(last), value: Value::Verdict(Verdict::Drop) }];
    let behind = |proxy: &mut Proxy<Netlink>, operation| {
        let transaction = Transaction { table: "orlop".to_owned(), operations: vec![operation] };
        proxy.backend_mut().commit(&transaction).unwrap();
    };
    // An element that should not be there, and that the proxy is told of.
    behind(&mut proxy, Operation::AddElements(Family::V4, SetName::Services, element(9)));
    proxy.apply(Event::ForeignChange);
    let report = proxy.sync(SystemTime::now()).unwrap();
    assert_eq!((report.added, report.removed, report.adopted.len()), (0, 1, 2));
    // One it is not told of, and that its next transaction collides with.
    behind(&mut proxy, Operation::AddElements(Family::V4, SetName::Services, element(2)));
    proxy.apply(service("other", &json!({ "clusterIP": "10.96.0.2", "ports": [{ "port": 80 }] })));
    proxy.apply(slice("other", &tcp_port(), &[B]));
    let error = proxy.sync(SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("set ip services") && error.contains("EEXIST"), "{error}");
    let report = proxy.sync(SystemTime::now()).unwrap();
    assert_eq!(report.replaced, [Family::V4, Family::V6]);
    assert_eq!((pod(&lab.tcp("client", VIP, 80)), pod(&lab.tcp("client", "10.96.0.2", 80))), ("a", "b"));
    assert_eq!(proxy.verify().unwrap().differences, Vec::<String>::new());
}

#[test]
fn without_owners_foreign_changes_are_heard_and_repaired() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = lab.on_node(|| Proxy::new(config(), Netlink::open().unwrap().unprotected()));
    proxy.apply(Event::ServicesReset(Vec::new()));
    proxy.apply(Event::SlicesReset(Vec::new()));
    proxy.apply(web());
    proxy.apply(slice("web", &tcp_port(), &[A]));
    let mut monitor = lab.on_node(|| proxy.backend().monitor("orlop").unwrap());
    proxy.sync(SystemTime::now()).unwrap();
    assert!(!monitor.changed(), "its own changes are not foreign");
    for damage in [
        "delete element ip orlop services { 10.96.0.1 . tcp . 80 }",
        "flush chain ip orlop services",
        "flush ruleset",
    ] {
        lab.nft(&damage.split(' ').collect::<Vec<_>>()).unwrap();
        assert_ne!(
            lab.tcp("client", VIP, 80),
            Outcome::Answered("a".to_owned(), "10.180.0.12".parse().unwrap())
        );
        assert!(monitor.changed(), "{damage}");
        proxy.apply(Event::ForeignChange);
        proxy.sync(SystemTime::now()).unwrap();
        assert_eq!(pod(&lab.tcp("client", VIP, 80)), "a", "{damage}");
        assert!(!monitor.changed());
    }
}

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
    drop(proxy);
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
fn a_monitor_hears_foreign_changes_and_not_its_own() {
    require_root!();
    let lab = Lab::bare();
    lab.nft(&["add", "table", "ip", "orlop"]).unwrap();
    let (mut netlink, mut monitor) = lab.on_node(|| {
        let netlink = Netlink::open().unwrap();
        let monitor = netlink.monitor("orlop").unwrap();
        (netlink, monitor)
    });
    assert!(!monitor.changed());
    lab.nft(&["add", "table", "ip", "unrelated"]).unwrap();
    assert!(!monitor.changed());
    lab.nft(&["add", "chain", "ip", "orlop", "stranger"]).unwrap();
    assert!(monitor.changed());
    assert!(!monitor.changed());
    let operations = vec![Operation::DeleteTable(Family::V4)];
    netlink.commit(&Transaction { table: "orlop".to_owned(), operations }).unwrap();
    assert!(!monitor.changed());
}

#[test]
fn clients_with_affinity_stay_until_their_time_or_their_endpoint_is_over() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    let spec = |seconds: u32| {
        json!({ "type": "NodePort", "clusterIP": VIP, "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
                "ports": [{ "port": 80, "nodePort": 30080 }] })
    };
    proxy.apply(service("web", &spec(600)));
    proxy.apply(slice("web", &tcp_port(), &[A, B, FAR]));
    proxy.sync(SystemTime::now()).unwrap();
    let mut chosen = BTreeSet::new();
    for from in ["client", "outside", "node", "distant", "b"] {
        let first = pod(&lab.tcp(from, VIP, 80)).to_owned();
        for _ in 0..8 {
            assert_eq!(pod(&lab.tcp(from, VIP, 80)), first, "from {from}");
        }
        assert_eq!(pod(&lab.tcp(from, lab::NODE_IP, 30080)), first, "{from} keeps it at the node port");
        chosen.insert(first);
    }
    let first = pod(&lab.tcp("client", VIP, 80)).to_owned();
    let address = |name: &str| lab::PODS.iter().find(|(pod, ..)| *pod == name).unwrap().1;
    let others: Vec<&str> = [A, B, FAR].into_iter().filter(|other| *other != address(&first)).collect();
    proxy.apply(slice("web", &tcp_port(), &others));
    let report = proxy.sync(SystemTime::now()).unwrap();
    assert!(report.clients_removed >= 1, "{report:?}");
    let second = pod(&lab.tcp("client", VIP, 80)).to_owned();
    assert_ne!(second, first);
    for _ in 0..8 {
        assert_eq!(pod(&lab.tcp("client", VIP, 80)), second);
    }
    // A short time: after it, the client is free to get another.
    proxy.apply(slice("web", &tcp_port(), &[A, B, FAR]));
    proxy.apply(service("web", &spec(1)));
    proxy.sync(SystemTime::now()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        assert!(Instant::now() < deadline, "still only {seen:?}");
        seen.insert(pod(&lab.tcp("distant", "10.96.0.1", 80)).to_owned());
        std::thread::sleep(Duration::from_millis(1200));
    }
    assert_eq!(proxy.verify().unwrap().differences, Vec::<String>::new());
}

#[test]
fn affinity_holds_over_ipv6_and_where_only_local_endpoints_count_for_some() {
    require_root!();
    let lab = Lab::new();
    let config = Config {
        node_addresses: vec![lab::NODE_IP6.parse().unwrap()],
        detect_local: DetectLocal::ClusterCidr(vec!["fd00:180::/32".parse().unwrap()]),
        ..config()
    };
    let new = || lab.on_node(|| Proxy::new(config.clone(), Netlink::open().unwrap()));
    let object = json!({ "metadata": { "namespace": "ns", "name": "web" }, "spec": {
        "type": "NodePort", "clusterIP": "fd00:96::1", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }] } });
    let endpoints: Vec<Json> = lab::PODS
        .iter()
        .filter(|(pod, ..)| *pod != "client")
        .map(|(pod, _, v6)| json!({ "addresses": [v6], "nodeName": if pod.len() == 1 { "here" } else { "there" } }))
        .collect();
    let slice = json!({
        "metadata": { "namespace": "ns", "name": "web", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv6", "ports": [{ "name": "http", "port": 8080 }], "endpoints": endpoints });
    let feed = |proxy: &mut Proxy<Netlink>| {
        proxy.apply(Event::ServicesReset(vec![serde_json::from_value(object.clone()).unwrap()]));
        proxy.apply(Event::SlicesReset(vec![serde_json::from_value(slice.clone()).unwrap()]));
        proxy.sync(SystemTime::now()).unwrap()
    };
    let mut first = new();
    feed(&mut first);
    let ways = [
        ("client", "fd00:96::1", 80),
        ("client", lab::NODE_IP6, 30080),
        ("node", lab::NODE_IP6, 30080),
        ("outside", "fd00:96::1", 80),
        ("outside", lab::NODE_IP6, 30080),
    ];
    let chosen: Vec<String> =
        ways.iter().map(|(from, to, port)| pod(&lab.tcp(from, to, *port)).to_owned()).collect();
    assert_eq!(chosen[0], chosen[1], "a pod keeps its endpoint from one way to the other");
    assert!(["a", "b"].contains(&chosen[4].as_str()), "the outside gets a local endpoint");
    for _ in 0..6 {
        for ((from, to, port), kept) in ways.iter().zip(&chosen) {
            assert_eq!(pod(&lab.tcp(from, to, *port)), kept, "{from} to {to}");
        }
    }
    let listing = lab.nft(&["list", "table", "ip6", "orlop"]).unwrap();
    assert!(
        listing.contains(
            "update @clients/local/ns/web/tcp/http { ip6 saddr timeout 3h : ip6 daddr . th dport }"
        ),
        "{listing}"
    );
    drop(first);
    let mut second = new();
    let report = feed(&mut second);
    assert_eq!((report.added, report.removed, report.adopted.len()), (0, 0, 2));
    for ((from, to, port), kept) in ways.iter().zip(&chosen) {
        assert_eq!(pod(&lab.tcp(from, to, *port)), kept, "{from} to {to} after a restart");
    }
    second.apply(Event::ServicesReset(Vec::new()));
    second.sync(SystemTime::now()).unwrap();
    assert!(
        !lab.nft(&["list", "table", "ip6", "orlop"]).unwrap().contains("ns/web"),
        "nothing is left of it"
    );
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
            { "addresses": [A], "conditions": { "ready": false, "serving": true, "terminating": true } },
            { "addresses": [B] } ],
    });
    proxy.apply(Event::SliceApplied(Box::new(serde_json::from_value(object).unwrap())));
    assert_eq!(proxy.sync(SystemTime::now()).unwrap().flows_removed, 0);
    assert_eq!(pod(&lab.udp_from("client", 4444, VIP, 53)), "a", "the flow goes on");
    assert_eq!(pod(&lab.udp_from("client", 4446, VIP, 53)), "b", "a new one goes elsewhere");
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
    drop(first);
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
