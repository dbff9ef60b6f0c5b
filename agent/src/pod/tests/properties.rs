//! Whatever happens, in whatever order: nothing is done twice without a fact in between, nothing is taken away in use
//! (the node made of memory sees to both), a final phase is final, and a stopped pod always ends.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::sim::{Sim, container_with};
use crate::pod::action::Action;
use crate::pod::status::Phase;
use crate::pod::wanted::Object;

/// Something that happens.
#[derive(Debug, Clone)]
enum Happening {
    /// The worker plans, and begins.
    Plan,
    /// An action in flight ends; badly if told so.
    End { which: usize, fails: bool },
    /// A container ends by itself.
    Exit { which: usize, code: i32 },
    /// The supervisor dies.
    LoseSandbox,
    /// Time passes.
    Pass { millis: u64 },
    /// The object is deleted.
    Delete { grace: u64 },
    /// The object is gone.
    Vanish,
    /// The daemon is killed and started again; each action in flight has had its effect or not.
    RestartDaemon { effect: u8 },
    /// A container stops listening to signals.
    Stubborn { which: usize },
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => Just(Happening::Plan),
        8 => (0..6usize, prop::bool::weighted(0.15)).prop_map(|(which, fails)| Happening::End { which, fails }),
        4 => (0..6usize, prop_oneof![Just(0), Just(1), Just(42)]).prop_map(|(which, code)| Happening::Exit { which, code }),
        1 => Just(Happening::LoseSandbox),
        3 => prop_oneof![0..2_000u64, 5_000..400_000u64].prop_map(|millis| Happening::Pass { millis }),
        1 => (0..40u64).prop_map(|grace| Happening::Delete { grace }),
        1 => Just(Happening::Vanish),
        1 => any::<u8>().prop_map(|effect| Happening::RestartDaemon { effect }),
        1 => (0..6usize).prop_map(|which| Happening::Stubborn { which }),
    ]
}

fn spec() -> impl Strategy<Value = Value> {
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    let container = |prefix: &'static str, sidecars: bool| {
        let pull = prop_oneof![Just("Always"), Just("IfNotPresent")];
        (pull, any::<bool>()).prop_map(move |(pull, sidecar)| {
            let mut fields = json!({"imagePullPolicy": pull});
            if sidecars && sidecar {
                fields["restartPolicy"] = json!("Always");
            }
            (prefix, fields)
        })
    };
    let named = |list: Vec<(&'static str, Value)>| -> Vec<Value> {
        let each = list.into_iter().enumerate();
        each.map(|(i, (prefix, fields))| container_with(&format!("{prefix}{i}"), &fields)).collect()
    };
    let deadline = prop_oneof![3 => Just(None), 1 => (1..500u64).prop_map(Some)];
    (
        policy,
        any::<bool>(),
        prop::collection::vec(container("i", true), 0..3),
        prop::collection::vec(container("c", false), 1..3),
        deadline,
    )
        .prop_map(move |(policy, host, init, regular, deadline)| {
            let mut spec = json!({
                "restartPolicy": policy, "hostNetwork": host, "terminationGracePeriodSeconds": 10,
                "initContainers": named(init), "containers": named(regular),
            });
            if let Some(deadline) = deadline {
                spec["activeDeadlineSeconds"] = json!(deadline);
            }
            spec
        })
}

/// A pod under way: actions that were begun and have not ended, and what must never go back.
struct Run {
    sim: Sim,
    in_flight: Vec<Action>,
    last_phase: Phase,
    restarts: BTreeMap<String, u32>,
}

impl Run {
    fn new(spec: &Value) -> Self {
        let mut sim = Sim::new(spec);
        sim.world.racy = true;
        Run { sim, in_flight: Vec::new(), last_phase: Phase::Pending, restarts: BTreeMap::new() }
    }

    fn plan(&mut self) {
        if self.sim.is_done() {
            return;
        }
        let begun = self.sim.begin();
        self.in_flight.extend(begun);
        let cancelled = self.sim.plan.as_ref().unwrap().cancel.clone();
        for key in cancelled {
            self.in_flight.retain(|a| a.key() != key);
            self.sim.history.cancel(&key);
        }
        self.check();
    }

    fn check(&mut self) {
        let status = self.sim.status();
        if self.last_phase.is_terminal() {
            assert_eq!(status.phase, self.last_phase, "a final phase went back");
        }
        if status.phase.is_terminal() && !self.last_phase.is_terminal() {
            assert_eq!(self.sim.world.running(), [] as [&str; 0], "final, and something runs");
        }
        self.last_phase = status.phase;
        for container in status.init_container_statuses.iter().chain(&status.container_statuses) {
            let before = self.restarts.insert(container.name.to_string(), container.restart_count);
            assert!(before.unwrap_or(0) <= container.restart_count, "a restart was forgotten");
        }
        let mut kinds: Vec<&str> = status.conditions.iter().map(|c| c.kind.as_str()).collect();
        kinds.sort_unstable();
        let count = kinds.len();
        kinds.dedup();
        assert_eq!(kinds.len(), count, "a condition stands there twice");
    }

    fn end(&mut self, which: usize, fails: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let action = self.in_flight.remove(which % self.in_flight.len());
        if fails {
            self.sim.world.failing.insert(super::world::kind(&action), "Failed");
        }
        self.sim.end(&action);
        self.sim.world.failing.clear();
    }

    fn running(&self, which: usize) -> Option<String> {
        let running = self.sim.world.running();
        (!running.is_empty()).then(|| running[which % running.len()].to_owned())
    }

    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::Plan => self.plan(),
            Happening::End { which, fails } => self.end(which, fails),
            Happening::Exit { which, code } => {
                if let Some(name) = self.running(which) {
                    self.sim.world.exit(&name, code, self.sim.now);
                }
            }
            Happening::LoseSandbox => self.sim.world.lose_sandbox(),
            Happening::Pass { millis } => {
                self.sim.now = self.sim.now.checked_add(Duration::from_millis(millis)).unwrap();
            }
            Happening::Delete { grace } => self.sim.delete(grace),
            Happening::Vanish => self.sim.wanted.object = Object::Gone,
            Happening::RestartDaemon { effect } => self.restart_daemon(effect),
            Happening::Stubborn { which } => {
                if let Some(name) = self.running(which) {
                    self.sim.world.stubborn.insert(name);
                }
            }
        }
    }

    fn restart_daemon(&mut self, effect: u8) {
        if self.sim.history.reported.is_none() {
            return;
        }
        for (i, action) in std::mem::take(&mut self.in_flight).into_iter().enumerate() {
            if effect >> (i % 8) & 1 == 1 {
                self.sim.end(&action);
            }
        }
        self.sim.restart_daemon();
    }

    /// An init container that runs ends well.
    fn init_container_ends(&mut self) -> bool {
        let spec = &self.sim.wanted.pod.spec.init_containers;
        let running = self.sim.world.running();
        let init = spec.iter().find(|c| !c.is_sidecar() && running.contains(&c.name.as_str()));
        let Some(name) = init.map(|c| c.name.to_string()) else { return false };
        self.sim.world.exit(&name, 0, self.sim.now);
        true
    }

    /// Everything works from now on, and time passes as it is asked for.
    fn undisturbed(&mut self, until: impl Fn(&Sim) -> bool) {
        for _ in 0..300 {
            self.plan();
            if until(&self.sim) {
                return;
            }
            if self.in_flight.is_empty() && !self.init_container_ends() {
                let wake = self.sim.plan.as_ref().and_then(|p| p.wake_at);
                match wake {
                    Some(wake) => self.sim.now = self.sim.now.max(wake),
                    None => break,
                }
            }
            while !self.in_flight.is_empty() {
                self.end(0, false);
            }
        }
        let actions = self.sim.plan.as_ref().map(|p| (&p.actions, p.wake_at));
        panic!("it never gets there: {actions:?}\n{:?}", self.sim.world.observed);
    }
}

/// As an image pull in flight keeps a pod from being idle, "up" is about containers alone.
fn is_up(sim: &Sim) -> bool {
    let regular = &sim.wanted.pod.spec.containers;
    let running = sim.world.running();
    sim.status().phase.is_terminal()
        || sim.is_done()
        || regular.iter().all(|c| {
            let over = sim.container(c.name.as_str()).is_terminated();
            over || running.contains(&c.name.as_str())
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stopped_pod_always_ends(
        spec in spec(),
        happenings in prop::collection::vec(happening(), 0..80),
    ) {
        let mut run = Run::new(&spec);
        for happening in &happenings {
            run.happen(happening);
        }
        run.sim.delete(5);
        run.undisturbed(Sim::is_done);
        prop_assert!(run.sim.world.is_empty());
        prop_assert!(run.sim.status().phase.is_terminal());
    }

    #[test]
    fn an_undisturbed_pod_comes_up_or_has_ended(
        spec in spec(),
        happenings in prop::collection::vec(happening(), 0..80),
    ) {
        let mut run = Run::new(&spec);
        for happening in &happenings {
            run.happen(happening);
        }
        run.undisturbed(is_up);
    }
}
