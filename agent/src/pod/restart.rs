//! Whether and when a container that ended is started again.
//!
//! Owns: `restartPolicy` of pods and containers, exit-code rules (KEP-5307), CrashLoopBackOff (KEP-4603).
//! Never: looks at images, init order or the sandbox.

use std::time::Duration;

use jiff::Timestamp;

use super::facts::{ContainerFacts, End, EndKind};
use super::history::later;
use super::spec::{ContainerKind, ExitCodesOperator, PodSpec, RestartPolicy, RestartRuleAction};

/// The delay before the second restart.
const FIRST_DELAY: Duration = Duration::from_secs(10);
/// A container that ran for this long is forgiven its earlier crashes.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// What follows for a container that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It stays ended.
    Never,
    /// It is started again.
    After {
        /// The wait since its end.
        delay: Duration,
        /// When that is over.
        at: Timestamp,
    },
}

/// What follows for this container, by its end alone.
pub fn restart(spec: &PodSpec, container: &ContainerFacts<'_>, end: &End, max_period: Duration) -> Restart {
    if !wants_restart(spec, container, end.terminated.exit_code) {
        return Restart::Never;
    }
    // Another image deserves another chance at once.
    let delay = if container.is_outdated() { Duration::ZERO } else { delay_after(end, max_period) };
    let at = match end.terminated.finished_at {
        Some(finished) if !delay.is_zero() => later(finished, delay),
        Some(_) | None => Timestamp::MIN,
    };
    Restart::After { delay, at }
}

/// A changed image first, then rules on the exit code, then the container's policy, then the pod's.
pub fn wants_restart(spec: &PodSpec, container: &ContainerFacts<'_>, exit_code: i32) -> bool {
    if container.kind == ContainerKind::Ephemeral {
        return false;
    }
    if container.replaced {
        return true;
    }
    let rules = &container.spec.restart_policy_rules;
    let matching = rules.iter().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| match codes.operator {
            ExitCodesOperator::In => codes.values.contains(&exit_code),
            ExitCodesOperator::NotIn => !codes.values.contains(&exit_code),
        })
    });
    if let Some(rule) = matching {
        return match rule.action {
            RestartRuleAction::Restart | RestartRuleAction::RestartAllContainers => true,
        };
    }
    let policy = container.spec.restart_policy.unwrap_or(spec.restart_policy);
    match policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => exit_code != 0,
        // An init container that has done its work is not run again, except for a sidecar.
        RestartPolicy::Always if container.kind == ContainerKind::Init => {
            container.is_sidecar() || exit_code != 0
        }
        RestartPolicy::Always => true,
    }
}

/// The wait between this end and the next start.
pub fn delay_after(end: &End, max_period: Duration) -> Duration {
    match end.kind {
        // The supervisor was lost, which is not the container's doing.
        EndKind::Lost => Duration::ZERO,
        EndKind::Exited | EndKind::StartFailed if end.ran_for >= FORGIVEN_AFTER => Duration::ZERO,
        EndKind::Exited | EndKind::StartFailed => end.backoff.min(max_period),
    }
}

/// The delay to remember with the attempt that is started after `end`: 0, 10 s, 20 s, ... up to `max_period`.
pub fn backoff_of_next(end: Option<&End>, max_period: Duration) -> Duration {
    let Some(end) = end else { return Duration::ZERO };
    if end.kind == EndKind::Lost {
        return end.backoff.min(max_period);
    }
    let delay = delay_after(end, max_period);
    if delay.is_zero() { FIRST_DELAY.min(max_period) } else { delay.saturating_mul(2).min(max_period) }
}
