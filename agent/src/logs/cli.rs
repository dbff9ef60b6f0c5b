//! `orlop logs`: the output of a container, straight from its files. Needs no API server and no daemon.
//!
//! Owns: finding the files by the pod's name, and whether the container still runs, from its supervisor's record.
//! Never: talks to the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use futures_util::StreamExt;
use jiff::Timestamp;
use orlop_sandbox::protocol::{ContainerId, ContainerRecord, SandboxDir};

use super::follow::{Changes, Ended, LogRequest, stream};
use super::print::Style;
use crate::config::duration;

/// Print the output of a container of this node; works without an API server.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// The pod: its name, or namespace/name where several namespaces have one
    pub pod: String,

    /// The pod's namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// The container; may be left out when the pod has only one
    #[arg(long, short = 'c', value_name = "NAME")]
    pub container: Option<String>,

    /// Go on with what is written later, until the container ends
    #[arg(long, short = 'f')]
    pub follow: bool,

    /// The attempt before the last one, after a restart
    #[arg(long, short = 'p')]
    pub previous: bool,

    /// Only the last so many lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,

    /// Only lines not older than this, such as 10m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "since_time")]
    pub since: Option<Duration>,

    /// Only lines from this moment on, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since_time: Option<Timestamp>,

    /// Put each line's time in front of it
    #[arg(long)]
    pub timestamps: bool,

    /// Not more than so many bytes
    #[arg(long, value_name = "BYTES")]
    pub limit_bytes: Option<u64>,

    /// Where the node keeps log files (podLogsDir)
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods", env = "ORLOP_POD_LOGS_DIR")]
    pub pod_logs_dir: PathBuf,

    /// Where the node keeps live state of pods
    #[arg(long, value_name = "DIR", default_value = crate::config::RUN_DIR, env = "ORLOP_RUN_DIR")]
    pub run_dir: PathBuf,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("`{text}` is not a duration such as 30s or 1h30m"))
}

/// The body of `orlop logs`.
///
/// # Errors
/// A pod or container that is not there, by name, with what is there instead.
pub fn run(args: &LogsArgs) -> anyhow::Result<()> {
    let log = find(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(print(args, log))
}

async fn print(args: &LogsArgs, log: Log) -> anyhow::Result<()> {
    let ago = args.since.map(|since| Timestamp::now() - since);
    let style = Style {
        timestamps: args.timestamps,
        since: args.since_time.or(ago),
        stream: None,
        limit_bytes: args.limit_bytes,
    };
    let follow = args.follow.then(|| ended(&args.run_dir, &log));
    let path = log.file.clone();
    let request = LogRequest { path: log.file, tail: args.tail, style, follow };
    let mut pieces = Box::pin(stream(request).await.with_context(|| format!("read {}", path.display()))?);
    let mut out = std::io::stdout().lock();
    while let Some(piece) = pieces.next().await {
        let written = out.write_all(&piece?).and_then(|()| out.flush());
        match written {
            // Whoever reads has seen enough (`orlop logs ... | head`).
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("write the log")?,
        }
    }
    Ok(())
}

/// One attempt's log.
#[derive(Debug, PartialEq, Eq)]
struct Log {
    uid: String,
    container: String,
    attempt: u32,
    file: PathBuf,
}

fn find(args: &LogsArgs) -> anyhow::Result<Log> {
    let (namespace, name) = match args.pod.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (args.namespace.as_deref(), args.pod.as_str()),
    };
    let (folder, uid) = find_pod(&args.pod_logs_dir, namespace, name)?;
    let containers = subfolders(&folder)?;
    let container = match (&args.container, containers.as_slice()) {
        (Some(wanted), all) if all.contains(wanted) => wanted.clone(),
        (Some(wanted), all) => bail!("pod {name} has no logs of a container {wanted}; it has {}", list(all)),
        (None, [only]) => only.clone(),
        (None, []) => bail!("pod {name} has not written any logs yet"),
        (None, all) => bail!("pod {name} has several containers: choose one with -c: {}", list(all)),
    };
    let attempts = attempts(&folder.join(&container))?;
    let mut newest_first = attempts.into_iter().rev();
    let chosen = if args.previous { newest_first.nth(1) } else { newest_first.next() };
    let Some((attempt, file)) = chosen else {
        let which = if args.previous { "a previous attempt" } else { "an attempt" };
        bail!("there are no logs of {which} of container {container} in pod {name}");
    };
    Ok(Log { uid, container, attempt, file })
}

/// The pod's folder `<namespace>_<name>_<uid>`; of several pods that bore the name, the last one.
fn find_pod(logs: &Path, namespace: Option<&str>, name: &str) -> anyhow::Result<(PathBuf, String)> {
    let entries = fs::read_dir(logs).with_context(|| format!("read {}", logs.display()))?;
    let mut found: BTreeMap<String, (SystemTime, PathBuf, String)> = BTreeMap::new();
    for entry in entries.flatten() {
        let text = entry.file_name().to_string_lossy().into_owned();
        let mut parts = text.splitn(3, '_');
        let (Some(ns), Some(pod), Some(uid)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if pod != name || namespace.is_some_and(|wanted| wanted != ns) {
            continue;
        }
        let at = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        if found.get(ns).is_none_or(|(other, ..)| *other < at) {
            found.insert(ns.to_owned(), (at, entry.path(), uid.to_owned()));
        }
    }
    let namespaces: Vec<String> = found.keys().cloned().collect();
    match (found.pop_first(), found.is_empty()) {
        (None, _) => bail!("no pod {name} has logs in {}", logs.display()),
        (Some((_, (_, path, uid))), true) => Ok((path, uid)),
        (Some(_), false) => bail!(
            "pods of the name {name} are in several namespaces: choose one with -n: {}",
            list(&namespaces)
        ),
    }
}

fn subfolders(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let folders = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    let mut names: Vec<String> = folders.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Attempt to current file. A file that was just rotated away counts by its rotated name.
fn attempts(folder: &Path) -> anyhow::Result<BTreeMap<u32, PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    let number = |name: String| name.split_once(".log").and_then(|(n, _)| n.parse().ok());
    Ok(names.filter_map(number).map(|n| (n, folder.join(format!("{n}.log")))).collect())
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Resolves when the supervisor's record says that the attempt is over, or there is no record.
fn ended(run_dir: &Path, log: &Log) -> Ended {
    let dir = SandboxDir(run_dir.join("pods").join(&log.uid));
    let id = ContainerId { name: log.container.clone(), attempt: log.attempt };
    let (folder, record) = (dir.attempt(&id), dir.record(&id));
    Box::pin(async move {
        // Watched before it is read: a record written in between is told as a change.
        let Ok(mut changes) = Changes::of(&folder) else { return };
        while is_running(&record) {
            if changes.next().await.is_err() {
                return;
            }
        }
    })
}

fn is_running(record: &Path) -> bool {
    let read = fs::read(record).ok().and_then(|bytes| serde_json::from_slice::<ContainerRecord>(&bytes).ok());
    read.is_some_and(|record| !record.state.is_over())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use orlop_sandbox::protocol::RecordState;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        logs: LogsArgs,
    }

    fn args(logs: &Path, line: &str) -> LogsArgs {
        let mut args = Line::parse_from(std::iter::once("orlop").chain(line.split_whitespace())).logs;
        args.pod_logs_dir = logs.to_owned();
        args
    }

    fn write(logs: &Path, files: &[&str]) {
        for file in files {
            let path = logs.join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, "").expect("written");
        }
    }

    #[test]
    fn the_newest_attempt_is_found_by_the_pods_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let logs = folder.path();
        write(
            logs,
            &[
                "a_web_u1/c/0.log",
                "a_web_u1/c/10.log",
                "a_web_u1/c/9.log",
                "a_web_u1/c/10.log.20260101-000000",
            ],
        );
        let log = find(&args(logs, "web")).expect("found");
        assert_eq!((log.uid.as_str(), log.container.as_str(), log.attempt), ("u1", "c", 10));
        assert_eq!(log.file, logs.join("a_web_u1/c/10.log"));
        assert_eq!(find(&args(logs, "a/web --previous")).expect("found").attempt, 9);
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let logs = folder.path();
        write(logs, &["a_web_u1/c/0.log", "a_two_u2/x/0.log", "a_two_u2/y/0.log", "b_web_u3/c/0.log"]);
        let table = [
            ("none", "no pod none has logs in "),
            ("web", "pods of the name web are in several namespaces: choose one with -n: a, b"),
            ("two", "pod two has several containers: choose one with -c: x, y"),
            ("two -c z", "pod two has no logs of a container z; it has x, y"),
            ("b/web --previous", "there are no logs of a previous attempt of container c in pod web"),
        ];
        for (line, wanted) in table {
            let error = find(&args(logs, line)).expect_err(wanted).to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
        assert_eq!(find(&args(logs, "web -n b")).expect("found").uid, "u3");
    }

    #[tokio::test]
    async fn following_ends_with_the_record() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = Log { uid: "u1".into(), container: "c".into(), attempt: 0, file: PathBuf::new() };
        ended(folder.path(), &log).await;
        let dir = SandboxDir(folder.path().join("pods/u1"));
        let id = ContainerId { name: "c".into(), attempt: 0 };
        let write = |state: RecordState| {
            let record = serde_json::json!({
                "id": id, "container_id": "x", "sandbox": 0, "backoff_ms": 0, "image": "", "image_id": "",
                "log_path": "", "state": state,
            });
            let record: ContainerRecord = serde_json::from_value(record).expect("a record");
            fs::create_dir_all(dir.attempt(&id)).expect("made");
            fs::write(dir.record(&id), serde_json::to_vec(&record).expect("JSON")).expect("written");
        };
        write(RecordState::Running { pid: 1, started_at_ms: 0 });
        let waiting = tokio::spawn(ended(folder.path(), &log));
        tokio::task::yield_now().await;
        let (started_at_ms, finished_at_ms) = (0, 1);
        write(RecordState::Exited {
            started_at_ms,
            finished_at_ms,
            exit_code: 0,
            signal: None,
            oom_killed: false,
        });
        waiting.await.expect("ended");
    }
}
