//! Waiting until the API server says that this node is Ready, and saying what is missing until then.
//!
//! Owns: the watch of one Node. Never: makes it Ready.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::failure::{Exit, Failure};
use super::progress::Progress;
use crate::api::client::Client;
use crate::api::kubeconfig;
use crate::api::list::Selection;
use crate::api::path::NODES;
use crate::api::watch::{Change, watch};

/// Waits for a Ready condition that was posted at or after `since`, where there is such a moment: what an earlier life of this
/// node said does not count.
///
/// # Errors
/// When the time is over: what was missing last.
pub async fn wait(
    kubeconfig: &Path,
    node: &str,
    since: Option<Timestamp>,
    limit: Duration,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let access = kubeconfig::load(kubeconfig).map_err(|error| Failure::new(Exit::Failed, error))?;
    let client = Client::new(&access).map_err(|error| Failure::new(Exit::Failed, error))?;
    let selection = Selection::all(NODES).fields(format!("metadata.name={node}"));
    let (sender, mut changes) = mpsc::channel(8);
    let watching = watch(client, selection, Seen::decode, sender);
    let mut missing = "no answer from the API server".to_owned();
    let looking = async {
        while let Some(change) = changes.recv().await {
            let seen = match change {
                Change::Synced(all) => all.into_iter().next(),
                Change::Applied(seen) => Some(seen),
                Change::Deleted(_) => None,
            };
            match seen.map_or_else(|| Some("it is not registered yet".to_owned()), |seen| seen.missing(since))
            {
                None => return,
                Some(what) => {
                    progress.waiting(format!("node {node} to be Ready: {what}"));
                    missing = what;
                }
            }
        }
    };
    let waiting = async {
        tokio::select! {
            // The watch ends only when the other arm has.
            () = watching => {}
            () = looking => {}
        }
    };
    match tokio::time::timeout(limit, waiting).await {
        Ok(()) => Ok(()),
        Err(_) => Err(Failure::new(Exit::NotReady, format!("node {node} is not Ready in time: {missing}"))
            .advise("it has joined, and becomes Ready by itself once that is there: journalctl -u orlop")),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Seen {
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
    last_heartbeat_time: Option<Timestamp>,
}

impl Seen {
    fn decode(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    /// What is missing; `None` for nothing.
    fn missing(self, since: Option<Timestamp>) -> Option<String> {
        let ready = self.status.conditions.into_iter().find(|condition| condition.kind == "Ready");
        let Some(ready) = ready else { return Some("it has not reported yet".to_owned()) };
        // The API's times are whole seconds.
        let is_old =
            |since: Timestamp| ready.last_heartbeat_time.is_none_or(|at| at.as_second() < since.as_second());
        if since.is_some_and(is_old) {
            return Some("it has not reported since it was started".to_owned());
        }
        match (ready.status.as_str(), ready.message) {
            ("True", _) => None,
            (_, message) if message.is_empty() => Some("it says that it is not".to_owned()),
            (_, message) => Some(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_reported_since_the_start_counts() {
        let since: Timestamp = "2026-01-01T00:00:10.9Z".parse().expect("a time");
        let missing = |conditions: &str| {
            let json = format!(r#"{{"status":{{"conditions":[{conditions}]}}}}"#);
            Seen::decode(&json).expect("decoded").missing(Some(since))
        };
        let ready = |status: &str, at: &str| {
            format!(
                r#"{{"type":"Ready","status":"{status}","message":"no network","lastHeartbeatTime":"{at}"}}"#
            )
        };
        assert_eq!(missing("").as_deref(), Some("it has not reported yet"));
        let old = missing(&ready("True", "2026-01-01T00:00:09Z"));
        assert_eq!(old.as_deref(), Some("it has not reported since it was started"));
        assert_eq!(missing(&ready("False", "2026-01-01T00:00:10Z")).as_deref(), Some("no network"));
        assert_eq!(missing(&ready("True", "2026-01-01T00:00:10Z")), None);
        let json = format!(r#"{{"status":{{"conditions":[{}]}}}}"#, ready("True", "2026-01-01T00:00:09Z"));
        assert_eq!(Seen::decode(&json).expect("decoded").missing(None), None, "whoever runs has said so");
    }
}
