//! Events to the API server, in the form that kubelet gives them (core/v1, source component `kubelet`).
//!
//! Owns: the queue, the names of events, and the order of sending. Never: blocks who emits: when the queue is full the
//! event is dropped, and one line says so until there is room again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::backoff::{Backoff, random};
use super::client::{Client, PatchKind};
use super::correlate::{Correlator, Verdict};
use super::error::ApiError;
use super::path::EVENTS;

pub use super::correlate::{Event, Regarding};

const QUEUE: usize = 1024;
const COMPONENT: &str = "kubelet";

/// Where events are handed in. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<(Timestamp, Event)>,
    full: Arc<AtomicBool>,
}

impl Events {
    /// The handle, and the driver that sends until every handle is dropped. `host` is the node's name.
    pub fn new(client: Client, host: String) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let sender = Sender { client, host, correlator: Correlator::default(), last_name: 0 };
        (Self { queue, full: Arc::default() }, sender.run(waiting))
    }

    /// Hands in one event.
    pub fn emit(&self, event: Event) {
        match self.queue.try_send((Timestamp::now(), event)) {
            Ok(()) => self.full.store(false, Ordering::Relaxed),
            Err(mpsc::error::TrySendError::Full(_)) => {
                if !self.full.swap(true, Ordering::Relaxed) {
                    tracing::warn!(queued = QUEUE, "events are dropped until the API server has taken some");
                }
            }
            // The driver has ended: the daemon is going down.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }
}

struct Sender {
    client: Client,
    host: String,
    correlator: Correlator,
    last_name: i128,
}

impl Sender {
    async fn run(mut self, mut waiting: mpsc::Receiver<(Timestamp, Event)>) {
        while let Some((at, event)) = waiting.recv().await {
            match self.correlator.judge(&event, at) {
                Verdict::Drop => {}
                Verdict::Create { message, key } => {
                    let told = Told { message, count: 1, first: at, last: at };
                    self.create(&event, &told, key).await;
                }
                Verdict::Count { name, count, first, message, key } => {
                    let told = Told { message, count, first, last: at };
                    self.count(&event, &told, (&name, key)).await;
                }
            }
        }
    }

    async fn create(&mut self, event: &Event, told: &Told, key: u64) {
        let name = self.name(event, told.last);
        let body = self.body(event, &name, told);
        let path = EVENTS.collection(Some(namespace(event)));
        let client = self.client.clone();
        let sent = retry(|| client.create::<_, serde::de::IgnoredAny>(&path, &body)).await;
        match sent {
            Ok(_) | Err(ApiError::AlreadyExists(_)) => self.correlator.named(key, name),
            Err(error) => refused(event, &error),
        }
    }

    async fn count(&mut self, event: &Event, told: &Told, (name, key): (&str, u64)) {
        let body =
            json!({ "count": told.count, "lastTimestamp": seconds(told.last), "message": told.message });
        let path = EVENTS.object(Some(namespace(event)), name);
        let client = self.client.clone();
        let sent =
            retry(|| client.patch::<_, serde::de::IgnoredAny>(&path, PatchKind::Strategic, &body)).await;
        match sent {
            Ok(_) => {}
            // Events live for an hour; this one is told anew, with its history.
            Err(ApiError::NotFound(_)) => self.create(event, told, key).await,
            Err(error) => refused(event, &error),
        }
    }

    /// Unique in its namespace: the object's name and a moment no other event of this node has.
    fn name(&mut self, event: &Event, at: Timestamp) -> String {
        self.last_name = at.as_nanosecond().max(self.last_name + 1);
        let mut object = event.regarding.name.as_str();
        let suffix = format!("{:x}", self.last_name);
        let room = 252 - suffix.len();
        if object.len() > room {
            object = object[..room].trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        }
        format!("{object}.{suffix}")
    }

    fn body(&self, event: &Event, name: &str, told: &Told) -> Value {
        let Event { regarding, warning, reason, .. } = event;
        let mut object = json!({ "apiVersion": "v1", "kind": regarding.kind, "name": regarding.name, "uid": regarding.uid });
        for (field, value) in [
            ("namespace", &regarding.namespace),
            ("resourceVersion", &regarding.resource_version),
            ("fieldPath", &regarding.field_path),
        ] {
            if !value.is_empty() {
                object[field] = value.as_str().into();
            }
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": name, "namespace": namespace(event) },
            "involvedObject": object,
            "reason": reason,
            "message": told.message,
            "source": { "component": COMPONENT, "host": self.host },
            "firstTimestamp": seconds(told.first),
            "lastTimestamp": seconds(told.last),
            "count": told.count,
            "type": if *warning { "Warning" } else { "Normal" },
            "reportingComponent": COMPONENT,
            "reportingInstance": self.host,
        })
    }
}

/// How an event is told this time.
struct Told {
    message: String,
    count: u32,
    first: Timestamp,
    last: Timestamp,
}

fn namespace(event: &Event) -> &str {
    if event.regarding.namespace.is_empty() { "default" } else { &event.regarding.namespace }
}

/// The API's `Time` has whole seconds.
fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn refused(event: &Event, error: &ApiError) {
    // A namespace that is going away takes no events; nobody would read them.
    tracing::debug!(reason = event.reason, object = %event.regarding.name, %error, "event is not accepted");
}

/// Until it is sent or refused: while the server is away, the queue waits.
async fn retry<F, A, T>(call: F) -> Result<T, ApiError>
where
    F: Fn() -> A,
    A: Future<Output = Result<T, ApiError>>,
{
    let mut backoff =
        Backoff::new(Duration::from_millis(500), Duration::from_secs(30), Duration::from_secs(60));
    loop {
        match call().await {
            Err(error) if error.is_transient() => {
                let delay = backoff.failed(Instant::now(), random());
                tokio::time::sleep(delay.max(error.retry_after().unwrap_or_default())).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{self, Fake};
    use super::*;

    fn event(message: &str) -> Event {
        let regarding = Regarding {
            kind: "Pod",
            namespace: "apps".into(),
            name: "web".into(),
            uid: "u1".into(),
            resource_version: "7".into(),
            field_path: "spec.containers{c}".into(),
        };
        Event { regarding, warning: false, reason: "Started", message: message.into() }
    }

    #[tokio::test]
    async fn a_first_event_is_created_and_a_second_one_counted() {
        let fake = Fake::start(|_| std::future::ready(fake::json(200, &json!({})))).await;
        let (events, driver) = Events::new(fake.client(), "n1".into());
        events.emit(event("Started container c"));
        events.emit(event("Started container c"));
        drop(events);
        driver.await;
        let seen = fake.seen();
        assert_eq!(seen[0].line(), "POST /api/v1/namespaces/apps/events");
        let body = seen[0].json();
        let name = body["metadata"]["name"].as_str().expect("a name").to_owned();
        assert!(name.starts_with("web."), "{name}");
        assert_eq!(body["source"], json!({"component":"kubelet","host":"n1"}));
        assert_eq!(body["involvedObject"]["fieldPath"], "spec.containers{c}");
        assert_eq!((&body["count"], &body["type"]), (&json!(1), &json!("Normal")));
        assert_eq!(seen[1].line(), format!("PATCH /api/v1/namespaces/apps/events/{name}"));
        assert_eq!(seen[1].json()["count"], 2);
    }

    #[tokio::test]
    async fn an_event_that_expired_is_created_anew_with_its_count() {
        let fake = Fake::start(|seen| {
            let answer = match seen.method.as_str() {
                "PATCH" => fake::status(404, "NotFound", "gone"),
                _ => fake::json(201, &json!({})),
            };
            std::future::ready(answer)
        })
        .await;
        let (events, driver) = Events::new(fake.client(), "n1".into());
        events.emit(event("a"));
        events.emit(event("a"));
        drop(events);
        driver.await;
        let seen = fake.seen();
        assert_eq!(seen.iter().map(|s| s.method.as_str()).collect::<Vec<_>>(), ["POST", "PATCH", "POST"]);
        assert_eq!(seen[2].json()["count"], 2);
    }

    #[tokio::test]
    async fn a_refused_event_does_not_hold_up_the_next() {
        let fake = Fake::start(|seen| {
            let answer = if seen.json()["message"] == "a" {
                fake::status(403, "Forbidden", "the namespace is being terminated")
            } else {
                fake::json(201, &json!({}))
            };
            std::future::ready(answer)
        })
        .await;
        let (events, driver) = Events::new(fake.client(), "n1".into());
        events.emit(event("a"));
        events.emit(event("b"));
        drop(events);
        driver.await;
        assert_eq!(fake.seen().len(), 2);
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_never_blocks() {
        let fake = Fake::start(|_| std::future::ready(fake::json(201, &json!({})))).await;
        let (events, driver) = Events::new(fake.client(), "n1".into());
        for n in 0..2 * QUEUE {
            let mut one = event("a");
            one.regarding.uid = n.to_string();
            events.emit(one);
        }
        drop(events);
        driver.await;
        assert_eq!(fake.seen().len(), QUEUE);
    }

    #[test]
    fn long_names_are_cut_to_what_the_api_takes() {
        let access = super::super::kubeconfig::Access {
            server: "http://127.0.0.1:1".into(),
            trust: super::super::kubeconfig::Trust::Anybody,
            tls_server_name: None,
            proxy_url: None,
            certificate: None,
            token: None,
            namespace: None,
        };
        let client = Client::new(&access).expect("a client");
        let mut sender =
            Sender { client, host: String::new(), correlator: Correlator::default(), last_name: 0 };
        let mut long = event("a");
        long.regarding.name = "x".repeat(253);
        let at = Timestamp::from_second(1_700_000_000).expect("in range");
        let (first, second) = (sender.name(&long, at), sender.name(&long, at));
        assert!(first.len() <= 253 && second.len() <= 253);
        assert_ne!(first, second);
    }
}
