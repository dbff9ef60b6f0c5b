//! What has been done for a pod and how it went: the facts that cannot be observed.
//!
//! Owns: actions in flight, failures and their back-off, what was said in events, when stopping began, the status
//! last reported. One per pod, written by its worker alone, lost with the daemon: everything that must outlive it is
//! in [`super::observed::Observed`] or in the pod's status. Never: decides.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::action::{Action, ActionError, ActionKey};
use super::names::{AttemptId, ContainerName};
use super::status::PodStatus;

/// The facts of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// When this daemon first saw the pod.
    pub first_seen: Timestamp,
    /// The status last handed to the reporter.
    pub reported: Option<PodStatus>,
    /// When the pod's end began, and when it turns to force.
    pub stop: Option<StopClock>,
    /// The object has been deleted by us.
    pub object_deleted: bool,
    /// The network was detached, and not attached since.
    pub network_down: bool,
    /// The volumes were removed, and not prepared since.
    pub volumes_down: bool,
    /// Number of the newest sandbox that was asked for.
    pub last_sandbox: Option<u32>,
    in_flight: BTreeMap<ActionKey, Action>,
    failures: BTreeMap<ActionKey, Failure>,
    stop_begun: BTreeMap<AttemptId, Timestamp>,
    said: BTreeMap<Topic, u64>,
    pulls: Pulls,
}

/// The end of a pod: from the stop signals to force. It can only come nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopClock {
    /// When stopping began.
    pub since: Timestamp,
    /// When the grace period is over.
    pub kill_at: Timestamp,
}

/// Failures of one action in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was tried.
    pub action: Action,
    /// How often in a row.
    pub count: u32,
    /// When the last try ended.
    pub at: Timestamp,
    /// How.
    pub error: ActionError,
}

/// Whether an action may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Now.
    Now,
    /// It is being carried out.
    InFlight,
    /// It failed and is tried again at this time.
    At(Timestamp),
}

/// What an event was about; each is said once for each number (an attempt, a count, ...).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Fields that are not supported.
    Unsupported,
    /// The pod was rejected.
    Rejected,
    /// The active deadline passed.
    Deadline,
    /// The sandbox was lost.
    SandboxChanged,
    /// A container is being stopped.
    Killing(ContainerName),
    /// A container waits to be started again.
    CrashLoop(ContainerName),
    /// An image waits to be pulled again.
    PullBackOff(String),
    /// A container cannot be started as it stands.
    Blocked(ContainerName),
    /// A container's image need not be pulled.
    AlreadyPresent(ContainerName),
}

/// Which pulls happened before which starts, for `imagePullPolicy: Always`. Numbers instead of times, so that a clock
/// that steps does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Pulls {
    serial: u64,
    newest: BTreeMap<String, u64>,
    used: BTreeMap<ContainerName, (u32, u64)>,
}

impl History {
    /// Nothing has happened yet.
    pub fn new(now: Timestamp) -> Self {
        Self {
            first_seen: now,
            reported: None,
            stop: None,
            object_deleted: false,
            network_down: false,
            volumes_down: false,
            last_sandbox: None,
            in_flight: BTreeMap::new(),
            failures: BTreeMap::new(),
            stop_begun: BTreeMap::new(),
            said: BTreeMap::new(),
            pulls: Pulls::default(),
        }
    }

    /// An action is being carried out from now on.
    pub fn begin(&mut self, action: &Action, now: Timestamp) {
        match action {
            Action::CreateSandbox { attempt } => {
                self.last_sandbox = Some(*attempt);
                self.network_down = false;
            }
            Action::AttachNetwork => self.network_down = false,
            Action::PrepareVolumes => self.volumes_down = false,
            Action::StartContainer { id, .. } => {
                let used = (id.attempt, self.pulls.serial);
                let known = self.pulls.used.entry(id.name.clone()).or_insert(used);
                if known.0 != id.attempt {
                    *known = used;
                }
            }
            Action::StopContainer { id } => {
                self.stop_begun.entry(id.clone()).or_insert(now);
            }
            Action::PullImage { .. }
            | Action::KillContainer { .. }
            | Action::RemoveContainer { .. }
            | Action::DetachNetwork
            | Action::RemoveSandbox
            | Action::RemoveVolumes
            | Action::RemoveRemains
            | Action::DeleteObject => {}
        }
        self.in_flight.insert(action.key(), action.clone());
    }

    /// An action has ended.
    pub fn finish(&mut self, key: &ActionKey, result: Result<(), &ActionError>, now: Timestamp) {
        let Some(action) = self.in_flight.remove(key) else { return };
        if let Err(error) = result {
            let count = self.failures.get(key).map_or(0, |f| f.count).saturating_add(1);
            let failure = Failure { action, count, at: now, error: error.clone() };
            self.failures.insert(key.clone(), failure);
            return;
        }
        self.failures.remove(key);
        match action {
            Action::PullImage { image } => {
                self.pulls.serial += 1;
                self.pulls.newest.insert(image, self.pulls.serial);
            }
            Action::DetachNetwork => self.network_down = true,
            Action::RemoveVolumes => self.volumes_down = true,
            Action::DeleteObject => self.object_deleted = true,
            Action::CreateSandbox { .. }
            | Action::AttachNetwork
            | Action::PrepareVolumes
            | Action::StartContainer { .. }
            | Action::StopContainer { .. }
            | Action::KillContainer { .. }
            | Action::RemoveContainer { .. }
            | Action::RemoveSandbox
            | Action::RemoveRemains => {}
        }
    }

    /// An action was dropped before its end, as if it had never begun.
    pub fn cancel(&mut self, key: &ActionKey) {
        self.in_flight.remove(key);
    }

    /// An event about `topic` was sent.
    pub fn said(&mut self, topic: Topic, number: u64) {
        self.said.insert(topic, number);
    }

    /// Whether that event was sent.
    pub fn has_said(&self, topic: &Topic, number: u64) -> bool {
        self.said.get(topic) == Some(&number)
    }

    /// What is being carried out.
    pub fn in_flight(&self) -> impl Iterator<Item = (&ActionKey, &Action)> {
        self.in_flight.iter()
    }

    /// Whether this is being carried out.
    pub fn is_in_flight(&self, key: &ActionKey) -> bool {
        self.in_flight.contains_key(key)
    }

    /// The failures in a row of this action, if its last try failed.
    pub fn failure(&self, key: &ActionKey) -> Option<&Failure> {
        self.failures.get(key)
    }

    /// Whether this action may be tried now.
    pub fn readiness(&self, key: &ActionKey, now: Timestamp) -> Readiness {
        if self.is_in_flight(key) {
            return Readiness::InFlight;
        }
        match self.failures.get(key).map(Failure::retry_at) {
            Some(at) if at > now => Readiness::At(at),
            Some(_) | None => Readiness::Now,
        }
    }

    /// When the stop signal of an attempt was first sent by this daemon.
    pub fn stop_begun(&self, id: &AttemptId) -> Option<Timestamp> {
        self.stop_begun.get(id).copied()
    }

    /// The image has been pulled for this attempt, not merely for an earlier one.
    pub fn pulled_for(&self, image: &str, id: &AttemptId) -> bool {
        let newest = self.pulls.newest.get(image);
        match self.pulls.used.get(&id.name) {
            Some((attempt, _)) if *attempt == id.attempt => newest.is_some(),
            Some((_, used)) => newest.is_some_and(|serial| serial > used),
            None => newest.is_some(),
        }
    }
}

impl Failure {
    /// When the next try is due.
    pub fn retry_at(&self) -> Timestamp {
        later(self.at, self.delay())
    }

    /// From the failure to the next try.
    pub fn delay(&self) -> Duration {
        let (first, most) = match self.action {
            Action::PullImage { .. } => (Duration::from_secs(10), Duration::from_secs(300)),
            Action::CreateSandbox { .. }
            | Action::AttachNetwork
            | Action::PrepareVolumes
            | Action::StartContainer { .. }
            | Action::StopContainer { .. }
            | Action::KillContainer { .. }
            | Action::RemoveContainer { .. }
            | Action::DetachNetwork
            | Action::RemoveSandbox
            | Action::RemoveVolumes
            | Action::RemoveRemains
            | Action::DeleteObject => (Duration::from_millis(500), Duration::from_secs(15)),
        };
        let doublings = self.count.saturating_sub(1).min(16);
        first.saturating_mul(1 << doublings).min(most)
    }
}

/// `at + after`, clamped at the end of time.
pub(in crate::pod) fn later(at: Timestamp, after: Duration) -> Timestamp {
    at.checked_add(after).unwrap_or(Timestamp::MAX)
}

/// From `earlier` to `later`, zero if the clock went back.
pub(in crate::pod) fn elapsed(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or(Duration::ZERO)
}
