//! The scenario tables against the rules, evaluated without a kernel.

mod scenario;

use std::time::SystemTime;

use orlop_netproxy::fake::Fake;
use orlop_netproxy::{Outcome, Packet, Proxy, trace};
use scenario::{Case, Expected, NODE_ADDRESSES, address_of, place_of};

fn packet(case: &Case) -> Packet {
    let source = address_of(&case.flow.from, &case.flow.to);
    let from_node = case.flow.from == "node";
    let own = |address: &std::net::IpAddr| NODE_ADDRESSES.contains(&address.to_string().as_str());
    Packet {
        source,
        destination: case.flow.to,
        protocol: case.protocol,
        port: case.flow.port,
        interface: (!from_node).then(|| format!("veth-{}", case.flow.from)),
        from_node,
        to_node: own(&case.flow.to) || case.flow.to.is_loopback(),
    }
}

#[test]
fn every_flow_ends_where_the_tables_say() {
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (name, scenario) in scenario::all() {
        for (config, settings) in scenario.configs() {
            let mut proxy = Proxy::new(settings.config(), Fake::default());
            for event in scenario.events(&settings) {
                proxy.apply(event);
            }
            proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
            let contents = proxy.wanted();
            for case in scenario.cases(&config) {
                tried += 1;
                let (expected, result) = (&case.expected, trace(&contents, &packet(&case)));
                let outcome = match &result.outcome {
                    Outcome::Refused => Expected::Refused,
                    Outcome::Dropped => Expected::Dropped,
                    Outcome::Untouched => Expected::Untouched,
                    Outcome::Sent(targets) => {
                        Expected::Sent(targets.iter().map(|(target, _)| place_of(&target.address)).collect())
                    }
                };
                let masqueraded = match (&result.outcome, case.masquerade) {
                    (Outcome::Sent(targets), Some(wanted)) => targets.iter().all(|(_, is)| *is == wanted),
                    _ => true,
                };
                if outcome != *expected || !masqueraded {
                    wrong.push(format!(
                        "{name}, {}: {:?}, wanted {expected:?} masquerade {:?}; {:#?}",
                        case.label, result.outcome, case.masquerade, result.path
                    ));
                }
            }
        }
    }
    println!("{tried} flows");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 150, "the tables have flows");
}
