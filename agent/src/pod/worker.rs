//! One task for each pod: observe, plan, begin what was planned, report; then wait for something to change.
//!
//! Owns: the pod's history and the actions in flight. Reads: what is wanted, the node, what the host sees.
//! Never: decides (that is `plan`), talks to a server or the kernel (that is behind `Host` and `Reporter`).
//! Ends: when nothing of the pod is left, or at shutdown of the daemon, which leaves the pod alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::action::{Action, ActionError, ActionKey, Done};
use super::events;
use super::history::{History, elapsed};
use super::host::Host;
use super::plan::{Plan, plan};
use super::reporter::Reporter;
use super::spec::Pod;
use super::status::{Phase, PodStatus};
use super::wanted::{NodeFacts, Wanted};

/// The time of day; the tests have their own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What every worker shares.
pub struct Context<H, R> {
    /// Sees and does.
    pub host: Arc<H>,
    /// Tells the API server.
    pub reporter: Arc<R>,
    /// The time of day.
    pub clock: Clock,
}

impl<H, R> Clone for Context<H, R> {
    fn clone(&self) -> Self {
        Self {
            host: Arc::clone(&self.host),
            reporter: Arc::clone(&self.reporter),
            clock: Arc::clone(&self.clock),
        }
    }
}

/// The channels of one worker.
pub struct Channels {
    /// What is wanted; newest only.
    pub wanted: watch::Receiver<Wanted>,
    /// The node; newest only.
    pub node: watch::Receiver<NodeFacts>,
    /// The pod's status for whoever asks; newest only.
    pub status: watch::Sender<PodStatus>,
    /// The daemon goes down.
    pub shutdown: CancellationToken,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Nothing of the pod is left.
    Done,
    /// The daemon goes down; the pod stays as it is.
    Shutdown,
}

/// Works for one pod until its end.
pub async fn run<H: Host, R: Reporter>(context: Context<H, R>, channels: Channels) -> Ended {
    let uid = channels.wanted.borrow().pod.uid().clone();
    let changes = context.host.changes(&uid);
    let history = History::new((context.clock)());
    let flight = Flight { tasks: JoinSet::new(), keys: HashMap::new(), aborts: HashMap::new() };
    Worker { context, channels, changes, history, flight, kept: None }.run().await
}

struct Worker<H, R> {
    context: Context<H, R>,
    channels: Channels,
    changes: watch::Receiver<u64>,
    history: History,
    flight: Flight,
    /// What the host was last asked to remember.
    kept: Option<Kept>,
}

/// What must outlive the daemon even while no API server answers: a pod that is going, or has ended, must not come up
/// again, its deadline counts from its first start, and its restarts are counted on after a boot.
#[derive(PartialEq, Eq)]
struct Kept {
    deletion: Option<Timestamp>,
    grace: Option<Duration>,
    phase: Phase,
    generation: Option<i64>,
    /// Of all containers together; it only grows.
    restarts: u32,
}

/// Actions being carried out. Dropping it drops them.
struct Flight {
    tasks: JoinSet<Result<Done, ActionError>>,
    keys: HashMap<Id, (Arc<Pod>, Action)>,
    aborts: HashMap<ActionKey, AbortHandle>,
}

impl<H: Host, R: Reporter> Worker<H, R> {
    async fn run(mut self) -> Ended {
        loop {
            let wanted = self.channels.wanted.borrow_and_update().clone();
            let node = self.channels.node.borrow_and_update().clone();
            self.changes.mark_unchanged();
            let observed = tokio::select! {
                // Seeing changes nothing, so it may be dropped half-way.
                observed = self.context.host.observe(&wanted.pod) => observed,
                // A token stays cancelled.
                () = self.channels.shutdown.cancelled() => return Ended::Shutdown,
            };
            let now = (self.context.clock)();
            let plan = plan(&wanted, &observed, &self.history, &node, now);
            self.publish(&wanted.pod, &plan);
            if observed.remains && !self.history.is_in_flight(&ActionKey::RemoveRemains) {
                self.keep(&wanted.pod, &plan.status).await;
            }
            self.carry_out(&wanted.pod, &plan, now);
            if plan.done {
                info!(uid = %wanted.pod.uid(), pod = %wanted.pod, "gone");
                return Ended::Done;
            }
            if !self.wait(plan.wake_at).await {
                return Ended::Shutdown;
            }
        }
    }

    /// Has the host remember the pod when that matters. Nothing is lost if this is dropped half-way at shutdown: the
    /// object is read again, or what it says follows again from what is seen.
    async fn keep(&mut self, pod: &Arc<Pod>, status: &PodStatus) {
        let metadata = &pod.metadata;
        let kept = Kept {
            deletion: metadata.deletion_timestamp,
            grace: metadata.deletion_grace_period,
            phase: status.phase,
            generation: metadata.generation,
            restarts: status.restarts(),
        };
        // What the host keeps from the sandbox's creation is enough for a pod that is coming up.
        let coming_up = kept.phase == Phase::Pending && kept.deletion.is_none();
        if coming_up || self.kept.as_ref() == Some(&kept) {
            return;
        }
        let mut snapshot = Pod::clone(pod);
        snapshot.status.clone_from(status);
        self.context.host.remember(&Arc::new(snapshot)).await;
        self.kept = Some(kept);
    }

    fn publish(&mut self, pod: &Arc<Pod>, plan: &Plan) {
        self.history.remember(plan);
        self.channels.status.send_if_modified(|status| {
            let changed = *status != plan.status;
            if changed {
                status.clone_from(&plan.status);
            }
            changed
        });
        // Whether this is news to the server is the reporter's to know: it may have lost what was sent before.
        self.context.reporter.report(pod, plan.status.clone());
        for event in &plan.events {
            self.context.reporter.event(pod, event.clone());
        }
    }

    fn carry_out(&mut self, pod: &Arc<Pod>, plan: &Plan, now: Timestamp) {
        for key in &plan.cancel {
            if let Some(abort) = self.flight.aborts.get(key) {
                debug!(uid = %pod.uid(), ?key, "no longer wanted");
                abort.abort();
            }
        }
        for action in &plan.actions {
            self.history.begin(action, now);
            if let Some(event) = events::begun(pod, action) {
                self.context.reporter.event(pod, event);
            }
            info!(uid = %pod.uid(), %action, "executing");
            self.spawn(pod, action, &plan.status);
        }
    }

    fn spawn(&mut self, pod: &Arc<Pod>, action: &Action, status: &PodStatus) {
        let (context, pod_, action_) = (self.context.clone(), Arc::clone(pod), action.clone());
        let handle = if *action == Action::DeleteObject {
            let last = status.clone();
            self.flight.tasks.spawn(async move {
                let result = context.reporter.delete(&pod_, last).await;
                let failed = |message| ActionError { reason: "FailedDelete", message };
                result.map(|()| Done::default()).map_err(failed)
            })
        } else {
            self.flight.tasks.spawn(async move { context.host.execute(&pod_, &action_).await })
        };
        self.flight.aborts.insert(action.key(), handle.clone());
        self.flight.keys.insert(handle.id(), (Arc::clone(pod), action.clone()));
    }

    /// Waits until there is a reason to plan again. `false` at shutdown.
    async fn wait(&mut self, wake_at: Option<Timestamp>) -> bool {
        let now = (self.context.clock)();
        // A deadline in the past is one that came while the plan was drawn up.
        let wait = wake_at.map(|at| elapsed(now, at).max(Duration::from_millis(1)));
        tokio::select! {
            biased;
            // A token stays cancelled.
            () = self.channels.shutdown.cancelled() => return false,
            // A finished task stays in the set until it is taken.
            Some(ended) = self.flight.tasks.join_next_with_id() => self.finished(ended),
            // A change stays marked until it is looked at. A closed channel means that the manager is gone.
            changed = self.channels.wanted.changed() => return changed.is_ok(),
            // The same.
            changed = self.changes.changed() => if changed.is_err() {
                // The host has nothing more to say of this pod by itself; ask for a new channel.
                let uid = self.channels.wanted.borrow().pod.uid().clone();
                self.changes = self.context.host.changes(&uid);
            },
            // The same; the node's facts outlive every worker.
            Ok(()) = self.channels.node.changed() => {}
            // A dropped sleep is drawn up anew from the next plan.
            () = sleep(wait) => {}
        }
        while let Some(ended) = self.flight.tasks.try_join_next_with_id() {
            self.finished(ended);
        }
        true
    }

    fn finished(&mut self, ended: Result<(Id, Result<Done, ActionError>), JoinError>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, Some(result)),
            Err(error) if error.is_cancelled() => (error.id(), None),
            Err(error) => {
                let message = format!("the action ended by itself: {error}");
                (error.id(), Some(Err(ActionError { reason: "InternalError", message })))
            }
        };
        let Some((pod, action)) = self.flight.keys.remove(&id) else { return };
        let key = action.key();
        self.flight.aborts.remove(&key);
        let Some(result) = result else {
            self.history.cancel(&key);
            return;
        };
        if let Err(error) = &result {
            warn!(uid = %pod.uid(), %action, %error, "failed");
        }
        for event in events::ended(&pod, &action, &result) {
            self.context.reporter.event(&pod, event);
        }
        self.history.finish(&key, result.as_ref().map(|_| ()), (self.context.clock)());
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
