//! Statuses of pods to the API server, at once.
//!
//! Owns: the newest status of each pod not yet sent, and what was last sent. Several pods are sent side by side, one
//! request at a time for each. Never: decides what a status says; blocks who reports.
//!
//! ```text
//! report ──► pending (replaced by a newer one) ──► PATCH ──► sent          NotFound, other UID: forgotten
//!                     ▲                              │ error: back off, unless a newer one came
//!                     └──────────────────────────────┘
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::backoff::{Backoff, random};
use super::client::{Client, DeleteOptions, PatchKind};
use super::error::ApiError;
use super::events::{Event, Events, Regarding};
use super::path::PODS;
use super::status_patch;
use crate::pod::names::PodUid;
use crate::pod::reporter::{PodEvent, Reporter};
use crate::pod::spec::{ContainerKind, Pod};
use crate::pod::status::PodStatus;

/// Requests in flight over all pods.
const SIDE_BY_SIDE: usize = 16;

/// The real [`Reporter`].
pub struct ApiReporter {
    shared: Arc<Shared>,
    events: Events,
    wake: mpsc::UnboundedSender<Arc<Slot>>,
}

struct Shared {
    client: Client,
    slots: Mutex<HashMap<PodUid, Arc<Slot>>>,
    permits: Semaphore,
}

/// One pod.
struct Slot {
    pod: Mutex<Arc<Pod>>,
    state: Mutex<State>,
    /// Held by whoever talks to the server about this pod.
    flight: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    pending: Option<PodStatus>,
    sent: Option<PodStatus>,
    /// Resource version that the last PATCH made.
    sent_version: Option<u64>,
    /// Whether this process has sent anything. Until then `sent` is what the object says.
    told: bool,
    /// The driver knows of this slot.
    queued: bool,
    /// The object is gone; nothing more is sent.
    gone: bool,
}

#[derive(Deserialize)]
struct Patched {
    #[serde(default)]
    metadata: PatchedMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PatchedMeta {
    resource_version: String,
}

/// What came of one PATCH.
enum Sent {
    Taken(Option<u64>),
    Gone,
}

impl ApiReporter {
    /// The reporter, and the driver that sends until the reporter is dropped and everything pending was tried.
    pub fn new(client: Client, events: Events) -> (Self, impl Future<Output = ()> + Send) {
        let (wake, woken) = mpsc::unbounded_channel();
        let permits = Semaphore::new(SIDE_BY_SIDE);
        let shared = Arc::new(Shared { client, slots: Mutex::default(), permits });
        let driver = drive(Arc::clone(&shared), woken);
        (Self { shared, events, wake }, driver)
    }

    /// Drops what is known of a pod that nobody will report on again.
    pub fn forget(&self, uid: &PodUid) {
        if let Some(slot) = lock(&self.shared.slots).remove(uid) {
            lock(&slot.state).gone = true;
        }
    }

    fn slot(&self, pod: &Arc<Pod>) -> Arc<Slot> {
        let mut slots = lock(&self.shared.slots);
        let slot = slots.entry(pod.uid().clone()).or_insert_with(|| {
            Arc::new(Slot {
                pod: Mutex::new(Arc::clone(pod)),
                state: Mutex::default(),
                flight: Default::default(),
            })
        });
        *lock(&slot.pod) = Arc::clone(pod);
        let mut state = lock(&slot.state);
        if !state.told {
            // What the node remembers of a pod from an earlier life holds a status that the server may never have got.
            state.sent = Some(pod.status.clone());
        }
        drop(state);
        Arc::clone(slot)
    }
}

impl Reporter for ApiReporter {
    fn report(&self, pod: &Arc<Pod>, status: PodStatus) {
        let slot = self.slot(pod);
        let mut state = lock(&slot.state);
        if state.gone || !state.is_news(pod, &status) {
            return;
        }
        state.pending = Some(status);
        if !state.queued {
            state.queued = true;
            // The driver is gone only at the daemon's end; the planner reports again after the next start.
            let _ended = self.wake.send(Arc::clone(&slot));
        }
    }

    async fn delete(&self, pod: &Arc<Pod>, last: PodStatus) -> Result<(), String> {
        let slot = self.slot(pod);
        lock(&slot.state).pending = None;
        let flight = slot.flight.lock().await;
        let sent = lock(&slot.state).sent.clone();
        let known = sent.as_ref() == Some(&last);
        let mut gone = lock(&slot.state).gone;
        if !gone && !known {
            match self.shared.patch(pod, &last, sent.as_ref()).await.map_err(|e| e.to_string())? {
                Sent::Taken(version) => lock(&slot.state).taken(last, version),
                Sent::Gone => gone = true,
            }
        }
        if !gone {
            let path = PODS.object(Some(pod.namespace()), pod.name());
            let options = DeleteOptions { grace_seconds: Some(0), uid: Some(pod.uid().as_str()) };
            match self.shared.client.delete(&path, &options).await {
                Ok(()) | Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        lock(&slot.state).gone = true;
        drop(flight);
        lock(&self.shared.slots).remove(pod.uid());
        Ok(())
    }

    fn event(&self, pod: &Arc<Pod>, event: PodEvent) {
        let PodEvent { warning, reason, message, container } = event;
        let field_path = container.and_then(|name| {
            let (kind, container) = pod.container(&name)?;
            let list = match kind {
                ContainerKind::Init => "initContainers",
                ContainerKind::Regular => "containers",
                ContainerKind::Ephemeral => "ephemeralContainers",
            };
            Some(format!("spec.{list}{{{}}}", container.name))
        });
        let regarding = Regarding {
            kind: "Pod",
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_string(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field_path.unwrap_or_default(),
        };
        self.events.emit(Event { regarding, warning, reason, message });
    }
}

impl State {
    /// Whether the API says something else than `status`, as far as is known here.
    fn is_news(&self, pod: &Pod, status: &PodStatus) -> bool {
        if let Some(pending) = &self.pending {
            return pending != status;
        }
        if self.sent.as_ref() != Some(status) {
            return true;
        }
        // Somebody wrote over what was sent: the object read is newer than the last PATCH and says something else.
        // Resource versions of one resource may be compared as numbers (KEP-5504).
        let read: Option<u64> = pod.metadata.resource_version.parse().ok();
        matches!((read, self.sent_version), (Some(read), Some(sent)) if read > sent) && pod.status != *status
    }

    fn taken(&mut self, status: PodStatus, version: Option<u64>) {
        self.sent = Some(status);
        self.sent_version = version;
        self.told = true;
    }
}

async fn drive(shared: Arc<Shared>, mut woken: mpsc::UnboundedReceiver<Arc<Slot>>) {
    let mut tasks = JoinSet::new();
    loop {
        // Both arms only take from a queue, so that losing the race loses nothing.
        tokio::select! {
            slot = woken.recv() => match slot {
                Some(slot) => {
                    let shared = Arc::clone(&shared);
                    tasks.spawn(async move { shared.drain(&slot).await });
                }
                None => break,
            },
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => report_panic(ended),
        }
    }
    while let Some(ended) = tasks.join_next().await {
        report_panic(ended);
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "sending a status ended badly");
    }
}

impl Shared {
    /// Sends what is pending for one pod until nothing is.
    async fn drain(&self, slot: &Arc<Slot>) {
        let mut backoff =
            Backoff::new(Duration::from_millis(200), Duration::from_secs(10), Duration::from_secs(60));
        loop {
            let flight = slot.flight.lock().await;
            let (pod, status, sent) = {
                let mut state = lock(&slot.state);
                match state.pending.take().filter(|_| !state.gone) {
                    Some(status) => (Arc::clone(&lock(&slot.pod)), status, state.sent.clone()),
                    None => {
                        state.queued = false;
                        return;
                    }
                }
            };
            match self.patch(&pod, &status, sent.as_ref()).await {
                Ok(Sent::Taken(version)) => {
                    lock(&slot.state).taken(status, version);
                    backoff.succeeded();
                }
                Ok(Sent::Gone) => {
                    lock(&slot.state).gone = true;
                    lock(&self.slots).remove(pod.uid());
                }
                Err(error) => {
                    lock(&slot.state).pending.get_or_insert(status);
                    if !matches!(error, ApiError::Transport(_)) {
                        tracing::warn!(pod = %pod, %error, "status is not accepted; trying again");
                    }
                    // A delete must not wait for this one's patience.
                    drop(flight);
                    let delay = backoff.failed(Instant::now(), random());
                    tokio::time::sleep(delay.max(error.retry_after().unwrap_or_default())).await;
                }
            }
        }
    }

    async fn patch(&self, pod: &Pod, status: &PodStatus, sent: Option<&PodStatus>) -> Result<Sent, ApiError> {
        let body = status_patch::patch(pod, status, sent).map_err(|e| ApiError::Invalid(e.to_string()))?;
        let path = PODS.sub(Some(pod.namespace()), pod.name(), "status");
        // The semaphore is never closed; were it, sending without a permit would be right.
        let _permit = self.permits.acquire().await;
        match self.client.patch::<_, Patched>(&path, PatchKind::Strategic, &body).await {
            Ok(patched) => Ok(Sent::Taken(patched.metadata.resource_version.parse().ok())),
            Err(ApiError::NotFound(_)) => Ok(Sent::Gone),
            Err(ApiError::Conflict(message)) if message.contains("UID") => Ok(Sent::Gone),
            Err(error) => Err(error),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while a lock is held leaves a value that is whole: each is assigned in one step.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::response::Response;
    use serde_json::json;

    use super::super::fake::{self, Fake, Seen};
    use super::*;
    use crate::pod::status::Phase;

    fn pod() -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = "web".into();
        pod.metadata.namespace = "apps".into();
        pod.metadata.uid = "u1".into();
        Arc::new(pod)
    }

    fn status(message: &str) -> PodStatus {
        PodStatus { message: message.into(), phase: Phase::Running, ..PodStatus::default() }
    }

    fn reporter(fake: &Fake) -> ApiReporter {
        let (events, send_events) = Events::new(fake.client(), "n1".into());
        let (reporter, send) = ApiReporter::new(fake.client(), events);
        tokio::spawn(send_events);
        tokio::spawn(send);
        reporter
    }

    fn messages(fake: &Fake) -> Vec<String> {
        let patches = fake.seen().into_iter().filter(|s| s.method == "PATCH");
        patches.map(|s| s.json()["status"]["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn taken(version: u64) -> Response {
        fake::json(200, &json!({"metadata":{"resourceVersion":version.to_string()}}))
    }

    /// A daemon killed between computing a status and sending it leaves the status on disk alone.
    #[tokio::test]
    async fn a_status_that_only_the_disk_knows_is_sent_when_the_object_says_another() {
        let fake = Fake::start(|_| async { taken(7) }).await;
        let reporter = reporter(&fake);
        let mut remembered = Pod::clone(&pod());
        remembered.status = status("running");
        reporter.report(&Arc::new(remembered), status("running"));
        reporter.report(&pod(), status("running"));
        fake.wait_for(1).await;
        reporter.delete(&pod(), status("running")).await.expect("deleted");
        assert_eq!(messages(&fake), ["running"], "said once, when the object said otherwise");
    }

    #[tokio::test]
    async fn a_newer_status_replaces_one_not_yet_sent_and_an_equal_one_is_not_sent() {
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let fake = Fake::start(move |_| {
            let held = Arc::clone(&held);
            async move {
                held.acquire().await.expect("open").forget();
                taken(5)
            }
        })
        .await;
        let (reporter, pod) = (reporter(&fake), pod());
        reporter.report(&pod, status("one"));
        fake.wait_for(1).await;
        for message in ["two", "three", "four"] {
            reporter.report(&pod, status(message));
        }
        gate.add_permits(2);
        fake.wait_for(2).await;
        reporter.report(&pod, status("four"));
        gate.add_permits(9);
        reporter.delete(&pod, status("four")).await.expect("deleted");
        assert_eq!(messages(&fake), ["one", "four"]);
        assert_eq!(fake.seen().len(), 3, "the last status was known, only the delete followed");
    }

    #[tokio::test]
    async fn an_error_is_tried_again_with_the_newest() {
        let count = AtomicUsize::new(0);
        let fake = Fake::start(move |_| {
            let n = count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(if n == 0 { fake::status(500, "InternalError", "etcd") } else { taken(5) })
        })
        .await;
        let (reporter, pod) = (reporter(&fake), pod());
        reporter.report(&pod, status("one"));
        fake.wait_for(1).await;
        reporter.report(&pod, status("two"));
        fake.wait_for(2).await;
        assert_eq!(messages(&fake), ["one", "two"]);
    }

    #[tokio::test]
    async fn the_last_status_goes_before_the_delete_and_both_name_the_uid() {
        let fake = Fake::start(|_| std::future::ready(taken(5))).await;
        let (reporter, pod) = (reporter(&fake), pod());
        reporter.delete(&pod, status("last")).await.expect("deleted");
        let seen = fake.seen();
        assert_eq!(seen[0].line(), "PATCH /api/v1/namespaces/apps/pods/web/status");
        assert_eq!(seen[0].json()["metadata"]["uid"], "u1");
        assert_eq!(seen[1].line(), "DELETE /api/v1/namespaces/apps/pods/web");
        assert_eq!(seen[1].json()["preconditions"]["uid"], "u1");
        assert_eq!(seen[1].json()["gracePeriodSeconds"], 0);
    }

    #[tokio::test]
    async fn another_pod_under_the_same_name_is_left_alone() {
        let conflict = "Operation cannot be fulfilled on pods \"web\": Precondition failed: UID in precondition: u1, \
                        UID in object meta: u2";
        let fake = Fake::start(move |_| std::future::ready(fake::status(409, "Conflict", conflict))).await;
        let (reporter, pod) = (reporter(&fake), pod());
        assert_eq!(reporter.delete(&pod, status("last")).await, Ok(()));
        assert_eq!(fake.seen().len(), 1, "no delete after the precondition failed");
        assert!(lock(&reporter.shared.slots).is_empty());
    }

    #[tokio::test]
    async fn a_failed_delete_is_an_error_for_the_planner() {
        let answer = |seen: Seen| {
            let code = if seen.method == "DELETE" { 500 } else { 200 };
            std::future::ready(fake::json(code, &json!({"message":"etcd is away"})))
        };
        let fake = Fake::start(answer).await;
        let (reporter, pod) = (reporter(&fake), pod());
        let error = reporter.delete(&pod, status("last")).await.expect_err("refused");
        assert_eq!(error, "etcd is away (HTTP 500)");
    }

    #[test]
    fn a_status_somebody_wrote_over_is_sent_again() {
        let mut state = State::default();
        state.taken(status("ours"), Some(10));
        let read = |version: &str, message: &str| {
            let mut pod = Pod { status: status(message), ..Pod::default() };
            pod.metadata.resource_version = version.into();
            pod
        };
        assert!(!state.is_news(&read("10", "ours"), &status("ours")));
        assert!(
            !state.is_news(&read("9", "before"), &status("ours")),
            "what was read is older than what was sent"
        );
        assert!(state.is_news(&read("11", "theirs"), &status("ours")));
    }

    #[tokio::test]
    async fn events_carry_the_path_of_the_container() {
        let fake = Fake::start(|_| std::future::ready(fake::json(201, &json!({})))).await;
        let json = json!({"metadata":{"name":"web","namespace":"apps","uid":"u1"},
            "spec":{"initContainers":[{"name":"i","image":"x:1"}],"containers":[{"name":"c","image":"x:1"}]}});
        let pod = Arc::new(Pod::from_value(json).expect("a pod"));
        let reporter = reporter(&fake);
        for name in ["i", "c"] {
            let container = Some(name.into());
            reporter
                .event(&pod, PodEvent { warning: false, reason: "Started", message: name.into(), container });
        }
        fake.wait_for(2).await;
        let paths: Vec<_> =
            fake.seen().iter().map(|s| s.json()["involvedObject"]["fieldPath"].clone()).collect();
        assert_eq!(paths, ["spec.initContainers{i}", "spec.containers{c}"]);
    }
}
