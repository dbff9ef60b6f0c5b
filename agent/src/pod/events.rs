//! The events of a pod's life, in kubelet's words.
//!
//! Owns: reasons and sentences, and which belong to the begin and the end of an action. Never: decides when (that is
//! `plan` and the worker), never sends.

use super::action::{Action, ActionError, Done};
use super::facts::ContainerFacts;
use super::names::ContainerName;
use super::reporter::PodEvent;
use super::spec::Pod;
use super::wanted::Rejection;

/// The message of a pod that was active for too long.
pub const DEADLINE_EXCEEDED: &str = "Pod was active on the node longer than the specified deadline";

fn event(
    warning: bool,
    reason: &'static str,
    container: Option<&ContainerName>,
    message: String,
) -> PodEvent {
    PodEvent { warning, reason, message, container: container.cloned() }
}

/// The event that belongs to the begin of an action.
pub fn begun(pod: &Pod, action: &Action) -> Option<PodEvent> {
    match action {
        Action::PullImage { image } => {
            let message = format!("Pulling image \"{image}\"");
            Some(event(false, "Pulling", user_of(pod, image), message))
        }
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
        | Action::DeleteObject => None,
    }
}

/// The events that belong to the end of an action.
pub fn ended(pod: &Pod, action: &Action, result: &Result<Done, ActionError>) -> Vec<PodEvent> {
    match result {
        Ok(done) => succeeded(pod, action, done),
        Err(error) => failed(pod, action, error),
    }
}

fn succeeded(pod: &Pod, action: &Action, done: &Done) -> Vec<PodEvent> {
    match action {
        Action::PullImage { image } => {
            let detail = done.detail.as_deref().map(|d| format!(" {d}")).unwrap_or_default();
            let message = format!("Successfully pulled image \"{image}\"{detail}");
            vec![event(false, "Pulled", user_of(pod, image), message)]
        }
        Action::StartContainer { id, .. } => vec![
            event(false, "Created", Some(&id.name), "Container created".to_owned()),
            event(false, "Started", Some(&id.name), "Container started".to_owned()),
        ],
        Action::CreateSandbox { .. } => {
            let warnings = done.warnings.iter();
            warnings.map(|warning| event(true, warning.reason, None, warning.message.clone())).collect()
        }
        Action::AttachNetwork
        | Action::PrepareVolumes
        | Action::StopContainer { .. }
        | Action::KillContainer { .. }
        | Action::RemoveContainer { .. }
        | Action::DetachNetwork
        | Action::RemoveSandbox
        | Action::RemoveVolumes
        | Action::RemoveRemains
        | Action::DeleteObject => Vec::new(),
    }
}

fn failed(pod: &Pod, action: &Action, error: &ActionError) -> Vec<PodEvent> {
    match action {
        Action::PullImage { image } => {
            let user = user_of(pod, image);
            if error.reason == "InvalidImageName" {
                return vec![
                    event(true, "InspectFailed", user, error.message.clone()),
                    event(true, "Failed", user, "Error: InvalidImageName".to_owned()),
                ];
            }
            let message = format!("Failed to pull image \"{image}\": {}", error.message);
            vec![
                event(true, "Failed", user, message),
                event(true, "Failed", user, "Error: ErrImagePull".to_owned()),
            ]
        }
        Action::StartContainer { id, .. } => {
            vec![event(true, "Failed", Some(&id.name), format!("Error: {}", error.message))]
        }
        // The host words these errors as the event says them.
        Action::StopContainer { id } | Action::KillContainer { id } => {
            vec![event(true, error.reason, Some(&id.name), error.message.clone())]
        }
        Action::CreateSandbox { .. }
        | Action::AttachNetwork
        | Action::PrepareVolumes
        | Action::DetachNetwork
        | Action::RemoveSandbox
        | Action::RemoveVolumes
        | Action::RemoveContainer { .. }
        | Action::RemoveRemains => {
            vec![event(true, error.reason, None, error.message.clone())]
        }
        // The API server knows best why it refused, and would have to take the event too.
        Action::DeleteObject => Vec::new(),
    }
}

/// The first container that uses the image: a pull is one action whatever their number.
fn user_of<'a>(pod: &'a Pod, image: &str) -> Option<&'a ContainerName> {
    pod.containers().find(|(_, c)| c.image == image).map(|(_, c)| &c.name)
}

/// A container is started with an image that was there.
pub fn already_present(container: &ContainerFacts<'_>) -> PodEvent {
    let message = format!(
        "Container image \"{}\" already present on machine and can be accessed by the pod",
        container.spec.image
    );
    event(false, "Pulled", Some(&container.spec.name), message)
}

/// A pull failed and is tried again later. Why it failed was said then.
pub fn pull_back_off(container: &ContainerFacts<'_>) -> [PodEvent; 2] {
    let message = format!("Back-off pulling image \"{}\"", container.spec.image);
    let name = Some(&container.spec.name);
    [event(false, "BackOff", name, message), blocked(container, "ImagePullBackOff")]
}

/// The image is not there and may not be pulled.
pub fn never_pull(container: &ContainerFacts<'_>, message: &str) -> [PodEvent; 2] {
    let name = Some(&container.spec.name);
    [event(true, "ErrImageNeverPull", name, message.to_owned()), blocked(container, "ErrImageNeverPull")]
}

/// A container cannot be started as it stands.
pub fn blocked(container: &ContainerFacts<'_>, message: &str) -> PodEvent {
    event(true, "Failed", Some(&container.spec.name), format!("Error: {message}"))
}

/// A container crashed and is started again later.
pub fn crash_loop(pod: &Pod, container: &ContainerFacts<'_>) -> PodEvent {
    let name = &container.spec.name;
    let message = format!("Back-off restarting failed container {name} in pod {pod}");
    event(true, "BackOff", Some(name), message)
}

/// A container is being stopped.
pub fn killing(container: &ContainerFacts<'_>) -> PodEvent {
    let name = &container.spec.name;
    event(false, "Killing", Some(name), format!("Stopping container {name}"))
}

/// A container is being stopped because its image was changed.
pub fn replacing(container: &ContainerFacts<'_>) -> PodEvent {
    let name = &container.spec.name;
    let message = format!("Container {name} definition changed, will be restarted");
    event(false, "Killing", Some(name), message)
}

/// The supervisor was lost.
pub fn sandbox_changed() -> PodEvent {
    let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
    event(false, "SandboxChanged", None, message)
}

/// The node did not take the pod.
pub fn rejected(rejection: &Rejection) -> PodEvent {
    event(true, rejection.reason, None, rejection.message.clone())
}

/// The pod was active for too long.
pub fn deadline_exceeded() -> PodEvent {
    event(false, "DeadlineExceeded", None, DEADLINE_EXCEEDED.to_owned())
}

/// Fields of the PodSpec are not supported, and the pod runs without them.
pub fn without_effect(fields: &str) -> PodEvent {
    let message = format!("Not supported by this node and without effect: {fields}");
    event(true, "FailedValidation", None, message)
}
