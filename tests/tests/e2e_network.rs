//! A pod's network on one node: host ports, names and resolvers, other people's plugins.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use orlop_tests::client::Client;
use orlop_tests::manifest::{PODS, is_ready, phase, pod, pod_path, sleeper};
use orlop_tests::node::Node;
use orlop_tests::{leftovers, programs, require};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(40);
fn ready(node: &mut Node, client: &Client, name: &str) -> anyhow::Result<Value> {
    let seen = client.wait(&pod_path(name), LONG, |pod| pod.filter(|pod| is_ready(pod)).cloned());
    seen.with_context(|| format!("daemon's log:\n{}", node.log()))
}

fn pod_ip(pod: &Value) -> anyhow::Result<String> {
    Ok(pod["status"]["podIP"].as_str().context("no podIP")?.to_owned())
}

#[test]
fn a_host_port_is_reached_from_everywhere_and_given_once() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let outside = node.beside()?;
    let name = node.name().to_owned();
    let web = |pod_name: &str| {
        let mut object = pod(pod_name, "echo $HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www");
        object["spec"]["nodeName"] = json!(name);
        object["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 8088}]);
        object
    };
    client.create(PODS, &web("first"))?;
    ready(&mut node, &client, "first")?;
    for (place, address) in [(&outside, "192.0.2.2"), (&node, "192.0.2.2"), (&node, "127.0.0.1")] {
        place.answers((address, 8088), "first")?;
    }

    client.create(PODS, &web("second"))?;
    let rejected = client
        .wait(&pod_path("second"), LONG, |pod| pod.filter(|pod| phase(pod) == "Failed").cloned())
        .with_context(|| node.log())?;
    ensure!(rejected["status"]["reason"] == "NodePorts", "{}", rejected["status"]);

    client.delete(&pod_path("first"))?;
    client.wait(&pod_path("first"), LONG, |pod| pod.is_none().then_some(()))?;
    client.create(PODS, &web("third"))?;
    ready(&mut node, &client, "third")?;
    outside.answers(("192.0.2.2", 8088), "third").context("after the first has gone")
}

#[test]
fn pods_have_the_names_and_resolvers_they_ask_for() -> anyhow::Result<()> {
    require!();
    let mut node = Node::prepared()?;
    let resolv = node.dir().join("etc/resolv.conf");
    fs::write(&resolv, "nameserver 192.0.2.1\n")?;
    node.configure(&format!("resolvConf: {}\n", resolv.display()))?;
    node.import_busybox()?;
    node.start()?;
    let client = node.client()?;
    let cluster = "search default.svc.cluster.local svc.cluster.local cluster.local example.org\n\
        nameserver 10.96.0.10\noptions ndots:5\n";
    // The network that the machine is on has changed.
    let of_node = "search example.org\nnameserver 192.0.2.53\noptions timeout:1\n";
    fs::write(&resolv, of_node)?;
    let full = cluster.replace("10.96.0.10\n", "10.96.0.10\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n");
    let many = json!({"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3"]});
    let own = "search a.test\nnameserver 192.0.2.7\noptions ndots:2\n";
    let config = json!({"nameservers": ["192.0.2.7"], "searches": ["a.test"],
        "options": [{"name": "ndots", "value": "2"}]});
    // Name, what it asks for, its hostname, its resolver, a line of its hosts file (with its address for @).
    let host_net = json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
    let aliases = json!({"hostAliases": [{"ip": "192.0.2.9", "hostnames": ["foo", "bar"]}]});
    let fqdn = json!({"hostname": "db", "subdomain": "sub", "setHostnameAsFQDN": true});
    let long = "db.sub.default.svc.cluster.local";
    let cases = [
        ("plain", json!({}), "plain", cluster, "@\tplain".to_owned()),
        ("default", json!({"dnsPolicy": "Default"}), "default", of_node, "@\tdefault".to_owned()),
        ("none", json!({"dnsPolicy": "None", "dnsConfig": config}), "none", own, "@\tnone".to_owned()),
        ("many", json!({"dnsConfig": many}), "many", &full, "@\tmany".to_owned()),
        ("hostnet", host_net, node.name(), cluster, "# Kubernetes-managed hosts file (host network).".into()),
        ("aliases", aliases, "aliases", cluster, "192.0.2.9\tfoo\tbar".to_owned()),
        ("named", json!({"hostname": "db", "subdomain": "sub"}), "db", cluster, format!("@\t{long}\tdb")),
        ("fqdn", fqdn, long, cluster, format!("@\t{long}\tdb")),
    ];
    let script = "hostname; echo $HOSTNAME; echo ---; cat /etc/resolv.conf; echo ---; cat /etc/hosts";
    for (name, asked, ..) in &cases {
        let mut object = pod(name, script);
        object["spec"]["restartPolicy"] = json!("Never");
        for (field, value) in asked.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        client.create(PODS, &object)?;
    }
    for (name, _, hostname, resolver, line) in cases {
        let done = client.wait(&pod_path(name), LONG, |pod| pod.filter(|p| phase(p) == "Succeeded").cloned());
        let address = pod_ip(&done.with_context(|| node.log())?)?;
        let log = node.orlop(&["logs", name])?;
        let parts: Vec<&str> = log.split("---\n").collect();
        ensure!(parts.len() == 3, "{name}: {log}");
        ensure!(parts[0] == format!("{hostname}\n{hostname}\n"), "{name}: hostname is {:?}", parts[0]);
        ensure!(parts[1] == resolver, "{name}: resolv.conf is\n{}", parts[1]);
        let line = line.replace('@', &address);
        ensure!(parts[2].lines().any(|l| l == line), "{name}: no {line:?} in\n{}", parts[2]);
    }
    let words = "the applied nameserver line is: 10.96.0.10 192.0.2.1 192.0.2.2";
    wait_event(&node, &client, "many", "DNSConfigForming", &[words])
}

/// Waits for an event of a pod with these words.
fn wait_event(node: &Node, client: &Client, pod: &str, reason: &str, words: &[&str]) -> anyhow::Result<()> {
    let told = |events: &Value| {
        let mut events = events["items"].as_array().into_iter().flatten();
        events.any(|event| {
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == reason
                && event["involvedObject"]["name"] == pod
                && words.iter().all(|words| message.contains(words))
        })
    };
    let events = "/api/v1/namespaces/default/events";
    let seen = client.wait(events, LONG, |events| events.filter(|e| told(e)).map(|_| ()));
    seen.with_context(|| format!("{pod}: {}", node.log()))
}

/// A plugin whose ADD does what the pod is called.
const BROKEN: &str = r#"#!/bin/sh
/bin/cat > /dev/null
[ "$CNI_COMMAND" = ADD ] || exit 0
echo "$CNI_ARGS" >> "${0%/*}/calls"
case $CNI_ARGS in
    *K8S_POD_NAME=hangs*) exec /bin/sleep 1000 ;;
    *K8S_POD_NAME=garbage*) echo well, well ;;
    *K8S_POD_NAME=refuses*) echo '{"cniVersion":"1.0.0","code":11,"msg":"come back later"}'; exit 1 ;;
esac
"#;

#[test]
fn a_plugin_that_fails_is_told_by_name_and_tried_again() -> anyhow::Result<()> {
    require!();
    let mut node = Node::prepared()?;
    node.configure("runtimeRequestTimeout: 2s\n")?;
    node.import_busybox()?;
    programs::write(&node.dir().join("bin/broken"), BROKEN, "755")?;
    let conf = configure_network(&node, &json!([{"type": "broken"}]))?;
    node.start()?;
    let client = node.client()?;
    let cases = [
        ("hangs", "did not end within 2 s and was killed"),
        ("garbage", "printed something that is not JSON"),
        ("refuses", "come back later"),
    ];
    for (name, _) in cases {
        client.create(PODS, &sleeper(name))?;
    }
    for (name, words) in cases {
        let words = ["CNI plugin broken (ADD)", words];
        wait_event(&node, &client, name, "FailedCreatePodSandBox", &words)?;
        let calls = node.dir().join("bin/calls");
        let count = || {
            let calls = fs::read_to_string(&calls).unwrap_or_default();
            calls.lines().filter(|line| line.contains(&format!("K8S_POD_NAME={name}"))).count()
        };
        let start = Instant::now();
        while count() < 2 {
            ensure!(start.elapsed() < LONG, "{name} is not tried again: {}", node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    // Without that configuration the node's own network serves, and the next attempts succeed.
    fs::remove_file(conf)?;
    for (name, _) in cases {
        ready(&mut node, &client, name)?;
    }
    Ok(())
}

/// Writes a configuration of these plugins as a tool would: at once, by renaming.
fn configure_network(node: &Node, plugins: &Value) -> anyhow::Result<std::path::PathBuf> {
    let dir = node.dir().join("etc/net.d");
    fs::create_dir_all(&dir)?;
    let conf = json!({"cniVersion": "1.0.0", "name": "theirs", "plugins": plugins});
    fs::write(dir.join("new"), conf.to_string())?;
    let file = dir.join("10-theirs.conflist");
    fs::rename(dir.join("new"), &file)?;
    Ok(file)
}

/// Puts Debian's plugins where the node looks for plugins.
fn install_debians(node: &Node, plugins: &[&str]) -> anyhow::Result<()> {
    for plugin in plugins {
        symlink(Path::new("/usr/lib/cni").join(plugin), node.dir().join("bin").join(plugin))?;
    }
    Ok(())
}

/// The configuration of Debian's bridge with addresses of its own.
fn debians_bridge(node: &Node) -> Value {
    json!({"type": "bridge", "bridge": "theirs0", "isDefaultGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]],
            "dataDir": node.dir().join("run/leases")}})
}

#[test]
fn debians_chain_gives_a_pod_its_network_ports_and_limits() -> anyhow::Result<()> {
    require!();
    let plugins = ["bridge", "host-local", "portmap", "bandwidth"];
    let there = plugins.iter().all(|name| Path::new("/usr/lib/cni").join(name).exists());
    require!(there, "needs Debian's containernetworking-plugins");
    require!(Path::new("/usr/sbin/iptables").exists(), "needs iptables, which Debian's portmap calls");
    let mut node = Node::prepared()?;
    node.import_busybox()?;
    install_debians(&node, &plugins)?;
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    configure_network(&node, &json!([debians_bridge(&node), portmap, bandwidth]))?;
    node.start()?;
    let (client, outside) = (node.client()?, node.beside()?);
    let mut object = pod("theirs", "echo $HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www");
    object["metadata"]["annotations"] =
        json!({"kubernetes.io/ingress-bandwidth": "80M", "kubernetes.io/egress-bandwidth": "40M"});
    object["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 8088}]);
    client.create(PODS, &object)?;
    let address = pod_ip(&ready(&mut node, &client, "theirs")?)?;
    ensure!(address.starts_with("10.88.0."), "the pod has {address}");
    let limits = node.run_inside(&["tc", "qdisc", "show"])?;
    ensure!(limits.contains("rate 80Mbit") && limits.contains("rate 40Mbit"), "{limits}");
    for (place, address) in [(&outside, "192.0.2.2"), (&node, "127.0.0.1"), (&node, address.as_str())] {
        let port = if address.starts_with("10.") { 8080 } else { 8088 };
        place.answers((address, port), "theirs")?;
    }

    // A daemon that starts again leaves the pod's network alone, and takes all of it back when the pod goes.
    node.kill_daemon()?;
    node.start()?;
    ensure!(pod_ip(&client.get(&pod_path("theirs"))?)? == address, "the pod got another address");
    ensure!(outside.fetch("192.0.2.2", 8088)?.trim() == "theirs", "the host port is lost");
    client.delete(&pod_path("theirs"))?;
    client.wait(&pod_path("theirs"), LONG, |pod| pod.is_none().then_some(())).with_context(|| node.log())?;
    node.until_prints(&["ip", "-o", "link"], |links| {
        !links.contains("master theirs0") && !links.contains("ifb")
    })?;
    node.until_prints(&["iptables-save", "-t", "nat"], |rules| !rules.contains("8088"))?;
    ensure!(!node.dir().join("run/leases/theirs").join(&address).exists(), "{address} is still leased");
    Ok(())
}

#[test]
fn a_limit_that_makes_no_sense_is_told_and_nothing_is_attached() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let mut object = sleeper("slow");
    object["metadata"]["annotations"] = json!({"kubernetes.io/ingress-bandwidth": "10"});
    client.create(PODS, &object)?;
    let words = ["kubernetes.io/ingress-bandwidth", "10 is not between 1k and 1P"];
    wait_event(&node, &client, "slow", "FailedCreatePodSandBox", &words)?;
    client.delete(&pod_path("slow"))?;
    client.wait(&pod_path("slow"), LONG, |pod| pod.is_none().then_some(())).with_context(|| node.log())
}

/// Does something in a network namespace.
fn inside_of<T: Send + 'static>(
    netns: File,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let inside = std::thread::spawn(move || {
        nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        work()
    });
    Ok(inside.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??)
}

/// Datagrams, and what a pod that vanished held.
#[test]
fn what_a_vanished_pod_held_is_freed_at_the_next_start() -> anyhow::Result<()> {
    require!();
    let mut server = Node::standalone()?;
    let client = server.client()?;
    let (mut node, kubeconfig) = server.joined_beside()?;
    let mut object = sleeper("lost");
    object["spec"]["nodeName"] = json!(node.name());
    object["spec"]["containers"][0]["ports"] =
        json!([{"containerPort": 5353, "hostPort": 53, "protocol": "UDP"}]);
    client.create(PODS, &object)?;
    let seen = ready(&mut node, &client, "lost")?;
    let uid = seen["metadata"]["uid"].as_str().context("no uid")?;
    let inside = inside_of(File::open(node.pod_netns(uid)?)?, || UdpSocket::bind("0.0.0.0:5353"))?;
    let asking = inside_of(server.netns()?, || UdpSocket::bind("0.0.0.0:0"))?;
    asking.send_to(b"hello", "192.0.2.3:53")?;
    inside.set_read_timeout(Some(LONG))?;
    let (mut buffer, from) = ([0; 16], asking.local_addr()?.port());
    let (length, sender) = inside.recv_from(&mut buffer)?;
    ensure!(&buffer[..length] == b"hello" && sender.to_string() == format!("192.0.2.2:{from}"), "{sender}");
    let held = leftovers::of_pods(&node);
    ensure!(held.iter().any(|line| line.starts_with("lease ")), "{held:?}");

    // Nothing of the pod survives but its network, and it is not wanted any more.
    node.kill_daemon()?;
    let now = Some(json!({"gracePeriodSeconds": 0}).to_string());
    client.request("DELETE", &pod_path("lost"), "application/json", now)?;
    node.end_pods();
    for dir in ["run/pods", "root/pods"] {
        fs::remove_dir_all(node.dir().join(dir).join(uid))?;
    }
    node.spawn(&["--kubeconfig", &kubeconfig])?;
    let start = Instant::now();
    loop {
        let left: Vec<String> = leftovers::of_pods(&node)
            .into_iter()
            .filter(|l| l.starts_with("lease ") || l.starts_with("link "))
            .collect();
        let rules = node.run_inside(&["nft", "list", "ruleset"])?;
        if left.is_empty() && !rules.contains(uid) {
            return Ok(());
        }
        ensure!(start.elapsed() < LONG, "still there: {left:?}\n{rules}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_node_is_ready_while_there_is_a_network_configuration() -> anyhow::Result<()> {
    require!();
    require!(Path::new("/usr/lib/cni/bridge").exists(), "needs Debian's containernetworking-plugins");
    let mut node = Node::prepared()?;
    node.import_busybox()?;
    install_debians(&node, &["bridge", "host-local"])?;
    node.spawn(&["--standalone", "--network-plugin", "none"])?;
    node.wait_server()?;
    let client = node.client()?;
    let path = format!("/api/v1/nodes/{}", node.name());
    let not_ready = |seen: Option<&Value>| {
        let conditions = seen?["status"]["conditions"].as_array()?;
        let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
        let message = ready["message"].as_str()?;
        (ready["status"] == "False" && message.contains("NetworkPluginNotReady")).then_some(())
    };
    client.wait(&path, LONG, not_ready).with_context(|| node.log())?;
    let conf = configure_network(&node, &json!([debians_bridge(&node)]))?;
    node.wait_ready()?;
    client.create(PODS, &sleeper("theirs"))?;
    let address = pod_ip(&ready(&mut node, &client, "theirs")?)?;
    ensure!(address.starts_with("10.88.0."), "the pod has {address}");
    fs::remove_file(conf)?;
    client.wait(&path, LONG, not_ready).with_context(|| node.log())?;
    client.delete(&pod_path("theirs"))?;
    client.wait(&pod_path("theirs"), LONG, |pod| pod.is_none().then_some(())).with_context(|| node.log())?;
    node.until_prints(&["ip", "-o", "link"], |links| !links.contains("master theirs0"))
}
