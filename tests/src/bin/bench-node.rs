//! The node's figures: memory, latency, idle CPU, size. Writes `target/bench/node.json` and prints a table.
//!
//! Owns: how each figure is taken; the command that does it is in `tests/bench`. Never: judges the machine (goals are
//! printed beside the figures; a figure that misses its goal fails the run).

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use orlop_tests::client::Client;
use orlop_tests::manifest::{PODS, is_ready, pod_path, sleeper};
use orlop_tests::node::Node;
use orlop_tests::report::{Figure, report};
use orlop_tests::stats::percentile;
use serde_json::{Value, json};

/// Pods side by side.
const MANY: usize = 30;
/// Pods one after another.
const ROW: usize = 50;
/// What work needed is given back some seconds after it; the Lease is renewed twice after that.
const QUIET: Duration = Duration::from_secs(30);
/// How long idle CPU is measured.
const IDLE: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    if let Some(reason) = orlop_tests::cannot_run() {
        anyhow::bail!("cannot measure: {reason}");
    }
    let mut figures = vec![];
    let bytes = fs::metadata(std::env::var("ORLOP_BIN")?)?.len();
    figures.push(Figure { name: "binary_bytes", value: bytes as f64, goal: 15_728_640.0 });

    // The server is a process of its own, from a file of its own: its memory is not the node's, and bears none of it.
    let mut server = Node::prepared()?;
    server.use_a_copy()?;
    server.import_busybox()?;
    server.start()?;
    let client = server.client()?;
    let (node, _) = server.joined_beside()?;
    let node_path = format!("/api/v1/nodes/{}", node.name());
    client
        .wait(&node_path, Duration::from_secs(30), |seen| seen.filter(|seen| is_ready(seen)).map(|_| ()))?;

    idle_memory(&node, &mut figures)?;
    one_after_another(&client, &node, &mut figures)?;
    burst(&client, &node, &mut figures)?;
    idle_cpu(&node, &mut figures)?;
    report("node", &figures)
}

fn create(client: &Client, node: &Node, name: &str) -> anyhow::Result<()> {
    let mut pod = sleeper(name);
    pod["spec"]["nodeName"] = json!(node.name());
    client.create(PODS, &pod)?;
    Ok(())
}

fn idle_memory(node: &Node, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    std::thread::sleep(QUIET);
    let idle = pss_kib(node.pid()?)?;
    figures.push(Figure { name: "daemon_idle_pss_kib", value: idle, goal: 12_288.0 });
    Ok(())
}

/// From the creation of a pod to the moment a watch tells that it is Ready, for one pod at a time.
fn one_after_another(client: &Client, node: &Node, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let (mut times, mut starts) = (vec![], vec![]);
    let mut watch = client.watch(PODS)?;
    for round in 0..ROW {
        let name = format!("row-{round}");
        let start = Instant::now();
        create(client, node, &name)?;
        watch.until(Duration::from_secs(30), |event| {
            event["object"]["metadata"]["name"] == name.as_str() && is_ready(&event["object"])
        })?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        starts.push(container_start_ms(node, &client.get(&pod_path(&name))?)?);
        client.delete(&pod_path(&name))?;
        watch.until(Duration::from_secs(30), |event| {
            event["type"] == "DELETED" && event["object"]["metadata"]["name"] == name.as_str()
        })?;
    }
    figures.push(Figure { name: "start_ready_p50_ms", value: percentile(&mut times, 50), goal: 100.0 });
    figures.push(Figure { name: "start_ready_p99_ms", value: percentile(&mut times, 99), goal: 250.0 });
    figures.push(Figure { name: "container_start_p50_ms", value: percentile(&mut starts, 50), goal: 15.0 });
    Ok(())
}

/// Thirty pods at once, then what they cost in memory.
fn burst(client: &Client, node: &Node, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let before = pss_kib(node.pid()?)?;
    let mut watch = client.watch(PODS)?;
    let start = Instant::now();
    for number in 0..MANY {
        create(client, node, &format!("many-{number}"))?;
    }
    let mut ready = std::collections::BTreeSet::new();
    watch.until(Duration::from_secs(120), |event| {
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        if name.starts_with("many-") && is_ready(&event["object"]) {
            ready.insert(name.to_owned());
        }
        ready.len() == MANY
    })?;
    figures.push(Figure { name: "burst30_seconds", value: start.elapsed().as_secs_f64(), goal: 2.0 });

    std::thread::sleep(QUIET);
    let daemon = pss_kib(node.pid()?)? - before;
    let supervisors = supervisors(node)?;
    ensure!(supervisors.len() >= MANY, "{} supervisors for {MANY} pods", supervisors.len());
    let mut all = daemon.max(0.0);
    for pid in &supervisors {
        all += pss_kib(*pid)?;
    }
    figures.push(Figure { name: "pod_overhead_pss_kib", value: all / MANY as f64, goal: 384.0 });
    Ok(())
}

/// CPU time of everything of ours over a while in which nothing happens, in percent of a core.
fn idle_cpu(node: &Node, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let mut pids = supervisors(node)?;
    pids.push(node.pid()?);
    let ticks = |pids: &[u32]| pids.iter().filter_map(|pid| cpu_ticks(*pid)).sum::<u64>();
    let (before, start) = (ticks(&pids), Instant::now());
    std::thread::sleep(IDLE);
    let spent = (ticks(&pids) - before) as f64 / 100.0;
    figures.push(Figure {
        name: "idle_cpu_percent",
        value: spent / start.elapsed().as_secs_f64() * 100.0,
        goal: 1.0,
    });
    Ok(())
}

/// What the supervisor took from the call to the running program, by its record.
fn container_start_ms(node: &Node, pod: &Value) -> anyhow::Result<f64> {
    let uid = pod["metadata"]["uid"].as_str().context("a pod without uid")?;
    let record = node.dir().join("run/pods").join(uid).join("containers/main/0/record.json");
    let record: Value = serde_json::from_slice(&fs::read(record)?)?;
    let microseconds = record["start_us"].as_f64().filter(|us| *us > 0.0);
    Ok(microseconds.context("the record does not tell how long the start took")? / 1000.0)
}

/// Proportional set size of a process in KiB.
fn pss_kib(pid: u32) -> anyhow::Result<f64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// User and system time in clock ticks (hundredths of a second).
fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn supervisors(node: &Node) -> anyhow::Result<Vec<u32>> {
    let mut pids = vec![];
    for pod in fs::read_dir(node.dir().join("run/pods"))?.flatten() {
        let record: Value = serde_json::from_slice(&fs::read(pod.path().join("supervisor.json"))?)?;
        pids.push(u32::try_from(record["pid"].as_u64().context("no pid")?)?);
    }
    Ok(pids)
}
