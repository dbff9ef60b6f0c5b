//! One pod on the node made of memory, step by step, without tasks or a clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::world::{NODE_IP, World, kind};
use crate::pod::action::Action;
use crate::pod::events;
use crate::pod::history::History;
use crate::pod::observed::Observed;
use crate::pod::plan::{Plan, plan};
use crate::pod::spec::Pod;
use crate::pod::status::{Condition, ContainerState, ContainerStatus, PodStatus};
use crate::pod::wanted::{NodeFacts, Wanted};

/// The moment at which every test begins.
pub fn start_of_test() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// A pod with this spec.
pub fn pod(spec: &Value) -> Pod {
    let object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "generation": 3},
        "spec": spec,
    });
    Pod::from_value(object).unwrap()
}

/// A container with this name, and an image of the same name.
pub fn container(name: &str) -> Value {
    json!({"name": name, "image": format!("{name}:1")})
}

/// The same with further fields.
pub fn container_with(name: &str, more: &Value) -> Value {
    let mut object = container(name);
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

/// One container called `a`, with this restart policy.
pub fn one(policy: &str) -> Value {
    json!({"containers": [container("a")], "restartPolicy": policy})
}

/// A pod, its node, and the time.
pub struct Sim {
    pub wanted: Wanted,
    pub world: World,
    pub history: History,
    pub node: NodeFacts,
    pub now: Timestamp,
    /// Every event so far: `Reason: message`.
    pub events: Vec<String>,
    /// The newest plan.
    pub plan: Option<Plan>,
    /// What was seen when each action was last begun, for those that succeeded.
    done: HashMap<Action, Observed>,
    begun: HashMap<Action, Observed>,
}

impl Sim {
    pub fn new(spec: &Value) -> Self {
        Self::of(pod(spec))
    }

    pub fn of(pod: Pod) -> Self {
        let now = start_of_test();
        Sim {
            wanted: Wanted::present(Arc::new(pod)),
            world: World::default(),
            history: History::new(now),
            node: NodeFacts { host_ips: vec![NODE_IP], ..NodeFacts::default() },
            now,
            events: Vec::new(),
            plan: None,
            done: HashMap::new(),
            begun: HashMap::new(),
        }
    }

    /// The same, brought up.
    pub fn up(spec: &Value) -> Self {
        let mut sim = Self::new(spec);
        sim.settle();
        sim
    }

    /// Plans once, and begins what was planned without ending it.
    pub fn begin(&mut self) -> Vec<Action> {
        let plan = plan(&self.wanted, &self.world.observed, &self.history, &self.node, self.now);
        for action in &plan.actions {
            assert!(!self.history.is_in_flight(&action.key()), "{action:?} is in flight");
        }
        if let Some(wake) = plan.wake_at
            && plan.actions.is_empty()
        {
            assert!(wake > self.now, "it would wake at once, and plan nothing");
        }
        self.history.remember(&plan);
        self.note(plan.events.iter());
        let actions = plan.actions.clone();
        for action in &actions {
            let seen = &self.world.observed;
            assert_ne!(self.done.get(action), Some(seen), "{action:?} again, and nothing has changed");
            self.begun.insert(action.clone(), seen.clone());
            self.history.begin(action, self.now);
            self.note(events::begun(&self.wanted.pod, action).iter());
        }
        self.plan = Some(plan);
        actions
    }

    /// Ends an action that was begun.
    pub fn end(&mut self, action: &Action) {
        let result = self.world.apply(&self.wanted.pod, action, self.now);
        let seen = self.begun.remove(action).expect("it was begun");
        match &result {
            Ok(_) => self.done.insert(action.clone(), seen),
            Err(_) => self.done.remove(action),
        };
        self.note(events::ended(&self.wanted.pod, action, &result).iter());
        self.history.finish(&action.key(), result.as_ref().map(|_| ()), self.now);
    }

    /// Plans once and carries it out.
    pub fn step(&mut self) -> Vec<Action> {
        let actions = self.begin();
        for action in &actions {
            self.end(action);
        }
        actions
    }

    /// Steps until nothing is planned; everything that was done, briefly.
    pub fn settle(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        for _ in 0..100 {
            let actions = self.step();
            if actions.is_empty() {
                return done;
            }
            done.extend(actions.iter().map(brief));
        }
        panic!("it never comes to rest: {done:?}");
    }

    /// Time passes, and is used as it comes.
    pub fn pass(&mut self, time: Duration) -> Vec<String> {
        let end = self.now.checked_add(time).unwrap();
        let mut done = Vec::new();
        loop {
            done.extend(self.settle());
            let wake = self.plan.as_ref().and_then(|p| p.wake_at);
            match wake {
                Some(wake) if wake < end => self.now = wake,
                Some(_) | None => break,
            }
        }
        self.now = end;
        done.extend(self.settle());
        done
    }

    pub fn seconds(&mut self, seconds: u64) -> Vec<String> {
        self.pass(Duration::from_secs(seconds))
    }

    /// A container ends by itself; what follows at once.
    pub fn exit(&mut self, name: &str, code: i32) -> Vec<String> {
        self.world.exit(name, code, self.now);
        self.settle()
    }

    /// The object is deleted with this grace period.
    pub fn delete(&mut self, grace: u64) {
        let grace = Duration::from_secs(grace);
        let mut pod = Pod::clone(&self.wanted.pod);
        pod.metadata.deletion_timestamp = Some(self.now.checked_add(grace).unwrap());
        pod.metadata.deletion_grace_period = Some(grace);
        self.wanted.pod = Arc::new(pod);
    }

    /// The daemon is killed and started again: its memory is gone, and the pod is read anew.
    pub fn restart_daemon(&mut self) {
        let mut pod = Pod::clone(&self.wanted.pod);
        pod.status = self.status().clone();
        self.wanted.pod = Arc::new(pod);
        self.history = History::new(self.now);
        self.plan = None;
        self.done.clear();
        self.begun.clear();
    }

    /// The status last reported.
    pub fn status(&self) -> &PodStatus {
        self.history.reported.as_ref().expect("planned at least once")
    }

    /// The status of one container.
    pub fn container(&self, name: &str) -> &ContainerStatus {
        let s = self.status();
        let mut all = s
            .init_container_statuses
            .iter()
            .chain(&s.container_statuses)
            .chain(&s.ephemeral_container_statuses);
        all.find(|c| c.name.as_str() == name).expect("a container of the pod")
    }

    /// Its state in short: `waiting Reason`, `running`, `terminated Reason code`.
    pub fn state(&self, name: &str) -> String {
        match &self.container(name).state {
            ContainerState::Waiting { reason, .. } => format!("waiting {reason}"),
            ContainerState::Running { .. } => "running".to_owned(),
            ContainerState::Terminated(t) => format!("terminated {} {}", t.reason, t.exit_code),
        }
    }

    /// The message of a waiting container.
    pub fn message(&self, name: &str) -> String {
        match &self.container(name).state {
            ContainerState::Waiting { message, .. } => message.clone(),
            state => panic!("{name} does not wait: {state:?}"),
        }
    }

    pub fn condition(&self, kind: &str) -> &Condition {
        self.status().conditions.iter().find(|c| c.kind == kind).expect("the condition")
    }

    pub fn is_done(&self) -> bool {
        self.plan.as_ref().is_some_and(|p| p.done)
    }

    fn note<'e>(&mut self, events: impl Iterator<Item = &'e crate::pod::reporter::PodEvent>) {
        self.events.extend(events.map(|e| format!("{}: {}", e.reason, e.message)));
    }
}

/// `StartContainer a/0` and the like.
pub fn brief(action: &Action) -> String {
    let kind = kind(action);
    match action {
        Action::CreateSandbox { attempt } => format!("{kind} {attempt}"),
        Action::PullImage { image } => format!("{kind} {image}"),
        Action::StartContainer { id, .. }
        | Action::StopContainer { id }
        | Action::KillContainer { id }
        | Action::RemoveContainer { id } => format!("{kind} {id}"),
        Action::AttachNetwork
        | Action::PrepareVolumes
        | Action::DetachNetwork
        | Action::RemoveSandbox
        | Action::RemoveVolumes
        | Action::RemoveRemains
        | Action::DeleteObject => kind.to_owned(),
    }
}
