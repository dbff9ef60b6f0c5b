//! What is there of a pod: supervisor, records, images, directories, as plain facts.
//!
//! Owns: the translation from the supervisor's records to [`Observed`]. Never: draws a conclusion.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use orlop_sandbox::protocol::{ContainerRecord, FailureKind, RecordState, SandboxConfig, SandboxDir};

use super::NodeHost;
use super::files::read_json;
use super::stop::STOP_SENT;
use crate::pod::names::AttemptId;
use crate::pod::observed::{Attempt, AttemptState, Image, Observed, Sandbox, Vitals};
use crate::pod::spec::{Pod, TerminationMessagePolicy};

/// The longest termination message, in bytes.
const MAX_MESSAGE: u64 = 4096;
/// How much of a log may stand in for it.
const MAX_LOG_LINES: usize = 80;
const MAX_LOG_BYTES: u64 = 2048;

impl NodeHost {
    pub(super) fn look(&self, pod: &Pod) -> Observed {
        let uid = pod.uid();
        let dir = self.supervisors.dir(uid);
        let (sandbox, records, alive) = match self.supervisors.live(uid) {
            Some(live) => {
                let host = || self.settings.facts.host_ips.clone();
                let addresses = if pod.spec.host_network { Some(host()) } else { live.addresses };
                let created_at = time(live.supervisor.created_at_ms);
                (
                    Sandbox::Ready { attempt: live.attempt, created_at, addresses },
                    self.supervisors.records(uid),
                    true,
                )
            }
            None if self.supervisors.is_starting(uid) => (Sandbox::Absent, records_on_disk(&dir), false),
            None => (dead_sandbox(&dir), records_on_disk(&dir), false),
        };
        let mut attempts: Vec<Attempt> =
            records.into_iter().map(|record| attempt(pod, &dir, record, alive)).collect();
        attempts.sort_by(|a, b| a.id.cmp(&b.id));
        Observed {
            sandbox,
            attempts,
            images: self.images_of(pod),
            volumes_ready: self.volumes.ready(pod),
            remains: self.has_remains(pod),
        }
    }

    fn images_of(&self, pod: &Pod) -> std::collections::BTreeMap<String, Image> {
        let mut found = std::collections::BTreeMap::new();
        for (_, container) in pod.containers() {
            if found.contains_key(&container.image) {
                continue;
            }
            if let Ok(Some(image)) = self.images.resolve(&container.image) {
                let seen = Image { image_id: image.status_id(), user: image.config.user.clone() };
                found.insert(container.image.clone(), seen);
            }
        }
        found
    }
}

/// A configuration without a living supervisor is a sandbox that was lost.
fn dead_sandbox(dir: &SandboxDir) -> Sandbox {
    match read_json::<SandboxConfig>(&dir.config()) {
        Ok(config) => Sandbox::Lost { attempt: config.attempt },
        Err(_) => Sandbox::Absent,
    }
}

/// The records that supervisors left behind.
pub fn records_on_disk(dir: &SandboxDir) -> Vec<ContainerRecord> {
    let names = std::fs::read_dir(dir.containers()).into_iter().flatten().flatten();
    let attempts = names.flat_map(|name| std::fs::read_dir(name.path()).into_iter().flatten().flatten());
    attempts.filter_map(|attempt| read_json(&attempt.path().join("record.json")).ok()).collect()
}

fn attempt(pod: &Pod, dir: &SandboxDir, record: ContainerRecord, alive: bool) -> Attempt {
    let stop_sent_at = read_json(&dir.attempt(&record.id).join(STOP_SENT)).ok();
    let state = match &record.state {
        RecordState::Starting { .. } if alive => AttemptState::Starting,
        RecordState::Starting { .. } => AttemptState::Lost { started_at: None },
        RecordState::Running { started_at_ms, .. } if alive => {
            AttemptState::Running { started_at: time(*started_at_ms) }
        }
        RecordState::Running { started_at_ms, .. } => {
            AttemptState::Lost { started_at: Some(time(*started_at_ms)) }
        }
        RecordState::StartFailed { at_ms, kind, message } => AttemptState::StartFailed {
            at: time(*at_ms),
            reason: match kind {
                FailureKind::CannotRun => "StartError".to_owned(),
                FailureKind::CannotCreate | FailureKind::NotRunning | FailureKind::BadRequest => {
                    "RunContainerError".to_owned()
                }
            },
            message: message.clone(),
        },
        RecordState::Exited { started_at_ms, finished_at_ms, exit_code, signal, oom_killed } => {
            AttemptState::Exited {
                started_at: time(*started_at_ms),
                finished_at: time(*finished_at_ms),
                exit_code: *exit_code,
                signal: *signal,
                oom_killed: *oom_killed,
                message: termination_message(pod, dir, &record, *exit_code),
            }
        }
    };
    Attempt {
        id: AttemptId { name: record.id.name.clone().into(), attempt: record.id.attempt },
        sandbox: record.sandbox,
        vitals: Vitals { stop_sent_at, ..Vitals::default() },
        container_id: format!("orlop://{}", record.container_id),
        image: record.image,
        image_id: record.image_id,
        backoff: Duration::from_millis(record.backoff_ms),
        state,
    }
}

/// The file wins; the end of the log stands in for it where the policy says so and the container failed.
fn termination_message(
    pod: &Pod,
    dir: &SandboxDir,
    record: &ContainerRecord,
    exit_code: i32,
) -> Option<String> {
    let file = read_end(&dir.attempt(&record.id).join("termination-log"), MAX_MESSAGE);
    if file.as_ref().is_some_and(|text| !text.is_empty()) {
        return file;
    }
    let (_, container) = pod.container(&record.id.name.as_str().into())?;
    let falls_back = container.termination_message_policy == TerminationMessagePolicy::FallbackToLogsOnError;
    if !falls_back || exit_code == 0 {
        return None;
    }
    let log = read_end(&record.log_path, 16 * MAX_LOG_BYTES)?;
    let lines: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let tail = lines[lines.len().saturating_sub(MAX_LOG_LINES)..].join("\n") + "\n";
    let cut = tail.len().saturating_sub(usize::try_from(MAX_LOG_BYTES).unwrap_or(usize::MAX));
    Some(tail[tail.ceil_char_boundary(cut)..].to_owned())
}

/// The last `limit` bytes of a file, as text.
fn read_end(path: &Path, limit: u64) -> Option<String> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit))).ok()?;
    let mut bytes = vec![];
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn time(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
