//! Bringing a pod up and keeping it up.
//!
//! Owns: what may happen side by side (volumes, images, sandbox and network), and what a container's start waits for.
//! Never: stops anything, except a sandbox that was lost.

use std::time::Duration;

use super::super::action::{Action, ActionKey};
use super::super::events;
use super::super::facts::{ContainerFacts, Facts};
use super::super::history::Topic;
use super::super::observed::{Attempt, Sandbox};
use super::Draft;
use super::images::{Need, blocked, need, root_forbidden};
use super::sequence::{Turn, turns};
use super::stop::{being_set_up, stop_outdated};
use super::teardown::detach_network;

/// Plans everything that may be done now.
pub(super) fn bring_up(draft: &mut Draft<'_, '_>) {
    let facts = draft.facts;
    sandbox(draft);
    if !facts.observed.volumes_ready && !draft.in_flight(&ActionKey::RemoveVolumes) {
        draft.act(Action::PrepareVolumes);
    }
    let ready = facts.network_ready() && facts.observed.volumes_ready;
    for (container, turn) in facts.containers.iter().zip(turns(facts)) {
        match turn {
            Turn::No => {}
            Turn::Later => {
                image(draft, container);
            }
            Turn::BackOff { at, .. } => {
                let topic = Topic::CrashLoop(container.spec.name.clone());
                let event = events::crash_loop(facts.pod(), container);
                draft.say(topic, u64::from(container.restart_count()), event);
                draft.wake(Some(at));
            }
            Turn::Now { backoff } => {
                if image(draft, container) && ready {
                    start(draft, container, backoff);
                }
            }
        }
    }
    draft.let_pulls_end();
    stop_outdated(draft);
    forget_old_attempts(draft);
}

fn sandbox(draft: &mut Draft<'_, '_>) {
    let facts = draft.facts;
    match &facts.observed.sandbox {
        Sandbox::Absent => {
            if !draft.in_flight(&ActionKey::RemoveSandbox) {
                draft.act(Action::CreateSandbox { attempt: next_sandbox(facts) });
            }
        }
        Sandbox::Ready { addresses: Some(a), .. } if !a.is_empty() => {}
        Sandbox::Ready { .. } => {
            if !facts.pod().spec.host_network && !draft.in_flight(&ActionKey::DetachNetwork) {
                draft.act(Action::AttachNetwork);
            }
        }
        Sandbox::Lost { attempt } => {
            draft.say(Topic::SandboxChanged, u64::from(*attempt), events::sandbox_changed());
            // A start that was begun in the lost sandbox must not end in the next.
            if !being_set_up(facts) && !detach_network(draft) {
                draft.act(Action::RemoveSandbox);
            }
        }
    }
}

/// One more than any sandbox that is known of. Trying again after a failure keeps the number.
fn next_sandbox(facts: &Facts<'_>) -> u32 {
    if let Some(failure) = facts.history.failure(&ActionKey::CreateSandbox)
        && let Action::CreateSandbox { attempt } = failure.action
    {
        return attempt;
    }
    let seen = facts.observed.attempts.iter().map(|a| a.sandbox);
    let newest = seen.chain(facts.history.last_sandbox).max();
    newest.map_or(0, |n| n.saturating_add(1))
}

/// Plans a pull if one is needed. Whether the image can be used now.
fn image(draft: &mut Draft<'_, '_>, container: &ContainerFacts<'_>) -> bool {
    let facts = draft.facts;
    let name = &container.spec.name;
    match need(facts, container) {
        Need::Nothing(image) => {
            let Some(message) = root_forbidden(facts, container, image) else { return true };
            let topic = Topic::Blocked(name.clone());
            draft.say(topic, 0, events::blocked(container, &message));
        }
        Need::Absent => {
            if let Some(blocked) = blocked(facts, container) {
                let topic = Topic::Blocked(name.clone());
                draft.say_all(topic, 0, events::never_pull(container, &blocked.message));
            }
        }
        Need::Pull => {
            let image = container.spec.image.clone();
            if let Some(blocked) = blocked(facts, container)
                && blocked.reason == "ImagePullBackOff"
            {
                let topic = Topic::PullBackOff(image.clone());
                draft.say_all(topic, blocked.number, events::pull_back_off(container));
            }
            draft.act(Action::PullImage { image });
        }
    }
    false
}

fn start(draft: &mut Draft<'_, '_>, container: &ContainerFacts<'_>, backoff: Duration) {
    let id = container.next_attempt();
    let pulled = draft.facts.history.pulled_for(&container.spec.image, &id);
    let pulled = pulled || draft.in_flight(&ActionKey::PullImage(container.spec.image.clone()));
    let number = u64::from(id.attempt);
    if draft.act(Action::StartContainer { id, backoff }) && !pulled {
        let topic = Topic::AlreadyPresent(container.spec.name.clone());
        draft.say(topic, number, events::already_present(container));
    }
}

/// The newest attempt and the one before it are kept, for status and `kubectl logs --previous`.
fn forget_old_attempts(draft: &mut Draft<'_, '_>) {
    let facts = draft.facts;
    let kept = |attempt: &Attempt| {
        let container = facts.containers.iter().find(|c| c.spec.name == attempt.id.name);
        container.is_none_or(|c| [c.newest, c.previous].into_iter().flatten().any(|k| k.id == attempt.id))
    };
    for attempt in facts.observed.attempts.iter().filter(|a| !kept(a)) {
        draft.act(Action::RemoveContainer { id: attempt.id.clone() });
    }
}
