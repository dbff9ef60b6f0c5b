//! The row of a pod. Its STATUS says what a person would: the reason that matters most.

use serde_json::{Value, json};

use super::{Column, since};
use crate::object::{self, at, items, text, text_at};
use crate::resource::Kind;

/// The columns of pods.
pub const COLUMNS: &[Column] = &[
    ("Name", "string", 0),
    ("Ready", "string", 0),
    ("Status", "string", 0),
    ("Restarts", "string", 0),
    ("Age", "string", 0),
    ("IP", "string", 1),
    ("Node", "string", 1),
    ("Nominated Node", "string", 1),
    ("Readiness Gates", "string", 1),
];

/// Pods that are over are greyed out by some clients.
pub fn row_conditions(kind: Kind, pod: &Value) -> Option<Value> {
    let phase = text_at(pod, &["status", "phase"]);
    let over = kind == Kind::Pod && matches!(phase, "Succeeded" | "Failed");
    over.then(|| {
        let message =
            if phase == "Succeeded" { "The pod has completed successfully." } else { "The pod failed." };
        json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}])
    })
}

#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

impl Summary {
    fn count(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        let finished = text_at(status, &["lastState", "terminated", "finishedAt"]);
        if !finished.is_empty() && self.last_restart.as_deref().is_none_or(|l| l < finished) {
            self.last_restart = Some(finished.to_owned());
        }
    }
}

/// The cells of one pod.
pub fn cells(pod: &Value) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match &summary.last_restart {
        Some(at) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, since(at)),
        _ => summary.restarts.to_string(),
    };
    let or_none = |s: &str| if s.is_empty() { "<none>".to_owned() } else { s.to_owned() };
    let ip = items(&pod["status"], "podIPs").first().map_or("", |p| text(p, "ip"));
    let ip = if ip.is_empty() { text_at(pod, &["status", "podIP"]) } else { ip };
    vec![
        object::name(pod).into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        since(text_at(pod, &["metadata", "creationTimestamp"])).into(),
        or_none(ip).into(),
        or_none(text_at(pod, &["spec", "nodeName"])).into(),
        or_none(text_at(pod, &["status", "nominatedNodeName"])).into(),
        gates(pod).into(),
    ]
}

fn gates(pod: &Value) -> String {
    let gates = items(&pod["spec"], "readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = |gate: &&Value| {
        condition(pod, text(gate, "conditionType")).is_some_and(|c| text(c, "status") == "True")
    };
    format!("{}/{}", gates.iter().filter(met).count(), gates.len())
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(&pod["status"], "conditions").iter().find(|c| text(c, "type") == kind)
}

fn summarize(pod: &Value) -> Summary {
    let status = &pod["status"];
    let init_specs = items(&pod["spec"], "initContainers");
    let sidecar = |name: &str| {
        init_specs.iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    let sidecars = init_specs.iter().filter(|c| text(c, "restartPolicy") == "Always").count();
    let mut summary =
        Summary { total: items(&pod["spec"], "containers").len() + sidecars, ..Summary::default() };
    summary.reason = text(status, "phase").to_owned();
    if !text(status, "reason").is_empty() {
        summary.reason = text(status, "reason").to_owned();
    }
    if condition(pod, "PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated") {
        summary.reason = "SchedulingGated".into();
    }
    let initializing = walk_init(&mut summary, status, init_specs.len(), &sidecar);
    let initialized = condition(pod, "Initialized").is_some_and(|c| text(c, "status") == "True");
    if !initializing || initialized {
        walk_main(&mut summary, pod, initializing);
    }
    if object::is_terminating(pod) && text(status, "reason") == "NodeLost" {
        summary.reason = "Unknown".into();
    } else if object::is_terminating(pod) && !matches!(text(status, "phase"), "Failed" | "Succeeded") {
        summary.reason = "Terminating".into();
    }
    summary
}

/// The first init container that is not done gives the reason. Whether there is one.
fn walk_init(summary: &mut Summary, status: &Value, total: usize, sidecar: &dyn Fn(&str) -> bool) -> bool {
    for (i, container) in items(status, "initContainerStatuses").iter().enumerate() {
        let own_sidecar = sidecar(text(container, "name"));
        summary.count(container);
        let terminated = &container["state"]["terminated"];
        let waiting = text_at(container, &["state", "waiting", "reason"]);
        if terminated["exitCode"] == 0 {
            continue;
        }
        if own_sidecar && container["started"] == true {
            summary.ready += usize::from(container["ready"] == true);
            continue;
        }
        summary.reason = if terminated.is_object() {
            match (text(terminated, "reason"), terminated["signal"].as_i64().unwrap_or(0)) {
                ("", 0) => format!("Init:ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
                ("", signal) => format!("Init:Signal:{signal}"),
                (reason, _) => format!("Init:{reason}"),
            }
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{total}")
        };
        return true;
    }
    false
}

fn walk_main(summary: &mut Summary, pod: &Value, initializing: bool) {
    let mut running = false;
    // Restarts of init containers other than sidecars no longer matter.
    if !initializing {
        let kept = items(&pod["status"], "initContainerStatuses").iter().filter(|s| {
            let name = text(s, "name");
            items(&pod["spec"], "initContainers")
                .iter()
                .any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
        });
        let (mut restarts, mut last) = (0, None::<String>);
        for status in kept {
            restarts += status["restartCount"].as_i64().unwrap_or(0);
            let at = text_at(status, &["lastState", "terminated", "finishedAt"]).to_owned();
            last = last.max((!at.is_empty()).then_some(at));
        }
        summary.restarts = restarts;
        summary.last_restart = last;
    }
    for container in items(&pod["status"], "containerStatuses").iter().rev() {
        summary.count(container);
        let terminated = &container["state"]["terminated"];
        let waiting = text_at(container, &["state", "waiting", "reason"]);
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if terminated.is_object() {
            summary.reason = match (text(terminated, "reason"), terminated["signal"].as_i64().unwrap_or(0)) {
                ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
                ("", signal) => format!("Signal:{signal}"),
                (reason, _) => reason.to_owned(),
            };
        } else if container["ready"] == true && at(container, &["state", "running"]).is_object() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let ready = condition(pod, "Ready").is_some_and(|c| text(c, "status") == "True");
        summary.reason = if ready { "Running".into() } else { "NotReady".into() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: Value) -> (String, String, String) {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}, {"name": "j"}]}});
        let mut status = status;
        if let Some(deletion) = object::remove(&mut status, "deleted") {
            pod["metadata"]["deletionTimestamp"] = deletion;
        }
        pod["status"] = status;
        let cells = cells(&pod);
        let text = |i: usize| cells[i].as_str().unwrap().to_owned();
        (text(1), text(2), text(3))
    }

    #[test]
    fn status_says_what_matters_most() {
        let running = json!({"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}}});
        let crashing =
            json!({"name": "b", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        let done = json!({"name": "b", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let killed = json!({"name": "b", "state": {"terminated": {"exitCode": 137, "signal": 9}}});
        let waiting_init = json!({"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}});
        let failed_init =
            json!({"name": "i", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        let cases = [
            (json!({"phase": "Pending"}), ("0/2", "Pending", "0")),
            (
                json!({"phase": "Running", "containerStatuses": [running, crashing]}),
                ("1/2", "CrashLoopBackOff", "3"),
            ),
            (json!({"phase": "Running", "containerStatuses": [running, done]}), ("1/2", "NotReady", "2")),
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [running, done]}),
                ("1/2", "Running", "2"),
            ),
            (json!({"phase": "Failed", "containerStatuses": [killed]}), ("0/2", "Signal:9", "0")),
            (json!({"phase": "Pending", "initContainerStatuses": [waiting_init]}), ("0/2", "Init:0/2", "0")),
            (
                json!({"phase": "Pending", "initContainerStatuses": [failed_init]}),
                ("0/2", "Init:CrashLoopBackOff", "3"),
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), ("0/2", "Evicted", "0")),
            (json!({"phase": "Running", "deleted": "2026-01-01T00:00:00Z"}), ("0/2", "Terminating", "0")),
        ];
        for (status, want) in cases {
            let (ready, reason, restarts) = row(status.clone());
            assert_eq!((ready.as_str(), reason.as_str(), restarts.as_str()), want, "{status}");
        }
    }
}
