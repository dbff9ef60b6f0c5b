//! What the server asks of the node: which pods there are, and where a container's log is.
//!
//! Owns: the trait, kubelet's words for containers without a log, and the implementation over the pod manager's view.
//! Never: reads a log, runs anything.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::logs::follow::Ended;
use crate::pod::manager::{PodHandle, Pods};
use crate::pod::names::ContainerName;
use crate::pod::status::{ContainerState, ContainerStatus, PodStatus};

/// Which log somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTarget {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// The attempt before.
    pub previous: bool,
}

/// A log that can be read.
pub struct FoundLog {
    /// The current file.
    pub path: PathBuf,
    /// Resolves when the container has ended; `None` if it has.
    pub ended: Option<Ended>,
}

/// Why there is no log. The texts are kubelet's, which clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// 404.
    #[error("pod \"{0}\" does not exist")]
    NoPod(String),
    /// 404.
    #[error("container \"{container}\" not found in pod \"{pod}\"")]
    NoContainer {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
    /// 400: it has not started, or has no previous attempt.
    #[error("{0}")]
    NoLog(String),
}

/// The node, as far as the server needs it.
pub trait PodLookup: Send + Sync + 'static {
    /// Where a container's log is.
    fn log(&self, target: &LogTarget) -> Result<FoundLog, LookupError>;

    /// Every pod bound to this node, as API objects.
    fn pods(&self) -> Vec<Value>;

    /// The pods of which something runs, with only what runs.
    fn running_pods(&self) -> Vec<Value>;
}

/// The pod manager's view.
pub struct NodePods {
    pods: Pods,
    logs_dir: PathBuf,
}

impl NodePods {
    /// `logs_dir` is `podLogsDir`.
    pub fn new(pods: Pods, logs_dir: PathBuf) -> Self {
        Self { pods, logs_dir }
    }
}

impl PodLookup for NodePods {
    fn log(&self, target: &LogTarget) -> Result<FoundLog, LookupError> {
        let handle = self.pods.by_name(&target.namespace, &target.pod);
        let handle = handle.ok_or_else(|| LookupError::NoPod(target.pod.clone()))?;
        let pod = handle.pod();
        let name = ContainerName::from(target.container.as_str());
        if pod.container(&name).is_none() {
            let (container, pod) = (target.container.clone(), target.pod.clone());
            return Err(LookupError::NoContainer { container, pod });
        }
        let status = handle.status();
        let chosen = choose(find(&status, &name), target)?;
        let folder = format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid());
        let path = self.logs_dir.join(folder).join(name.as_str()).join(format!("{}.log", chosen.attempt));
        let ended = chosen.running.map(|id| ended(&handle, name, id));
        Ok(FoundLog { path, ended })
    }

    fn pods(&self) -> Vec<Value> {
        self.pods.all().values().filter_map(object).collect()
    }

    fn running_pods(&self) -> Vec<Value> {
        self.pods.all().values().filter_map(running_object).collect()
    }
}

/// Which attempt's log is meant.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    attempt: u32,
    /// The container's id while it runs.
    running: Option<String>,
}

fn find<'a>(status: &'a PodStatus, name: &ContainerName) -> Option<&'a ContainerStatus> {
    let regular = status.container_statuses.iter();
    let init = status.init_container_statuses.iter();
    regular.chain(init).chain(&status.ephemeral_container_statuses).find(|c| c.name == *name)
}

/// The attempt that kubelet would choose. `restartCount` is the number of the newest attempt; the one in `lastState` is
/// that one too while the container waits to be restarted, and the one before it once the next has begun.
fn choose(status: Option<&ContainerStatus>, target: &LogTarget) -> Result<Chosen, LookupError> {
    let LogTarget { container, pod, previous, .. } = target;
    let none = |text: String| Err(LookupError::NoLog(text));
    let Some(status) = status else {
        return none(format!("container \"{container}\" in pod \"{pod}\" is not available"));
    };
    let newest = status.restart_count;
    let last = status.last_state.as_ref().filter(|last| !last.container_id.is_empty());
    let last_attempt = last.map(|last| match &status.state {
        ContainerState::Waiting { .. } if last.container_id == status.container_id => newest,
        _ => newest.saturating_sub(1),
    });
    let over = |attempt| Ok(Chosen { attempt, running: None });
    if *previous {
        return match last_attempt {
            Some(attempt) => over(attempt),
            None => none(format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")),
        };
    }
    match (&status.state, last_attempt) {
        (ContainerState::Running { .. }, _) => {
            Ok(Chosen { attempt: newest, running: Some(status.container_id.clone()) })
        }
        (ContainerState::Terminated(end), _) if !end.container_id.is_empty() => over(newest),
        (ContainerState::Terminated(_) | ContainerState::Waiting { .. }, Some(attempt)) => over(attempt),
        (ContainerState::Terminated(_), None) => {
            none(format!("container \"{container}\" in pod \"{pod}\" is terminated"))
        }
        (ContainerState::Waiting { reason, .. }, None) => {
            let why = match reason.as_str() {
                "" => {
                    return none(format!(
                        "container \"{container}\" in pod \"{pod}\" is waiting to start - no logs yet"
                    ));
                }
                "ErrImagePull" => "image can't be pulled",
                "ImagePullBackOff" => "trying and failing to pull image",
                other => other,
            };
            none(format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}"))
        }
    }
}

/// Resolves when the status no longer shows this very container running, or the pod is gone.
fn ended(handle: &PodHandle, name: ContainerName, id: String) -> Ended {
    let mut statuses = handle.watch_status();
    Box::pin(async move {
        let over = |status: &PodStatus| {
            let status = find(status, &name);
            !status.is_some_and(|s| matches!(s.state, ContainerState::Running { .. }) && s.container_id == id)
        };
        let _or_the_pod_is_gone = statuses.wait_for(over).await;
    })
}

fn object(handle: &PodHandle) -> Option<Value> {
    let mut object = serde_json::to_value(&*handle.pod()).ok()?;
    let fields = object.as_object_mut()?;
    fields.remove("orlopUnsupported");
    fields.insert("apiVersion".into(), "v1".into());
    fields.insert("kind".into(), "Pod".into());
    fields.insert("status".into(), serde_json::to_value(handle.status()).ok()?);
    Some(object)
}

fn running_object(handle: &PodHandle) -> Option<Value> {
    let (pod, status) = (handle.pod(), handle.status());
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    let running: Vec<Value> = all
        .chain(&status.ephemeral_container_statuses)
        .filter(|c| matches!(c.state, ContainerState::Running { .. }))
        .map(|c| json!({ "name": c.name, "image": c.image, "resources": {} }))
        .collect();
    (!running.is_empty()).then(|| {
        json!({
            "metadata": { "name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid() },
            "spec": { "containers": running },
            "status": {},
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::status::Terminated;

    fn target(previous: bool) -> LogTarget {
        LogTarget { namespace: "d".into(), pod: "p".into(), container: "c".into(), previous }
    }

    fn terminated(id: &str) -> Terminated {
        Terminated { container_id: id.into(), ..Terminated::default() }
    }

    fn waiting(reason: &str) -> ContainerState {
        ContainerState::Waiting { reason: reason.into(), message: String::new() }
    }

    fn status(state: ContainerState, id: &str, last: Option<&str>, restart_count: u32) -> ContainerStatus {
        let (container_id, last_state) = (id.to_owned(), last.map(terminated));
        ContainerStatus {
            name: "c".into(),
            state,
            container_id,
            last_state,
            restart_count,
            ..ContainerStatus::default()
        }
    }

    #[test]
    fn the_attempt_is_the_one_kubelet_would_choose() {
        let running = || ContainerState::Running { started_at: None };
        let ended = |id: &str| ContainerState::Terminated(terminated(id));
        let not_found = "previous terminated container \"c\" in pod \"p\" not found";
        let table: Vec<(ContainerStatus, bool, Result<u32, &str>)> = vec![
            (status(running(), "i2", Some("i1"), 2), false, Ok(2)),
            (status(running(), "i2", Some("i1"), 2), true, Ok(1)),
            (status(running(), "i0", None, 0), true, Err(not_found)),
            (status(ended("i2"), "i2", Some("i1"), 2), false, Ok(2)),
            (status(ended("i2"), "i2", Some("i1"), 2), true, Ok(1)),
            (status(ended(""), "", None, 0), false, Err("container \"c\" in pod \"p\" is terminated")),
            (status(waiting("CrashLoopBackOff"), "i2", Some("i2"), 2), false, Ok(2)),
            (status(waiting("CrashLoopBackOff"), "i2", Some("i2"), 2), true, Ok(2)),
            (status(waiting("ContainerCreating"), "i3", Some("i2"), 3), false, Ok(2)),
            (
                status(waiting("ContainerCreating"), "", None, 0),
                false,
                Err("container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
            ),
            (
                status(waiting("ErrImagePull"), "", None, 0),
                false,
                Err("container \"c\" in pod \"p\" is waiting to start: image can't be pulled"),
            ),
            (
                status(waiting("ImagePullBackOff"), "", None, 0),
                false,
                Err("container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image"),
            ),
        ];
        for (status, previous, wanted) in table {
            let chosen =
                choose(Some(&status), &target(previous)).map(|c| c.attempt).map_err(|e| e.to_string());
            assert_eq!(chosen, wanted.map_err(str::to_owned), "{status:?} previous={previous}");
        }
        let error = choose(None, &target(false)).expect_err("no status").to_string();
        assert_eq!(error, "container \"c\" in pod \"p\" is not available");
    }

    #[test]
    fn only_a_running_container_is_followed() {
        let running = status(ContainerState::Running { started_at: None }, "i", None, 0);
        assert_eq!(choose(Some(&running), &target(false)).map(|c| c.running), Ok(Some("i".into())));
        let ended = status(ContainerState::Terminated(terminated("i")), "i", None, 0);
        assert_eq!(choose(Some(&ended), &target(false)).map(|c| c.running), Ok(None));
    }
}
