//! Stopping what runs: signals first, force when the grace period is over.
//!
//! Owns: the order (regular containers together, then sidecars from the last to the first, KEP-753), the clock that
//! only runs shorter. Never: removes anything.

use std::time::Duration;

use jiff::Timestamp;

use super::super::action::{Action, ActionKey};
use super::super::events;
use super::super::facts::{ContainerFacts, Facts, Life};
use super::super::history::{StopClock, Topic, later};
use super::super::names::AttemptId;
use super::Draft;

/// What every container gets between its stop signal and force, even when the grace period is used up.
const SHORTEST: Duration = Duration::from_secs(2);

/// Plans the next step of the end. Whether nothing runs any more and nothing is being set up, so that what they used
/// can be taken away.
pub(super) fn stop(draft: &mut Draft<'_, '_>, grace: Duration) -> bool {
    let facts = draft.facts;
    let live: Vec<&ContainerFacts<'_>> = facts.containers.iter().filter(|c| c.is_live()).collect();
    if live.is_empty() {
        return !being_set_up(facts);
    }
    let clock = clock(facts, &live, grace);
    draft.set_stop(clock);
    let overtime = facts.now >= clock.kill_at;
    if !overtime {
        draft.wake(Some(clock.kill_at));
    }
    let any_regular = live.iter().any(|c| !c.is_sidecar());
    let last_sidecar = live.iter().rev().find(|c| c.is_sidecar()).map(|c| &c.spec.name);
    for container in &live {
        let its_turn =
            !container.is_sidecar() || (!any_regular && Some(&container.spec.name) == last_sidecar);
        if let Some(newest) = container.newest {
            if its_turn || overtime {
                signal(draft, container, &newest.id);
            }
            force(draft, &newest.id, clock.kill_at);
        }
    }
    false
}

/// Ends the attempts of containers whose image was changed, each with a grace period of its own.
pub(super) fn stop_outdated(draft: &mut Draft<'_, '_>) {
    let facts = draft.facts;
    let grace = facts.pod().spec.termination_grace_period;
    for container in facts.containers.iter().filter(|c| c.is_live() && c.is_outdated()) {
        let Some(newest) = container.newest else { continue };
        signal(draft, container, &newest.id);
        if let Some(since) = signalled_at(facts, &newest.id) {
            force(draft, &newest.id, later(since, grace));
        }
    }
}

/// The clock of the end: what was decided before, or sooner.
fn clock(facts: &Facts<'_>, live: &[&ContainerFacts<'_>], grace: Duration) -> StopClock {
    let signalled = live.iter().filter_map(|c| match &c.life {
        Life::Running { vitals, .. } => vitals.stop_sent_at,
        Life::Never | Life::Starting | Life::Ended(_) => None,
    });
    let since = facts.history.stop.map(|s| s.since);
    let since = signalled.chain(since).min().unwrap_or(facts.now).min(facts.now);
    let from_now = later(facts.now, grace);
    let kill_at = match facts.history.stop {
        Some(before) => before.kill_at.min(from_now),
        None => later(since, grace).min(from_now),
    };
    StopClock { since, kill_at }
}

/// When the stop signal was first sent, by this daemon or an earlier one.
fn signalled_at(facts: &Facts<'_>, id: &AttemptId) -> Option<Timestamp> {
    let newest = facts.containers.iter().find(|c| c.newest.is_some_and(|a| a.id == *id));
    let remembered = newest.and_then(|c| c.newest).and_then(|a| a.vitals.stop_sent_at);
    facts.history.stop_begun(id).into_iter().chain(remembered).min()
}

/// Plans the stop signal, once; again only if sending it failed.
fn signal(draft: &mut Draft<'_, '_>, container: &ContainerFacts<'_>, id: &AttemptId) {
    let facts = draft.facts;
    let key = ActionKey::StopContainer(id.clone());
    let starting = draft.in_flight(&ActionKey::StartContainer(id.name.clone()));
    let sent = signalled_at(facts, id).is_some() && facts.history.failure(&key).is_none();
    if starting || sent {
        return;
    }
    if draft.act(Action::StopContainer { id: id.clone() }) {
        let topic = Topic::Killing(id.name.clone());
        let event = match draft.facts.wanted.is_deleted() || !container.is_outdated() {
            true => events::killing(container),
            false => events::replacing(container),
        };
        draft.say(topic, u64::from(id.attempt), event);
    }
}

/// Plans force when its time has come.
fn force(draft: &mut Draft<'_, '_>, id: &AttemptId, kill_at: Timestamp) {
    let facts = draft.facts;
    let shortest = later(signalled_at(facts, id).unwrap_or(kill_at), SHORTEST);
    let due = kill_at.max(shortest);
    if facts.now >= due {
        draft.act(Action::KillContainer { id: id.clone() });
    } else {
        draft.wake(Some(due));
    }
}

/// Something is under way that would put back what is taken away.
pub(super) fn being_set_up(facts: &Facts<'_>) -> bool {
    facts.history.in_flight().any(|(key, _)| match key {
        ActionKey::CreateSandbox
        | ActionKey::AttachNetwork
        | ActionKey::PrepareVolumes
        | ActionKey::StartContainer(_) => true,
        ActionKey::PullImage(_)
        | ActionKey::StopContainer(_)
        | ActionKey::KillContainer(_)
        | ActionKey::RemoveContainer(_)
        | ActionKey::DetachNetwork
        | ActionKey::RemoveSandbox
        | ActionKey::RemoveVolumes
        | ActionKey::RemoveRemains
        | ActionKey::DeleteObject => false,
    })
}
