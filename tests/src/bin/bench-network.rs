//! The pod network's figures against their goals. Writes `target/bench/network.json` and prints a table.
//!
//! Owns: the goals. Never: measures (the example `network_bench` of `cni` does, in namespaces of its own; this reads its
//! numbers from standard input). Figures that begin with `reference_` are those of Debian's Go plugins in the same run.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use orlop_tests::stats::round;
use serde_json::{Map, Value, json};

/// What is measured, the most it may be in milliseconds, and its counterpart of the reference.
const GOALS: [(&str, f64, &str); 4] = [
    ("setup_inprocess_p50_ms", 2.0, ""),
    ("add_binary_p50_ms", 5.0, "reference_add_binary_p50_ms"),
    ("del_blocking_p50_ms", 3.0, "reference_del_binary_p50_ms"),
    ("drain100_ms", 300.0, "reference_drain100_binary_ms"),
];

fn main() -> anyhow::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let numbers: Map<String, Value> = serde_json::from_str(&text).context("the benchmark's numbers")?;
    let numbers: Map<String, Value> = numbers
        .into_iter()
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
