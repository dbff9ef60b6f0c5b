//! Session affinity with real packets: who stays where, and for how long.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use lab::Lab;
use lab::cluster::{A, B, FAR, VIP, config, pod, proxy, service, slice, tcp_port};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::{Config, DetectLocal, Event, Outcome, Proxy, Query};
use serde_json::{Value as Json, json};

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
    lab::end(first);
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
fn affinity_can_be_switched_on_and_off_and_is_explained() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = proxy(&lab);
    let spec = |affinity: &str| {
        json!({ "type": "NodePort", "clusterIP": VIP, "sessionAffinity": affinity,
                "ports": [{ "port": 80, "nodePort": 30080 }] })
    };
    proxy.apply(slice("web", &tcp_port(), &[A, B, FAR]));
    let answers = |lab: &Lab, to: &str, port: u16, wanted: usize| {
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            seen.insert(pod(&lab.tcp("client", to, port)).to_owned());
            if wanted > 1 && seen.len() == wanted {
                break;
            }
        }
        assert_eq!(seen.len(), wanted, "{seen:?}");
        seen
    };
    for _ in 0..3 {
        proxy.apply(service("web", &spec("None")));
        proxy.sync(SystemTime::now()).unwrap();
        answers(&lab, VIP, 80, 3);
        answers(&lab, lab::NODE_IP, 30080, 3);
        assert!(!lab.nft(&["list", "table", "ip", "orlop"]).unwrap().contains("ns/web"), "no map is left");
        proxy.apply(service("web", &spec("ClientIP")));
        proxy.sync(SystemTime::now()).unwrap();
        let kept = answers(&lab, VIP, 80, 1);
        assert_eq!(answers(&lab, lab::NODE_IP, 30080, 1), kept);
        assert_eq!(proxy.verify().unwrap().differences, Vec::<String>::new());
        let query =
            Query { source: Some("10.180.0.12".parse().unwrap()), ..format!("{VIP}:80").parse().unwrap() };
        let explanation = proxy.explain(query).unwrap();
        assert!(explanation.agrees(), "what the kernel has learned is no difference: {explanation}");
        let Outcome::Sent(targets) = &explanation.expected.outcome else { panic!("{explanation}") };
        let address = lab::PODS.iter().find(|(pod, ..)| kept.contains(*pod)).unwrap().1;
        assert_eq!(targets.iter().map(|(to, _)| to.address.to_string()).collect::<Vec<_>>(), [address]);
    }
    // The other way round within one transaction: the service is another one, with another port and affinity.
    proxy.apply(service(
        "web",
        &json!({ "clusterIP": VIP, "sessionAffinity": "ClientIP", "ports": [{ "port": 81 }] }),
    ));
    proxy.sync(SystemTime::now()).unwrap();
    answers(&lab, VIP, 81, 1);
    assert_eq!(proxy.verify().unwrap().differences, Vec::<String>::new());
}
