//! A service the kernel refuses, on a kernel that takes all the others: found by rehearsal, while the others serve.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::time::SystemTime;

use lab::cluster::{A, B, VIP, config, pod, service, slice, tcp_port, web};
use lab::{Lab, Outcome};
use nix::Error as Errno;
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::Family;
use orlop_netproxy::ruleset::{Element, Key, Rule, SetName};
use orlop_netproxy::{
    Backend, BackendError, Event, Flow, FlowFilter, FoundRule, FoundTable, Operation, Proxy, Transaction,
};
use serde_json::json;

const CULPRIT: &str = "10.96.0.66";

/// The kernel, but for one address.
struct Picky(Netlink);

impl Backend for Picky {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), BackendError> {
        let culprit =
            |element: &Element| matches!(element.key, Key::Vip(vip) if vip.address.to_string() == CULPRIT);
        let refused = transaction.operations.iter().any(|operation| match operation {
            Operation::AddElements(_, _, elements) => elements.iter().any(culprit),
            _ => false,
        });
        if refused {
            let action = "commit".to_owned();
            return Err(BackendError::Kernel { action, errno: Errno::EINVAL, operation: None });
        }
        self.0.commit(transaction)
    }

    fn inspect(&mut self, table: &str, family: Family) -> Result<Option<FoundTable>, BackendError> {
        self.0.inspect(table, family)
    }

    fn elements(&mut self, table: &str, family: Family, set: &SetName) -> Result<Vec<Element>, BackendError> {
        self.0.elements(table, family, set)
    }

    fn same_rule(&self, family: Family, found: &FoundRule, wanted: &Rule) -> bool {
        self.0.same_rule(family, found, wanted)
    }

    fn flows(&mut self, filter: &FlowFilter) -> Result<Vec<Flow>, BackendError> {
        self.0.flows(filter)
    }

    fn forget_flows(&mut self, flows: &[Flow]) -> Result<(), BackendError> {
        self.0.forget_flows(flows)
    }
}

#[test]
fn the_others_serve_while_the_service_at_fault_is_found() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = lab.on_node(|| Proxy::new(config(), Picky(Netlink::open().unwrap())));
    proxy.apply(Event::ServicesReset(Vec::new()));
    proxy.apply(Event::SlicesReset(Vec::new()));
    proxy.apply(web());
    proxy.apply(slice("web", &tcp_port(), &[A]));
    // Among the others is everything a rehearsal has to make and to remove again.
    let spec = json!({ "type": "LoadBalancer", "clusterIP": "10.96.0.2", "externalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["10.0.0.0/8"], "ports": [{ "port": 80, "nodePort": 30080 }] });
    proxy.apply(service("sticky", &spec));
    proxy.apply(slice("sticky", &tcp_port(), &[A, B]));
    proxy.sync(SystemTime::now()).unwrap();
    let plain = |address: &str| json!({ "clusterIP": address, "ports": [{ "port": 80 }] });
    proxy.apply(service("culprit", &plain(CULPRIT)));
    proxy.apply(slice("culprit", &tcp_port(), &[B]));
    proxy.apply(service("late", &plain("10.96.0.3")));
    proxy.apply(slice("late", &tcp_port(), &[B]));
    for _ in 0..2 {
        proxy.sync(SystemTime::now()).unwrap_err();
        assert_eq!(pod(&lab.tcp("client", VIP, 80)), "a", "a refused transaction changes nothing");
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut tried = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(matches!(lab.tcp("client", VIP, 80), Outcome::Answered(..)), "after {tried}");
                tried += 1;
            }
        });
        let report = proxy.sync(SystemTime::now());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        client.join().unwrap();
        assert_eq!(report.unwrap().quarantined, 1);
    });
    for (address, name) in [(VIP, "a"), ("10.96.0.3", "b")] {
        assert_eq!(pod(&lab.tcp("client", address, 80)), name);
    }
    assert!(matches!(lab.tcp("client", "10.96.0.2", 80), Outcome::Answered(..)));
    assert_eq!(proxy.verify().unwrap().differences, Vec::<String>::new());
    let tables = lab.nft(&["list", "tables"]).unwrap();
    assert_eq!(tables.lines().count(), 2, "no rehearsal is left: {tables}");
    // Changed, it is tried again.
    proxy.apply(service("culprit", &plain("10.96.0.67")));
    proxy.sync(SystemTime::now()).unwrap();
    assert_eq!(pod(&lab.tcp("client", "10.96.0.67", 80)), "b");
}
