//! Privileges of started and of exec'd processes, read where the kernel tells them.

use std::time::Duration;

use anyhow::{Context, ensure};
use orlop_tests::manifest::{PODS, is_ready, pod, pod_path, sleeper};
use orlop_tests::node::Node;
use orlop_tests::require;
use serde_json::{Value, json};

/// A security context and what `/proc/self/status` must say: uid, gid, CapEff, NoNewPrivs, Seccomp.
struct Case {
    name: &'static str,
    context: Value,
    uid: &'static str,
    gid: &'static str,
    cap_eff: &'static str,
    no_new_privs: &'static str,
    seccomp: &'static str,
}

/// The default set of docker and containerd as the kernel prints it.
const DEFAULT: &str = "00000000a80425fb";
const NONE: &str = "0000000000000000";

fn cases() -> Vec<Case> {
    let case = |name, context, uid, cap_eff, no_new_privs, seccomp| Case {
        name,
        context,
        uid,
        gid: "0",
        cap_eff,
        no_new_privs,
        seccomp,
    };
    vec![
        case("plain", json!({}), "0", DEFAULT, "0", "0"),
        case("profile", json!({"seccompProfile": {"type": "RuntimeDefault"}}), "0", DEFAULT, "0", "2"),
        case("user", json!({"runAsUser": 1000}), "1000", NONE, "0", "0"),
        Case {
            gid: "2000",
            ..case("group", json!({"runAsUser": 1000, "runAsGroup": 2000}), "1000", NONE, "0", "0")
        },
        case("no-escalation", json!({"allowPrivilegeEscalation": false}), "0", DEFAULT, "1", "0"),
        case(
            "dropped",
            json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}),
            "0",
            "0000000000000400",
            "0",
            "0",
        ),
        case(
            "restricted",
            json!({"runAsUser": 1000, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
                   "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}),
            "1000",
            NONE,
            "1",
            "2",
        ),
        case(
            "filter-and-user",
            json!({"runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}),
            "1000",
            NONE,
            "0",
            "2",
        ),
    ]
}

fn field<'a>(status: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()).with_context(|| format!("no {name} in {status:?}"))
}

fn check(case: &Case, how: &str, status: &str) -> anyhow::Result<()> {
    for (name, want) in [
        ("Uid", case.uid),
        ("Gid", case.gid),
        ("CapEff", case.cap_eff),
        ("NoNewPrivs", case.no_new_privs),
        ("Seccomp", case.seccomp),
    ] {
        let have = field(status, name)?;
        ensure!(have == want, "{} ({how}): {name} is {have}, not {want}", case.name);
    }
    // A capability that is not in the bounding set cannot come back by a setuid program.
    let bounding = field(status, "CapBnd")?;
    if case.name == "restricted" {
        ensure!(bounding == NONE, "{} ({how}): CapBnd is {bounding}", case.name);
    }
    Ok(())
}

#[test]
fn started_and_execd_processes_have_exactly_what_the_pod_asks_for() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    for case in cases() {
        let mut object = pod(
            case.name,
            "cat /proc/self/status; trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done",
        );
        object["spec"]["containers"][0]["securityContext"] = case.context.clone();
        client.create(PODS, &object)?;
    }
    for case in cases() {
        let ready = client.wait(&pod_path(case.name), Duration::from_secs(30), |pod| {
            pod.filter(|pod| is_ready(pod)).map(|_| ())
        });
        ready.with_context(|| node.log())?;
        check(&case, "started", &node.orlop(&["logs", case.name])?)?;
        check(&case, "exec", &node.orlop(&["exec", case.name, "--", "cat", "/proc/self/status"])?)?;
    }
    Ok(())
}

#[test]
fn a_container_that_must_not_be_root_does_not_start_as_root() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let mut object = pod("rootless", "true");
    object["spec"]["securityContext"] = json!({"runAsNonRoot": true});
    client.create(PODS, &object)?;
    let waiting = client.wait(&pod_path("rootless"), Duration::from_secs(20), |pod| {
        let status = orlop_tests::manifest::container(pod?, "main")?;
        (status["state"]["waiting"]["reason"] == "CreateContainerConfigError")
            .then(|| status["state"]["waiting"].clone())
    })?;
    let message = waiting["message"].as_str().unwrap_or_default();
    ensure!(message.contains("image will run as root"), "{message}");
    Ok(())
}

#[test]
fn a_field_that_is_not_supported_is_told_and_one_that_isolates_keeps_the_pod_from_starting()
-> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let mut object = pod("userns", "sleep 1000");
    object["spec"]["hostUsers"] = json!(false);
    client.create(PODS, &object)?;
    let events = client.wait("/api/v1/namespaces/default/events", Duration::from_secs(20), |events| {
        let list = events?["items"].as_array()?.clone();
        list.iter()
            .any(|event| event["message"].as_str().is_some_and(|m| m.contains("hostUsers")))
            .then_some(list)
    })?;
    ensure!(!events.is_empty());
    let pod = client.get(&pod_path("userns"))?;
    ensure!(orlop_tests::manifest::phase(&pod) == "Pending", "{:#}", pod["status"]);
    ensure!(
        pod["status"].to_string().contains("hostUsers"),
        "the status does not say so: {:#}",
        pod["status"]
    );
    Ok(())
}

#[test]
fn unsafe_sysctls_run_only_where_the_node_allows_them() -> anyhow::Result<()> {
    require!();
    let mut node = Node::prepared()?;
    node.configure("allowedUnsafeSysctls: [net.core.*]\n")?;
    node.import_busybox()?;
    node.start()?;
    let client = node.client()?;
    let cases = [
        ("safe", "net.ipv4.ip_unprivileged_port_start", "81"),
        ("allowed", "net.core.somaxconn", "82"),
        ("forbidden", "kernel.msgmax", "4096"),
    ];
    for (name, sysctl, value) in cases {
        let mut object = sleeper(name);
        object["spec"]["securityContext"] = json!({"sysctls": [{"name": sysctl, "value": value}]});
        client.create(PODS, &object)?;
    }
    for (name, sysctl, value) in &cases[..2] {
        client.wait(&pod_path(name), Duration::from_secs(30), |pod| {
            pod.filter(|pod| is_ready(pod)).map(|_| ())
        })?;
        let file = format!("/proc/sys/{}", sysctl.replace('.', "/"));
        let have = node.orlop(&["exec", name, "--", "cat", &file])?;
        ensure!(have.trim() == *value, "{name}: {sysctl} is {have:?}");
    }
    let status = client.wait(&pod_path("forbidden"), Duration::from_secs(30), |pod| {
        pod.map(|pod| &pod["status"]).filter(|status| status["phase"] == "Failed").cloned()
    })?;
    ensure!(status["reason"] == "SysctlForbidden", "{status}");
    ensure!(
        status["message"] == "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        "{status}"
    );
    Ok(())
}
