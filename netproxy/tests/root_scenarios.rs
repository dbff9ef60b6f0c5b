//! The scenario tables with real packets between network namespaces.

mod lab;
mod scenario;

use std::collections::BTreeSet;
use std::time::SystemTime;

use lab::{Lab, Outcome};
use orlop_netproxy::Proxy;
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::Protocol;
use scenario::{Case, Expected, address_of};

/// A choice among N is tried until each was seen, at most so often.
const TRIES: usize = 60;

fn try_once(lab: &Lab, case: &Case) -> Outcome {
    let to = case.flow.to.to_string();
    match case.protocol {
        Protocol::Tcp => lab.tcp(&case.flow.from, &to, case.flow.port),
        Protocol::Udp => lab.udp(&case.flow.from, &to, case.flow.port),
        Protocol::Sctp => lab.sctp(&case.flow.from, &to, case.flow.port),
    }
}

/// What is wrong with a case, if anything.
fn check(lab: &Lab, case: &Case) -> Option<String> {
    let client = address_of(&case.flow.from, &case.flow.to);
    let Expected::Sent(wanted) = &case.expected else {
        let outcome = try_once(lab, case);
        let right = match case.expected {
            Expected::Refused => outcome == Outcome::Refused,
            Expected::Dropped => outcome == Outcome::Silence,
            // Nobody listens at the node itself, and the outside does not answer for addresses it does not have.
            Expected::Untouched => matches!(outcome, Outcome::Silence | Outcome::Refused),
            Expected::Sent(_) => false,
        };
        return (!right).then(|| format!("{outcome:?}, wanted {:?}", case.expected));
    };
    let mut seen = BTreeSet::new();
    for _ in 0..TRIES {
        let outcome = try_once(lab, case);
        let Outcome::Answered(pod, source) = &outcome else {
            return Some(format!("{outcome:?}, wanted {wanted:?}"));
        };
        if !wanted.contains(pod) {
            return Some(format!("answered by {pod}, wanted {wanted:?}"));
        }
        // Over IPv6 the kernel masquerades the node's own packets with the address they had.
        let visible = client.is_ipv4() || case.flow.from != "node";
        if visible && case.masquerade.is_some_and(|masqueraded| masqueraded == (*source == client)) {
            return Some(format!("{pod} saw {source}, wanted masquerade {:?}", case.masquerade));
        }
        seen.insert(pod.clone());
        if seen == *wanted {
            return None;
        }
    }
    Some(format!("only {seen:?} answered, wanted {wanted:?}"))
}

#[test]
fn every_packet_ends_where_the_tables_say() {
    require_root!();
    let lab = Lab::new();
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for (name, scenario) in scenario::all() {
        for (config, settings) in scenario.configs() {
            let mut proxy =
                lab.on_node(|| Proxy::new(settings.config(), Netlink::open().expect("nf_tables")));
            for event in scenario.events(&settings) {
                proxy.apply(event);
            }
            proxy.sync(SystemTime::now()).unwrap_or_else(|error| panic!("{name}, {config}: {error}"));
            let verification = proxy.verify().expect("the kernel can be read");
            if !verification.differences.is_empty() {
                wrong.push(format!("{name}, {config}: {verification}"));
            }
            let listing = lab.nft(&["list", "ruleset"]);
            if let Err(error) = &listing {
                wrong.push(format!("{name}, {config}: nft cannot list the rules: {error}"));
            }
            for case in scenario.cases(&config) {
                tried += 1;
                wrong.extend(check(&lab, &case).map(|problem| format!("{name}, {}: {problem}", case.label)));
            }
            proxy.cleanup().expect("our own table can be removed");
        }
    }
    println!("{tried} flows");
    assert!(tried > 150, "the tables have flows");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
