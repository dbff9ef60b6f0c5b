//! Whose turn it is: init containers one after the other, then the regular ones; ephemeral ones at any time.
//!
//! Owns: the order of starts and the wait for restarts. Never: looks at images, volumes or the network.

use jiff::Timestamp;
use std::time::Duration;

use super::super::facts::{ContainerFacts, Facts, Life};
use super::super::restart::{Restart, backoff_of_next, restart};
use super::super::spec::ContainerKind;

/// What a container waits for before its next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pod) enum Turn {
    /// Nothing: it lives, or will never run again.
    No,
    /// The init containers before it.
    Later,
    /// The end of its back-off.
    BackOff {
        /// The whole wait.
        delay: Duration,
        /// Its end.
        at: Timestamp,
    },
    /// Nothing: it is to be started.
    Now {
        /// To be remembered as the delay after this attempt.
        backoff: Duration,
    },
}

/// Every init container before the regular ones has done its part in the present sandbox.
pub(in crate::pod) fn initialized(facts: &Facts<'_>) -> bool {
    let Some(sandbox) = facts.sandbox() else { return false };
    let inits: Vec<_> = facts.of(ContainerKind::Init).collect();
    (0..inits.len()).all(|i| passed(facts, &inits, i, sandbox))
}

/// The init container at `index` no longer holds up those after it.
fn passed(facts: &Facts<'_>, inits: &[&ContainerFacts<'_>], index: usize, sandbox: u32) -> bool {
    let container = inits[index];
    let later_begun = || {
        inits[index + 1..].iter().any(|c| c.begun_in(sandbox))
            || facts.of(ContainerKind::Regular).any(|c| c.begun_in(sandbox))
    };
    if container.is_sidecar() {
        return matches!(&container.life, Life::Running { vitals, .. } if vitals.started) || later_begun();
    }
    container.end().is_some_and(|end| end.here && end.terminated.exit_code == 0)
        || (later_begun() && !container.is_live())
}

/// Whose turn it is, for every container in the order of [`Facts::containers`].
pub(in crate::pod) fn turns(facts: &Facts<'_>) -> Vec<Turn> {
    let inits: Vec<_> = facts.of(ContainerKind::Init).collect();
    let sandbox = facts.sandbox();
    let mut open = true;
    let mut turns = Vec::with_capacity(facts.containers.len());
    for (i, container) in facts.containers.iter().enumerate() {
        match container.kind {
            ContainerKind::Init => {
                let passed = sandbox.is_some_and(|n| passed(facts, &inits, i, n));
                let again = container.is_sidecar() || !passed;
                turns.push(if again { turn(facts, container, open) } else { Turn::No });
                open &= passed;
            }
            ContainerKind::Regular => turns.push(turn(facts, container, open)),
            ContainerKind::Ephemeral => turns.push(turn(facts, container, true)),
        }
    }
    turns
}

/// The turn of one container whose predecessors are done (`open`) or not.
fn turn(facts: &Facts<'_>, container: &ContainerFacts<'_>, open: bool) -> Turn {
    let max = facts.node.max_restart_period;
    let end = match &container.life {
        Life::Starting | Life::Running { .. } => return Turn::No,
        Life::Never => {
            return if open { Turn::Now { backoff: Duration::ZERO } } else { Turn::Later };
        }
        Life::Ended(end) => end,
    };
    let end_that_counts = Some(end.as_ref()).filter(|_| !container.is_outdated());
    let backoff = backoff_of_next(end_that_counts, max);
    let rerun = container.kind == ContainerKind::Init && !end.here && container.succeeded();
    match restart(&facts.pod().spec, container, end, max) {
        // A new sandbox begins with every init container, whatever their policy.
        Restart::Never if rerun => {
            if open {
                Turn::Now { backoff: end.backoff }
            } else {
                Turn::Later
            }
        }
        Restart::Never => Turn::No,
        Restart::After { .. } if !open => Turn::Later,
        Restart::After { delay, at } if at > facts.now => Turn::BackOff { delay, at },
        Restart::After { .. } => Turn::Now { backoff },
    }
}
