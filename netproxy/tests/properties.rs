//! Any sequence of events, synced step by step, ends where one full sync of the final state ends.
//!
//! The slots of a service may be dealt differently, so they are compared as sets: what is equal is every element but
//! the endpoints', and for these who may be reached through each address, in slots without a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use nix::Error as Errno;
use orlop_netproxy::fake::{Fake, FakeTable};
use orlop_netproxy::objects::{EndpointSlice, Family, ObjectName, Service};
use orlop_netproxy::ruleset::{Chain, Key, LOCAL_SLOTS, SetName, Target, Value, Verdict};
use orlop_netproxy::{Config, DetectLocal, Event, NodePortAddresses, Proxy};
use proptest::prelude::*;
use serde_json::json;

fn config() -> Config {
    Config {
        node_name: "here".to_owned(),
        node_addresses: vec!["192.0.2.1".parse().expect("an address")],
        detect_local: DetectLocal::ClusterCidr(vec!["10.180.0.0/16".parse().expect("a range")]),
        node_port_addresses: NodePortAddresses::Ranges(vec!["192.0.2.0/24".parse().expect("a range")]),
        ..Config::default()
    }
}

/// What may happen, small enough for addresses, ports and names to collide often.
#[derive(Clone, Debug)]
enum Step {
    Service { number: u8, shape: u16 },
    NoService(u8),
    Slice { service: u8, part: u8, shape: u16 },
    NoSlice { service: u8, part: u8 },
    Relist,
    Node { zone: u8 },
    Ranges(u8),
    Addresses(u8),
    Restart,
    Foreign,
    Refused,
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, any::<u16>()).prop_map(|(number, shape)| Step::Service { number, shape }),
        1 => (0u8..4).prop_map(Step::NoService),
        8 => (0u8..4, 0u8..2, any::<u16>()).prop_map(|(service, part, shape)| Step::Slice { service, part, shape }),
        2 => (0u8..4, 0u8..2).prop_map(|(service, part)| Step::NoSlice { service, part }),
        1 => Just(Step::Relist),
        1 => (0u8..3).prop_map(|zone| Step::Node { zone }),
        1 => (0u8..3).prop_map(Step::Ranges),
        1 => (0u8..3).prop_map(Step::Addresses),
        1 => Just(Step::Restart),
        1 => Just(Step::Refused),
        1 => Just(Step::Foreign),
        5 => Just(Step::Sync),
    ]
}

const fn bit(shape: u16, index: u16) -> bool {
    shape & (1 << index) != 0
}

fn service(number: u8, shape: u16) -> Service {
    let kind = ["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"][usize::from(shape & 3)];
    // Services 0 and 1 quarrel about a cluster address and a node port now and then.
    let own = if bit(shape, 2) { number } else { number / 2 };
    let mut ports = vec![json!({ "name": "p", "port": 80, "nodePort": 30000 + u16::from(own) })];
    if bit(shape, 3) {
        ports.push(json!({ "name": "q", "port": 53, "protocol": "UDP", "nodePort": 30000 + u16::from(own) }));
    }
    let policy = |local: bool| if local { "Local" } else { "Cluster" };
    let mut spec = json!({
        "type": kind, "ports": ports,
        "clusterIPs": [format!("10.96.0.{own}"), format!("fd00:96::{own}")],
        "externalTrafficPolicy": policy(bit(shape, 4)), "internalTrafficPolicy": policy(bit(shape, 5)),
    });
    if bit(shape, 6) {
        spec["externalIPs"] = json!(["10.96.0.1", format!("198.51.100.{own}")]);
    }
    if bit(shape, 7) {
        spec["sessionAffinity"] = json!("ClientIP");
    }
    if bit(shape, 8) {
        spec["loadBalancerSourceRanges"] = json!(["192.0.2.0/24", "10.0.0.0/8", "10.1.0.0/16"]);
    }
    let object = json!({
        "metadata": { "namespace": "ns", "name": format!("s{number}"), "creationTimestamp":
            if bit(shape, 9) { "2026-01-01T00:00:00Z" } else { "2026-01-02T00:00:00Z" } },
        "spec": spec,
        "status": { "loadBalancer": { "ingress": [{ "ip": format!("203.0.113.{own}") }] } },
    });
    serde_json::from_value(object).expect("a service")
}

fn slice(service: u8, part: u8, shape: u16) -> EndpointSlice {
    let endpoints: Vec<_> = (0..5u16)
        .filter(|index| bit(shape, *index))
        .map(|index| {
            let mut endpoint = json!({
                "addresses": [format!("10.180.0.{index}")],
                "nodeName": if index % 2 == 0 { "here" } else { "there" },
                "conditions": { "ready": !bit(shape, index + 5), "serving": !bit(shape, 10) || index > 2,
                                "terminating": bit(shape, index + 5) },
            });
            if bit(shape, 11) {
                endpoint["hints"] = json!({ "forZones": [{ "name": format!("z{}", index % 2) }] });
            }
            endpoint
        })
        .collect();
    let object = json!({
        "metadata": { "namespace": "ns", "name": format!("s{service}-{part}"),
                      "labels": { "kubernetes.io/service-name": format!("s{}", if bit(shape, 12) { 0 } else { service }) } },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "p", "port": 8080 }, { "name": "q", "port": 5353, "protocol": "UDP" }],
    });
    serde_json::from_value(object).expect("a slice")
}

/// The objects as a fresh list would give them.
#[derive(Default)]
struct World {
    services: BTreeMap<u8, Service>,
    slices: BTreeMap<(u8, u8), EndpointSlice>,
    zone: Option<u8>,
    ranges: u8,
    addresses: u8,
}

impl World {
    fn ranges(&self) -> Event {
        let ranges = (0..self.ranges).map(|n| format!("10.{}.0.0/16", 96 + n).parse().expect("a range"));
        Event::ServiceRanges(ranges.collect())
    }

    fn addresses(&self) -> Event {
        let addresses = (0..self.addresses).map(|n| [192, 0, 2 + n, 7].into());
        Event::InterfaceAddresses(addresses.collect())
    }

    fn list(&self) -> Vec<Event> {
        let node = |zone: u8| {
            let labels = json!({ "topology.kubernetes.io/zone": format!("z{zone}") });
            let object = json!({ "metadata": { "name": "here", "labels": labels } });
            Event::NodeApplied(Box::new(serde_json::from_value(object).expect("a node")))
        };
        let mut events: Vec<Event> = self.zone.map(node).into_iter().collect();
        events.extend([self.ranges(), self.addresses()]);
        events.push(Event::ServicesReset(self.services.values().cloned().collect()));
        events.push(Event::SlicesReset(self.slices.values().cloned().collect()));
        events
    }
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("ns", text)
}

/// What is in the fake, with the slots of each address turned into a set.
#[derive(PartialEq, Eq, Debug)]
struct Canonical {
    elements: BTreeMap<(Family, SetName), BTreeMap<Key, Value>>,
    endpoints: BTreeMap<(Family, String, bool), BTreeSet<Target>>,
    chains: BTreeMap<(Family, Chain), String>,
}

fn canonical(fake: &Fake) -> Canonical {
    let mut result =
        Canonical { elements: BTreeMap::new(), endpoints: BTreeMap::new(), chains: BTreeMap::new() };
    for ((_, family), FakeTable { sets, chains }) in &fake.tables {
        let mut slots: BTreeMap<(String, bool), Vec<u32>> = BTreeMap::new();
        for (set, elements) in sets {
            for (key, value) in elements {
                let (address, slot) = match key {
                    Key::VipSlot(vip, slot) => (vip.to_string(), *slot),
                    Key::PortSlot(port, slot) => (port.to_string(), *slot),
                    _ => {
                        let lane = result.elements.entry((*family, set.clone())).or_default();
                        lane.insert(*key, value.clone());
                        continue;
                    }
                };
                let local = slot >= LOCAL_SLOTS;
                slots.entry((address.clone(), local)).or_default().push(slot % LOCAL_SLOTS);
                let Value::Target(target) = value else { panic!("a slot holds an endpoint") };
                let new = result.endpoints.entry((*family, address, local)).or_default().insert(*target);
                assert!(new, "an endpoint has one slot");
            }
            if elements.is_empty() {
                result.elements.entry((*family, set.clone())).or_default();
            }
        }
        for (place, mut taken) in slots {
            taken.sort_unstable();
            let expected: Vec<u32> = (0..).take(taken.len()).collect();
            assert_eq!(taken, expected, "slots of {place:?} have no gap");
        }
        let gone_to = |chain: &Chain| {
            sets.values().any(|map| map.values().any(|v| *v == Value::Verdict(Verdict::Goto(chain.clone()))))
                || chains.values().flatten().any(|rule| rule.targets().any(|target| target == chain))
        };
        for (chain, rules) in chains {
            // Chains for few endpoints may stay without use.
            if !matches!(chain, Chain::Spread(..)) || gone_to(chain) {
                result.chains.insert((*family, chain.clone()), format!("{rules:?}"));
            }
        }
    }
    result
}

fn run(steps: &[Step]) -> (Proxy<Fake>, World) {
    let (mut world, mut proxy) = (World::default(), Proxy::new(config(), Fake::default()));
    for event in world.list() {
        proxy.apply(event);
    }
    for step in steps {
        let events = match step {
            Step::Service { number, shape } => {
                let object = service(*number, *shape);
                world.services.insert(*number, object.clone());
                vec![Event::ServiceApplied(Box::new(object))]
            }
            Step::NoService(number) => {
                world.services.remove(number);
                vec![Event::ServiceDeleted(name(&format!("s{number}")))]
            }
            Step::Slice { service, part, shape } => {
                let object = slice(*service, *part, *shape);
                world.slices.insert((*service, *part), object.clone());
                vec![Event::SliceApplied(Box::new(object))]
            }
            Step::NoSlice { service, part } => {
                world.slices.remove(&(*service, *part));
                vec![Event::SliceDeleted(name(&format!("s{service}-{part}")))]
            }
            Step::Node { zone } => {
                world.zone = Some(*zone);
                world.list().into_iter().take(1).collect()
            }
            Step::Ranges(count) => {
                world.ranges = *count;
                vec![world.ranges()]
            }
            Step::Addresses(count) => {
                world.addresses = *count;
                vec![world.addresses()]
            }
            Step::Refused => {
                proxy.backend_mut().refuse = Some(|_| Some((Errno::ENOBUFS, 0)));
                // There may have been nothing to do.
                let _ = proxy.sync(SystemTime::UNIX_EPOCH);
                proxy.backend_mut().refuse = None;
                Vec::new()
            }
            Step::Relist => world.list(),
            Step::Restart => {
                let kernel = std::mem::take(proxy.backend_mut());
                proxy = Proxy::new(config(), kernel);
                world.list()
            }
            Step::Foreign => vec![Event::ForeignChange],
            Step::Sync => {
                proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
                Vec::new()
            }
        };
        for event in events {
            proxy.apply(event);
        }
    }
    proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    (proxy, world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_way_there_ends_where_a_fresh_start_ends(steps in prop::collection::vec(step(), 1..60)) {
        let (mut proxy, world) = run(&steps);
        let mut fresh = Proxy::new(config(), Fake::default());
        for event in world.list() {
            fresh.apply(event);
        }
        fresh.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
        prop_assert_eq!(canonical(proxy.backend()), canonical(fresh.backend()));
        prop_assert_eq!(proxy.verify().expect("the fake can be read").differences, Vec::<String>::new());
        // And there is nothing left to do.
        let transactions = proxy.backend().log.len();
        for event in world.list() {
            proxy.apply(event);
        }
        proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
        prop_assert_eq!(proxy.backend().log.len(), transactions);
        // A restart adopts it all.
        let kernel = std::mem::take(proxy.backend_mut());
        let mut restarted = Proxy::new(config(), kernel);
        for event in world.list() {
            restarted.apply(event);
        }
        let report = restarted.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
        prop_assert_eq!((report.added, report.removed, report.adopted.len()), (0, 0, 2));
    }
}
