//! What was seen and done, drawn together for each container: the one reading of the facts that planning and status
//! share.
//!
//! Owns: which attempt counts, whether it is alive, how it ended. Never: decides what follows (that is `plan`).

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::action::ActionKey;
use super::history::{History, elapsed};
use super::names::AttemptId;
use super::observed::{Attempt, AttemptState, Observed, Sandbox, Vitals};
use super::spec::{Container, ContainerKind, Pod};
use super::status::{ContainerState, ContainerStatus, PodStatus, Terminated};
use super::wanted::{NodeFacts, Wanted};

/// The message that kubelet gives a container whose end nobody saw.
const NOT_LOCATED: &str = "The container could not be located when the pod was terminated";

/// All facts of one pod at one moment.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What is wanted.
    pub wanted: &'a Wanted,
    /// What was seen.
    pub observed: &'a Observed,
    /// What was done.
    pub history: &'a History,
    /// The node.
    pub node: &'a NodeFacts,
    /// The moment.
    pub now: Timestamp,
    /// Every container: init, regular, ephemeral ones, each list in its order.
    pub containers: Vec<ContainerFacts<'a>>,
}

/// The facts of one container.
#[derive(Debug)]
pub struct ContainerFacts<'a> {
    /// Which list it stands in.
    pub kind: ContainerKind,
    /// What is wanted.
    pub spec: &'a Container,
    /// Its newest attempt.
    pub newest: Option<&'a Attempt>,
    /// The attempt before that.
    pub previous: Option<&'a Attempt>,
    /// Its status as last reported, or as read if this daemon has not reported one.
    pub prior: Option<&'a ContainerStatus>,
    /// Where it is in its life.
    pub life: Life,
    /// Its image was changed, and its newest attempt was asked to end because of that: it is started again whatever the
    /// restart policy says.
    pub replaced: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It has never run.
    Never,
    /// The newest attempt is being created in the present sandbox.
    Starting,
    /// It runs in the present sandbox.
    Running {
        /// Since when.
        started_at: Timestamp,
        /// How it does.
        vitals: Vitals,
    },
    /// The newest attempt has ended.
    Ended(Box<End>),
}

/// How the newest attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// As the status says it.
    pub terminated: Terminated,
    /// It belonged to the present sandbox.
    pub here: bool,
    /// What kind of end it was.
    pub kind: EndKind,
    /// How long it ran.
    pub ran_for: Duration,
    /// The restart delay that was remembered with it.
    pub backoff: Duration,
}

/// Kinds of ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    /// The program ended.
    Exited,
    /// The program could not be started.
    StartFailed,
    /// Nobody saw the end.
    Lost,
}

impl<'a> Facts<'a> {
    /// Draws the facts together.
    pub fn new(
        wanted: &'a Wanted,
        observed: &'a Observed,
        history: &'a History,
        node: &'a NodeFacts,
        now: Timestamp,
    ) -> Self {
        let prior = history.reported.as_ref().unwrap_or(&wanted.pod.status);
        let containers = wanted
            .pod
            .containers()
            .map(|(kind, spec)| ContainerFacts::new((kind, spec), observed, prior, history))
            .collect();
        Facts { wanted, observed, history, node, now, containers }
    }

    /// The pod.
    pub fn pod(&self) -> &'a Pod {
        &self.wanted.pod
    }

    /// The status as last reported, or as read if this daemon has not reported one.
    pub fn prior_status(&self) -> &'a PodStatus {
        self.history.reported.as_ref().unwrap_or(&self.wanted.pod.status)
    }

    /// A status that says `Succeeded` or `Failed`: there is no way back from it.
    pub fn terminal_status(&self) -> Option<&'a PodStatus> {
        let read = &self.wanted.pod.status;
        let reported = self.history.reported.as_ref();
        std::iter::once(read).chain(reported).find(|s| s.phase.is_terminal())
    }

    /// The containers of one list.
    pub fn of(&self, kind: ContainerKind) -> impl DoubleEndedIterator<Item = &ContainerFacts<'a>> {
        self.containers.iter().filter(move |c| c.kind == kind)
    }

    /// The number of the sandbox that runs, if one does.
    pub fn sandbox(&self) -> Option<u32> {
        match self.observed.sandbox {
            Sandbox::Ready { attempt, .. } => Some(attempt),
            Sandbox::Absent | Sandbox::Lost { .. } => None,
        }
    }

    /// The number of the sandbox that is there, lost or not.
    pub fn newest_sandbox(&self) -> Option<u32> {
        match self.observed.sandbox {
            Sandbox::Ready { attempt, .. } | Sandbox::Lost { attempt } => Some(attempt),
            Sandbox::Absent => None,
        }
    }

    /// The pod's addresses, once the network is attached.
    pub fn addresses(&self) -> Option<&'a [IpAddr]> {
        match &self.observed.sandbox {
            Sandbox::Ready { addresses, .. } => addresses.as_deref().filter(|a| !a.is_empty()),
            Sandbox::Absent | Sandbox::Lost { .. } => None,
        }
    }

    /// The sandbox is there with its network. The node's own network is what it is, with or without an address.
    pub fn network_ready(&self) -> bool {
        self.addresses().is_some() || (self.pod().spec.host_network && self.sandbox().is_some())
    }

    /// When the node took the pod: what `activeDeadlineSeconds` counts from.
    pub fn start_time(&self) -> Timestamp {
        // The one that was read counts first: it never changes, and it outlives this daemon.
        let read = self.wanted.pod.status.start_time;
        read.or(self.prior_status().start_time).unwrap_or(self.history.first_seen)
    }

    /// Something of the pod runs, or is about to.
    pub fn any_live(&self) -> bool {
        let starting = |key: &ActionKey| matches!(key, ActionKey::StartContainer(_));
        self.containers.iter().any(ContainerFacts::is_live)
            || self.history.in_flight().any(|(key, _)| starting(key))
    }
}

impl<'a> ContainerFacts<'a> {
    fn new(
        (kind, spec): (ContainerKind, &'a Container),
        observed: &'a Observed,
        prior: &'a PodStatus,
        history: &History,
    ) -> Self {
        let mut newest: Option<&Attempt> = None;
        let mut previous: Option<&Attempt> = None;
        for attempt in observed.attempts.iter().filter(|a| a.id.name == spec.name) {
            if newest.is_none_or(|n| attempt.id.attempt > n.id.attempt) {
                previous = newest;
                newest = Some(attempt);
            } else if previous.is_none_or(|p| attempt.id.attempt > p.id.attempt) {
                previous = Some(attempt);
            }
        }
        let statuses = match kind {
            ContainerKind::Init => &prior.init_container_statuses,
            ContainerKind::Regular => &prior.container_statuses,
            ContainerKind::Ephemeral => &prior.ephemeral_container_statuses,
        };
        let prior = statuses.iter().find(|s| s.name == spec.name);
        let life = match newest {
            Some(attempt) => life_of(attempt, &observed.sandbox),
            None => life_without_attempts(prior),
        };
        let mut facts = ContainerFacts { kind, spec, newest, previous, prior, life, replaced: false };
        let stopped = newest.is_some_and(|a| history.stop_begun(&a.id).is_some());
        facts.replaced = facts.is_outdated() && stopped;
        facts
    }

    /// It is being created or runs.
    pub fn is_live(&self) -> bool {
        match self.life {
            Life::Starting | Life::Running { .. } => true,
            Life::Never | Life::Ended(_) => false,
        }
    }

    /// Its newest attempt was started from another image than the PodSpec names now. Images can be changed in regular
    /// containers and sidecars; what has run only once to prepare the pod stays as it is.
    pub fn is_outdated(&self) -> bool {
        let lasting = self.kind == ContainerKind::Regular || self.is_sidecar();
        lasting && self.newest.is_some_and(|a| a.image != self.spec.image)
    }

    /// How it ended, if it did.
    pub fn end(&self) -> Option<&End> {
        match &self.life {
            Life::Ended(end) => Some(end),
            Life::Never | Life::Starting | Life::Running { .. } => None,
        }
    }

    /// It ended with exit code 0.
    pub fn succeeded(&self) -> bool {
        self.end().is_some_and(|e| e.terminated.exit_code == 0)
    }

    /// It has got as far as running, in whatever sandbox.
    pub fn has_run(&self) -> bool {
        match self.life {
            Life::Running { .. } | Life::Ended(_) => true,
            Life::Starting => self.previous.is_some(),
            Life::Never => false,
        }
    }

    /// It was begun in the sandbox with this number.
    pub fn begun_in(&self, sandbox: u32) -> bool {
        self.newest.is_some_and(|a| a.sandbox == sandbox)
    }

    /// A sidecar: an init container that goes on beside the regular ones.
    pub fn is_sidecar(&self) -> bool {
        self.kind == ContainerKind::Init && self.spec.is_sidecar()
    }

    /// How often it was started again.
    pub fn restart_count(&self) -> u32 {
        let observed = self.newest.map(|a| a.id.attempt);
        observed.into_iter().chain(self.prior.map(|p| p.restart_count)).max().unwrap_or(0)
    }

    /// The attempt that comes next. Counts on from the status when the node has forgotten the attempts (a reboot).
    pub fn next_attempt(&self) -> AttemptId {
        let attempt = match self.life {
            Life::Never => self.prior.map_or(0, |p| p.restart_count),
            Life::Starting | Life::Running { .. } | Life::Ended(_) => self.restart_count().saturating_add(1),
        };
        AttemptId { name: self.spec.name.clone(), attempt }
    }

    /// `lastState`: how the attempt before the newest one ended.
    pub fn last_end(&self) -> Option<Terminated> {
        let newest = self.newest?;
        if let Some(previous) = self.previous {
            return Some(end_of(previous, false).terminated);
        }
        let prior = self.prior?;
        if prior.restart_count >= newest.id.attempt {
            return prior.last_state.clone();
        }
        match life_without_attempts(Some(prior)) {
            Life::Ended(end) => Some(end.terminated),
            Life::Never | Life::Starting | Life::Running { .. } => None,
        }
    }
}

fn life_of(attempt: &Attempt, sandbox: &Sandbox) -> Life {
    let here = matches!(sandbox, Sandbox::Ready { attempt: n, .. } if *n == attempt.sandbox);
    match attempt.state {
        AttemptState::Starting if here => Life::Starting,
        AttemptState::Running { started_at } if here => Life::Running { started_at, vitals: attempt.vitals },
        AttemptState::Starting
        | AttemptState::Running { .. }
        | AttemptState::StartFailed { .. }
        | AttemptState::Exited { .. }
        | AttemptState::Lost { .. } => Life::Ended(Box::new(end_of(attempt, here))),
    }
}

/// How an attempt that is not alive ended. One that still claims to run belonged to a sandbox that is gone.
fn end_of(attempt: &Attempt, here: bool) -> End {
    let mut ran_for = Duration::ZERO;
    let (kind, mut terminated) = match &attempt.state {
        AttemptState::Starting => (EndKind::Lost, not_located(None)),
        AttemptState::Running { started_at } => (EndKind::Lost, not_located(Some(*started_at))),
        AttemptState::Lost { started_at } => (EndKind::Lost, not_located(*started_at)),
        AttemptState::StartFailed { at, reason, message } => {
            let terminated = Terminated {
                exit_code: 128,
                reason: reason.clone(),
                message: message.clone(),
                finished_at: Some(whole_seconds(*at)),
                ..Terminated::default()
            };
            (EndKind::StartFailed, terminated)
        }
        AttemptState::Exited { started_at, finished_at, exit_code, oom_killed, message, .. } => {
            ran_for = elapsed(*started_at, *finished_at);
            let reason = match (oom_killed, exit_code) {
                (true, _) => "OOMKilled",
                (false, 0) => "Completed",
                (false, _) => "Error",
            };
            let terminated = Terminated {
                exit_code: *exit_code,
                reason: reason.to_owned(),
                message: message.clone().unwrap_or_default(),
                started_at: Some(whole_seconds(*started_at)),
                finished_at: Some(whole_seconds(*finished_at)),
                ..Terminated::default()
            };
            (EndKind::Exited, terminated)
        }
    };
    terminated.container_id.clone_from(&attempt.container_id);
    End { terminated, here, kind, ran_for, backoff: attempt.backoff }
}

/// The node knows no attempt: either there was none, or they were forgotten, or removed at the pod's end.
fn life_without_attempts(prior: Option<&ContainerStatus>) -> Life {
    let Some(prior) = prior else { return Life::Never };
    let (kind, terminated) = match &prior.state {
        ContainerState::Running { started_at } => {
            let mut terminated = not_located(*started_at);
            terminated.container_id.clone_from(&prior.container_id);
            (EndKind::Lost, terminated)
        }
        ContainerState::Terminated(terminated) => (EndKind::Exited, terminated.clone()),
        ContainerState::Waiting { .. } => match &prior.last_state {
            Some(terminated) => (EndKind::Exited, terminated.clone()),
            None => return Life::Never,
        },
    };
    let ran_for = match (terminated.started_at, terminated.finished_at) {
        (Some(start), Some(end)) => elapsed(start, end),
        (None, _) | (_, None) => Duration::ZERO,
    };
    Life::Ended(Box::new(End { terminated, here: false, kind, ran_for, backoff: Duration::ZERO }))
}

fn not_located(started_at: Option<Timestamp>) -> Terminated {
    Terminated {
        exit_code: 137,
        reason: "ContainerStatusUnknown".to_owned(),
        message: NOT_LOCATED.to_owned(),
        started_at: started_at.map(whole_seconds),
        ..Terminated::default()
    }
}

/// The API keeps no fractions of seconds; without them a status compares equal to itself when read back.
pub(in crate::pod) fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
