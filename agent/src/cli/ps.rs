//! `orlop ps`: the pods and containers on this node, read from the supervisors' files. Needs no daemon and no API server.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use orlop_sandbox::protocol::{ContainerRecord, RecordState, SandboxConfig, SandboxDir, SupervisorRecord};
use serde::Serialize;

use super::Dirs;
use crate::host::files::read_json;
use crate::network::AttachedNetwork;

/// The flags of `orlop ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    dirs: Dirs,
    /// Show ended attempts too
    #[arg(short, long)]
    all: bool,
    /// Output format
    #[arg(short, long, value_parser = ["json", "table"], default_value = "table")]
    output: String,
    /// Leave the heading out
    #[arg(long)]
    no_headers: bool,
}

/// A line of the table.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    attempt: u32,
    state: String,
    started_at: Option<Timestamp>,
    pid: Option<i32>,
    addresses: Vec<IpAddr>,
    image: String,
}

/// Prints the list.
pub fn run(args: &PsArgs) -> anyhow::Result<()> {
    let rows = rows(&args.dirs.run_dir.join("pods"), args.all)?;
    if args.output == "json" {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let mut table = vec![];
    if !args.no_headers {
        let heading = ["NAMESPACE", "POD", "CONTAINER", "STATE", "RESTARTS", "AGE", "IP", "PID", "IMAGE"];
        table.push(heading.map(str::to_owned).to_vec());
    }
    let now = Timestamp::now();
    table.extend(rows.iter().map(|row| cells(row, now)));
    print!("{}", align(&table));
    if rows.is_empty() && std::io::stdout().is_terminal() {
        eprintln!("no pods on this node");
    }
    Ok(())
}

fn cells(row: &Row, now: Timestamp) -> Vec<String> {
    let age = row.started_at.map_or_else(|| "-".to_owned(), |at| short_age(now.duration_since(at).as_secs()));
    let ip = row.addresses.first().map_or_else(|| "-".to_owned(), IpAddr::to_string);
    let pid = row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    vec![
        row.namespace.clone(),
        row.pod.clone(),
        row.container.clone(),
        row.state.clone(),
        row.attempt.to_string(),
        age,
        ip,
        pid,
        row.image.clone(),
    ]
}

/// Seconds as kubectl shortens them: `45s`, `12m`, `3h`, `2d`.
fn short_age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// Columns three blanks apart, as kubectl sets them.
fn align(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            table.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in table {
        let line: String =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}   ")).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn rows(pods: &Path, all: bool) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![];
    let entries = match std::fs::read_dir(pods) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(rows),
        Err(error) => return Err(error).with_context(|| format!("read {}", pods.display())),
    };
    for entry in entries.flatten() {
        let dir = SandboxDir(entry.path());
        // A pod may go away while it is listed: then it is not there, which is what the list says.
        if let Ok(config) = read_json::<SandboxConfig>(&dir.config()) {
            rows.extend(pod_rows(&dir, &config, all));
        }
    }
    rows.sort_by(|a, b| {
        (&a.namespace, &a.pod, &a.container, a.attempt).cmp(&(&b.namespace, &b.pod, &b.container, b.attempt))
    });
    Ok(rows)
}

fn pod_rows(dir: &SandboxDir, config: &SandboxConfig, all: bool) -> Vec<Row> {
    let alive = supervisor_alive(dir);
    let addresses = AttachedNetwork::read(dir).map(|network| network.addresses).unwrap_or_default();
    let mut rows = vec![];
    for name in sub_dirs(&dir.containers()) {
        let mut records: Vec<ContainerRecord> = sub_dirs(&dir.containers().join(&name))
            .iter()
            .filter_map(|attempt| {
                read_json(&dir.containers().join(&name).join(attempt).join("record.json")).ok()
            })
            .collect();
        records.sort_by_key(|record| record.id.attempt);
        let newest = records.len().saturating_sub(1);
        let shown = records.into_iter().enumerate().filter(|(index, _)| all || *index == newest);
        rows.extend(shown.map(|(_, record)| row(config, record, alive, &addresses)));
    }
    rows
}

fn row(config: &SandboxConfig, record: ContainerRecord, alive: bool, addresses: &[IpAddr]) -> Row {
    let (state, started, pid) = match &record.state {
        RecordState::Starting { .. } | RecordState::Running { .. } if !alive => {
            ("Lost".to_owned(), None, None)
        }
        RecordState::Starting { .. } => ("Starting".to_owned(), None, None),
        RecordState::Running { pid, started_at_ms } => {
            ("Running".to_owned(), Some(*started_at_ms), Some(*pid))
        }
        RecordState::StartFailed { .. } => ("StartFailed".to_owned(), None, None),
        RecordState::Exited { exit_code, started_at_ms, .. } => {
            (format!("Exited({exit_code})"), Some(*started_at_ms), None)
        }
    };
    Row {
        namespace: config.namespace.clone(),
        pod: config.name.clone(),
        uid: config.uid.clone(),
        container: record.id.name,
        attempt: record.id.attempt,
        state,
        started_at: started.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        pid,
        addresses: addresses.to_vec(),
        image: record.image,
    }
}

/// Whether the supervisor that wrote its record is still that process.
pub fn supervisor_alive(dir: &SandboxDir) -> bool {
    let Ok(record) = read_json::<SupervisorRecord>(&dir.supervisor()) else { return false };
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", record.pid)).unwrap_or_default();
    // Fields are counted behind the command, which is in parentheses and may hold blanks; the start time is field 22.
    let start = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse::<u64>().ok());
    start == Some(record.start_ticks)
}

fn sub_dirs(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_shortened_as_kubectl_does() {
        for (seconds, text) in [(-3, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")] {
            assert_eq!(short_age(seconds), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let table = vec![vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        assert_eq!(align(&table), "A      B\nlong   x\n");
    }

    #[test]
    fn a_directory_that_is_not_there_lists_nothing() {
        assert!(rows(Path::new("/nonexistent/orlop"), true).expect("no error").is_empty());
    }
}
