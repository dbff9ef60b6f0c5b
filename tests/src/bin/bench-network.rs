//! The pod network's figures against their goals. Writes `target/bench/network.json` and prints a table.
//!
//! Owns: the goals, and how fast a daemon follows Nodes that join, move and leave. Everything else the example
//! `network_bench` of `cni` measures, in namespaces of its own; its numbers come by standard input. Figures that begin with
//! `reference_` are those of Debian's Go plugins in the same run.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use orlop_tests::client::Client;
use orlop_tests::node::Node;
use orlop_tests::stats::{percentile, round};
use serde_json::{Map, Value, json};

/// What is measured, the most it may be in milliseconds, and its counterpart of the reference.
const GOALS: [(&str, f64, &str); 5] = [
    ("setup_inprocess_p50_ms", 2.0, ""),
    ("add_binary_p50_ms", 5.0, "reference_add_binary_p50_ms"),
    ("del_blocking_p50_ms", 3.0, "reference_del_binary_p50_ms"),
    ("drain100_ms", 300.0, "reference_drain100_binary_ms"),
    ("node_followed_max_ms", 100.0, ""),
];
/// Nodes that join, move and leave one after another.
const FOLLOWED: u8 = 30;
/// Nothing takes longer, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let numbers: Map<String, Value> = serde_json::from_str(&text).context("the benchmark's numbers")?;
    let numbers: Map<String, Value> = numbers
        .into_iter()
        .chain(followed()?)
        .map(|(name, value)| (name, value.as_f64().map_or(value, |number| json!(round(number)))))
        .collect();
    let path = Path::new("target/bench/network.json");
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(path, serde_json::to_string_pretty(&numbers)? + "\n")?;

    println!("{:<32} {:>10} {:>10} {:>12}", "figure", "measured", "goal", "Go reference");
    let mut missed = vec![];
    for (name, goal, reference) in GOALS {
        let value = numbers.get(name).and_then(Value::as_f64).with_context(|| format!("no {name}"))?;
        let reference = numbers.get(reference).map_or_else(String::new, Value::to_string);
        let fits = value <= goal;
        println!("{name:<32} {value:>10} {goal:>10} {reference:>12}  {}", if fits { "" } else { "MISSED" });
        if !fits {
            missed.push(name);
        }
    }
    for (name, value) in numbers.iter().filter(|(name, _)| GOALS.iter().all(|(goal, ..)| goal != name)) {
        println!("{name:<32} {:>10}", value.to_string());
    }
    println!("written to {}", path.display());
    if !missed.is_empty() {
        eprintln!("bench: missed: {}", missed.join(", "));
        std::process::exit(1);
    }
    Ok(())
}

/// Milliseconds from sending a change of a Node to the API server until the daemon's route is in the kernel: the server's
/// part and the watch included.
fn followed() -> anyhow::Result<Map<String, Value>> {
    let mut node = Node::prepared()?;
    node.spawn(&["--standalone"])?;
    node.wait_ready()?;
    let client = node.client()?;
    let routes = monitor(&node)?;
    let (mut joined, mut moved, mut left) = (vec![], vec![], vec![]);
    // The node itself and its router are .2 and .1.
    for n in 3..3 + FOLLOWED {
        let (name, range) = (format!("peer-{n}"), format!("10.200.{n}.0/24"));
        let path = format!("/api/v1/nodes/{name}");
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDR": range, "podCIDRs": [range]}, "status": addresses(n)});
        joined.push(routes.after(&format!("{range} via 192.0.2.{n} "), false, || {
            client.create("/api/v1/nodes", &object).map(drop)
        })?);
        moved.push(routes.after(&format!("{range} via 192.0.2.{} ", n + 100), false, || {
            patch(&client, &format!("{path}/status"), &json!({"status": addresses(n + 100)}))
        })?);
        left.push(routes.after(&format!("{range} via "), true, || client.delete(&path))?);
    }
    let mut figures = Map::new();
    let mut max = 0.0_f64;
    for (name, mut times) in [("joined", joined), ("moved", moved), ("left", left)] {
        figures.insert(format!("node_{name}_p50_ms"), json!(percentile(&mut times, 50)));
        max = max.max(percentile(&mut times, 100));
    }
    figures.insert("node_followed_max_ms".to_owned(), json!(max));
    Ok(figures)
}

fn addresses(n: u8) -> Value {
    json!({"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{n}")}]})
}

fn patch(client: &Client, path: &str, body: &Value) -> anyhow::Result<()> {
    let kind = "application/merge-patch+json";
    let (code, answer) = client.request("PATCH", path, kind, Some(body.to_string()))?;
    ensure!((200..300).contains(&code), "PATCH {path}: {code} {answer}");
    Ok(())
}

/// What the kernel tells of routes.
struct Routes {
    lines: mpsc::Receiver<(Instant, String)>,
    child: std::process::Child,
}

fn monitor(node: &Node) -> anyhow::Result<Routes> {
    let mut child = node.command().args(["ip", "monitor", "route"]).stdout(Stdio::piped()).spawn()?;
    let stdout = BufReader::new(child.stdout.take().context("stdout")?);
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    let routes = Routes { lines, child };
    // It listens once it tells of a route of ours.
    for n in 0_u8.. {
        let probe = format!("10.201.{n}.0/24");
        node.run_inside(&["ip", "route", "add", "blackhole", &probe])?;
        if routes.lines.recv_timeout(Duration::from_millis(200)).is_ok() {
            break;
        }
        ensure!(n < 100, "ip monitor tells nothing");
    }
    Ok(routes)
}

impl Routes {
    /// Milliseconds from a change until the route is there, or gone.
    fn after(
        &self,
        words: &str,
        gone: bool,
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let begin = Instant::now();
        change()?;
        loop {
            let left = PATIENCE.saturating_sub(begin.elapsed());
            let (at, line) = self.lines.recv_timeout(left).with_context(|| format!("no route {words}"))?;
            if line.contains(words) && line.starts_with("Deleted") == gone {
                return Ok(at.duration_since(begin).as_secs_f64() * 1e3);
            }
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
