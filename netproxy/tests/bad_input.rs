//! Malformed and hostile objects: never a panic, and never another service's loss.

mod hostile;

use std::time::SystemTime;

use nix::Error as Errno;
use orlop_netproxy::fake::Fake;
use orlop_netproxy::objects::{ObjectName, Protocol, Service};
use orlop_netproxy::ruleset::{Key, Target};
use orlop_netproxy::{Config, Event, Operation, Outcome, Proxy, Query, Transaction};
use serde_json::json;

fn outcome(proxy: &mut Proxy<Fake>, address: &str) -> Outcome {
    let query = Query {
        destination: Target { address: address.parse().expect("an address"), port: 80 },
        protocol: Protocol::Tcp,
        source: Some("10.180.0.12".parse().expect("an address")),
        interface: None,
    };
    let explanation = proxy.explain(query).expect("the fake can be read");
    assert!(explanation.agrees(), "{explanation}");
    explanation.expected.outcome
}

fn good() -> Outcome {
    Outcome::Sent(vec![(Target { address: [10, 180, 0, 10].into(), port: 8080 }, false)])
}

#[test]
fn hostile_objects_hurt_nobody_else_and_are_counted_once() {
    let mut proxy = Proxy::new(Config::default(), Fake::default());
    for _ in 0..2 {
        for event in hostile::events(100_000) {
            proxy.apply(event);
        }
        let report = proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
        assert_eq!(report.quarantined, 0);
    }
    let problems = proxy.problems_total();
    assert!(problems >= hostile::COMPLAINTS_AT_LEAST, "{problems}");
    assert_eq!(outcome(&mut proxy, hostile::GOOD), good());
    let Outcome::Sent(targets) = outcome(&mut proxy, hostile::CROWDED) else { panic!("the crowd is served") };
    assert_eq!(targets.len(), 100_000);
    for event in hostile::events(99_999) {
        proxy.apply(event);
    }
    let report = proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    // The other crowd's choice is in its sticky chain.
    assert_eq!((report.added, report.removed), (1, 3), "a slot each, and the choice among one less");
    assert_eq!(proxy.problems_total(), problems, "the same problems are not counted again");
}

#[test]
fn a_service_the_kernel_refuses_is_set_aside_until_it_changes() {
    const CULPRIT: [u8; 4] = [10, 96, 0, 66];
    fn refuse(transaction: &Transaction) -> Option<(Errno, usize)> {
        let at_fault = |operation: &Operation| {
            match operation {
            Operation::AddElements(_, _, elements) => elements
                .iter()
                .any(|element| matches!(element.key, Key::Vip(vip) if vip.address == std::net::IpAddr::from(CULPRIT))),
            _ => false,
        }
        };
        transaction.operations.iter().position(at_fault).map(|index| (Errno::EINVAL, index))
    }
    let service = |name: &str, address: &str| -> Service {
        let spec = json!({ "clusterIP": address, "ports": [{ "port": 80 }] });
        serde_json::from_value(json!({ "metadata": { "namespace": "ns", "name": name }, "spec": spec }))
            .expect("a service")
    };
    let names: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
    let mut services: Vec<Service> =
        names.iter().zip(1..).map(|(name, n)| service(name, &format!("10.96.0.{n}"))).collect();
    services[23] = service("culprit", "10.96.0.66");
    let mut proxy = Proxy::new(Config::default(), Fake { refuse: Some(refuse), ..Fake::default() });
    proxy.apply(Event::ServicesReset(services));
    proxy.apply(Event::SlicesReset(Vec::new()));
    assert!(proxy.sync(SystemTime::UNIX_EPOCH).is_err());
    assert!(proxy.sync(SystemTime::UNIX_EPOCH).is_err());
    let report = proxy.sync(SystemTime::UNIX_EPOCH).expect("the others are programmed");
    assert_eq!(report.quarantined, 1);
    assert_eq!(outcome(&mut proxy, "10.96.0.1"), Outcome::Refused, "no endpoints, but programmed");
    assert_eq!(outcome(&mut proxy, "10.96.0.40"), Outcome::Refused);
    assert_eq!(outcome(&mut proxy, "10.96.0.66"), Outcome::Untouched);
    assert!(proxy.is_synced());
    // Others go on changing.
    proxy.apply(Event::ServiceDeleted(ObjectName::new("ns", "s0")));
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    assert_eq!(outcome(&mut proxy, "10.96.0.1"), Outcome::Untouched);
    // Once it is changed it is tried again.
    proxy.apply(Event::ServiceApplied(Box::new(service("culprit", "10.96.0.67"))));
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    assert_eq!(outcome(&mut proxy, "10.96.0.67"), Outcome::Refused);
}

#[test]
fn the_search_for_a_culprit_takes_nothing_from_the_others() {
    fn refuse(transaction: &Transaction) -> Option<(Errno, usize)> {
        let at_fault = |operation: &Operation| {
            match operation {
            Operation::AddElements(_, _, elements) => elements.iter().any(|element| {
                matches!(element.key, Key::Vip(vip) if vip.address == std::net::IpAddr::from([10, 96, 0, 66]))
            }),
            _ => false,
        }
        };
        transaction.operations.iter().position(at_fault).map(|index| (Errno::ENOSPC, index))
    }
    let mut proxy = Proxy::new(Config::default(), Fake::default());
    for event in hostile::events(3) {
        proxy.apply(event);
    }
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    proxy.backend_mut().refuse = Some(refuse);
    let spec = json!({ "clusterIP": "10.96.0.66", "ports": [{ "port": 80 }] });
    let object = json!({ "metadata": { "namespace": "ns", "name": "culprit" }, "spec": spec });
    proxy.apply(Event::ServiceApplied(Box::new(serde_json::from_value(object).expect("a service"))));
    let before = proxy.backend().log.len();
    assert!(proxy.sync(SystemTime::UNIX_EPOCH).is_err() && proxy.sync(SystemTime::UNIX_EPOCH).is_err());
    assert_eq!(proxy.sync(SystemTime::UNIX_EPOCH).expect("the others are programmed").quarantined, 1);
    let done = &proxy.backend().log[before..];
    let serves = |transaction: &Transaction| {
        let good: std::net::IpAddr = hostile::GOOD.parse().expect("an address");
        transaction.operations.iter().any(|operation| match operation {
            Operation::AddElements(_, _, elements) => {
                elements.iter().any(|element| matches!(element.key, Key::Vip(vip) if vip.address == good))
            }
            _ => false,
        })
    };
    let replacing = done.iter().filter(|transaction| transaction.table == "orlop");
    let replacing = replacing
        .filter(|transaction| transaction.operations.iter().any(|o| matches!(o, Operation::DeleteTable(_))));
    let all: Vec<bool> = replacing.map(serves).collect();
    assert_eq!(all, [true], "what is in the kernel is replaced once, by all but the culprit");
    assert!(done.len() > 1, "the search rehearsed");
    assert_eq!(proxy.backend().tables.len(), 2, "and left nothing behind");
    assert_eq!(outcome(&mut proxy, hostile::GOOD), good());
}

#[test]
fn a_kernel_that_takes_nothing_for_a_while_costs_no_service() {
    let mut proxy = Proxy::new(Config::default(), Fake::default());
    for event in hostile::events(3) {
        proxy.apply(event);
    }
    proxy.backend_mut().refuse = Some(|_| Some((Errno::ENOMEM, 0)));
    for _ in 0..6 {
        assert!(proxy.sync(SystemTime::UNIX_EPOCH).is_err());
    }
    proxy.backend_mut().refuse = None;
    let report = proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    assert_eq!((report.quarantined, report.replaced.len()), (0, 2));
    assert_eq!(outcome(&mut proxy, hostile::GOOD), good());
}

#[test]
fn a_chain_the_kernel_still_holds_is_removed_later_or_used_again() {
    fn busy(transaction: &Transaction) -> Option<(Errno, usize)> {
        let removes = |operation: &Operation| matches!(operation, Operation::DeleteChain(..));
        transaction.operations.iter().position(removes).map(|index| (Errno::EBUSY, index))
    }
    let spec = json!({ "clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP", "ports": [{ "port": 80 }] });
    let object = json!({ "metadata": { "namespace": "ns", "name": "sticky" }, "spec": spec });
    let service: Service = serde_json::from_value(object).expect("a service");
    let endpoints = json!({ "metadata": { "namespace": "ns", "name": "sticky", "labels": { "kubernetes.io/service-name": "sticky" } },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 8080 }], "endpoints": [{ "addresses": ["10.180.0.10"] }] });
    let mut proxy = Proxy::new(Config::default(), Fake { refuse: Some(busy), ..Fake::default() });
    proxy.apply(Event::ServicesReset(vec![service.clone()]));
    proxy.apply(Event::SlicesReset(vec![serde_json::from_value(endpoints).expect("a slice")]));
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    let left = |proxy: &Proxy<Fake>| {
        let tables = proxy.backend().tables.values();
        tables
            .flat_map(|table| table.chains.keys())
            .filter(|chain| chain.to_string().contains("ns/sticky"))
            .count()
    };
    let chains = left(&proxy);
    assert!(chains >= 2);
    let gone = || Event::ServiceDeleted(ObjectName::new("ns", "sticky"));
    for _ in 0..3 {
        proxy.apply(gone());
        proxy.sync(SystemTime::UNIX_EPOCH).expect("the service goes all the same");
        assert!(proxy.is_synced());
        assert_eq!((left(&proxy), outcome(&mut proxy, "10.96.0.1")), (chains, Outcome::Untouched));
        proxy.apply(Event::ServiceApplied(Box::new(service.clone())));
        proxy.sync(SystemTime::UNIX_EPOCH).expect("it comes back to chains that are still there");
        assert_eq!(outcome(&mut proxy, "10.96.0.1"), good());
    }
    proxy.apply(gone());
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    proxy.backend_mut().refuse = None;
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    assert_eq!(left(&proxy), 0);
}

#[test]
fn nothing_is_programmed_before_both_lists_are_complete() {
    let mut proxy = Proxy::new(Config::default(), Fake::default());
    let lists = hostile::events(3);
    for event in lists {
        assert!(!proxy.is_pending());
        assert!(proxy.sync(SystemTime::UNIX_EPOCH).expect("nothing to do").waiting);
        assert!(proxy.backend().tables.is_empty());
        proxy.apply(event);
    }
    assert!(proxy.is_pending() && !proxy.is_synced());
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    assert!(proxy.is_synced());
}

#[test]
fn a_refused_transaction_is_followed_by_a_full_replacement() {
    let mut proxy = Proxy::new(Config::default(), Fake::default());
    for event in hostile::events(3) {
        proxy.apply(event);
    }
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    proxy.backend_mut().refuse = Some(|_| Some((Errno::ENOBUFS, 0)));
    proxy.apply(Event::ServiceDeleted(ObjectName::new("ns", "crowded")));
    let error = proxy.sync(SystemTime::UNIX_EPOCH).expect_err("it is refused");
    assert!(error.to_string().contains("orlop"), "{error}");
    assert!(!proxy.is_synced());
    proxy.backend_mut().refuse = None;
    let report = proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    assert_eq!((report.replaced.len(), report.adopted.len()), (2, 0));
    assert_eq!(outcome(&mut proxy, hostile::GOOD), good());
    assert_eq!(proxy.verify().expect("the fake can be read").differences, Vec::<String>::new());
}

#[test]
fn more_complaints_than_are_remembered_are_still_counted() {
    let mut proxy = Proxy::new(Config::default(), Fake::default());
    for number in 0..5000 {
        let spec = json!({ "clusterIP": "10.96.0.600", "ports": [{ "port": 80 }] });
        let object = json!({ "metadata": { "namespace": "ns", "name": format!("s{number}") }, "spec": spec });
        proxy.apply(Event::ServiceApplied(Box::new(serde_json::from_value(object).expect("a service"))));
    }
    assert_eq!(proxy.problems_total(), 5000);
}
