//! What to do next for a pod: a pure function of what is wanted, seen, done, and the time.
//!
//! ```text
//!   course:  Run ───────► End (failed or succeeded, object stays) ──┐
//!             │  Refuse (never started) ─────────────────────────────┤
//!             └──────────────────────────────────────────────────────┴─► Delete (object goes, or is gone)
//!   Run:     volumes ‖ images ‖ sandbox ─► network ─► init containers in order ─► regular ones
//!   End:     regular ones stop ─► sidecars in reverse ─► network ─► sandbox ─► volumes
//!   Delete:  the same, then records ─► the rest ─► the object
//! ```
//!
//! Owns: the decision. Only actions that are allowed now and independent of each other are returned; after one ends,
//! observe and plan again. Never: waits (a wait is `wake_at`), repeats an action in flight, looks at a clock.

mod course;
mod draft;
pub(in crate::pod) mod images;
pub(in crate::pod) mod sequence;
mod setup;
mod stop;
mod teardown;

use jiff::Timestamp;

use super::action::{Action, ActionKey};
use super::facts::Facts;
use super::history::{History, StopClock, Topic};
use super::observed::Observed;
use super::reporter::PodEvent;
use super::status::{self, PodStatus};
use super::wanted::{NodeFacts, Wanted};
use course::course;
pub(in crate::pod) use course::{Course, REJECTED, outcome_of_regular, refusal as course_refusal};
use draft::Draft;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// To be begun now, side by side.
    pub actions: Vec<Action>,
    /// In flight and no longer wanted; only pulls of images can be dropped.
    pub cancel: Vec<ActionKey>,
    /// To be reported now.
    pub status: PodStatus,
    /// To be sent now.
    pub events: Vec<PodEvent>,
    /// Plan again at this time even if nothing happens.
    pub wake_at: Option<Timestamp>,
    /// Nothing of the pod is left on the node, and its object is gone.
    pub done: bool,
    /// For [`History`].
    pub notes: Notes,
}

/// What the history must remember of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes {
    stop: Option<StopClock>,
    said: Vec<(Topic, u64)>,
    sandbox: Option<u32>,
}

/// Plans. `history` must have been told of every earlier plan by [`History::remember`].
pub fn plan(
    wanted: &Wanted,
    observed: &Observed,
    history: &History,
    node: &NodeFacts,
    now: Timestamp,
) -> Plan {
    let facts = Facts::new(wanted, observed, history, node, now);
    let course = course(&facts);
    let mut draft = Draft::new(&facts);
    let mut done = false;
    course::announce(&mut draft, &course);
    match &course {
        Course::Run => setup::bring_up(&mut draft),
        Course::Refuse(_) => {}
        Course::End(_) => {
            if stop::stop(&mut draft, course::grace(&facts)) {
                teardown::release(&mut draft);
            }
        }
        Course::Delete => {
            if stop::stop(&mut draft, course::grace(&facts)) {
                done = teardown::remove(&mut draft);
            }
        }
    }
    draft.cancel_unwanted_pulls();
    let (status, wake) = status::status(&facts, &course);
    draft.wake(wake);
    draft.finish(status, done)
}

impl History {
    /// Takes note of what a plan decided. Its actions are noted by [`History::begin`].
    pub fn remember(&mut self, plan: &Plan) {
        self.last_sandbox = self.last_sandbox.max(plan.notes.sandbox);
        if plan.notes.stop.is_some() {
            self.stop = plan.notes.stop;
        }
        for (topic, number) in &plan.notes.said {
            self.said(topic.clone(), *number);
        }
        self.reported = Some(plan.status.clone());
    }
}
