//! Host and reporter made of memory, for workers and the manager, with tokio's paused time as the clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::sim::{brief, start_of_test};
use super::world::World;
use crate::pod::action::{Action, ActionError, Done};
use crate::pod::host::Host;
use crate::pod::names::PodUid;
use crate::pod::observed::Observed;
use crate::pod::reporter::{PodEvent, Reporter};
use crate::pod::spec::Pod;
use crate::pod::status::PodStatus;
use crate::pod::worker::{Clock, Context};

/// A node, and everything that was told to its API server.
pub struct FakeNode {
    clock: Clock,
    pods: Mutex<BTreeMap<PodUid, OnePod>>,
    /// How long the pull of an image takes; others take no time.
    pub slow_pulls: Mutex<BTreeMap<String, Duration>>,
    /// Pulls that were dropped half-way.
    pub dropped_pulls: Arc<AtomicUsize>,
    /// What the node holds at the start of the daemon.
    pub residents: Mutex<Vec<Arc<Pod>>>,
    /// Counts everything that happens, for [`FakeNode::until`].
    changed: watch::Sender<u64>,
}

struct OnePod {
    world: World,
    changes: watch::Sender<u64>,
    done: Vec<String>,
    status: Option<PodStatus>,
    deleted: bool,
}

impl Default for OnePod {
    fn default() -> Self {
        Self {
            world: World { racy: true, ..World::default() },
            changes: watch::Sender::new(0),
            done: Vec::new(),
            status: None,
            deleted: false,
        }
    }
}

impl FakeNode {
    pub fn new() -> Arc<Self> {
        let origin = Instant::now();
        let clock: Clock =
            Arc::new(move || start_of_test().checked_add(origin.elapsed()).expect("a near time"));
        Arc::new(Self {
            clock,
            pods: Mutex::default(),
            slow_pulls: Mutex::default(),
            dropped_pulls: Arc::default(),
            residents: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    pub fn context(self: &Arc<Self>) -> Context<FakeNode, FakeNode> {
        let clock = Arc::clone(&self.clock);
        Context { host: Arc::clone(self), reporter: Arc::clone(self), clock }
    }

    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn with<T>(&self, uid: &PodUid, f: impl FnOnce(&mut OnePod) -> T) -> T {
        let result = f(self.pods.lock().unwrap().entry(uid.clone()).or_default());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Looks, which changes nothing.
    fn look<T>(&self, uid: &str, f: impl FnOnce(&OnePod) -> T) -> T {
        f(self.pods.lock().unwrap().entry(PodUid::from(uid)).or_default())
    }

    /// Something happens by itself on the node; the host announces it.
    pub fn happen(&self, uid: &str, f: impl FnOnce(&mut World, Timestamp)) {
        let now = self.now();
        self.with(&PodUid::from(uid), |pod| {
            f(&mut pod.world, now);
            pod.changes.send_modify(|n| *n += 1);
        });
    }

    /// What was done for a pod, briefly.
    pub fn done(&self, uid: &str) -> Vec<String> {
        self.look(uid, |pod| pod.done.clone())
    }

    /// Its status as last reported.
    pub fn status(&self, uid: &str) -> Option<PodStatus> {
        self.look(uid, |pod| pod.status.clone())
    }

    /// Its object was deleted by us.
    pub fn is_deleted(&self, uid: &str) -> bool {
        self.look(uid, |pod| pod.deleted)
    }

    /// The names of its containers that run.
    pub fn running(&self, uid: &str) -> Vec<String> {
        self.look(uid, |pod| pod.world.running().iter().map(|n| (*n).to_owned()).collect())
    }

    pub fn is_empty(&self, uid: &str) -> bool {
        self.look(uid, |pod| pod.world.is_empty())
    }

    /// Waits until `wanted` holds; an hour of the paused clock is never.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !wanted(self) {
                changed.mark_unchanged();
                if wanted(self) {
                    break;
                }
                changed.changed().await.expect("the node lives");
            }
        };
        let within = tokio::time::timeout(Duration::from_secs(3600), wait).await;
        assert!(within.is_ok(), "never: {what}");
    }
}

/// Counts a pull that is dropped before its end.
struct PullGuard(Option<Arc<AtomicUsize>>);

impl Drop for PullGuard {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Host for FakeNode {
    async fn observe(&self, pod: &Arc<Pod>) -> Observed {
        let pods = self.pods.lock().unwrap();
        pods.get(pod.uid()).map(|p| p.world.observed.clone()).unwrap_or_default()
    }

    async fn execute(&self, pod: &Arc<Pod>, action: &Action) -> Result<Done, ActionError> {
        if let Action::PullImage { image } = action {
            let mut guard = PullGuard(Some(Arc::clone(&self.dropped_pulls)));
            let time = self.slow_pulls.lock().unwrap().get(image).copied().unwrap_or_default();
            tokio::time::sleep(time).await;
            guard.0 = None;
        }
        let now = self.now();
        self.with(pod.uid(), |one| {
            one.done.push(brief(action));
            one.world.apply(pod, action, now)
        })
    }

    fn changes(&self, uid: &PodUid) -> watch::Receiver<u64> {
        self.with(uid, |pod| pod.changes.subscribe())
    }

    async fn remember(&self, pod: &Arc<Pod>) {
        let mut residents = self.residents.lock().unwrap();
        residents.retain(|p| p.uid() != pod.uid());
        residents.push(Arc::clone(pod));
        self.changed.send_modify(|n| *n += 1);
    }

    async fn residents(&self) -> Vec<Arc<Pod>> {
        self.residents.lock().unwrap().clone()
    }
}

impl Reporter for FakeNode {
    fn report(&self, pod: &Arc<Pod>, status: PodStatus) {
        self.with(pod.uid(), |one| one.status = Some(status));
    }

    async fn delete(&self, pod: &Arc<Pod>, last: PodStatus) -> Result<(), String> {
        self.with(pod.uid(), |one| {
            assert!(one.world.is_empty(), "the object goes last");
            assert!(last.phase.is_terminal(), "with a final status");
            one.status = Some(last);
            one.deleted = true;
        });
        Ok(())
    }

    fn event(&self, _pod: &Arc<Pod>, _event: PodEvent) {}
}

/// A pod with one container `a`.
pub fn named(name: &str, uid: &str, more: &Value) -> Arc<Pod> {
    let mut spec = json!({"containers": [super::sim::container("a")]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let object = json!({"metadata": {"name": name, "namespace": "shop", "uid": uid}, "spec": spec});
    Arc::new(Pod::from_value(object).unwrap())
}

/// The same pod, being deleted.
pub fn deleted(pod: &Arc<Pod>, now: Timestamp, grace: u64) -> Arc<Pod> {
    let mut pod = Pod::clone(pod);
    let grace = Duration::from_secs(grace);
    pod.metadata.deletion_timestamp = Some(now.checked_add(grace).expect("a near time"));
    pod.metadata.deletion_grace_period = Some(grace);
    Arc::new(pod)
}
