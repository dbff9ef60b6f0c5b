//! Plain kubectl against the embedded API server: what its users type, and what they are shown.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Output, Stdio};

use anyhow::{Context, ensure};
use orlop_tests::image::BUSYBOX;
use orlop_tests::node::Node;
use orlop_tests::require;
use serde_json::Value;

const PATIENCE: &str = "--timeout=60s";

macro_rules! require_kubectl {
    () => {
        require!();
        require!(kubectl().is_some(), "needs kubectl on the PATH");
    };
}

fn kubectl() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.exists())
}

/// Runs kubectl inside the node, with `input` to read; whatever comes of it.
fn attempt(node: &Node, args: &[&str], input: &str) -> anyhow::Result<Output> {
    let mut child = spawn(node, args)?;
    child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

/// A kubectl that runs beside the test; ended when dropped.
struct Background(Child);

impl Background {
    fn start(node: &Node, args: &[&str]) -> anyhow::Result<Self> {
        let mut child = spawn(node, args)?;
        drop(child.stdin.take());
        Ok(Self(child))
    }

    fn lines(&mut self) -> anyhow::Result<Lines<BufReader<ChildStdout>>> {
        Ok(BufReader::new(self.0.stdout.take().context("stdout")?).lines())
    }

    /// Waits for its end; whether it succeeded.
    fn succeeds(mut self) -> anyhow::Result<bool> {
        Ok(self.0.wait()?.success())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(node: &Node, args: &[&str]) -> anyhow::Result<Child> {
    let program = kubectl().context("kubectl")?;
    let mut command = node.command();
    command
        .arg(program)
        .arg("--kubeconfig")
        .arg(node.kubeconfig())
        .arg(format!("--cache-dir={}", node.dir().join("kubectl").display()))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// Runs kubectl; its standard output.
fn kube(node: &Node, args: &[&str]) -> anyhow::Result<String> {
    kube_with(node, args, "")
}

fn kube_with(node: &Node, args: &[&str], input: &str) -> anyhow::Result<String> {
    let output = attempt(node, args, input)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {args:?}: {}\n{text}{said}\n{}", output.status, node.log());
    ensure!(!said.to_lowercase().contains("warning"), "kubectl {args:?} warns: {said}");
    Ok(text)
}

/// Runs kubectl, which has to fail; what it said.
fn refused(node: &Node, args: &[&str], input: &str) -> anyhow::Result<String> {
    let output = attempt(node, args, input)?;
    ensure!(!output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stdout));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn json(node: &Node, args: &[&str]) -> anyhow::Result<Value> {
    let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
    Ok(serde_json::from_str(&kube(node, &args)?)?)
}

/// The columns of a table's first line.
fn columns(table: &str) -> Vec<&str> {
    let header = table.lines().next().unwrap_or_default();
    header.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

fn says(text: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in:\n{text}");
    }
    Ok(())
}

fn pod(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 5\n  containers:\n  - name: main\n    image: {BUSYBOX}\n    \
         command: [sh, -c, \"{script}\"]\n    resources: {{requests: {{cpu: 10m}}, limits: {{memory: 64Mi}}}}\n"
    )
}

fn sleeper(name: &str) -> String {
    pod(name, "echo hello from $HOSTNAME; trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  selector: {{app: {name}}}\n  ports:\n  \
         - port: 80\n    targetPort: 8080\n"
    )
}

const APPLY: [&str; 3] = ["apply", "-f", "-"];

fn ready(node: &Node, names: &[&str]) -> anyhow::Result<()> {
    let pods: Vec<String> = names.iter().map(|name| format!("pod/{name}")).collect();
    let mut args = vec!["wait", "--for=condition=Ready", PATIENCE];
    args.extend(pods.iter().map(String::as_str));
    let said = kube(node, &args)?;
    for pod in &pods {
        says(&said, &[&format!("{pod} condition met")])?;
    }
    Ok(())
}

#[test]
fn get_prints_the_tables_that_kubectl_users_know() -> anyhow::Result<()> {
    require_kubectl!();
    let node = Node::standalone()?;
    kube_with(&node, &APPLY, &format!("{}---\n{}", sleeper("web"), service("web")))?;
    ready(&node, &["web"])?;
    let pods = kube(&node, &["get", "pods"])?;
    ensure!(columns(&pods) == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"], "{pods}");
    let row: Vec<&str> = pods.lines().nth(1).context("no row")?.split_whitespace().collect();
    ensure!(row[..4] == ["web", "1/1", "Running", "0"], "{pods}");
    let wide = kube(&node, &["get", "pods", "-o", "wide"])?;
    let wanted =
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"];
    ensure!(columns(&wide) == wanted, "{wide}");
    let ip = json(&node, &["get", "pod", "web"])?["status"]["podIP"].as_str().context("no podIP")?.to_owned();
    says(&wide, &[&ip, node.name()])?;
    let services = kube(&node, &["get", "svc", "web"])?;
    ensure!(
        columns(&services) == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"],
        "{services}"
    );
    says(&services, &["ClusterIP", "80/TCP"])?;
    let nodes = kube(&node, &["get", "nodes"])?;
    ensure!(columns(&nodes) == ["NAME", "STATUS", "ROLES", "AGE", "VERSION"], "{nodes}");
    says(&nodes, &[node.name(), "Ready"])?;
    says(&kube(&node, &["get", "nodes", "-o", "wide"])?, &["INTERNAL-IP", "192.0.2.2", "orlop://"])?;
    says(&kube(&node, &["get", "endpointslices"])?, &["ADDRESSTYPE", "ENDPOINTS", &ip])?;
    says(
        &kube(&node, &["get", "events"])?,
        &["LAST SEEN", "REASON", "OBJECT", "Scheduled", "Started", "pod/web"],
    )?;
    says(&kube(&node, &["get", "pods,services", "-A"])?, &["NAMESPACE", "pod/web", "service/web"])?;
    ensure!(kube(&node, &["get", "pods", "-l", "app=web", "-o", "name"])? == "pod/web\n");
    ensure!(kube(&node, &["get", "pods", "-l", "app=other"])?.is_empty());
    let by_phase = ["get", "pods", "--field-selector", "status.phase=Running", "-o", "name"];
    ensure!(kube(&node, &by_phase)? == "pod/web\n");
    let path = ["get", "pod", "web", "-o", "jsonpath={.status.containerStatuses[0].ready}"];
    ensure!(kube(&node, &path)? == "true");
    says(
        &kube(&node, &["get", "pod", "web", "-o", "yaml"])?,
        &["kind: Pod", "phase: Running", &format!("podIP: {ip}")],
    )?;
    Ok(())
}

#[test]
fn describe_tells_of_pods_nodes_and_services() -> anyhow::Result<()> {
    require_kubectl!();
    let node = Node::standalone()?;
    kube_with(&node, &APPLY, &format!("{}---\n{}", sleeper("web"), service("web")))?;
    ready(&node, &["web"])?;
    let told = kube(&node, &["describe", "pod", "web"])?;
    let of_pod = [
        "Node:             ",
        node.name(),
        "Status:           Running",
        "Image:         localhost/busybox:test",
        "State:          Running",
        "Ready:          True",
        "Restart Count:  0",
        "memory:  64Mi",
        "QoS Class:",
        "Burstable",
        "ContainersReady",
        "Events:",
        "Scheduled",
        "Pulled",
        "Created",
        "Started",
        "kubelet",
        "kube-api-access-",
    ];
    says(&told, &of_pod)?;
    let told = kube(&node, &["describe", "node", node.name()])?;
    let of_node = [
        "MemoryPressure",
        "KubeletReady",
        "InternalIP:  192.0.2.2",
        "Capacity:",
        "Allocatable:",
        "Container Runtime Version:",
        "orlop://",
        "Non-terminated Pods:",
        "web",
        "Allocated resources:",
        "10m",
    ];
    says(&told, &of_node)?;
    let ip = kube(&node, &["get", "pod", "web", "-o", "jsonpath={.status.podIP}"])?;
    let told = kube(&node, &["describe", "service", "web"])?;
    says(
        &told,
        &["Selector:", "app=web", "Type:", "ClusterIP", "TargetPort:", "8080/TCP", &format!("{ip}:8080")],
    )?;
    Ok(())
}

#[test]
fn apply_creates_changes_and_knows_what_is_unchanged() -> anyhow::Result<()> {
    require_kubectl!();
    let node = Node::standalone()?;
    let manifest = sleeper("app");
    ensure!(kube_with(&node, &APPLY, &manifest)? == "pod/app created\n");
    ensure!(kube_with(&node, &APPLY, &manifest)? == "pod/app unchanged\n");
    let relabelled = manifest.replace("{app: app}", "{app: app, tier: front}");
    ensure!(kube_with(&node, &APPLY, &relabelled)? == "pod/app configured\n");
    ensure!(json(&node, &["get", "pod", "app"])?["metadata"]["labels"]["tier"] == "front");
    ensure!(kube_with(&node, &APPLY, &manifest)? == "pod/app configured\n");
    ensure!(json(&node, &["get", "pod", "app"])?["metadata"]["labels"]["tier"].is_null(), "the label stays");
    let said = refused(&node, &APPLY, &manifest.replace("name: main", "name: other"))?;
    says(&said, &["The Pod \"app\" is invalid", "pod updates may not"])?;
    let said = refused(&node, &APPLY, &manifest.replace("image:", "imag:"))?;
    says(&said, &["imag"])?;
    let said = refused(&node, &APPLY, "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: none\n")?;
    says(&said, &["no matches for kind \"Deployment\" in version \"apps/v1\""])?;
    let server_side = ["apply", "--server-side", "-f", "-"];
    ensure!(kube_with(&node, &server_side, &service("app"))? == "service/app serverside-applied\n");
    ensure!(kube_with(&node, &["diff", "-f", "-"], &manifest)?.is_empty(), "there is a difference");
    kube(&node, &["label", "pod", "app", "color=blue"])?;
    kube(&node, &["annotate", "pod", "app", "note=seen"])?;
    let seen = json(&node, &["get", "pod", "app"])?;
    ensure!(
        seen["metadata"]["labels"]["color"] == "blue" && seen["metadata"]["annotations"]["note"] == "seen"
    );
    let dry = ["apply", "--dry-run=server", "-f", "-"];
    ensure!(kube_with(&node, &dry, &sleeper("dry"))? == "pod/dry created (server dry run)\n");
    says(&refused(&node, &["get", "pod", "dry"], "")?, &["pods \"dry\" not found"])?;
    Ok(())
}

#[test]
fn delete_ends_pods_gracefully_and_wait_sees_it() -> anyhow::Result<()> {
    require_kubectl!();
    let node = Node::standalone()?;
    let slow =
        pod("slow", "trap 'echo ending; sleep 1; exit 0' TERM; while :; do sleep 1000 & wait $!; done");
    kube_with(&node, &APPLY, &format!("{slow}---\n{}---\n{}", sleeper("one"), sleeper("two")))?;
    ready(&node, &["slow", "one", "two"])?;
    let waiting = Background::start(&node, &["wait", "--for=delete", PATIENCE, "pod/slow"])?;
    let said = kube(&node, &["delete", "pod", "slow"])?;
    says(&said, &["pod \"slow\" deleted"])?;
    ensure!(waiting.succeeds()?, "kubectl wait --for=delete did not see it");
    says(
        &refused(&node, &["get", "pod", "slow"], "")?,
        &["Error from server (NotFound): pods \"slow\" not found"],
    )?;
    says(&refused(&node, &["delete", "pod", "slow"], "")?, &["NotFound"])?;
    kube(&node, &["delete", "pod", "slow", "--ignore-not-found"])?;
    kube(&node, &["delete", "pod", "one", "--wait=false"])?;
    kube(&node, &["wait", "--for=delete", PATIENCE, "pod/one"])?;
    kube(&node, &["delete", "pods", "--all", PATIENCE])?;
    ensure!(kube(&node, &["get", "pods", "-o", "name"])?.is_empty());
    Ok(())
}

#[test]
fn logs_come_through_the_nodes_server() -> anyhow::Result<()> {
    require_kubectl!();
    let node = Node::standalone()?;
    let counts =
        "for i in 1 2 3; do echo line $i; done; trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";
    kube_with(
        &node,
        &APPLY,
        &format!("{}---\n{}", pod("counts", counts), pod("crashes", "echo try; exit 1")),
    )?;
    ready(&node, &["counts"])?;
    ensure!(kube(&node, &["logs", "counts"])? == "line 1\nline 2\nline 3\n");
    ensure!(kube(&node, &["logs", "counts", "--tail=1"])? == "line 3\n");
    ensure!(kube(&node, &["logs", "counts", "-c", "main", "--limit-bytes=6"])? == "line 1");
    ensure!(kube(&node, &["logs", "-l", "app=counts", "--tail=1"])? == "line 3\n");
    let stamped = kube(&node, &["logs", "counts", "--timestamps", "--tail=1"])?;
    ensure!(stamped.starts_with("20") && stamped.ends_with("Z line 3\n"), "{stamped}");
    let again = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1";
    kube(&node, &["wait", again, PATIENCE, "pod/crashes"])?;
    ensure!(kube(&node, &["logs", "crashes", "--previous"])? == "try\n");
    says(
        &refused(&node, &["logs", "counts", "-c", "none"], "")?,
        &["container none is not valid for pod counts"],
    )?;
    let mut following = Background::start(&node, &["logs", "counts", "-f"])?;
    let mut lines = following.lines()?;
    let first: Vec<String> = lines.by_ref().take(3).collect::<Result<_, _>>()?;
    ensure!(first == ["line 1", "line 2", "line 3"], "{first:?}");
    // Following ends with the container.
    kube(&node, &["delete", "pod", "counts"])?;
    ensure!(lines.next().is_none());
    ensure!(following.succeeds()?);
    Ok(())
}

#[test]
fn a_watch_sees_a_pod_become_running_and_go() -> anyhow::Result<()> {
    require_kubectl!();
    let node = Node::standalone()?;
    let mut watching = Background::start(&node, &["get", "pods", "-w", "--no-headers"])?;
    let mut lines = watching.lines()?;
    kube_with(&node, &APPLY, &sleeper("seen"))?;
    let mut until = |words: &[&str]| -> anyhow::Result<()> {
        let mut seen = vec![];
        while !words.iter().all(|word| seen.last().is_some_and(|line: &String| line.contains(word))) {
            seen.push(lines.next().with_context(|| format!("the watch ended after {seen:#?}"))??);
        }
        Ok(())
    };
    until(&["seen", "1/1", "Running"])?;
    kube(&node, &["delete", "pod", "seen"])?;
    until(&["seen", "Terminating"])
}

#[test]
fn what_is_not_served_is_refused_in_kubectls_words() -> anyhow::Result<()> {
    require_kubectl!();
    let node = Node::standalone()?;
    let said = refused(&node, &["get", "deployments"], "")?;
    says(&said, &["the server doesn't have a resource type \"deployments\""])?;
    let said = refused(&node, &["create", "deployment", "web", "--image=x"], "")?;
    says(&said, &["error"])?;
    let said = refused(&node, &["apply", "-n", "nowhere", "-f", "-"], &sleeper("lost"))?;
    says(&said, &["namespaces \"nowhere\" not found"])?;
    says(
        &kube(&node, &["api-resources"])?,
        &["pods", "services", "configmaps", "secrets", "endpointslices", "leases"],
    )?;
    // It may warn that it is older than the server.
    let version = attempt(&node, &["version"], "")?;
    says(&String::from_utf8_lossy(&version.stdout), &["Server Version: v1."])?;
    says(&kube(&node, &["explain", "pod.spec.containers"])?, &["KIND:       Pod", "image"])?;
    ensure!(kube(&node, &["auth", "can-i", "create", "pods"])? == "yes\n");
    says(&kube(&node, &["cluster-info"])?, &["is running at"])?;
    Ok(())
}

#[test]
fn objects_survive_a_restart_of_the_daemon() -> anyhow::Result<()> {
    require_kubectl!();
    let mut node = Node::standalone()?;
    kube(&node, &["create", "namespace", "team"])?;
    kube(&node, &["create", "configmap", "settings", "--from-literal=color=green", "-n", "team"])?;
    kube(&node, &["create", "secret", "generic", "keys", "--from-literal=key=value"])?;
    kube_with(&node, &APPLY, &format!("{}---\n{}", sleeper("stays"), service("stays")))?;
    ready(&node, &["stays"])?;
    let names = ["get", "pods,services,configmaps,secrets", "-A", "-o", "name"];
    let before = kube(&node, &names)?;
    let pod_before = json(&node, &["get", "pod", "stays"])?;
    node.stop_daemon()?;
    node.start()?;
    ensure!(kube(&node, &names)? == before, "before:\n{before}\nafter:\n{}", kube(&node, &names)?);
    let pod = json(&node, &["get", "pod", "stays"])?;
    ensure!(pod["metadata"]["uid"] == pod_before["metadata"]["uid"]);
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    ensure!(id(&pod) == id(&pod_before), "the container was started again");
    ensure!(json(&node, &["get", "configmap", "settings", "-n", "team"])?["data"]["color"] == "green");
    kube(&node, &["delete", "namespace", "team", PATIENCE])?;
    says(&refused(&node, &["get", "configmap", "settings", "-n", "team"], "")?, &["not found"])?;
    Ok(())
}

#[test]
fn pods_that_are_not_there_are_not_waited_for() -> anyhow::Result<()> {
    require_kubectl!();
    let node = Node::standalone()?;
    says(&refused(&node, &["logs", "nobody"], "")?, &["pods \"nobody\" not found"])?;
    let wait = ["wait", "--for=condition=Ready", PATIENCE, "pod/nobody"];
    says(&refused(&node, &wait, "")?, &["pods \"nobody\" not found"])?;
    let empty = attempt(&node, &["get", "pods"], "")?;
    says(&String::from_utf8_lossy(&empty.stderr), &["No resources found in default namespace."])?;
    ensure!(empty.status.success());
    Ok(())
}
