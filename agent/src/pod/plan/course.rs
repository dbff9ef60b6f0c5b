//! Which way a pod goes: up, to its end, or away.
//!
//! Owns: the order in which reasons to end count, and the grace period. Never: plans an action.

use std::time::Duration;

use super::super::events;
use super::super::facts::{ContainerFacts, Facts};
use super::super::history::{Topic, later};
use super::super::restart::wants_restart;
use super::super::spec::{ContainerKind, Effect, Unsupported};
use super::super::status::Phase;
use super::Draft;

/// Which way a pod goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pod) enum Course {
    /// Bring it up and keep it up.
    Run,
    /// It asks for something that it must not be started without. The fields, for the user.
    Refuse(String),
    /// It will never run again; its object and records stay.
    End(Ending),
    /// It goes away entirely.
    Delete,
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pod) struct Ending {
    pub phase: Phase,
    pub reason: String,
    pub message: String,
}

impl Ending {
    fn new(phase: Phase, reason: &str, message: &str) -> Self {
        Self { phase, reason: reason.to_owned(), message: message.to_owned() }
    }
}

/// So begins the message of a pod that was rejected; its event does without.
pub(in crate::pod) const REJECTED: &str = "Pod was rejected: ";

/// Draws the conclusion from the facts.
pub(in crate::pod) fn course(facts: &Facts<'_>) -> Course {
    if facts.wanted.is_deleted() {
        return Course::Delete;
    }
    if let Some(status) = facts.terminal_status() {
        return Course::End(Ending::new(status.phase, &status.reason, &status.message));
    }
    if let Some(rejection) = &facts.wanted.rejected {
        let message = format!("{REJECTED}{}", rejection.message);
        return Course::End(Ending::new(Phase::Failed, rejection.reason, &message));
    }
    if facts.pod().spec.active_deadline.is_some_and(|d| later(facts.start_time(), d) <= facts.now) {
        return Course::End(Ending::new(Phase::Failed, "DeadlineExceeded", events::DEADLINE_EXCEEDED));
    }
    if let Some(phase) = outcome(facts) {
        return Course::End(Ending::new(phase, "", ""));
    }
    let refused: Vec<String> = facts.pod().refused().map(Unsupported::to_string).collect();
    if refused.is_empty() { Course::Run } else { Course::Refuse(refused.join(", ")) }
}

/// The phase of a pod whose containers have all done what they will ever do.
fn outcome(facts: &Facts<'_>) -> Option<Phase> {
    let spec = &facts.pod().spec;
    let over =
        |c: &ContainerFacts<'_>| c.end().is_some_and(|end| !wants_restart(spec, c, end.terminated.exit_code));
    let here = |c: &ContainerFacts<'_>| match facts.sandbox() {
        Some(sandbox) => c.begun_in(sandbox),
        None => c.newest.is_some(),
    };
    let regular_begun = facts.of(ContainerKind::Regular).any(here);
    let init_failed = facts.of(ContainerKind::Init).any(|c| !c.is_sidecar() && !c.succeeded() && over(c));
    if init_failed && !regular_begun {
        return Some(Phase::Failed);
    }
    facts.of(ContainerKind::Regular).all(over).then(|| outcome_of_regular(facts))
}

/// `Succeeded` if every regular container ended with exit code 0. Sidecars do not count (KEP-753).
pub(in crate::pod) fn outcome_of_regular(facts: &Facts<'_>) -> Phase {
    if facts.of(ContainerKind::Regular).all(ContainerFacts::succeeded) {
        Phase::Succeeded
    } else {
        Phase::Failed
    }
}

/// How long the containers may take to end: at least one second, as the API server has it too.
pub(super) fn grace(facts: &Facts<'_>) -> Duration {
    let metadata = &facts.pod().metadata;
    let asked = metadata.deletion_grace_period.filter(|_| metadata.deletion_timestamp.is_some());
    asked.unwrap_or(facts.pod().spec.termination_grace_period).max(Duration::from_secs(1))
}

/// The events that go with the course as a whole.
pub(super) fn announce(draft: &mut Draft<'_, '_>, course: &Course) {
    let facts = draft.facts;
    let pod = facts.pod();
    let fields: Vec<String> =
        pod.unsupported.iter().filter(|u| u.effect == Effect::Warn).map(Unsupported::to_string).collect();
    if !fields.is_empty() {
        draft.say(Topic::Unsupported, 0, events::without_effect(&fields.join(", ")));
    }
    match course {
        Course::Run | Course::Delete => {}
        Course::Refuse(fields) => {
            for container in &facts.containers {
                let topic = Topic::Blocked(container.spec.name.clone());
                draft.say(topic, 0, events::blocked(container, &refusal(fields)));
            }
        }
        Course::End(ending) => {
            if let Some(rejection) = &facts.wanted.rejected {
                draft.say(Topic::Rejected, 0, events::rejected(rejection));
            } else if ending.reason == "DeadlineExceeded" && facts.any_live() {
                draft.say(Topic::Deadline, 0, events::deadline_exceeded());
            }
        }
    }
    if let (Course::Run, Some(deadline)) = (course, pod.spec.active_deadline) {
        draft.wake(Some(later(facts.start_time(), deadline)));
    }
}

/// What status and event say of a pod that must not be started as it stands.
pub(in crate::pod) fn refusal(fields: &str) -> String {
    format!("not supported by this node, and not safe to ignore: {fields}")
}
