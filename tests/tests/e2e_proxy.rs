//! Services on a node: node ports, what the proxy tells of itself, and a restart that rewrites nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use orlop_tests::client::Client;
use orlop_tests::manifest::{PODS, is_ready, pod, pod_path};
use orlop_tests::node::Node;
use orlop_tests::require;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);
const SERVICES: &str = "/api/v1/namespaces/default/services";
/// The node's address on its link.
const NODE_IP: &str = "192.0.2.2";
const NODE_PORT: u16 = 30080;

/// A pod that answers with its name, Ready; its address.
fn web_pod(client: &Client, node: &Node, name: &str) -> anyhow::Result<String> {
    let mut object = pod(name, "echo $HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www");
    object["metadata"]["labels"] = json!({"app": "web"});
    client.create(PODS, &object)?;
    let ready = client.wait(&pod_path(name), LONG, |pod| pod.filter(|pod| is_ready(pod)).cloned());
    let ready = ready.with_context(|| node.log())?;
    Ok(ready["status"]["podIP"].as_str().context("no podIP")?.to_owned())
}

fn node_port_service(client: &Client) -> anyhow::Result<String> {
    let service = client.create(
        SERVICES,
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                "spec": {"type": "NodePort", "selector": {"app": "web"},
                         "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]}}),
    )?;
    Ok(service["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned())
}

/// The whole answer to a GET from the node. The client keeps its half of the connection open until it has the answer.
fn whole_page(node: &Node, (address, port): (&str, u64), path: &str) -> anyhow::Result<String> {
    let request = format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n'");
    let script = format!("({request}; sleep 0.5) | /bin/busybox nc -w 5 {address} {port}");
    node.run_inside(&["sh", "-c", &script])
}

#[test]
fn a_node_port_answers_is_explained_and_survives_the_daemon() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let vip = node_port_service(&client)?;
    let endpoint = web_pod(&client, &node, "web-0")?;
    let outside = node.beside()?;
    node.answers((NODE_IP, NODE_PORT), "web-0")?;
    outside.answers((NODE_IP, NODE_PORT), "web-0")?;
    node.answers((&vip, 80), "web-0")?;

    let status = node.orlop(&["proxy", "status"])?;
    // `kubernetes` and `web`.
    ensure!(status.lines().any(|line| line.split_whitespace().eq(["services", "2"])), "{status}");
    let explained = node.orlop(&["proxy", "explain", &format!("{vip}:80")])?;
    for part in ["default/web:http", &format!("{endpoint}:8080"), "the same"] {
        ensure!(explained.contains(part), "{part} is missing in\n{explained}");
    }
    let from_outside =
        node.orlop(&["proxy", "explain", &format!("{NODE_IP}:{NODE_PORT}"), "--from", "192.0.2.3"])?;
    ensure!(from_outside.contains("masqueraded") && from_outside.contains("default/web"), "{from_outside}");
    let verified = node.orlop(&["proxy", "verify"])?;
    ensure!(verified.contains("everything is as it should be"), "{verified}");

    let text = whole_page(&node, ("127.0.0.1", 10256), "/healthz")?;
    ensure!(text.starts_with("HTTP/1.0 200 OK") && text.contains("\"nodeEligible\":true"), "{text}");
    let metrics = whole_page(&node, ("127.0.0.1", 10249), "/metrics")?;
    for name in
        ["kubeproxy_sync_proxy_rules_duration_seconds", "kubeproxy_proxy_healthz_total{code=\"200\"} 1"]
    {
        ensure!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let mode = whole_page(&node, ("127.0.0.1", 10249), "/proxyMode")?;
    ensure!(mode.ends_with("nftables"), "{mode}");

    node.kill_daemon()?;
    for (address, port) in [(NODE_IP, NODE_PORT), (vip.as_str(), 80)] {
        let page = node.fetch(address, port)?;
        ensure!(page.trim() == "web-0", "without the daemon {address}:{port} answers {page:?}");
    }
    ensure!(!node.orlop_output(&["proxy", "status"])?.status.success(), "nobody is there to be asked");
    let logged = node.log().len();
    node.start()?;
    let start = Instant::now();
    let adoption = loop {
        let log = node.log();
        let line = log[logged..].lines().find(|line| line.contains("the service rules are in the kernel"));
        if let Some(line) = line {
            break line.to_owned();
        }
        ensure!(start.elapsed() < LONG, "no rules after the restart: {log}");
        std::thread::sleep(Duration::from_millis(50));
    };
    for part in ["adopted=ip+ip6", "replaced=none", "added=0", "removed=0"] {
        ensure!(adoption.contains(part), "{part} is missing: {adoption}");
    }
    outside.answers((NODE_IP, NODE_PORT), "web-0")
}

#[test]
fn a_load_balancers_health_check_follows_the_local_endpoints() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let service = client.create(
        SERVICES,
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
                         "selector": {"app": "web"},
                         "ports": [{"port": 80, "targetPort": 8080}]}}),
    )?;
    let port = service["spec"]["healthCheckNodePort"].as_u64().context("no healthCheckNodePort")?;
    let asked = |node: &Node, wanted: &str| -> anyhow::Result<Value> {
        let start = Instant::now();
        loop {
            let text = whole_page(node, (NODE_IP, port), "/").unwrap_or_default();
            if text.lines().next().is_some_and(|line| line.contains(wanted)) {
                return Ok(serde_json::from_str(text.lines().last().context("no body")?)?);
            }
            ensure!(start.elapsed() < LONG, "not {wanted} but {text:?}: {}", node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    ensure!(asked(&node, "503")?["localEndpoints"] == 0);
    web_pod(&client, &node, "web-0")?;
    let body = asked(&node, "200")?;
    ensure!(body["localEndpoints"] == 1 && body["service"]["name"] == "web", "{body}");
    client.delete(&pod_path("web-0"))?;
    ensure!(asked(&node, "503")?["localEndpoints"] == 0);
    client.delete(&format!("{SERVICES}/web"))?;
    let start = Instant::now();
    let connect = format!("/bin/busybox nc -z -w 1 {NODE_IP} {port}");
    while node.run_inside(&["sh", "-c", &connect]).is_ok() {
        ensure!(start.elapsed() < LONG, "port {port} stays open: {}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn node_ports_are_served_where_the_flags_say() -> anyhow::Result<()> {
    require!();
    let mut node = Node::prepared()?;
    node.import_busybox()?;
    node.spawn(&["--standalone", "--nodeport-addresses", "203.0.113.0/24", "--masquerade-all"])?;
    node.wait_ready()?;
    let client = node.client()?;
    let vip = node_port_service(&client)?;
    web_pod(&client, &node, "web-0")?;
    node.answers((&vip, 80), "web-0")?;
    let elsewhere = node.orlop(&["proxy", "explain", &format!("{NODE_IP}:{NODE_PORT}")])?;
    ensure!(elsewhere.contains("not a service"), "{elsewhere}");
    // An address that comes later is heard of.
    node.run_inside(&["ip", "addr", "add", "203.0.113.7/32", "dev", "lo"])?;
    node.answers(("203.0.113.7", NODE_PORT), "web-0")?;
    ensure!(node.fetch(NODE_IP, NODE_PORT)?.is_empty(), "only there");
    let explained = node.orlop(&["proxy", "explain", &format!("{vip}:80")])?;
    ensure!(explained.contains("masqueraded"), "{explained}");
    let unallocated = node.orlop(&["proxy", "explain", "10.96.200.200:80"])?;
    ensure!(unallocated.contains("dropped"), "{unallocated}");
    ensure!(!node.log().contains("may not read"), "{}", node.log());
    Ok(())
}

#[test]
fn the_proxy_runs_alone_and_clears_what_kube_proxy_left() -> anyhow::Result<()> {
    require!();
    require!(std::path::Path::new("/usr/sbin/nft").exists(), "needs nft (Debian's nftables)");
    let mut server = Node::standalone()?;
    let client = server.client()?;
    node_port_service(&client)?;
    let mut node = server.beside()?;
    let kubeconfig = server.kubeconfig_for(&node)?;
    client.create(
        "/api/v1/nodes",
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()}}),
    )?;
    for family in ["ip", "ip6"] {
        node.run_inside(&["/usr/sbin/nft", "add", "table", family, "kube-proxy"])?;
    }
    let kubeconfig: &str = &kubeconfig;
    let name = node.name().to_owned();
    let file = node.dir().join("etc/kube-proxy.yaml");
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
         clientConnection: {{kubeconfig: {kubeconfig}}}\ndetectLocalMode: NodeCIDR\nenableProfiling: true\n\
         conntrack: {{tcpCloseWaitTimeout: 47m}}\nhealthzBindAddress: 127.0.0.1:11256\n"
    );
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    node.spawn_command(&["proxy", "run", "--config", &file, "--hostname-override", &name])?;
    let start = Instant::now();
    let status = loop {
        let output = node.orlop_output(&["proxy", "status"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.lines().any(|line| line.split_whitespace().eq(["services", "2"])) {
            break text;
        }
        ensure!(start.elapsed() < LONG, "status is {text:?}: {}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    };
    ensure!(status.contains("synced"), "{status}");
    ensure!(node.log().contains("enableProfiling"), "what has no effect is told: {}", node.log());
    let health = whole_page(&node, ("127.0.0.1", 11256), "/healthz")?;
    ensure!(health.starts_with("HTTP/1.0 200 OK"), "{health}");
    let told = whole_page(&node, ("127.0.0.1", 10249), "/configz")?;
    ensure!(told.contains("\"detectLocalMode\":\"NodeCIDR\""), "{told}");
    let time = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    ensure!(node.run_inside(&["cat", time])?.trim() == "2820", "{}", node.log());
    let cleaned = node.orlop(&["proxy", "cleanup"])?;
    ensure!(cleaned.contains("removed table ip kube-proxy"), "{cleaned}");
    let tables = node.run_inside(&["/usr/sbin/nft", "list", "tables"])?;
    ensure!(!tables.contains("kube-proxy") && tables.contains("table ip orlop"), "{tables}");
    ensure!(node.stop_daemon()? == Some(0), "{}", node.log());
    Ok(())
}
