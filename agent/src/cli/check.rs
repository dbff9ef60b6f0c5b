//! `orlop check`: what this machine lacks to be a node, and what to do about it.
//!
//! Owns: how findings are printed. Never: looks itself (`preflight` does).

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::preflight::{self, Finding, Level};

/// The flags of `orlop check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Output format
    #[arg(short, long, value_parser = ["json", "table"], default_value = "table")]
    output: String,
    /// Compare the clock with that of this API server (host:port)
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// Checks whose errors are shown as warnings, by name (Swap, Port-10250, ...), or `all`
    #[arg(long, value_name = "CHECKS", value_delimiter = ',')]
    ignore_preflight_errors: Vec<String>,
    /// Images, volumes, certificates, as `orlop run` has them
    #[arg(long, value_name = "DIR", default_value = crate::config::ROOT_DIR, env = "ORLOP_ROOT_DIR")]
    root_dir: PathBuf,
    /// Live state of the node, as `orlop run` has it
    #[arg(long, value_name = "DIR", default_value = crate::config::RUN_DIR, env = "ORLOP_RUN_DIR")]
    run_dir: PathBuf,
}

/// Looks at everything and prints it. Exit code 1 if the node cannot run here.
pub fn main(args: &CheckArgs) -> ExitCode {
    let mut findings = preflight::findings(&args.root_dir, &args.run_dir);
    if let Some(endpoint) = &args.endpoint {
        findings.retain(|finding| finding.name != preflight::CLOCK);
        findings.push(crate::join::discovery::clock(endpoint));
    }
    let ignored: Vec<String> =
        args.ignore_preflight_errors.iter().map(|name| name.trim().to_lowercase()).collect();
    let findings: Vec<Finding> = findings.into_iter().map(|finding| finding.ignoring(&ignored)).collect();
    if args.output == "json" {
        println!("{}", serde_json::to_string_pretty(&findings).unwrap_or_default());
    } else {
        print(&findings);
    }
    if findings.iter().any(|finding| finding.level == Level::Fail) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn print(findings: &[Finding]) {
    let color = std::io::stdout().is_terminal();
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or_default();
    for finding in findings {
        let (word, code) = match finding.level {
            Level::Ok => ("ok", "32"),
            Level::Warn => ("warn", "33"),
            Level::Fail => ("FAIL", "31"),
        };
        let word = if color { format!("\x1b[{code}m{word:<4}\x1b[0m") } else { format!("{word:<4}") };
        println!("{word}  {:<width$}  {}", finding.name, finding.detail);
        if !finding.advice.is_empty() {
            println!("      {:<width$}  → {}", "", finding.advice);
        }
    }
}
