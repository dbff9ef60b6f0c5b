//! The server as a process: killed and started again, and driven by kubectl where there is one.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod client;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use client::Client;
use serde_json::json;

/// The example `serve`, which cargo builds beside the tests. Killed when dropped.
struct Process {
    child: Child,
    kubeconfig: PathBuf,
}

impl Process {
    fn start(dir: &Path) -> Self {
        let test = std::env::current_exe().unwrap();
        let target = test.parent().and_then(Path::parent).unwrap();
        let mut child = Command::new(target.join("examples/serve"))
            .arg(dir)
            .arg("127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example `serve` is built with the tests");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let kubeconfig = line.trim().split_once(' ').unwrap().1.into();
        Self { child, kubeconfig }
    }

    fn client(&self) -> Client {
        Client::new(&std::fs::read_to_string(&self.kubeconfig).unwrap())
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn kubectl(&self, args: &[&str], input: &str) -> (bool, String) {
        let mut child = Command::new("kubectl")
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.kubeconfig.parent().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn what_was_answered_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let maps = "/api/v1/namespaces/default/configmaps";
    let mut version = 0;
    for round in 0..5 {
        let process = Process::start(dir.path());
        let client = process.client();
        let (_, list) = client.get(maps).await;
        assert_eq!(list["items"].as_array().unwrap().len(), 1 + round * 20, "round {round}");
        let now: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(now > version, "versions never go back");
        for i in 0..20 {
            let map = json!({"metadata": {"name": format!("m{round}-{i}")}, "data": {"k": "v".repeat(500)}});
            let (status, made) = client.post(maps, &map).await;
            assert_eq!(status, 201);
            version = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        }
        process.kill();
    }
}

#[test]
fn two_servers_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Process::start(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = orlop_standalone::Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..orlop_standalone::Config::new(dir.path())
    };
    let error =
        runtime.block_on(orlop_standalone::Server::start(config)).err().expect("the database is in use");
    assert!(error.to_string().contains("objects.redb"), "{error}");
}

const MANIFEST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: web, image: 'busybox:1', ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: b}
";

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
status:
  conditions: [{type: Ready, status: 'True'}]
";

#[test]
fn kubectl_works_as_against_any_server() {
    if Command::new("kubectl").arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("SKIP kubectl is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    let running = r#"{"status":{"phase":"Running","podIP":"10.0.0.9","conditions":[{"type":"Ready","status":"True"}]}}"#;
    let steps: [(&[&str], &str, bool, &str); 23] = [
        (&["create", "-f", "-"], NODE, true, "node/n1 created"),
        (&["apply", "-f", "-"], MANIFEST, true, "pod/web created"),
        (&["apply", "-f", "-"], MANIFEST, true, "configmap/settings unchanged"),
        (&["diff", "-f", "-"], MANIFEST, true, ""),
        (&["apply", "--server-side", "-f", "-"], MANIFEST, true, "service/web serverside-applied"),
        (&["get", "pods", "-o", "wide"], "", true, "NOMINATED NODE"),
        (&["get", "all"], "", true, "service/kubernetes"),
        (&["patch", "pod", "web", "--subresource=status", "-p", running], "", true, "pod/web patched"),
        (&["wait", "--for=condition=Ready", "pod/web", "--timeout=10s"], "", true, "condition met"),
        (&["describe", "pod", "web"], "", true, "kube-api-access-"),
        (&["describe", "service", "web"], "", true, "10.0.0.9:80"),
        (&["describe", "node", "n1"], "", true, "10.244.0.0/24"),
        (&["label", "pod", "web", "x=y"], "", true, "pod/web labeled"),
        (&["create", "namespace", "t"], "", true, "namespace/t created"),
        (
            &["create", "secret", "generic", "s", "-n", "t", "--from-literal=a=b"],
            "",
            true,
            "secret/s created",
        ),
        (&["create", "token", "default", "-n", "t"], "", true, "ey"),
        (&["auth", "can-i", "get", "pods"], "", true, "yes"),
        (&["delete", "namespace", "t"], "", true, "namespace \"t\" deleted"),
        (&["explain", "pod.spec.containers.livenessProbe"], "", true, "initialDelaySeconds"),
        (&["get", "deployments"], "", false, "the server doesn't have a resource type \"deployments\""),
        (&["delete", "pod", "web", "--grace-period=0", "--force"], "", true, "force deleted"),
        (
            &["delete", "service,configmap", "web", "settings", "--ignore-not-found"],
            "",
            true,
            "service \"web\" deleted",
        ),
        (&["get", "pod", "web"], "", false, "pods \"web\" not found"),
    ];
    for (args, input, fine, expected) in steps {
        let (success, text) = process.kubectl(args, input);
        assert_eq!(success, fine, "kubectl {args:?}: {text}");
        assert!(text.contains(expected), "kubectl {args:?}: {text}");
    }
}
