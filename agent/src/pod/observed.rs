//! What the host saw of one pod. Plain facts, no judgement; `plan` draws the conclusions.
//!
//! Owns: the types. Never: looks anything up.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::names::AttemptId;

/// Everything the node knows of one pod at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The pod's sandbox.
    pub sandbox: Sandbox,
    /// Every attempt not yet removed, in no particular order, those of earlier sandboxes included.
    pub attempts: Vec<Attempt>,
    /// Images in the store among those the PodSpec names, keyed by the reference as it stands in the PodSpec.
    pub images: BTreeMap<String, Image>,
    /// All volumes of the pod are set up.
    pub volumes_ready: bool,
    /// Something of the pod is on the node beside sandbox, attempts and volumes: directories, cgroups, an address.
    pub remains: bool,
}

/// The sandbox: the supervisor with the pod's namespaces, and the network in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sandbox {
    /// There is none.
    #[default]
    Absent,
    /// The supervisor runs and answers.
    Ready {
        /// Counts the pod's sandboxes on this node, from 0.
        attempt: u32,
        /// When the supervisor was ready.
        created_at: Timestamp,
        /// The pod's addresses once the network is attached, the primary one first. For `hostNetwork` the node's.
        addresses: Option<Vec<IpAddr>>,
    },
    /// There was one, and its supervisor is gone: what is left of it must be removed before the next.
    Lost {
        /// The lost sandbox's number.
        attempt: u32,
    },
}

/// One attempt to run a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Which container, which attempt.
    pub id: AttemptId,
    /// The number of the sandbox that it belongs to: init containers run again in every new one.
    pub sandbox: u32,
    /// As shown in `containerID`, scheme included: `orlop://<id>`.
    pub container_id: String,
    /// The reference as it stood in the PodSpec when the attempt was started. Shown in `image`; a running container whose
    /// PodSpec has another one by now is replaced.
    pub image: String,
    /// As shown in `imageID`.
    pub image_id: String,
    /// The CrashLoopBackOff delay that [`super::action::Action::StartContainer`] asked to be remembered.
    pub backoff: Duration,
    /// Where it is in its life.
    pub state: AttemptState,
    /// How it does while it runs.
    pub vitals: Vitals,
}

/// How a running attempt does. The default is right for a container without probes that nobody has asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// Its startup probe has succeeded, or it has none.
    pub started: bool,
    /// Its readiness probe succeeds, or it has none.
    pub ready: bool,
    /// When its stop signal was sent, where the node remembers that longer than one life of the daemon.
    pub stop_sent_at: Option<Timestamp>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self { started: true, ready: true, stop_sent_at: None }
    }
}

/// Where an attempt is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptState {
    /// Being created.
    Starting,
    /// The program runs.
    Running {
        /// When it was started.
        started_at: Timestamp,
    },
    /// The program could not be started.
    StartFailed {
        /// When.
        at: Timestamp,
        /// `StartError` or `RunContainerError`... kubelet's reason for the container status.
        reason: String,
        /// A sentence for the user.
        message: String,
    },
    /// The program ended.
    Exited {
        /// When it was started.
        started_at: Timestamp,
        /// When it ended.
        finished_at: Timestamp,
        /// Exit code, 128 + signal for a signal.
        exit_code: i32,
        /// The signal that ended it, if one did.
        signal: Option<i32>,
        /// The kernel's OOM killer struck in this container.
        oom_killed: bool,
        /// The termination message, read and cut as kubelet does.
        message: Option<String>,
    },
    /// It was starting or running when its supervisor died; nobody saw the exit code.
    Lost {
        /// When it was started, if that is known.
        started_at: Option<Timestamp>,
    },
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// As shown in `imageID`: a repository digest where there is one, else the config digest.
    pub image_id: String,
    /// `USER` of the image config, for `runAsNonRoot`.
    pub user: String,
}
