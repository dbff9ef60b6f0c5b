//! The service proxy's figures against their goals. Writes `target/bench/proxy.json` and prints a table.
//!
//! Owns: the goals. Never: measures (netproxy's own example `bench` does, in namespaces of its own; this reads its numbers
//! from standard input).

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};

/// What is measured, and the most it may be.
const GOALS: [(&str, f64); 11] = [
    ("cold_sync_10k_ms", 250.0),
    ("cold_sync_20kx10_ms", 1500.0),
    ("one_endpoint_p50_us", 500.0),
    ("one_endpoint_p99_us", 2000.0),
    ("count_change_p50_us", 1500.0),
    ("adopt_restart_ms", 300.0),
    ("adopt_elements_rewritten", 0.0),
    ("rss_10k_kib", 20_480.0),
    ("thousand_events_per_s_cpu_percent", 10.0),
    ("thousand_events_per_s_backlog_ms", 50.0),
    ("first_connect_overhead_us", 5.0),
];

fn main() -> anyhow::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let numbers: Map<String, Value> = serde_json::from_str(&text).context("the benchmark's numbers")?;
    let path = Path::new("target/bench/proxy.json");
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(path, serde_json::to_string_pretty(&numbers)? + "\n")?;

    println!("{:<36} {:>12} {:>12}", "figure", "measured", "goal");
    let mut missed = vec![];
    for (name, goal) in GOALS {
        let value = numbers.get(name).and_then(Value::as_f64).with_context(|| format!("no {name}"))?;
        let fits = value <= goal;
        println!("{name:<36} {value:>12} {goal:>12}  {}", if fits { "" } else { "MISSED" });
        if !fits {
            missed.push(name);
        }
    }
    for (name, value) in numbers.iter().filter(|(name, _)| GOALS.iter().all(|(goal, _)| goal != name)) {
        println!("{name:<36} {:>12}", value.to_string());
    }
    println!("written to {}", path.display());
    if !missed.is_empty() {
        eprintln!("bench: missed: {}", missed.join(", "));
        std::process::exit(1);
    }
    Ok(())
}
