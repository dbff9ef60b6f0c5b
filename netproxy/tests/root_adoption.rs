//! Restarts and foreign hands, with real packets: what is kept, what is repaired, what is replaced.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::time::SystemTime;

use lab::cluster::{A, B, FAR, VIP, config, pod, proxy, service, slice, tcp_port, web};
use lab::{Lab, Outcome};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::{Family, Protocol};
use orlop_netproxy::ruleset::{Element, Key, SetName, Value, Verdict, Vip};
use orlop_netproxy::{Backend, Error, Event, Operation, Proxy, Transaction};
use serde_json::json;

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
    lab::end(first);
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
    lab::end(first);
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
        lab::end(repairing);
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
    lab::end(first);
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
fn tables_without_owners_are_adopted_too_and_protected_once_that_is_wanted() {
    require_root!();
    let lab = Lab::new();
    let start = |protected: bool| {
        let open = || Netlink::open().unwrap();
        let mut proxy =
            lab.on_node(|| Proxy::new(config(), if protected { open() } else { open().unprotected() }));
        proxy.apply(Event::ServicesReset(Vec::new()));
        proxy.apply(Event::SlicesReset(Vec::new()));
        proxy.apply(web());
        proxy.apply(slice("web", &tcp_port(), &[A]));
        let report = proxy.sync(SystemTime::now()).unwrap();
        assert_eq!(pod(&lab.tcp("client", VIP, 80)), "a");
        lab::end(proxy);
        (report.adopted.len(), report.replaced.len(), report.added)
    };
    assert_eq!(start(false).1, 2);
    assert_eq!(start(false), (2, 0, 0));
    if lab.on_node(|| Netlink::open().unwrap().protects()) {
        assert_eq!(start(true).1, 2, "a table that others may change is replaced by one they may not");
        assert_eq!(start(true), (2, 0, 0));
    }
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
