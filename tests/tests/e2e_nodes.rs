//! Nodes joined to each other: three daemons on two links with a router between, by direct routes and by VXLAN.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use orlop_tests::client::Client;
use orlop_tests::crossroads::Crossroads;
use orlop_tests::manifest::{PODS, is_ready, pod, pod_path};
use orlop_tests::node::Node;
use orlop_tests::require;
use serde_json::json;

const LONG: Duration = Duration::from_secs(40);
const PORT: u16 = 8080;
/// Of the server of the same kind on the node's own network.
const NODE_PORT: u16 = 8081;
const PAGE: &str = "/cgi-bin/who";

/// Answers every request with its own name and the address the request comes from.
fn who(port: u16) -> String {
    format!(
        "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $HOSTNAME $REMOTE_ADDR\\n' > /www/cgi-bin/who; \
         /bin/busybox chmod 755 /www/cgi-bin/who; exec httpd -f -p 0.0.0.0:{port} -h /www"
    )
}

/// A program listens a moment after it was started.
fn wait_page(node: &Node, (address, port): (&str, u16)) -> anyhow::Result<()> {
    let start = Instant::now();
    while node.fetch_page(address, port, PAGE)?.is_empty() {
        ensure!(start.elapsed() < LONG, "nobody answers at {address}:{port}: {}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// `a` has the server and is on a link with `b`; `c` is on the other link.
struct Cluster {
    crossroads: Crossroads,
    nodes: Vec<Node>,
    client: Client,
    /// The addresses of each node's pod, in the order of the nodes.
    pods: Vec<String>,
    service: String,
}

const PLACES: [(u8, u8); 3] = [(1, 1), (1, 2), (2, 3)];
const NAMES: [&str; 3] = ["a", "b", "c"];

impl Cluster {
    /// Three nodes that are Ready, each with a pod that answers, a server on its own network, and a service of all pods.
    fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let crossroads = Crossroads::new()?;
        let mut nodes = vec![];
        for (link, number) in PLACES {
            let node = crossroads.node(link, number)?;
            node.import_busybox()?;
            nodes.push(node);
        }
        nodes[0].spawn(&[&["--standalone"], flags].concat())?;
        nodes[0].wait_ready()?;
        let client = nodes[0].client()?;
        for n in 1..nodes.len() {
            let kubeconfig = nodes[0].kubeconfig_for(&nodes[n])?;
            nodes[n].spawn(&[&["--kubeconfig", &kubeconfig], flags].concat())?;
        }
        for node in &nodes {
            let path = format!("/api/v1/nodes/{}", node.name());
            let seen = client.wait(&path, LONG, |n| n.filter(|n| is_ready(n)).map(|_| ()));
            seen.with_context(|| node.log())?;
        }
        let mut cluster = Self { crossroads, nodes, client, pods: vec![], service: String::new() };
        cluster.deploy()?;
        Ok(cluster)
    }

    fn deploy(&mut self) -> anyhow::Result<()> {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "who"},
            "spec": {"selector": {"role": "who"}, "ports": [{"port": 80, "targetPort": PORT}]}});
        let service = self.client.create("/api/v1/namespaces/default/services", &service)?;
        self.service = service["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
        for (node, name) in self.nodes.iter().zip(NAMES) {
            let mut object = pod(name, &who(PORT));
            object["metadata"]["labels"] = json!({"role": "who"});
            object["spec"]["nodeName"] = json!(node.name());
            self.client.create(PODS, &object)?;
            let mut object = pod(&format!("on-{name}"), &who(NODE_PORT));
            object["spec"]["nodeName"] = json!(node.name());
            object["spec"]["hostNetwork"] = json!(true);
            self.client.create(PODS, &object)?;
        }
        for (node, name) in self.nodes.iter().zip(NAMES) {
            for name in [name.to_owned(), format!("on-{name}")] {
                let seen = self.client.wait(&pod_path(&name), LONG, |p| p.filter(|p| is_ready(p)).cloned());
                let seen = seen.with_context(|| node.log())?;
                let address = seen["status"]["podIP"].as_str().context("no podIP")?;
                let on_node = name.starts_with("on-");
                wait_page(node, (address, if on_node { NODE_PORT } else { PORT }))?;
                if !on_node {
                    self.pods.push(address.to_owned());
                }
            }
        }
        Ok(())
    }

    /// The pods of node `n`.
    fn range(&self, n: usize) -> String {
        self.pods[n].rsplit_once('.').map(|(net, _)| format!("{net}.0/24")).unwrap_or_default()
    }

    /// Waits until node `from` reaches the pods of node `to` by a route that says this.
    fn wait_route(&self, from: usize, to: usize, words: &str) -> anyhow::Result<()> {
        let range = self.range(to);
        self.nodes[from].until_prints(&["ip", "route", "show", &range], |route| route.contains(words))
    }

    /// What pod `from` is answered at an address.
    fn ask(&self, from: usize, address: &str, port: u16) -> anyhow::Result<String> {
        let script =
            format!("printf 'GET {PAGE} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} {port} | tail -n 1");
        Ok(self.nodes[from].orlop(&["exec", NAMES[from], "--", "sh", "-c", &script])?.trim().to_owned())
    }

    /// The pod `from` reaches the pod `to` and is seen by its own address.
    fn reaches_pod(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let wanted = format!("{} {}", NAMES[to], self.pods[from]);
        let answer = self.ask(from, &self.pods[to], PORT)?;
        ensure!(answer == wanted, "pod {} asks pod {}: {answer:?}, not {wanted:?}", NAMES[from], NAMES[to]);
        Ok(())
    }

    fn everything_is_reached(&self) -> anyhow::Result<()> {
        for (from, name) in NAMES.iter().enumerate() {
            let own = &self.pods[from];
            for (to, other) in NAMES.iter().enumerate() {
                self.reaches_pod(from, to)?;
                let node = &self.nodes[to];
                let answer = self.ask(from, node.address(), NODE_PORT)?;
                let wanted = format!("{} {own}", node.name());
                ensure!(answer == wanted, "pod {name} asks node {other}: {answer:?}, not {wanted:?}");
                let answer = self.nodes[from].fetch_page(&self.pods[to], PORT, PAGE)?;
                let wanted = format!("{other} ");
                ensure!(answer.starts_with(&wanted), "node {name} asks pod {other}: {answer:?}");
                self.full_packet_passes(from, to)?;
            }
            // Any pod may answer: until both others have seen this pod's own address.
            let (start, mut missing) = (Instant::now(), NAMES.to_vec());
            missing.remove(from);
            while !missing.is_empty() {
                ensure!(start.elapsed() < LONG, "pod {name} never reaches {missing:?} through the service");
                let answer = self.ask(from, &self.service, 80)?;
                missing.retain(|other| answer != format!("{other} {own}"));
            }
        }
        Ok(())
    }

    /// A packet as large as the pod's link takes, which nobody may fragment on the way.
    fn full_packet_passes(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let node = &self.nodes[from];
        let mtu = node.orlop(&["exec", NAMES[from], "--", "cat", "/sys/class/net/eth0/mtu"])?;
        ensure!(mtu.trim() == "1450", "the MTU of pod {} is {mtu}", NAMES[from]);
        // Less the headers of IPv4 and ICMP.
        let (netns, size) = (format!("--net={}", self.pod_netns(from)?), (1450 - 20 - 8).to_string());
        let ping = ["nsenter", &netns, "ping", "-n", "-M", "do", "-c", "1", "-W", "10", "-s", &size];
        node.run_inside(&[&ping[..], &[&self.pods[to]]].concat())?;
        Ok(())
    }

    fn pod_netns(&self, n: usize) -> anyhow::Result<String> {
        let uid =
            self.client.get(&pod_path(NAMES[n]))?["metadata"]["uid"].as_str().context("no uid")?.to_owned();
        self.nodes[n].pod_netns(&uid)
    }
}

/// The node's own routes to others' pods.
const ROUTES: [&str; 5] = ["ip", "route", "show", "proto", "111"];

#[test]
fn three_nodes_on_two_links_are_joined_and_followed() -> anyhow::Result<()> {
    require!();
    let mut cluster = Cluster::start(&[])?;
    for (from, to, words) in [
        (0, 1, "via 10.0.1.2 dev uplink0"),
        (1, 0, "via 10.0.1.1 dev uplink0"),
        (0, 2, "dev orlop.1"),
        (1, 2, "dev orlop.1"),
        (2, 0, "dev orlop.1"),
        (2, 1, "dev orlop.1"),
    ] {
        cluster.wait_route(from, to, words)?;
    }
    cluster.everything_is_reached()?;

    // A link that goes down takes its routes with it.
    let script =
        "ip link set uplink0 down && ip link set uplink0 up && ip route replace default via 10.0.1.254";
    cluster.nodes[1].run_inside(&["sh", "-c", script])?;
    cluster.nodes[0].run_inside(&["ip", "route", "flush", "proto", "111"])?;
    for (from, to, words) in [(1, 0, "via 10.0.1.1 dev"), (1, 2, "dev orlop.1"), (0, 1, "via 10.0.1.2 dev")] {
        cluster.wait_route(from, to, words)?;
    }
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1)] {
        cluster.reaches_pod(from, to)?;
    }

    // The far node moves to the link of the others. Its pods go on meanwhile.
    let mut moved = cluster.nodes.remove(2);
    moved.kill_daemon()?;
    cluster.crossroads.move_node(&mut moved, 3, 1, 33)?;
    let kubeconfig = moved.dir().join("etc/kubeconfig").display().to_string();
    moved.spawn(&["--kubeconfig", &kubeconfig])?;
    cluster.nodes.push(moved);
    for (from, to, words) in [
        (0, 2, "via 10.0.1.33 dev uplink0"),
        (1, 2, "via 10.0.1.33 dev uplink0"),
        (2, 0, "via 10.0.1.1 dev uplink0"),
        (2, 1, "via 10.0.1.2 dev uplink0"),
    ] {
        cluster.wait_route(from, to, words)?;
    }
    for (from, to) in [(0, 2), (2, 0), (1, 2), (2, 1)] {
        cluster.reaches_pod(from, to)?;
        cluster.full_packet_passes(from, to)?;
    }
    cluster.nodes[0].until_prints(&["ip", "-o", "link"], |links| !links.contains("orlop.1"))?;

    // It leaves.
    cluster.nodes[2].kill_daemon()?;
    cluster.client.delete(&format!("/api/v1/nodes/{}", cluster.nodes[2].name()))?;
    for n in [0, 1] {
        let range = cluster.range(2);
        cluster.nodes[n].until_prints(&ROUTES, |routes| !routes.contains(range.trim_end_matches("/24")))?;
    }
    cluster.reaches_pod(0, 1)
}

#[test]
fn three_nodes_on_two_links_may_be_joined_by_vxlan_alone() -> anyhow::Result<()> {
    require!();
    let cluster = Cluster::start(&["--pod-routes", "vxlan"])?;
    for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        cluster.wait_route(from, to, "dev orlop.1")?;
    }
    cluster.everything_is_reached()
}
