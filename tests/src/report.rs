//! What a benchmark found: `target/bench/<what>.json`, and a table beside the goals.
//!
//! Owns: the form of both, and the exit code. Never: measures.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::stats::round;

/// A figure and its goal; smaller is better.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// With its unit at the end.
    pub name: &'static str,
    /// What was measured.
    pub value: f64,
    /// At most this.
    pub goal: f64,
}

/// Writes `target/bench/<what>.json` and prints the table; ends the process with 1 if a goal is missed.
///
/// # Errors
/// The file cannot be written.
pub fn report(what: &str, figures: &[Figure]) -> anyhow::Result<()> {
    let values: Map<String, Value> =
        figures.iter().map(|figure| (figure.name.to_owned(), json!(round(figure.value)))).collect();
    let path = Path::new("target/bench").join(what).with_extension("json");
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(&path, serde_json::to_string_pretty(&values)? + "\n")?;
    println!("{:<28} {:>14} {:>14}", "figure", "measured", "goal");
    let mut missed = vec![];
    for figure in figures {
        let fits = figure.value <= figure.goal;
        let mark = if fits { "" } else { "MISSED" };
        println!("{:<28} {:>14} {:>14}  {mark}", figure.name, round(figure.value), figure.goal);
        if !fits {
            missed.push(figure.name);
        }
    }
    println!("written to {}", path.display());
    if !missed.is_empty() {
        eprintln!("bench: missed: {}", missed.join(", "));
        std::process::exit(1);
    }
    Ok(())
}
