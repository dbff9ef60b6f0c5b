//! Whether a container's image is there, and may be used.
//!
//! Owns: `imagePullPolicy`, the alternation of ErrImagePull and ImagePullBackOff, `runAsNonRoot` against the image's
//! user. Never: talks to a registry.

use std::time::Duration;

use jiff::Timestamp;

use super::super::action::{Action, ActionKey};
use super::super::facts::{ContainerFacts, Facts};
use super::super::history::later;
use super::super::observed::Image;
use super::super::spec::PullPolicy;

/// For how long a failed pull shows as `ErrImagePull`, before `ImagePullBackOff` takes over.
const SHOW_ERROR: Duration = Duration::from_secs(5);

/// How soon an image that may not be pulled is looked for again. Another process brings it (`orlop image import`), and
/// none tells.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What a container's next start needs of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pod) enum Need<'a> {
    /// It is there.
    Nothing(&'a Image),
    /// It must be pulled.
    Pull,
    /// It is not there, and may not be pulled.
    Absent,
}

/// What the next start of this container needs.
pub(in crate::pod) fn need<'a>(facts: &Facts<'a>, container: &ContainerFacts<'_>) -> Need<'a> {
    let image = facts.observed.images.get(&container.spec.image);
    match (container.spec.image_pull_policy, image) {
        (PullPolicy::Never, None) => Need::Absent,
        (PullPolicy::IfNotPresent | PullPolicy::Unset, None) => Need::Pull,
        (PullPolicy::Never | PullPolicy::IfNotPresent | PullPolicy::Unset, Some(image)) => {
            Need::Nothing(image)
        }
        (PullPolicy::Always, Some(image))
            if facts.history.pulled_for(&container.spec.image, &container.next_attempt()) =>
        {
            Need::Nothing(image)
        }
        (PullPolicy::Always, Some(_) | None) => Need::Pull,
    }
}

/// Why a container cannot be started now, in the words of its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pod) struct Blocked {
    /// `ErrImagePull`, `ImagePullBackOff`, `ErrImageNeverPull`, `CreateContainerConfigError`, ...
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// When this may read differently by itself.
    pub until: Option<Timestamp>,
    /// Counts what it is about, for events.
    pub number: u64,
}

/// Whether something about the image, or the last try to start, stands in the way of this container's next start.
pub(in crate::pod) fn blocked(facts: &Facts<'_>, container: &ContainerFacts<'_>) -> Option<Blocked> {
    match need(facts, container) {
        Need::Absent => Some(Blocked {
            reason: "ErrImageNeverPull".to_owned(),
            message: format!(
                "Container image \"{}\" is not present with pull policy of Never",
                container.spec.image
            ),
            until: Some(later(facts.now, LOOK_AGAIN)),
            number: 0,
        }),
        Need::Pull => pull_failure(facts, &container.spec.image),
        Need::Nothing(image) => root_forbidden(facts, container, image)
            .map(|message| Blocked {
                reason: "CreateContainerConfigError".to_owned(),
                message,
                until: None,
                number: 0,
            })
            .or_else(|| start_failure(facts, container)),
    }
}

/// `ErrImagePull` right after a failure, `ImagePullBackOff` until the end of the next try.
fn pull_failure(facts: &Facts<'_>, image: &str) -> Option<Blocked> {
    let key = ActionKey::PullImage(image.to_owned());
    let failure = facts.history.failure(&key)?;
    let number = u64::from(failure.count);
    if failure.error.reason == "InvalidImageName" {
        let (reason, message) = (failure.error.reason.to_owned(), failure.error.message.clone());
        return Some(Blocked { reason, message, until: None, number });
    }
    let flip = later(failure.at, SHOW_ERROR);
    if facts.now < flip && !facts.history.is_in_flight(&key) {
        let (reason, message) = ("ErrImagePull".to_owned(), failure.error.message.clone());
        return Some(Blocked { reason, message, until: Some(flip), number });
    }
    Some(Blocked {
        reason: "ImagePullBackOff".to_owned(),
        message: format!("Back-off pulling image \"{image}\": ErrImagePull: {}", failure.error.message),
        until: None,
        number,
    })
}

/// The last try to start this attempt left nothing behind but its error.
fn start_failure(facts: &Facts<'_>, container: &ContainerFacts<'_>) -> Option<Blocked> {
    let failure = facts.history.failure(&ActionKey::StartContainer(container.spec.name.clone()))?;
    let next = container.next_attempt();
    let is_next = matches!(&failure.action, Action::StartContainer { id, .. } if *id == next);
    is_next.then(|| Blocked {
        reason: failure.error.reason.to_owned(),
        message: failure.error.message.clone(),
        until: None,
        number: u64::from(failure.count),
    })
}

/// The message of `runAsNonRoot` where it forbids the start.
pub(in crate::pod) fn root_forbidden(
    facts: &Facts<'_>,
    container: &ContainerFacts<'_>,
    image: &Image,
) -> Option<String> {
    let pod = facts.pod();
    let security = container.spec.security_context.within(&pod.spec.security_context);
    if !security.run_as_non_root {
        return None;
    }
    let place = format!("(pod: \"{pod}\", container: {})", container.spec.name);
    let user = image.user.split(':').next().unwrap_or_default();
    match (security.run_as_user, user.parse::<u32>()) {
        (Some(0), _) => Some(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => None,
        (None, Ok(0)) => Some(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Ok(_)) => None,
        (None, Err(_)) if user.is_empty() => {
            Some(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (None, Err(_)) => Some(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root {place}"
        )),
    }
}
