//! Tests of choosing the ways to other nodes.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn peer(name: &str, addresses: &[&str], ranges: &[&str]) -> Peer {
    Peer {
        name: name.to_owned(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        pod_cidrs: ranges.iter().map(|r| net(r)).collect(),
    }
}

fn here() -> (Local, Links) {
    let local =
        Local { addresses: vec![ip("10.0.0.1")], pod_cidrs: vec![net("10.244.1.0/24"), net("fd00:1::/64")] };
    let addresses = vec![(1, net("127.0.0.1/8")), (2, net("10.0.0.1/24")), (2, net("2001:db8::1/64"))];
    (local, Links { addresses })
}

fn decide(mode: Mode, peers: &[Peer]) -> Plan {
    let (local, links) = here();
    plan(mode, &local, &links, peers)
}

#[test]
fn neighbours_are_reached_directly_and_others_through_the_tunnel() {
    let peers = [peer("b", &["10.0.0.2"], &["10.244.2.0/24"]), peer("c", &["10.9.0.3"], &["10.244.3.0/24"])];
    let plan = decide(Mode::Auto, &peers);
    assert_eq!(plan.pods[&net("10.244.2.0/24")], Way::Direct(ip("10.0.0.2"), 2));
    assert_eq!(plan.pods[&net("10.244.3.0/24")], Way::Tunnel(ip("10.244.3.0")));
    let mac = tunnel_mac(ip("10.9.0.3"));
    assert_eq!(plan.neighbours, BTreeMap::from([(ip("10.244.3.0"), mac)]));
    assert_eq!(plan.forwardings, BTreeMap::from([(mac, ip("10.9.0.3"))]));
    assert_eq!(plan.nodes, BTreeMap::from([(net("10.9.0.3/32"), Way::Tunnel(ip("10.244.3.0")))]));
    assert_eq!(plan.node_addresses, BTreeSet::from([ip("10.0.0.2"), ip("10.9.0.3")]));
    assert_eq!(plan.problems, []);
}

#[test]
fn families_choose_for_themselves() {
    let peers = [peer("b", &["10.0.0.2"], &["10.244.2.0/24", "fd00:2::/64"])];
    let plan = decide(Mode::Auto, &peers);
    assert_eq!(plan.pods[&net("10.244.2.0/24")], Way::Direct(ip("10.0.0.2"), 2));
    // There is no IPv6 address to route by, but a tunnel over IPv4 carries it.
    assert_eq!(plan.pods[&net("fd00:2::/64")], Way::Tunnel(ip("fd00:2::")));
    let peers = [peer("b", &["10.0.0.2", "2001:db8::2"], &["fd00:2::/64"])];
    assert_eq!(decide(Mode::Auto, &peers).pods[&net("fd00:2::/64")], Way::Direct(ip("2001:db8::2"), 2));
}

#[test]
fn a_mode_may_forbid_either_way() {
    let near = peer("b", &["10.0.0.2"], &["10.244.2.0/24"]);
    let far = peer("c", &["10.9.0.3"], &["10.244.3.0/24"]);
    assert_eq!(decide(Mode::Tunnel, &[near]).pods[&net("10.244.2.0/24")], Way::Tunnel(ip("10.244.2.0")));
    let plan = decide(Mode::Direct, &[far]);
    assert!(plan.pods.is_empty() && !plan.needs_tunnel());
    assert!(plan.problems[0].to_string().contains("tunnels are not allowed"));
    assert!(plan.pod_ranges.contains(&net("10.244.3.0/24")), "still not the outside");
}

#[test]
fn overlapping_ranges_and_strange_families_are_problems_of_one_peer() {
    let peers = [
        peer("b", &["10.0.0.2"], &["10.244.1.0/25"]),
        peer("c", &["10.0.0.3"], &["10.244.3.0/24"]),
        peer("d", &["10.0.0.4"], &["10.244.3.0/24", "10.244.4.0/24"]),
        peer("e", &["fd99::5"], &["10.244.5.0/24"]),
    ];
    let plan = decide(Mode::Auto, &peers);
    assert_eq!(plan.pods.keys().copied().collect::<Vec<_>>(), [net("10.244.3.0/24"), net("10.244.4.0/24")]);
    let problems: Vec<_> = plan.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems[0], "pod range 10.244.1.0/25 of node b overlaps one of node ");
    assert_eq!(problems[1], "pod range 10.244.3.0/24 of node d overlaps one of node c");
    assert!(problems[2].contains("node e is not reached"));
}

#[test]
fn the_loopback_net_makes_nobody_a_neighbour_by_host_routes() {
    let (local, _) = here();
    let links = Links { addresses: vec![(2, net("10.0.0.1/32"))] };
    let plan = plan(Mode::Auto, &local, &links, &[peer("b", &["10.0.0.1"], &["10.244.2.0/24"])]);
    assert!(plan.needs_tunnel());
}
