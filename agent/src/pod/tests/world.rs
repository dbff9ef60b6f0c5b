//! A node made of memory: it does what the planner asks, fails on demand, and panics where a real node would break.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use jiff::Timestamp;

use crate::pod::action::{Action, ActionError, Done};
use crate::pod::names::{AttemptId, ContainerName};
use crate::pod::observed::{Attempt, AttemptState, Image, Observed, Sandbox, Vitals};
use crate::pod::spec::Pod;

/// What the node has of one pod, and how it behaves.
#[derive(Debug, Clone, Default)]
pub struct World {
    pub observed: Observed,
    /// Containers that stay when asked to stop.
    pub stubborn: BTreeSet<String>,
    /// Containers whose program cannot be started.
    pub broken: BTreeSet<String>,
    /// `USER` of images, by reference; others run as 1000.
    pub users: BTreeMap<String, String>,
    /// Kinds of actions (as [`kind`] names them) that fail, with the reason.
    pub failing: BTreeMap<&'static str, &'static str>,
    /// Containers start without an address, as on a node's network without one.
    pub lenient: bool,
    /// Things happen by themselves between the begin and the end of an action, as on a real node: what is gone by then
    /// is success for a stop and an error for a start.
    pub racy: bool,
}

/// The node's own address.
pub const NODE_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 7, 1));

/// The action's name without what it is about.
pub fn kind(action: &Action) -> &'static str {
    match action {
        Action::CreateSandbox { .. } => "CreateSandbox",
        Action::AttachNetwork => "AttachNetwork",
        Action::PrepareVolumes => "PrepareVolumes",
        Action::PullImage { .. } => "PullImage",
        Action::StartContainer { .. } => "StartContainer",
        Action::StopContainer { .. } => "StopContainer",
        Action::KillContainer { .. } => "KillContainer",
        Action::RemoveContainer { .. } => "RemoveContainer",
        Action::DetachNetwork => "DetachNetwork",
        Action::RemoveSandbox => "RemoveSandbox",
        Action::RemoveVolumes => "RemoveVolumes",
        Action::RemoveRemains => "RemoveRemains",
        Action::DeleteObject => "DeleteObject",
    }
}

impl World {
    /// Carries an action out, or fails it.
    pub fn apply(&mut self, pod: &Pod, action: &Action, now: Timestamp) -> Result<Done, ActionError> {
        if let Some(reason) = self.failing.get(kind(action)).copied() {
            return Err(ActionError { reason, message: format!("{} failed", kind(action)) });
        }
        if self.racy && self.was_overtaken(action) {
            return match action {
                Action::StopContainer { .. } | Action::KillContainer { .. } => Ok(Done::default()),
                _ => Err(ActionError { reason: "RunContainerError", message: "too late".to_owned() }),
            };
        }
        match action {
            Action::CreateSandbox { attempt } => self.create_sandbox(pod, *attempt, now),
            Action::AttachNetwork => self.attach(pod),
            Action::PrepareVolumes => {
                self.observed.volumes_ready = true;
                self.observed.remains = true;
            }
            Action::PullImage { image } => {
                let user = self.users.get(image).cloned().unwrap_or_else(|| "1000".into());
                let image_id = format!("{image}@sha256:00");
                self.observed.images.insert(image.clone(), Image { image_id, user });
            }
            Action::StartContainer { id, backoff } => self.start(pod, id, *backoff, now),
            Action::StopContainer { id } => {
                assert!(self.is_live(id), "{id} does not run");
                if !self.stubborn.contains(id.name.as_str()) {
                    self.exit(id.name.as_str(), 143, now);
                }
            }
            Action::KillContainer { id } => {
                assert!(self.is_live(id), "{id} does not run");
                self.exit(id.name.as_str(), 137, now);
            }
            Action::RemoveContainer { id } => {
                assert!(!self.is_live(id), "{id} runs");
                self.observed.attempts.retain(|a| a.id != *id);
            }
            Action::DetachNetwork => {
                assert!(!pod.spec.host_network, "the node's network belongs to the node");
                self.assert_nothing_lives(action);
                if let Sandbox::Ready { addresses, .. } = &mut self.observed.sandbox {
                    *addresses = None;
                }
            }
            Action::RemoveSandbox => {
                self.assert_nothing_lives(action);
                if let Sandbox::Ready { addresses, .. } = &self.observed.sandbox {
                    assert!(addresses.is_none() || pod.spec.host_network, "an address would leak");
                }
                for attempt in &mut self.observed.attempts {
                    if let AttemptState::Running { started_at } = attempt.state {
                        attempt.state = AttemptState::Lost { started_at: Some(started_at) };
                    }
                }
                self.observed.sandbox = Sandbox::Absent;
            }
            Action::RemoveVolumes => {
                assert_eq!(self.observed.sandbox, Sandbox::Absent, "volumes are in use");
                self.observed.volumes_ready = false;
            }
            Action::RemoveRemains => {
                let o = &self.observed;
                assert!(o.attempts.is_empty() && !o.volumes_ready, "something is left: {o:?}");
                assert_eq!(o.sandbox, Sandbox::Absent);
                self.observed.remains = false;
            }
            Action::DeleteObject => assert!(self.is_empty(), "something is left: {:?}", self.observed),
        }
        Ok(Done::default())
    }

    /// What the action is about has gone since it was planned.
    fn was_overtaken(&self, action: &Action) -> bool {
        match action {
            Action::StopContainer { id } | Action::KillContainer { id } => !self.is_live(id),
            Action::StartContainer { .. } | Action::AttachNetwork => {
                !matches!(self.observed.sandbox, Sandbox::Ready { .. })
            }
            _ => false,
        }
    }

    /// Nothing of the pod is here (images belong to the node).
    pub fn is_empty(&self) -> bool {
        let o = &self.observed;
        o.sandbox == Sandbox::Absent && o.attempts.is_empty() && !o.volumes_ready && !o.remains
    }

    /// The newest attempt of a container ends by itself.
    pub fn exit(&mut self, name: &str, exit_code: i32, now: Timestamp) {
        let attempt = self.newest(name).expect("it was started");
        let AttemptState::Running { started_at } = attempt.state else { panic!("{name} does not run") };
        attempt.state = AttemptState::Exited {
            started_at,
            finished_at: now,
            exit_code,
            signal: None,
            oom_killed: false,
            message: None,
        };
    }

    /// The newest attempt of a container.
    pub fn newest(&mut self, name: &str) -> Option<&mut Attempt> {
        self.observed.attempts.iter_mut().filter(|a| a.id.name.as_str() == name).max_by_key(|a| a.id.attempt)
    }

    /// The supervisor dies, and every container with it.
    pub fn lose_sandbox(&mut self) {
        let Sandbox::Ready { attempt, .. } = self.observed.sandbox else { return };
        self.observed.sandbox = Sandbox::Lost { attempt };
        for attempt in &mut self.observed.attempts {
            if let AttemptState::Running { started_at } = attempt.state {
                attempt.state = AttemptState::Lost { started_at: Some(started_at) };
            }
        }
    }

    /// The names of the containers that run.
    pub fn running(&self) -> Vec<&str> {
        let live = self.observed.attempts.iter().filter(|a| self.is_live(&a.id));
        live.map(|a| a.id.name.as_str()).collect()
    }

    fn is_live(&self, id: &AttemptId) -> bool {
        let Sandbox::Ready { attempt: sandbox, .. } = self.observed.sandbox else { return false };
        self.observed
            .attempts
            .iter()
            .any(|a| a.id == *id && a.sandbox == sandbox && matches!(a.state, AttemptState::Running { .. }))
    }

    fn assert_nothing_lives(&self, action: &Action) {
        assert_eq!(self.running(), Vec::<&str>::new(), "{action:?} while something runs");
    }

    fn create_sandbox(&mut self, pod: &Pod, attempt: u32, now: Timestamp) {
        assert_eq!(self.observed.sandbox, Sandbox::Absent, "one sandbox at a time");
        let used = self.observed.attempts.iter().any(|a| a.sandbox == attempt);
        assert!(!used, "sandbox {attempt} was used before");
        let addresses = pod.spec.host_network.then(|| vec![NODE_IP]);
        self.observed.sandbox = Sandbox::Ready { attempt, created_at: now, addresses };
        self.observed.remains = true;
    }

    fn attach(&mut self, pod: &Pod) {
        assert!(!pod.spec.host_network, "the node's network belongs to the node");
        let Sandbox::Ready { attempt, addresses, .. } = &mut self.observed.sandbox else {
            panic!("no sandbox to attach")
        };
        let last = u8::try_from(*attempt).unwrap_or(200).saturating_add(2);
        *addresses = Some(vec![IpAddr::V4(Ipv4Addr::new(10, 1, 0, last))]);
    }

    fn start(&mut self, pod: &Pod, id: &AttemptId, backoff: Duration, now: Timestamp) {
        let Sandbox::Ready { attempt: sandbox, addresses, .. } = &self.observed.sandbox else {
            panic!("{id} has no sandbox")
        };
        let sandbox = *sandbox;
        assert!(addresses.is_some() || self.lenient, "{id} has no network");
        assert!(self.observed.volumes_ready, "{id} has no volumes");
        let (_, container) = pod.container(&id.name).expect("a container of the pod");
        let image = self.observed.images.get(&container.image).expect("an image").clone();
        if let Some(newest) = self.newest(id.name.as_str()) {
            assert!(newest.id.attempt < id.attempt, "{id} was used before");
            let newest = newest.id.clone();
            assert!(!self.is_live(&newest), "{newest} still runs");
        }
        let state = if self.broken.contains(id.name.as_str()) {
            let message = "exec: \"nope\": not found".to_owned();
            AttemptState::StartFailed { at: now, reason: "StartError".to_owned(), message }
        } else {
            AttemptState::Running { started_at: now }
        };
        self.observed.attempts.push(Attempt {
            id: id.clone(),
            sandbox,
            container_id: format!("orlop://{}-{}", id.name, id.attempt),
            image: container.image.clone(),
            image_id: image.image_id,
            backoff,
            state,
            vitals: Vitals::default(),
        });
    }
}

/// An attempt's name, briefly.
pub fn attempt(name: &str, attempt: u32) -> AttemptId {
    AttemptId { name: ContainerName::from(name), attempt }
}
