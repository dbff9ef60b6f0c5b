//! Three nodes on two links with a router between them: direct routes where a link is shared, VXLAN elsewhere.
#![allow(clippy::unwrap_used)]

mod world;

use orlop_cni::nodes::{Local, Mode, Nodes, NodesConfig, Peer};
use orlop_cni::runtime::{DefaultNetwork, Runtime, RuntimeConfig};
use world::{Ns, attachment, root, socket};

struct Node {
    ns: Ns,
    dir: tempfile::TempDir,
    peer: Peer,
}

/// `a` and `b` share the link 10.0.1.0/24, `c` is on 10.0.2.0/24, `router` is on both and forwards.
struct Cluster {
    router: Ns,
    nodes: Vec<Node>,
}

impl Cluster {
    /// `v6` makes the IPv6 addresses the first ones, by which tunnels go.
    fn new(v6: bool) -> Self {
        let router = Ns::new();
        router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        for link in [1, 2] {
            router.sh(&format!(
                "ip link add link{link} type bridge && ip addr add 10.0.{link}.254/24 dev link{link} && \
                 ip addr add 2001:db8:{link}::254/64 dev link{link} nodad && ip link set link{link} up"
            ));
        }
        let mut cluster = Self { router, nodes: Vec::new() };
        for (n, link) in [(1, 1), (2, 1), (3, 2)] {
            let mut node = cluster.node(n, link);
            if v6 {
                node.peer.addresses.reverse();
            }
            cluster.nodes.push(node);
        }
        cluster
    }

    fn node(&self, n: usize, link: usize) -> Node {
        let ns = Ns::new();
        self.router.sh(&format!(
            "ip link add port{n} type veth peer name eth0 netns {} && ip link set port{n} master link{link} up",
            ns.path().display()
        ));
        ns.sh(&address_lines(link, n));
        let peer = Peer {
            name: format!("node{n}"),
            addresses: addresses(link, n),
            pod_cidrs: vec![
                format!("10.244.{n}.0/24").parse().unwrap(),
                format!("fd00:{n}::/64").parse().unwrap(),
            ],
        };
        Node { ns, dir: tempfile::tempdir().unwrap(), peer }
    }

    /// What each node is told when the cluster is as it is now.
    fn peers_of(&self, n: usize) -> (Local, Vec<Peer>) {
        let own = &self.nodes[n].peer;
        let local = Local { addresses: own.addresses.clone(), pod_cidrs: own.pod_cidrs.clone() };
        let others = self.nodes.iter().map(|node| &node.peer).filter(|p| p.name != own.name);
        (local, others.cloned().collect())
    }

    fn open(&self, mode: Mode) -> Vec<Nodes> {
        let config = NodesConfig { mode, ..NodesConfig::default() };
        self.nodes.iter().map(|node| node.ns.run(|| Nodes::new(config.clone()).unwrap())).collect()
    }

    fn apply(&self, nodes: &mut [Nodes]) {
        for (n, handle) in nodes.iter_mut().enumerate() {
            let (local, peers) = self.peers_of(n);
            assert_eq!(handle.apply(&local, &peers).unwrap(), []);
        }
    }
}

fn addresses(link: usize, n: usize) -> Vec<std::net::IpAddr> {
    vec![format!("10.0.{link}.{n}").parse().unwrap(), format!("2001:db8:{link}::{n}").parse().unwrap()]
}

fn address_lines(link: usize, n: usize) -> String {
    format!(
        "ip addr add 10.0.{link}.{n}/24 dev eth0 && ip addr add 2001:db8:{link}::{n}/64 dev eth0 nodad && \
         ip link set eth0 up && ip route replace default via 10.0.{link}.254 && \
         ip -6 route replace default via 2001:db8:{link}::254"
    )
}

impl Node {
    fn runtime(&self, nodes: &mut Nodes) -> Runtime {
        let local = Local { addresses: self.peer.addresses.clone(), pod_cidrs: self.peer.pod_cidrs.clone() };
        let network = DefaultNetwork {
            pod_cidrs: self.peer.pod_cidrs.clone(),
            mtu: nodes.pod_mtu(&local).unwrap(),
            ..DefaultNetwork::default()
        };
        let runtime = Runtime::new(RuntimeConfig {
            conf_dir: self.dir.path().join("net.d"),
            cache_dir: self.dir.path().join("cache"),
            state_dir: self.dir.path().join("state"),
            fallback: network.to_list(),
            ..RuntimeConfig::default()
        });
        runtime.load().unwrap();
        runtime
    }

    fn add_pod(&self, nodes: &mut Nodes) -> (Ns, Vec<std::net::IpAddr>) {
        let pod = Ns::new();
        let ips = self.ns.run(|| self.runtime(nodes).add(&attachment("pod", &pod)).unwrap().ips);
        pod.serve_tcp("[::]:80");
        (pod, ips)
    }

    /// Whether the routes to this range go through the tunnel.
    fn tunnels(&self, range: &str) -> bool {
        self.ns.sh(&format!("ip route show {range}")).contains("orlop.1")
    }
}

/// Everybody reaches everybody by their own addresses.
fn assert_full_mesh(cluster: &Cluster, pods: &[(Ns, Vec<std::net::IpAddr>)]) {
    for (i, (from, from_ips)) in pods.iter().enumerate() {
        for (j, (_, to_ips)) in pods.iter().enumerate() {
            for (source, target) in from_ips.iter().zip(to_ips) {
                let seen = from.ask_tcp(socket(target, 80)).map(|s| s.replace("::ffff:", ""));
                assert_eq!(seen, Ok(source.to_string()), "pod {i} to pod {j}");
            }
            let node = &cluster.nodes[j];
            for address in &node.peer.addresses {
                let source = from_ips.iter().find(|ip| ip.is_ipv4() == address.is_ipv4()).unwrap();
                let seen = from.ask_tcp(socket(address, 81)).map(|s| s.replace("::ffff:", ""));
                assert_eq!(seen, Ok(source.to_string()), "pod {i} to node {j}");
            }
            let seen = cluster.nodes[i].ns.ask_tcp(socket(to_ips[0], 80));
            assert!(seen.is_ok(), "node {i} to pod {j}: {seen:?}");
        }
    }
}

fn mesh(mode: Mode, v6: bool) {
    let cluster = Cluster::new(v6);
    // Strict reverse path filters everywhere: each way must be the way back as well.
    for node in &cluster.nodes {
        node.ns.sh("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/default/rp_filter");
        node.ns.serve_tcp("[::]:81");
    }
    let mut nodes = cluster.open(mode);
    cluster.apply(&mut nodes);
    let pods: Vec<_> =
        cluster.nodes.iter().zip(&mut nodes).map(|(node, handle)| node.add_pod(handle)).collect();
    assert_full_mesh(&cluster, &pods);
    assert_eq!(cluster.nodes[0].tunnels("10.244.2.0/24"), mode == Mode::Tunnel);
    assert!(cluster.nodes[0].tunnels("10.244.3.0/24"));
    // A packet of the pod's full size that must not be fragmented arrives on both ways.
    let size = if v6 { 1430 } else { 1450 } - 20 - 8;
    for to in &pods {
        let line = format!("ping -M do -c 1 -W 5 -s {size} {}", to.1[0]);
        assert!(pods[0].0.sh(&line).contains("1 received"));
    }
    // A second process finds everything as it should be, and changes nothing.
    let before = snapshot(&cluster.nodes[0].ns);
    let mut again = cluster.open(mode);
    cluster.apply(&mut again);
    assert_eq!(snapshot(&cluster.nodes[0].ns), before);
    for handle in &mut again {
        handle.remove().unwrap();
    }
    let left = snapshot(&cluster.nodes[0].ns);
    assert!(!left.contains("orlop.1") && !left.contains("111") && !left.contains("28530"), "{left}");
}

fn snapshot(ns: &Ns) -> String {
    ns.sh("ip route show table all proto 111; ip rule; ip -6 rule; bridge fdb show dev orlop.1 2>/dev/null; \
           ip neigh show nud permanent; ip -o link show type vxlan")
}

#[test]
fn near_nodes_are_reached_directly_and_far_ones_by_vxlan() {
    if root() {
        mesh(Mode::Auto, false);
    }
}

#[test]
fn everything_may_go_by_vxlan() {
    if root() {
        mesh(Mode::Tunnel, false);
    }
}

#[test]
fn tunnels_go_over_ipv6_as_well() {
    if root() {
        mesh(Mode::Auto, true);
    }
}

#[test]
fn many_nodes_come_and_go_in_any_order() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(false);
    let node = &cluster.nodes[0];
    let (local, _) = cluster.peers_of(0);
    let all: Vec<Peer> = (2..120_u8)
        .map(|n| Peer {
            name: format!("n{n}"),
            addresses: vec![
                if n % 2 == 0 { format!("10.0.1.{n}") } else { format!("10.7.1.{n}") }.parse().unwrap(),
            ],
            pod_cidrs: vec![
                format!("10.244.{n}.0/24").parse().unwrap(),
                format!("fd00:{n}::/64").parse().unwrap(),
            ],
        })
        .collect();
    let mut handle = node.ns.run(|| Nodes::new(NodesConfig::default()).unwrap());
    for round in 0_usize..6 {
        let present: Vec<Peer> = all
            .iter()
            .enumerate()
            .filter(|(i, _)| (i * 7 + round * 5) % 11 < 3 + round)
            .map(|(_, p)| p.clone())
            .collect();
        assert_eq!(handle.apply(&local, &present).unwrap(), []);
        let state = snapshot(&node.ns);
        let rules = node.ns.sh("nft list set inet orlop-cni nodes4");
        for peer in &all {
            let here = present.contains(peer);
            let (range, address) = (peer.pod_cidrs[0].to_string(), peer.addresses[0].to_string());
            assert_eq!(state.contains(&format!("{range} via")), here, "round {round} {range}");
            let probe =
                format!("nft get element inet orlop-cni pods4 '{{ {} }}'", range.replace(".0/24", ".7"));
            assert_eq!(node.ns.try_sh(&probe).status.success(), here, "round {round} {range}");
            let words = [format!("{address},"), format!("{address} ")];
            assert_eq!(words.iter().any(|w| rules.contains(w)), here, "round {round} {address}: {rules}");
        }
    }
    // Somebody flushed everything; the next change puts it right.
    node.ns.sh("nft flush ruleset; ip link del orlop.1; ip route flush proto 111");
    handle.apply(&local, &all).unwrap();
    node.ns.sh("nft get element inet orlop-cni pods4 '{ 10.244.119.1 }'");
    assert!(snapshot(&node.ns).contains("10.244.119.0/24 via 10.244.119.0 dev orlop.1"));
}

#[test]
fn nodes_that_join_move_and_leave_are_followed() {
    if !root() {
        return;
    }
    let mut cluster = Cluster::new(false);
    let mut nodes = cluster.open(Mode::Auto);
    let far = cluster.nodes.pop().unwrap();
    let mut far_handle = nodes.pop().unwrap();
    cluster.apply(&mut nodes);
    let near: Vec<_> =
        cluster.nodes.iter().zip(&mut nodes).map(|(node, handle)| node.add_pod(handle)).collect();
    let (far_pod, far_ips) = far.add_pod(&mut far_handle);
    assert!(!snapshot(&cluster.nodes[0].ns).contains("orlop.1"), "no tunnel without need");

    // It joins.
    cluster.nodes.push(far);
    nodes.push(far_handle);
    cluster.apply(&mut nodes);
    assert!(near[0].0.ask_tcp(socket(far_ips[0], 80)).is_ok());

    // It moves to the other link with another address.
    cluster.router.sh("ip link set port3 master link1");
    cluster.nodes[2].ns.sh(&format!("ip addr flush dev eth0 && {}", address_lines(1, 33)));
    cluster.nodes[2].peer.addresses = addresses(1, 33);
    cluster.apply(&mut nodes);
    assert!(!cluster.nodes[0].tunnels("10.244.3.0/24"));
    assert_eq!(near[0].0.ask_tcp(socket(far_ips[0], 80)), Ok(format!("::ffff:{}", near[0].1[0])));
    assert!(far_pod.ask_tcp(socket(near[1].1[0], 80)).is_ok());

    // It leaves.
    cluster.nodes.pop();
    nodes.pop();
    cluster.apply(&mut nodes);
    let left = snapshot(&cluster.nodes[0].ns);
    assert!(!left.contains("10.244.3.0"), "{left}");
    assert!(near[0].0.ask_tcp(socket(near[1].1[0], 80)).is_ok());
    assert!(!cluster.nodes[0].ns.sh("nft list table inet orlop-cni").contains("10.0.1.33"));
}
