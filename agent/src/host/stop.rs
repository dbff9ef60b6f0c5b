//! Stopping and forgetting containers.
//!
//! Owns: which signal asks a container to end, and what is removed with an attempt. Never: waits for the end (the
//! supervisor tells), counts a grace period (the planner does).

use nix::sys::signal::Signal;
use orlop_sandbox::protocol::{Call, ContainerId};

use super::NodeHost;
use super::files;
use super::start::wire_id;
use super::supervisor::connection::CallError;
use crate::pod::action::ActionError;
use crate::pod::names::AttemptId;
use crate::pod::spec::Pod;

/// In an attempt's directory: when its stop signal was first sent.
pub(super) const STOP_SENT: &str = "stop-sent.json";

impl NodeHost {
    pub(super) async fn stop_container(&self, pod: &Pod, id: &AttemptId) -> Result<(), ActionError> {
        let signal = self.stop_signal(pod, id);
        self.signal(pod, wire_id(id), signal, false).await?;
        // The grace period goes on counting where a later daemon takes over. Without the file it starts afresh.
        let sent = self.supervisors.dir(pod.uid()).attempt(&wire_id(id)).join(STOP_SENT);
        if !sent.exists() {
            let _ = files::write_json(&sent, &jiff::Timestamp::now());
        }
        Ok(())
    }

    pub(super) async fn kill_container(&self, pod: &Pod, id: &AttemptId) -> Result<(), ActionError> {
        self.signal(pod, wire_id(id), libc::SIGKILL, true).await
    }

    async fn signal(&self, pod: &Pod, id: ContainerId, signal: i32, all: bool) -> Result<(), ActionError> {
        // Without a supervisor there is nobody to signal; the cgroup is killed with the sandbox.
        let Some(live) = self.supervisors.live(pod.uid()) else { return Ok(()) };
        match live.connection.call(Call::Signal { id, signal, all }).await {
            Ok(_) | Err(CallError::Lost) => Ok(()),
            Err(error) => {
                Err(ActionError { reason: "FailedKillPod", message: format!("error killing pod: {error}") })
            }
        }
    }

    /// `lifecycle.stopSignal`, else the image's `STOPSIGNAL`, else SIGTERM.
    fn stop_signal(&self, pod: &Pod, id: &AttemptId) -> i32 {
        let Some((_, container)) = pod.container(&id.name) else { return libc::SIGTERM };
        let of_pod = container.lifecycle.stop_signal.clone();
        let of_image =
            || self.images.resolve(&container.image).ok().flatten().map(|image| image.config.stop_signal);
        of_pod.or_else(of_image).and_then(|name| parse_signal(&name)).unwrap_or(libc::SIGTERM)
    }

    pub(super) async fn remove_container(&self, pod: &Pod, id: &AttemptId) -> Result<(), ActionError> {
        let uid = pod.uid();
        let id = wire_id(id);
        let failed = |message: String| ActionError { reason: "FailedKillPod", message };
        if let Some(live) = self.supervisors.live(uid) {
            match live.connection.call(Call::Remove { id: id.clone() }).await {
                Ok(_) | Err(CallError::Lost) => {}
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        self.supervisors.remove_record(uid, &id);
        let settings = &self.settings;
        let layers = settings.root_pod(uid).join("containers").join(&id.name).join(id.attempt.to_string());
        let removed = files::remove_tree(&self.supervisors.dir(uid).attempt(&id))
            .and_then(|()| files::remove_tree(&layers))
            .and_then(|()| remove_logs(&settings.pod_logs(pod).join(&id.name), id.attempt));
        removed.map_err(|error| failed(error.to_string()))
    }
}

/// The log of one attempt with its rotated parts: `<n>.log`, `<n>.log.<time>`.
fn remove_logs(dir: &std::path::Path, attempt: u32) -> std::io::Result<()> {
    let name = format!("{attempt}.log");
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file == name || file.strip_prefix(&name).is_some_and(|rest| rest.starts_with('.')) {
            files::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn parse_signal(name: &str) -> Option<i32> {
    let name = name.trim().to_uppercase();
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let full = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    if let Some(offset) = full.strip_prefix("SIGRTMIN") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return Some(libc::SIGRTMIN() + offset).filter(|signal| *signal <= libc::SIGRTMAX());
    }
    full.parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_in_several_ways() {
        for (name, number) in
            [("SIGTERM", Some(15)), ("quit", Some(3)), ("9", Some(9)), ("0", None), ("nope", None)]
        {
            assert_eq!(parse_signal(name), number, "{name}");
        }
        assert_eq!(parse_signal("SIGRTMIN+3"), Some(libc::SIGRTMIN() + 3));
        assert_eq!(parse_signal("SIGRTMIN+99"), None);
    }

    #[test]
    fn only_the_attempts_own_logs_are_removed() {
        let dir = tempfile::tempdir().expect("tempdir");
        for name in ["1.log", "1.log.20260101-000000", "11.log", "0.log"] {
            std::fs::write(dir.path().join(name), "").expect("write");
        }
        remove_logs(dir.path(), 1).expect("removed");
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path()).expect("read").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["0.log", "11.log"]);
    }
}
