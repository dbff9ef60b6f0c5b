//! Taking away what a pod used, in the reverse order of its set-up.
//!
//! Owns: that order. Each step waits for the one before it to be seen. Never: touches anything while a container runs
//! (the caller has seen to that).

use super::super::action::Action;
use super::super::observed::Sandbox;
use super::super::wanted::Object;
use super::Draft;

/// Network, sandbox, volumes. The records of the containers stay. Whether nothing of these is left.
pub(super) fn release(draft: &mut Draft<'_, '_>) -> bool {
    let observed = draft.facts.observed;
    if observed.sandbox != Sandbox::Absent {
        if !detach_network(draft) {
            draft.act(Action::RemoveSandbox);
        }
        return false;
    }
    // What a crash left half prepared is not "ready", yet remains: it is removed once.
    let unsure = observed.remains && !draft.facts.history.volumes_down;
    if observed.volumes_ready || unsure {
        draft.act(Action::RemoveVolumes);
        return false;
    }
    true
}

/// Everything, and the object at last. Whether there is nothing left to do for this pod, ever.
pub(super) fn remove(draft: &mut Draft<'_, '_>) -> bool {
    let facts = draft.facts;
    if !release(draft) {
        return false;
    }
    if !facts.observed.attempts.is_empty() {
        for attempt in &facts.observed.attempts {
            draft.act(Action::RemoveContainer { id: attempt.id.clone() });
        }
        return false;
    }
    if facts.observed.remains {
        draft.act(Action::RemoveRemains);
        return false;
    }
    if facts.wanted.object == Object::Gone || facts.history.object_deleted {
        return true;
    }
    draft.act(Action::DeleteObject);
    false
}

/// Plans to disconnect the network of the sandbox unless that has been done, or never is. Whether the sandbox has to
/// wait for it.
pub(super) fn detach_network(draft: &mut Draft<'_, '_>) -> bool {
    let facts = draft.facts;
    if facts.pod().spec.host_network || facts.history.network_down {
        return false;
    }
    draft.act(Action::DetachNetwork);
    true
}
