//! Events that the controllers write, and the end of old ones.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::object::{self, text_at};
use crate::registry::{DeleteOptions, Registry, WriteOptions};
use crate::resource::Kind;

/// Events live for an hour (`--event-ttl`).
const TTL: SignedDuration = SignedDuration::from_hours(1);
const SWEEP: Duration = Duration::from_secs(600);

/// When old events are looked for next.
pub struct Expiry {
    next: Instant,
}

impl Default for Expiry {
    fn default() -> Self {
        Self { next: Instant::now() + SWEEP }
    }
}

impl Expiry {
    /// The moment.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Deletes events that nothing was added to for an hour.
    pub fn sweep(&mut self, registry: &Registry) {
        self.next = Instant::now() + SWEEP;
        super::signing::sweep(registry);
        if registry.store.count(Kind::Event) == 0 {
            return;
        }
        let Ok(page) = registry.store.list(Kind::Event, None, None, usize::MAX) else { return };
        let oldest = Timestamp::now() - TTL;
        for (_, bytes) in page.items {
            let event = object::parse(&bytes);
            if last_seen(&event).is_some_and(|t| t < oldest) {
                let (namespace, name) = (object::namespace(&event), object::name(&event));
                let options = DeleteOptions::default();
                let gone = registry.delete(Kind::Event.api(), namespace, name, &options);
                if let Err(error) = gone {
                    tracing::debug!(%error, "expire event");
                }
            }
        }
    }
}

fn last_seen(event: &Value) -> Option<Timestamp> {
    let paths: [&[&str]; 4] = [
        &["series", "lastObservedTime"],
        &["lastTimestamp"],
        &["eventTime"],
        &["metadata", "creationTimestamp"],
    ];
    paths.iter().filter_map(|p| object::parse_time(text_at(event, p))).max()
}

/// Writes an event about a pod. Failing to is not worth more than a line in the log.
pub fn record(registry: &Registry, pod: &Value, kind: &str, reason: &str, message: &str) {
    let now = Timestamp::now();
    let namespace = object::namespace(pod);
    let stamp = object::time(now);
    let event = json!({
        "metadata": {"name": format!("{}.{:x}", object::name(pod), now.as_nanosecond()), "namespace": namespace},
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": object::name(pod), "uid": object::uid(pod),
            "apiVersion": "v1", "resourceVersion": pod["metadata"]["resourceVersion"]},
        "type": kind, "reason": reason, "message": message, "count": 1,
        "firstTimestamp": stamp, "lastTimestamp": stamp,
        "source": {"component": "default-scheduler"},
        "reportingComponent": "default-scheduler", "reportingInstance": "",
    });
    if let Err(error) = registry.create(Kind::Event.api(), namespace, event, WriteOptions::default()) {
        tracing::debug!(%error, "record event");
    }
}
