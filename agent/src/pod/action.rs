//! What can be done for a pod. Every action is idempotent: "already there" and "already gone" are success.
//!
//! Owns: the actions, their keys, and how they fail. Never: carries one out (that is `host`), never waits.

use std::fmt;
use std::time::Duration;

use super::names::{AttemptId, ContainerName};

/// One thing to do. Actions of one plan are independent of each other and may run side by side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Directories, the pod's cgroup, and the supervisor with its namespaces.
    CreateSandbox {
        /// The new sandbox's number.
        attempt: u32,
    },
    /// Connect the sandbox's network namespace (CNI ADD). Not planned for `hostNetwork`.
    AttachNetwork,
    /// Set up every volume of the pod.
    PrepareVolumes,
    /// Bring an image into the store. One action for each reference, whatever the number of containers.
    PullImage {
        /// The reference as it stands in the PodSpec.
        image: String,
    },
    /// Create and start a container.
    StartContainer {
        /// Which container, which attempt.
        id: AttemptId,
        /// Remember this as the delay before the attempt after it ([`super::observed::Attempt::backoff`]).
        backoff: Duration,
    },
    /// Send the container's stop signal (`TERM` or the image's or PodSpec's `stopSignal`) to PID 1.
    StopContainer {
        /// Which attempt.
        id: AttemptId,
    },
    /// SIGKILL to every process of the container.
    KillContainer {
        /// Which attempt.
        id: AttemptId,
    },
    /// Forget an ended attempt: writable layer, record, log files beyond those kept for `--previous`.
    RemoveContainer {
        /// Which attempt.
        id: AttemptId,
    },
    /// Disconnect the network and free the address (CNI DEL).
    DetachNetwork,
    /// End the supervisor, or clear what is left of a lost one: every process in the pod's cgroup is killed.
    RemoveSandbox,
    /// Tear every volume down.
    RemoveVolumes,
    /// Remove the rest: log links, directories, the pod's cgroup. After this nothing of the pod is on the node.
    RemoveRemains,
    /// Send the last status, then delete the API object with grace 0 and the UID as precondition.
    DeleteObject,
}

/// What an action is about; failures and back-off are remembered for each key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKey {
    /// Creating the sandbox.
    CreateSandbox,
    /// Attaching the network.
    AttachNetwork,
    /// Setting up volumes.
    PrepareVolumes,
    /// Pulling this reference.
    PullImage(String),
    /// Starting this container, whatever the attempt.
    StartContainer(ContainerName),
    /// The stop signal to this attempt.
    StopContainer(AttemptId),
    /// SIGKILL to this attempt.
    KillContainer(AttemptId),
    /// Removing this attempt.
    RemoveContainer(AttemptId),
    /// Detaching the network.
    DetachNetwork,
    /// Removing the sandbox.
    RemoveSandbox,
    /// Tearing volumes down.
    RemoveVolumes,
    /// Removing the rest.
    RemoveRemains,
    /// Deleting the object.
    DeleteObject,
}

/// One word, and what it is about: `StartContainer web/0`.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::CreateSandbox { attempt } => write!(f, "CreateSandbox {attempt}"),
            Action::AttachNetwork => f.write_str("AttachNetwork"),
            Action::PrepareVolumes => f.write_str("PrepareVolumes"),
            Action::PullImage { image } => write!(f, "PullImage {image}"),
            Action::StartContainer { id, .. } => write!(f, "StartContainer {id}"),
            Action::StopContainer { id } => write!(f, "StopContainer {id}"),
            Action::KillContainer { id } => write!(f, "KillContainer {id}"),
            Action::RemoveContainer { id } => write!(f, "RemoveContainer {id}"),
            Action::DetachNetwork => f.write_str("DetachNetwork"),
            Action::RemoveSandbox => f.write_str("RemoveSandbox"),
            Action::RemoveVolumes => f.write_str("RemoveVolumes"),
            Action::RemoveRemains => f.write_str("RemoveRemains"),
            Action::DeleteObject => f.write_str("DeleteObject"),
        }
    }
}

impl Action {
    /// What this action is about.
    pub fn key(&self) -> ActionKey {
        match self {
            Action::CreateSandbox { .. } => ActionKey::CreateSandbox,
            Action::AttachNetwork => ActionKey::AttachNetwork,
            Action::PrepareVolumes => ActionKey::PrepareVolumes,
            Action::PullImage { image } => ActionKey::PullImage(image.clone()),
            Action::StartContainer { id, .. } => ActionKey::StartContainer(id.name.clone()),
            Action::StopContainer { id } => ActionKey::StopContainer(id.clone()),
            Action::KillContainer { id } => ActionKey::KillContainer(id.clone()),
            Action::RemoveContainer { id } => ActionKey::RemoveContainer(id.clone()),
            Action::DetachNetwork => ActionKey::DetachNetwork,
            Action::RemoveSandbox => ActionKey::RemoveSandbox,
            Action::RemoveVolumes => ActionKey::RemoveVolumes,
            Action::RemoveRemains => ActionKey::RemoveRemains,
            Action::DeleteObject => ActionKey::DeleteObject,
        }
    }
}

/// Why an action failed. `reason` is kubelet's word where kubelet has one; it becomes the waiting reason or the event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ActionError {
    /// `ErrImagePull`, `InvalidImageName`, `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`,
    /// `FailedMount`, `FailedCreatePodSandBox`, `FailedKillPod`, ...
    pub reason: &'static str,
    /// A sentence that names the thing.
    pub message: String,
}

/// What a successful action has to tell beyond success.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Done {
    /// For the message of `Pulled`: `in 1.2s (1.2s including waiting). Image size: 2046 bytes.` and the like.
    pub detail: Option<String>,
    /// What the pod got otherwise than it asked for; an event each.
    pub warnings: Vec<Warning>,
}

/// Something a user should know although the action succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The event's reason, in kubelet's word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}
