//! Machines that join a cluster: a token of the server's, the real `orlop join`, and the daemon that its line says to run.
//!
//! Owns: the process of the join. Never: decides what should come of it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Output, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::client::Client;
use crate::node::{Node, orlop_bin};

/// The config map that nodes take their configuration from.
pub const KUBELET_CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubelet-config";

/// What a join needs to know.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// `host:port`.
    pub endpoint: String,
    /// The bootstrap token.
    pub token: String,
    /// The CA's hash.
    pub hash: String,
}

impl Invitation {
    /// A new token of a server, good for so long.
    pub fn new(server: &Node, ttl: &str) -> anyhow::Result<Self> {
        let line = server.orlop(&["standalone", "token", "create", "--ttl", ttl, "--print-join-command"])?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["orlop", "join", endpoint, "--token", token, "--discovery-token-ca-cert-hash", hash] = words[..]
        else {
            anyhow::bail!("not a line that joins: {line}");
        };
        Ok(Self { endpoint: endpoint.to_owned(), token: token.to_owned(), hash: hash.to_owned() })
    }

    /// The arguments of a join with it.
    pub fn args(&self) -> Vec<String> {
        let args =
            ["join", &self.endpoint, "--token", &self.token, "--discovery-token-ca-cert-hash", &self.hash];
        args.map(str::to_owned).to_vec()
    }
}

/// Makes the cluster's configuration that of the node that is to join: with its cgroups and directories.
pub fn configure(client: &Client, node: &Node) -> anyhow::Result<()> {
    let text = fs::read_to_string(node.dir().join("etc/config.yaml"))?;
    let patch = json!({"data": {"kubelet": text}}).to_string();
    let (code, body) =
        client.request("PATCH", KUBELET_CONFIG, "application/merge-patch+json", Some(patch))?;
    ensure!(code == 200, "{KUBELET_CONFIG}: {code} {body}");
    Ok(())
}

/// Where a joined node has its configuration.
pub fn etc_dir(node: &Node) -> String {
    node.dir().join("joined").display().to_string()
}

/// A join that runs.
pub struct Joining {
    child: Child,
    output: BufReader<ChildStdout>,
    said: String,
}

impl Joining {
    /// Starts it; the service is left to the test.
    pub fn start(node: &Node, args: &[String]) -> anyhow::Result<Self> {
        let mut child = node
            .command()
            .arg(orlop_bin())
            .args(args)
            .args(["--skip-service", "--etc-dir", &etc_dir(node)])
            .env("ORLOP_ROOT_DIR", node.dir().join("root"))
            .env("ORLOP_RUN_DIR", node.dir().join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, output, said: String::new() })
    }

    /// Waits until it says how the daemon is to be run: the arguments of `orlop`.
    pub fn until_service(&mut self) -> anyhow::Result<Vec<String>> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                let mut errors = String::new();
                self.child.stderr.take().context("stderr")?.read_to_string(&mut errors)?;
                anyhow::bail!("the join ended: {}{errors}", self.said);
            }
            self.said += &line;
            if let Some((_, command)) = line.split_once("run: orlop ") {
                return Ok(command.split_whitespace().map(str::to_owned).collect());
            }
        }
    }

    /// Waits for its end: exit code and everything it said.
    pub fn finish(mut self) -> anyhow::Result<(Option<i32>, String)> {
        self.output.read_to_string(&mut self.said)?;
        if let Some(mut errors) = self.child.stderr.take() {
            errors.read_to_string(&mut self.said)?;
        }
        Ok((self.child.wait()?.code(), std::mem::take(&mut self.said)))
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Joins and starts the daemon when the join says so; what the join said.
pub fn join(node: &mut Node, args: &[String]) -> anyhow::Result<String> {
    let mut joining = Joining::start(node, args)?;
    let command = joining.until_service()?;
    start_daemon(node, &command)?;
    let (code, said) = joining.finish()?;
    ensure!(code == Some(0), "the join ended with {code:?}: {said}\n{}", node.log());
    Ok(said)
}

/// Starts the daemon with the arguments that a join printed.
pub fn start_daemon(node: &mut Node, command: &[String]) -> anyhow::Result<()> {
    let (nets, bins) =
        (node.dir().join("etc/net.d").display().to_string(), node.dir().join("bin").display().to_string());
    let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
    args.extend(["--cni-conf-dir", &nets, "--cni-bin-dir", &bins]);
    node.spawn_command(&args)
}

/// `orlop reset --force` on a node.
pub fn reset(node: &Node) -> anyhow::Result<Output> {
    node.orlop_output(&["reset", "--force", "--etc-dir", &etc_dir(node)])
}

/// The names of the certificate signing requests at a server.
pub fn signing_requests(client: &Client) -> anyhow::Result<Vec<String>> {
    let all = client.get("/apis/certificates.k8s.io/v1/certificatesigningrequests")?;
    let names = all["items"].as_array().into_iter().flatten();
    Ok(names.filter_map(|item| Value::as_str(&item["metadata"]["name"]).map(str::to_owned)).collect())
}
