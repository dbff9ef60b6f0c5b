//! The pod's status as the API server wants it, and as it was read from there.
//!
//! Owns: the types in the API's spelling. Never: decides what they say (that is its submodules' work).

mod conditions;
mod containers;
mod derive;

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::names::ContainerName;
use super::spec::QosClass;
use super::spec::wire::is_default;
pub(in crate::pod) use derive::status;

/// `status` of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `metadata.generation` of the spec that this status is about.
    #[serde(skip_serializing_if = "is_default")]
    pub observed_generation: Option<i64>,
    /// In one word.
    pub phase: Phase,
    /// Ours and those of others.
    #[serde(skip_serializing_if = "is_default")]
    pub conditions: Vec<Condition>,
    /// Why, for a person.
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    /// Why, in one word: `Evicted`, `DeadlineExceeded`, `OutOfcpu`, ...
    #[serde(skip_serializing_if = "is_default")]
    pub reason: String,
    /// The node's primary address.
    #[serde(rename = "hostIP", skip_serializing_if = "is_default")]
    pub host_ip: Option<IpAddr>,
    /// The node's addresses, one for each family.
    #[serde(rename = "hostIPs", skip_serializing_if = "is_default")]
    pub host_ips: Vec<IpEntry>,
    /// The pod's primary address.
    #[serde(rename = "podIP", skip_serializing_if = "is_default")]
    pub pod_ip: Option<IpAddr>,
    /// The pod's addresses, one for each family.
    #[serde(rename = "podIPs", skip_serializing_if = "is_default")]
    pub pod_ips: Vec<IpEntry>,
    /// When the node accepted the pod.
    #[serde(skip_serializing_if = "is_default")]
    pub start_time: Option<Timestamp>,
    /// One for each of `spec.initContainers`.
    #[serde(skip_serializing_if = "is_default")]
    pub init_container_statuses: Vec<ContainerStatus>,
    /// One for each of `spec.containers`.
    #[serde(skip_serializing_if = "is_default")]
    pub container_statuses: Vec<ContainerStatus>,
    /// One for each of `spec.ephemeralContainers`.
    #[serde(skip_serializing_if = "is_default")]
    pub ephemeral_container_statuses: Vec<ContainerStatus>,
    /// Quality of service.
    #[serde(skip_serializing_if = "is_default")]
    pub qos_class: Option<QosClass>,
}

impl PodStatus {
    /// The restarts of all containers together.
    pub fn restarts(&self) -> u32 {
        let lists =
            [&self.init_container_statuses, &self.container_statuses, &self.ephemeral_container_statuses];
        lists.into_iter().flatten().fold(0, |sum, one| sum.saturating_add(one.restart_count))
    }
}

/// An address in a list of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpEntry {
    /// The address.
    pub ip: IpAddr,
}

/// `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// Not every container has been started yet.
    #[default]
    Pending,
    /// Some container runs, or will run again.
    Running,
    /// All ended well, none will run again.
    Succeeded,
    /// All ended, one of them badly, or the node gave up.
    Failed,
    /// Nobody knows.
    Unknown,
}

impl Phase {
    /// `Succeeded` or `Failed`: there is no way back.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// One of `status.conditions`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// When `status` last changed.
    #[serde(skip_serializing_if = "is_default")]
    pub last_transition_time: Option<Timestamp>,
    /// Set by others on some conditions; ours leave it out.
    #[serde(skip_serializing_if = "is_default")]
    pub last_probe_time: Option<Timestamp>,
    /// Why, in one word.
    #[serde(skip_serializing_if = "is_default")]
    pub reason: String,
    /// Why, for a person.
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    /// Generation of the spec it is about.
    #[serde(skip_serializing_if = "is_default")]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody knows.
    #[default]
    Unknown,
}

/// The status of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Which one.
    pub name: ContainerName,
    /// Now.
    pub state: ContainerState,
    /// The end of the attempt before.
    #[serde(with = "last_state")]
    pub last_state: Option<Terminated>,
    /// Takes traffic; for an init container, has done its work.
    pub ready: bool,
    /// How often it was started again.
    pub restart_count: u32,
    /// The image by name.
    pub image: String,
    /// The image by digest.
    #[serde(rename = "imageID")]
    pub image_id: String,
    /// The attempt, scheme included.
    #[serde(rename = "containerID", skip_serializing_if = "is_default")]
    pub container_id: String,
    /// Has passed its startup probe, or has none and runs.
    #[serde(skip_serializing_if = "is_default")]
    pub started: Option<bool>,
}

/// Where a container is in its life, as its status says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "StateWire")]
pub enum ContainerState {
    /// Not running yet, or not again yet.
    Waiting {
        /// Why, in one word.
        #[serde(skip_serializing_if = "is_default")]
        reason: String,
        /// Why, for a person.
        #[serde(skip_serializing_if = "is_default")]
        message: String,
    },
    /// Running.
    Running {
        /// Since when.
        #[serde(rename = "startedAt")]
        started_at: Option<Timestamp>,
    },
    /// Ended.
    Terminated(Terminated),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Terminated {
    /// Exit code, 128 + signal for a signal.
    pub exit_code: i32,
    /// The signal, if one ended it.
    #[serde(skip_serializing_if = "is_default")]
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`, ...
    #[serde(skip_serializing_if = "is_default")]
    pub reason: String,
    /// The termination message.
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    /// When it was started.
    #[serde(skip_serializing_if = "is_default")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "is_default")]
    pub finished_at: Option<Timestamp>,
    /// The attempt.
    #[serde(rename = "containerID", skip_serializing_if = "is_default")]
    pub container_id: String,
}

impl Default for ContainerState {
    fn default() -> Self {
        ContainerState::Waiting { reason: String::new(), message: String::new() }
    }
}

/// The API's spelling: three fields, at most one set. None set means waiting.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StateWire {
    waiting: Option<WaitingWire>,
    running: Option<RunningWire>,
    terminated: Option<Terminated>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WaitingWire {
    reason: String,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RunningWire {
    started_at: Option<Timestamp>,
}

impl From<StateWire> for ContainerState {
    fn from(wire: StateWire) -> Self {
        if let Some(terminated) = wire.terminated {
            ContainerState::Terminated(terminated)
        } else if let Some(running) = wire.running {
            ContainerState::Running { started_at: running.started_at }
        } else {
            let WaitingWire { reason, message } = wire.waiting.unwrap_or_default();
            ContainerState::Waiting { reason, message }
        }
    }
}

/// `lastState`: `{}` or `{"terminated": ...}`.
mod last_state {
    use super::{Deserialize, Serialize, StateWire, Terminated};
    use serde::{Deserializer, Serializer};

    #[derive(Serialize)]
    struct Wire<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        terminated: &'a Option<Terminated>,
    }

    pub(super) fn serialize<S: Serializer>(
        terminated: &Option<Terminated>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Wire { terminated }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Terminated>, D::Error> {
        Ok(StateWire::deserialize(deserializer)?.terminated)
    }
}
