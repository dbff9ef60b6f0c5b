//! Pods from their creation to their end, on a node with a server of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use orlop_tests::manifest::{PODS, container, is_ready, phase, pod, pod_path, sleeper};
use orlop_tests::node::Node;
use orlop_tests::{leftovers, require};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);

fn wait_ready(node: &mut Node, name: &str) -> anyhow::Result<Value> {
    node.client()?
        .wait(&pod_path(name), LONG, |pod| pod.filter(|pod| is_ready(pod)).cloned())
        .with_context(|| format!("daemon's log:\n{}", node.log()))
}

fn wait_gone(node: &mut Node, name: &str) -> anyhow::Result<()> {
    node.client()?.wait(&pod_path(name), LONG, |pod| pod.is_none().then_some(()))
}

fn pod_ip(pod: &Value) -> anyhow::Result<String> {
    Ok(pod["status"]["podIP"].as_str().context("no podIP")?.to_owned())
}

/// Everything of pods is gone; removal ends a moment after the object's.
fn assert_nothing_left(node: &Node) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let left = leftovers::of_pods(node);
        if left.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(10), "left over: {left:#?}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn two_pods_behind_a_service_answer_and_leave_nothing() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    client.create(
        "/api/v1/namespaces/default/services",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
    )?;
    for name in ["web-0", "web-1"] {
        let mut pod = pod(name, "echo $HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www");
        pod["metadata"]["labels"] = json!({"app": "web"});
        client.create(PODS, &pod)?;
    }
    let addresses = [pod_ip(&wait_ready(&mut node, "web-0")?)?, pod_ip(&wait_ready(&mut node, "web-1")?)?];
    ensure!(addresses[0] != addresses[1], "two pods share {addresses:?}");
    let service = client.get("/api/v1/namespaces/default/services/web")?;
    let vip = service["spec"]["clusterIP"].as_str().context("no clusterIP")?;

    // From the node, from a pod to a pod, and through the service until both have answered.
    node.answers((&addresses[0], 8080), "web-0")?;
    node.answers((&addresses[1], 8080), "web-1")?;
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} 8080 | tail -n 1", addresses[1]);
    let page = node.orlop(&["exec", "web-0", "--", "sh", "-c", &script])?;
    ensure!(page.trim() == "web-1", "page of web-1 is {page:?}");
    let mut seen = std::collections::BTreeSet::new();
    let start = Instant::now();
    while seen.len() < 2 {
        ensure!(start.elapsed() < LONG, "only {seen:?} answer behind {vip}: {}", node.log());
        if let Ok(page) = node.fetch(vip, 80) {
            seen.insert(page.trim().to_owned());
        }
    }

    for name in ["web-0", "web-1"] {
        client.delete(&pod_path(name))?;
    }
    for name in ["web-0", "web-1"] {
        wait_gone(&mut node, name)?;
    }
    assert_nothing_left(&node)
}

#[test]
fn a_pod_sees_its_volumes_names_and_variables() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    client.create(
        "/api/v1/namespaces/default/configmaps",
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
                "data": {"color": "green", "size": "3"}}),
    )?;
    client.create(
        "/api/v1/namespaces/default/secrets",
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"key": "s3cret"}}),
    )?;
    let script = "cat /cfg/color; echo; cat /sec/key; echo; echo $COLOR $SECRET_key $NAME; cat /etc/hostname; \
        ls /var/run/secrets/kubernetes.io/serviceaccount; grep -c . /etc/resolv.conf; echo $KUBERNETES_SERVICE_PORT; \
        cat /down/labels; echo; echo hi > /scratch/x && cat /scratch/x /mem/../scratch/x; mount | grep -c ' /mem type tmpfs'";
    let mut object = pod("all", script);
    object["spec"]["restartPolicy"] = json!("Never");
    object["spec"]["volumes"] = json!([
        {"name": "cfg", "configMap": {"name": "settings"}}, {"name": "sec", "secret": {"secretName": "keys"}},
        {"name": "scratch", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory"}},
        {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]);
    object["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "cfg", "mountPath": "/cfg"}, {"name": "sec", "mountPath": "/sec"},
        {"name": "scratch", "mountPath": "/scratch"}, {"name": "mem", "mountPath": "/mem"},
        {"name": "down", "mountPath": "/down"},
    ]);
    object["spec"]["containers"][0]["envFrom"] =
        json!([{"prefix": "SECRET_", "secretRef": {"name": "keys"}}]);
    object["spec"]["containers"][0]["env"] = json!([
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]);
    client.create(PODS, &object)?;
    let done =
        client.wait(&pod_path("all"), LONG, |pod| pod.filter(|pod| phase(pod) == "Succeeded").cloned());
    done.with_context(|| node.log())?;
    let log = node.orlop(&["logs", "all"])?;
    let lines: Vec<&str> = log.lines().collect();
    ensure!(
        lines
            == [
                "green",
                "s3cret",
                "green s3cret all",
                "all",
                "ca.crt",
                "namespace",
                "token",
                "3",
                "443",
                "app=\"all\"",
                "hi",
                "hi",
                "1"
            ],
        "the pod saw {lines:#?}"
    );
    Ok(())
}

#[test]
fn a_crashing_container_backs_off_and_keeps_its_last_state() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    client.create(PODS, &pod("crash", "echo attempt; exit 3"))?;
    let waiting = client.wait(&pod_path("crash"), LONG, |pod| {
        let status = container(pod?, "main")?;
        (status["state"]["waiting"]["reason"] == "CrashLoopBackOff").then(|| status.clone())
    })?;
    // The first restart is immediate, the second waits.
    ensure!(waiting["restartCount"] == 1, "{waiting:#}");
    ensure!(waiting["lastState"]["terminated"]["exitCode"] == 3, "{waiting:#}");
    ensure!(waiting["lastState"]["terminated"]["reason"] == "Error", "{waiting:#}");
    let message = waiting["state"]["waiting"]["message"].as_str().unwrap_or_default();
    ensure!(
        message.starts_with("back-off 10s restarting failed container=main pod=crash_default("),
        "{message}"
    );
    ensure!(waiting["imageID"].as_str().is_some_and(|id| id.contains("sha256:")), "{waiting:#}");
    let restarted = client.wait(&pod_path("crash"), LONG, |pod| {
        let status = container(pod?, "main")?;
        (status["restartCount"] == 2).then(|| status.clone())
    });
    restarted.context("a second restart after 10 s")?;
    let previous = node.orlop(&["logs", "--previous", "crash"])?;
    ensure!(previous.trim() == "attempt", "previous log is {previous:?}");
    let events = client.get("/api/v1/namespaces/default/events")?;
    let reasons: Vec<&str> = events["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["reason"].as_str())
        .collect();
    for reason in ["Scheduled", "Pulled", "Created", "Started", "BackOff"] {
        ensure!(reasons.contains(&reason), "no event {reason} in {reasons:?}");
    }
    Ok(())
}

#[test]
fn exit_codes_decide_with_the_restart_policy() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    for (name, policy, script) in
        [("done", "OnFailure", "exit 0"), ("failed", "Never", "exit 7"), ("again", "OnFailure", "exit 1")]
    {
        let mut object = pod(name, script);
        object["spec"]["restartPolicy"] = json!(policy);
        client.create(PODS, &object)?;
    }
    client.wait(&pod_path("done"), LONG, |pod| (phase(pod?) == "Succeeded").then_some(()))?;
    let failed =
        client.wait(&pod_path("failed"), LONG, |pod| pod.filter(|pod| phase(pod) == "Failed").cloned())?;
    let state = &container(&failed, "main").context("no status")?["state"]["terminated"];
    ensure!(state["exitCode"] == 7 && state["reason"] == "Error", "{state:#}");
    let again = client.wait(&pod_path("again"), LONG, |pod| {
        pod.filter(|pod| container(pod, "main").is_some_and(|status| status["restartCount"] == 1)).cloned()
    })?;
    ensure!(phase(&again) == "Running", "OnFailure goes on: {}", again["status"]);
    Ok(())
}

#[test]
fn a_container_that_ignores_sigterm_is_killed_when_its_grace_ends() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    client.create(PODS, &pod("stubborn", "trap '' TERM; while :; do sleep 1; done"))?;
    wait_ready(&mut node, "stubborn")?;
    client.delete(&pod_path("stubborn"))?;
    wait_gone(&mut node, "stubborn")?;
    assert_nothing_left(&node)
}

#[test]
fn a_pod_deleted_while_the_daemon_is_away_ends_when_it_is_back() -> anyhow::Result<()> {
    require!();
    // The server has to stay while the node's daemon is away: two daemons.
    let mut server = Node::standalone()?;
    let client = server.client()?;
    let (mut node, kubeconfig) = server.joined_beside()?;
    client
        .wait(&format!("/api/v1/nodes/{}", node.name()), LONG, |n| n.filter(|n| is_ready(n)).map(|_| ()))
        .with_context(|| node.log())?;
    let mut object = sleeper("orphan");
    object["spec"]["nodeName"] = json!(node.name());
    client.create(PODS, &object)?;
    client
        .wait(&pod_path("orphan"), LONG, |pod| pod.filter(|pod| is_ready(pod)).map(|_| ()))
        .with_context(|| node.log())?;
    node.kill_daemon()?;
    client.delete(&pod_path("orphan"))?;
    let still = client.find(&pod_path("orphan"))?.context("deletion waits for the node")?;
    ensure!(still["metadata"]["deletionTimestamp"].is_string());
    node.spawn(&["--kubeconfig", &kubeconfig])?;
    client.wait(&pod_path("orphan"), LONG, |pod| pod.is_none().then_some(())).with_context(|| node.log())?;
    assert_nothing_left(&node)
}

#[test]
fn a_killed_daemon_takes_its_pods_back_untouched() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    client.create(PODS, &pod("steady", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done"))?;
    client.create(PODS, &pod("ends", "sleep 1.5; exit 9"))?;
    let before = wait_ready(&mut node, "steady")?;
    wait_ready(&mut node, "ends")?;
    node.kill_daemon()?;
    // One container ends while nobody looks.
    std::thread::sleep(Duration::from_secs(2));
    node.start()?;
    let client = node.client()?;
    let ended = client.wait(&pod_path("ends"), LONG, |pod| {
        pod.filter(|pod| container(pod, "main").is_some_and(|status| status["restartCount"] == 1)).cloned()
    })?;
    let last = &container(&ended, "main").context("no status")?["lastState"]["terminated"];
    ensure!(last["exitCode"] == 9, "the exit code was lost: {last:#}");
    let after = wait_ready(&mut node, "steady")?;
    for field in ["containerID", "restartCount"] {
        let of = |pod: &Value| container(pod, "main").map(|status| status[field].clone());
        ensure!(of(&before) == of(&after), "{field} changed: {:?} {:?}", of(&before), of(&after));
    }
    ensure!(pod_ip(&before)? == pod_ip(&after)?);
    let log = node.orlop(&["logs", "steady"])?;
    for (number, line) in log.lines().enumerate() {
        ensure!(line == format!("line {number}"), "line {number} of the log is {line:?}");
    }
    ensure!(log.lines().count() > 40, "only {} lines", log.lines().count());
    Ok(())
}

#[test]
fn kills_of_the_daemon_at_any_moment_leave_nothing_behind() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let seed = std::process::id();
    for round in 0..20_u32 {
        let name = format!("r{round}");
        let client = node.client()?;
        client.create(PODS, &sleeper(&name))?;
        // A different moment of the start in each round, then of the stop.
        std::thread::sleep(Duration::from_millis(u64::from(
            seed.wrapping_mul(31).wrapping_add(round * 37) % 120,
        )));
        node.kill_daemon()?;
        node.start()?;
        wait_ready(&mut node, &name)?;
        node.client()?.delete(&pod_path(&name))?;
        std::thread::sleep(Duration::from_millis(u64::from(
            seed.wrapping_mul(17).wrapping_add(round * 53) % 120,
        )));
        node.kill_daemon()?;
        node.start()?;
        wait_gone(&mut node, &name)?;
    }
    assert_nothing_left(&node)
}

#[test]
fn a_restarted_daemon_leaves_the_network_of_every_pod_alone() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let names: Vec<String> = (0..8).map(|number| format!("net-{number}")).collect();
    for name in &names {
        client.create(PODS, &pod(name, "echo $HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www"))?;
    }
    let mut addresses = vec![];
    for name in &names {
        let address = pod_ip(&wait_ready(&mut node, name)?)?;
        node.answers((&address, 8080), name)?;
        addresses.push(address);
    }
    for round in 0..4 {
        node.kill_daemon()?;
        node.start()?;
        // A pod that comes after the restart: by the time it is ready, the daemon has taken the others over.
        let late = format!("late-{round}");
        node.client()?.create(PODS, &sleeper(&late))?;
        wait_ready(&mut node, &late)?;
        for (name, address) in names.iter().zip(&addresses) {
            let page = node.fetch(address, 8080).with_context(|| format!("{name} after {round} restarts"))?;
            ensure!(
                page.trim() == name,
                "{address} answers {page:?} after {round} restarts:\n{}",
                node.log()
            );
        }
    }
    Ok(())
}
