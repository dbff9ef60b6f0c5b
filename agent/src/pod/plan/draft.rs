//! A plan while it is being drawn up. Owns: the rule that nothing in flight or backing off is planned.
//! Never: knows what an action is good for.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::super::action::{Action, ActionKey};
use super::super::facts::Facts;
use super::super::history::{Readiness, StopClock, Topic};
use super::super::reporter::PodEvent;
use super::super::status::PodStatus;
use super::{Notes, Plan};

/// The plan so far.
pub(super) struct Draft<'f, 'a> {
    /// What it is drawn from.
    pub facts: &'f Facts<'a>,
    actions: Vec<Action>,
    pulls: BTreeSet<String>,
    events: Vec<PodEvent>,
    notes: Notes,
    wake_at: Option<Timestamp>,
    cancel: Vec<ActionKey>,
}

impl<'f, 'a> Draft<'f, 'a> {
    pub fn new(facts: &'f Facts<'a>) -> Self {
        Self {
            facts,
            actions: Vec::new(),
            pulls: BTreeSet::new(),
            events: Vec::new(),
            notes: Notes { sandbox: facts.newest_sandbox(), ..Notes::default() },
            wake_at: None,
            cancel: Vec::new(),
        }
    }

    /// Plans an action unless it is in flight or backing off; in the latter case the plan wakes when it may be tried.
    /// Whether it was planned.
    pub fn act(&mut self, action: Action) -> bool {
        if let Action::PullImage { image } = &action {
            self.pulls.insert(image.clone());
        }
        match self.facts.history.readiness(&action.key(), self.facts.now) {
            Readiness::Now if self.actions.contains(&action) => false,
            Readiness::Now => {
                self.actions.push(action);
                true
            }
            Readiness::InFlight => false,
            Readiness::At(at) => {
                self.wake(Some(at));
                false
            }
        }
    }

    /// Plan again at this time at the latest.
    pub fn wake(&mut self, at: Option<Timestamp>) {
        self.wake_at = self.wake_at.into_iter().chain(at).min();
    }

    /// Sends an event unless it was sent for this number.
    pub fn say(&mut self, topic: Topic, number: u64, event: PodEvent) {
        self.say_all(topic, number, [event]);
    }

    /// Sends events that belong together unless they were sent for this number.
    pub fn say_all(&mut self, topic: Topic, number: u64, events: impl IntoIterator<Item = PodEvent>) {
        if !self.facts.history.has_said(&topic, number) {
            self.events.extend(events);
            self.notes.said.push((topic, number));
        }
    }

    /// The pod's end runs by this clock from now on.
    pub fn set_stop(&mut self, clock: StopClock) {
        self.notes.stop = Some(clock);
    }

    /// Whether an action on this key is being carried out.
    pub fn in_flight(&self, key: &ActionKey) -> bool {
        self.facts.history.is_in_flight(key)
    }

    /// A pull that has brought its image is about to end by itself, and then tells how it went.
    pub fn let_pulls_end(&mut self) {
        for (key, _) in self.facts.history.in_flight() {
            if let ActionKey::PullImage(image) = key
                && self.facts.observed.images.contains_key(image)
            {
                self.pulls.insert(image.clone());
            }
        }
    }

    /// A pull that this plan has no use for is dropped.
    pub fn cancel_unwanted_pulls(&mut self) {
        for (key, _) in self.facts.history.in_flight() {
            if let ActionKey::PullImage(image) = key
                && !self.pulls.contains(image)
            {
                self.cancel.push(key.clone());
            }
        }
    }

    pub fn finish(self, status: PodStatus, done: bool) -> Plan {
        Plan {
            actions: self.actions,
            cancel: self.cancel,
            status,
            events: self.events,
            wake_at: self.wake_at,
            done,
            notes: self.notes,
        }
    }
}
