//! Pods' network: two nodes, host ports, names, other people's plugins.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use orlop_tests::client::Client;
use orlop_tests::manifest::{PODS, is_ready, phase, pod, pod_path, sleeper};
use orlop_tests::node::Node;
use orlop_tests::require;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(40);
/// Answers every request with its own name and the address the request comes from.
const WHO: &str = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $HOSTNAME $REMOTE_ADDR\\n' > \
    /www/cgi-bin/who; /bin/busybox chmod 755 /www/cgi-bin/who; exec httpd -f -p 0.0.0.0:8080 -h /www";

fn ready(node: &mut Node, client: &Client, name: &str) -> anyhow::Result<Value> {
    let seen = client.wait(&pod_path(name), LONG, |pod| pod.filter(|pod| is_ready(pod)).cloned());
    seen.with_context(|| format!("daemon's log:\n{}", node.log()))
}

fn pod_ip(pod: &Value) -> anyhow::Result<String> {
    Ok(pod["status"]["podIP"].as_str().context("no podIP")?.to_owned())
}

/// A node with a server, and another on its link, both Ready.
fn two_nodes(flags: &[&str]) -> anyhow::Result<(Node, Node)> {
    let mut server = Node::prepared()?;
    server.import_busybox()?;
    server.spawn(&[&["--standalone"], flags].concat())?;
    server.wait_ready()?;
    let node = join(&mut server, flags)?;
    Ok((server, node))
}

fn join(server: &mut Node, flags: &[&str]) -> anyhow::Result<Node> {
    let mut node = server.beside()?;
    let kubeconfig = server.kubeconfig_for(&node)?;
    node.import_busybox()?;
    node.spawn(&[&["--kubeconfig", &kubeconfig], flags].concat())?;
    let path = format!("/api/v1/nodes/{}", node.name());
    let seen = server.client()?.wait(&path, LONG, |n| n.filter(|n| is_ready(n)).map(|_| ()));
    seen.with_context(|| node.log())?;
    Ok(node)
}

/// What the pod `from` of `node` is answered at an address.
fn ask(node: &Node, from: &str, address: &str, port: u16) -> anyhow::Result<String> {
    let script =
        format!("printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} {port} | tail -n 1");
    Ok(node.orlop(&["exec", from, "--", "sh", "-c", &script])?.trim().to_owned())
}

/// Waits until a command inside the node prints what is wanted.
fn wait_inside(node: &Node, command: &[&str], wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let out = node.run_inside(command)?;
        if wanted(&out) {
            return Ok(());
        }
        ensure!(start.elapsed() < LONG, "{command:?} still prints {out}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Pods, service and nodes by one way; then the second node leaves.
fn nodes_are_joined(flags: &[&str], device: &str) -> anyhow::Result<()> {
    let (mut server, mut node) = two_nodes(flags)?;
    let client = server.client()?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "who"},
        "spec": {"selector": {"role": "who"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    client.create("/api/v1/namespaces/default/services", &service)?;
    for (name, place) in [("near", server.name()), ("far", node.name())] {
        let mut object = pod(name, WHO);
        object["metadata"]["labels"] = json!({"role": "who"});
        object["spec"]["nodeName"] = json!(place);
        client.create(PODS, &object)?;
    }
    let near = pod_ip(&ready(&mut server, &client, "near")?)?;
    let far = pod_ip(&ready(&mut node, &client, "far")?)?;
    let routes = ["ip", "route", "show", "proto", "111"];
    wait_inside(&server, &routes, |out| out.contains(device))?;
    wait_inside(&node, &routes, |out| out.contains(device))?;

    let answer = ask(&server, "near", &far, 8080)?;
    ensure!(answer == format!("far {near}"), "near asked far and got {answer:?}");
    let answer = ask(&node, "far", &near, 8080)?;
    ensure!(answer == format!("near {far}"), "far asked near and got {answer:?}");
    let mtu = node.orlop(&["exec", "far", "--", "cat", "/sys/class/net/eth0/mtu"])?;
    ensure!(mtu.trim() == "1450", "the pod's MTU is {mtu}");
    for (place, address) in [(&server, &far), (&node, &near)] {
        place.fetch(address, 8080).with_context(|| format!("{} to {address}", place.name()))?;
    }

    let service = client.get("/api/v1/namespaces/default/services/who")?;
    let vip = service["spec"]["clusterIP"].as_str().context("no clusterIP")?;
    for (place, from, own, other) in [(&server, "near", &near, "far"), (&node, "far", &far, "near")] {
        let (start, wanted) = (Instant::now(), format!("{other} {own}"));
        let mut answers = vec![];
        while !answers.contains(&wanted) {
            ensure!(start.elapsed() < LONG, "{from} asks {vip} and gets {answers:?}, never {wanted:?}");
            answers.extend(ask(place, from, vip, 80));
        }
    }

    node.kill_daemon()?;
    client.delete(&format!("/api/v1/nodes/{}", node.name()))?;
    wait_inside(&server, &routes, |out| out.trim().is_empty())
}

#[test]
fn two_nodes_on_a_link_are_joined_by_routes() -> anyhow::Result<()> {
    require!();
    nodes_are_joined(&[], "via 192.0.2.")
}

#[test]
fn two_nodes_are_joined_by_vxlan() -> anyhow::Result<()> {
    require!();
    nodes_are_joined(&["--pod-routes", "vxlan"], "dev orlop.1")
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
        let page = place.fetch(address, 8088).with_context(|| format!("{} to {address}", place.name()))?;
        ensure!(page.trim() == "first", "{} asked {address} and got {page:?}", place.name());
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
    let page = outside.fetch("192.0.2.2", 8088)?;
    ensure!(page.trim() == "third", "after the first has gone the port answers {page:?}");
    Ok(())
}

#[test]
fn pods_have_the_names_and_resolvers_they_ask_for() -> anyhow::Result<()> {
    require!();
    let mut node = Node::prepared()?;
    let resolv = node.dir().join("etc/resolv.conf");
    fs::write(&resolv, "search example.org\nnameserver 192.0.2.53\noptions timeout:1\n")?;
    node.configure(&format!("resolvConf: {}\n", resolv.display()))?;
    node.import_busybox()?;
    node.start()?;
    let client = node.client()?;
    let cluster = "search default.svc.cluster.local svc.cluster.local cluster.local example.org\n\
        nameserver 10.96.0.10\noptions ndots:5\n";
    let of_node = "search example.org\nnameserver 192.0.2.53\noptions timeout:1\n";
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
        ("hostnet", host_net, node.name(), cluster, "# Kubernetes-managed hosts file (host network).".into()),
        ("aliases", aliases, "aliases", cluster, "192.0.2.9\tfoo\tbar".to_owned()),
        ("named", json!({"hostname": "db", "subdomain": "sub"}), "db", cluster, format!("@\t{long}\tdb")),
        ("fqdn", fqdn, long, cluster, format!("@\t{long}\tdb")),
    ];
    let script = "hostname; echo ---; cat /etc/resolv.conf; echo ---; cat /etc/hosts";
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
        ensure!(parts[0].trim() == hostname, "{name}: hostname is {:?}", parts[0]);
        ensure!(parts[1] == resolver, "{name}: resolv.conf is\n{}", parts[1]);
        let line = line.replace('@', &address);
        ensure!(parts[2].lines().any(|l| l == line), "{name}: no {line:?} in\n{}", parts[2]);
    }
    Ok(())
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
    let program = node.dir().join("bin/broken");
    fs::write(&program, BROKEN)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let conf = configure_network(&node, &json!({"type": "broken"}))?;
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
        let told = |events: &Value| {
            let mut events = events["items"].as_array().into_iter().flatten();
            events.any(|event| {
                let message = event["message"].as_str().unwrap_or_default();
                event["reason"] == "FailedCreatePodSandBox"
                    && event["involvedObject"]["name"] == name
                    && message.contains("CNI plugin broken (ADD)")
                    && message.contains(words)
            })
        };
        let events = "/api/v1/namespaces/default/events";
        let seen = client.wait(events, LONG, |events| events.filter(|e| told(e)).map(|_| ()));
        seen.with_context(|| format!("{name}: {}", node.log()))?;
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

/// Writes a configuration of one plugin as a tool would: at once, by renaming.
fn configure_network(node: &Node, plugin: &Value) -> anyhow::Result<std::path::PathBuf> {
    let dir = node.dir().join("etc/net.d");
    fs::create_dir_all(&dir)?;
    let conf = json!({"cniVersion": "1.0.0", "name": "theirs", "plugins": [plugin]});
    fs::write(dir.join("new"), conf.to_string())?;
    let file = dir.join("10-theirs.conflist");
    fs::rename(dir.join("new"), &file)?;
    Ok(file)
}

#[test]
fn the_node_is_ready_while_there_is_a_network_configuration() -> anyhow::Result<()> {
    require!();
    require!(Path::new("/usr/lib/cni/bridge").exists(), "needs Debian's containernetworking-plugins");
    let mut node = Node::prepared()?;
    node.import_busybox()?;
    for plugin in ["bridge", "host-local"] {
        symlink(Path::new("/usr/lib/cni").join(plugin), node.dir().join("bin").join(plugin))?;
    }
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
    let leases = node.dir().join("run/leases");
    let conf = configure_network(
        &node,
        &json!({"type": "bridge", "bridge": "theirs0", "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "dataDir": leases}}),
    )?;
    node.wait_ready()?;
    client.create(PODS, &sleeper("theirs"))?;
    let address = pod_ip(&ready(&mut node, &client, "theirs")?)?;
    ensure!(address.starts_with("10.99.0."), "the pod has {address}");
    fs::remove_file(conf)?;
    client.wait(&path, LONG, not_ready).with_context(|| node.log())?;
    client.delete(&pod_path("theirs"))?;
    client.wait(&pod_path("theirs"), LONG, |pod| pod.is_none().then_some(())).with_context(|| node.log())?;
    wait_inside(&node, &["ip", "-o", "link"], |links| !links.contains("master theirs0"))
}
