//! The status of each container. Owns: reasons and messages of waiting containers, `lastState`, `ready`, `started`.
//! Never: decides whether a container is started.

use std::time::Duration;

use jiff::Timestamp;

use super::super::facts::{ContainerFacts, EndKind, Facts, Life, whole_seconds};
use super::super::plan::images::blocked;
use super::super::plan::sequence::{Turn, turns};
use super::super::plan::{Course, course_refusal};
use super::super::spec::ContainerKind;
use super::{ContainerState, ContainerStatus};

/// One status for each container in the order of [`Facts::containers`], and when they may read differently by
/// themselves.
pub(super) fn statuses(facts: &Facts<'_>, course: &Course) -> (Vec<ContainerStatus>, Option<Timestamp>) {
    let mut wake = None;
    let turns = match course {
        Course::Run => turns(facts),
        Course::Refuse(_) | Course::End(_) | Course::Delete => {
            vec![Turn::No; facts.containers.len()]
        }
    };
    let statuses = facts
        .containers
        .iter()
        .zip(turns)
        .map(|(container, turn)| status(facts, course, (container, turn), &mut wake))
        .collect();
    (statuses, wake)
}

fn status(
    facts: &Facts<'_>,
    course: &Course,
    (container, turn): (&ContainerFacts<'_>, Turn),
    wake: &mut Option<Timestamp>,
) -> ContainerStatus {
    let mut status = frame(container);
    match &container.life {
        Life::Never | Life::Starting => {
            status.state = waiting(facts, course, (container, turn), wake);
            status.last_state = container.last_end();
        }
        Life::Running { started_at, vitals } => {
            status.state = ContainerState::Running { started_at: Some(whole_seconds(*started_at)) };
            status.last_state = container.last_end();
            status.started = Some(vitals.started);
            let init = container.kind == ContainerKind::Init && !container.is_sidecar();
            status.ready = vitals.started && vitals.ready && !init;
        }
        Life::Ended(end) => {
            let state = after_end(facts, container, turn, wake);
            if let Some(state) = state {
                status.state = state;
                status.last_state = Some(end.terminated.clone());
            } else {
                status.state = ContainerState::Terminated(end.terminated.clone());
                status.last_state = container.last_end();
            }
            status.ready =
                container.kind == ContainerKind::Init && !container.is_sidecar() && container.succeeded();
        }
    }
    status
}

/// What does not depend on the container's life.
fn frame(container: &ContainerFacts<'_>) -> ContainerStatus {
    let newest = container.newest;
    let prior = container.prior;
    ContainerStatus {
        name: container.spec.name.clone(),
        image: match (newest, prior) {
            (Some(attempt), _) => attempt.image.clone(),
            (None, Some(prior)) if !prior.image.is_empty() => prior.image.clone(),
            (None, _) => container.spec.image.clone(),
        },
        image_id: match (newest, prior) {
            (Some(attempt), _) => attempt.image_id.clone(),
            (None, prior) => prior.map(|p| p.image_id.clone()).unwrap_or_default(),
        },
        container_id: match (newest, prior) {
            (Some(attempt), _) => attempt.container_id.clone(),
            (None, prior) => prior.map(|p| p.container_id.clone()).unwrap_or_default(),
        },
        restart_count: container.restart_count(),
        started: Some(false),
        ..ContainerStatus::default()
    }
}

/// The state of a container that has never run, or is being created.
fn waiting(
    facts: &Facts<'_>,
    course: &Course,
    (container, turn): (&ContainerFacts<'_>, Turn),
    wake: &mut Option<Timestamp>,
) -> ContainerState {
    if let Course::Refuse(fields) = course {
        return state("CreateContainerConfigError", course_refusal(fields));
    }
    if let Turn::Now { .. } = turn
        && let Some(blocked) = blocked(facts, container)
    {
        note(wake, blocked.until);
        return state(&blocked.reason, blocked.message);
    }
    let init = facts.of(ContainerKind::Init).next().is_some();
    state(if init { "PodInitializing" } else { "ContainerCreating" }, String::new())
}

/// The state of a container that ended and is not at its end; `None` if it shows its end.
fn after_end(
    facts: &Facts<'_>,
    container: &ContainerFacts<'_>,
    turn: Turn,
    wake: &mut Option<Timestamp>,
) -> Option<ContainerState> {
    match turn {
        Turn::No => None,
        Turn::Later => Some(state("PodInitializing", String::new())),
        Turn::BackOff { delay, .. } => Some(state(
            "CrashLoopBackOff",
            format!(
                "back-off {} restarting failed container={} pod={}",
                go_duration(delay),
                container.spec.name,
                facts.pod()
            ),
        )),
        Turn::Now { .. } => {
            let end = container.end()?;
            if let Some(blocked) = blocked(facts, container) {
                note(wake, blocked.until);
                return Some(state(&blocked.reason, blocked.message));
            }
            (end.kind == EndKind::StartFailed)
                .then(|| state("RunContainerError", end.terminated.message.clone()))
        }
    }
}

fn state(reason: &str, message: String) -> ContainerState {
    ContainerState::Waiting { reason: reason.to_owned(), message }
}

fn note(wake: &mut Option<Timestamp>, at: Option<Timestamp>) {
    *wake = wake.iter().copied().chain(at).min();
}

/// `10s`, `1m20s`, `5m0s`: whole seconds as Go prints a duration.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}
