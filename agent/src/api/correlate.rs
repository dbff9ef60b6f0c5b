//! Which events are worth a request, and which repeat one already sent. The rules are client-go's, so that a cluster
//! sees from this node what it sees from any other.
//!
//! Owns: three memories, bounded, keyed by hashes. Never: sends, reads a clock.
//!
//! 1. More than ten different messages for the same object and reason within ten minutes are told as one event,
//!    `(combined from similar events): ...`.
//! 2. An event told before is told again by raising its count.
//! 3. One object may cause 25 events at once and one more every five minutes.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};

use jiff::{SignedDuration, Timestamp};

const SIMILAR: usize = 10;
const SIMILAR_WITHIN: SignedDuration = SignedDuration::from_mins(10);
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
const REMEMBERED: usize = 1024;

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Regarding {
    /// `Pod` or `Node`.
    pub kind: &'static str,
    /// Empty for a node.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its resource version, if known.
    pub resource_version: String,
    /// Which part of it: `spec.containers{name}`.
    pub field_path: String,
}

/// An event before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// About what.
    pub regarding: Regarding,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One word.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
}

/// What to do with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Send it as a new one.
    Create {
        /// The message to send, perhaps combined.
        message: String,
        /// Under what to note the name it gets ([`Correlator::named`]).
        key: u64,
    },
    /// Raise the count of an event sent before.
    Count {
        /// The name of that event.
        name: String,
        /// Its new count.
        count: u32,
        /// When it was first told.
        first: Timestamp,
        /// The message, perhaps combined.
        message: String,
        /// As in `Create`.
        key: u64,
    },
    /// Say nothing.
    Drop,
}

struct Told {
    name: String,
    count: u32,
    first: Timestamp,
    last: Timestamp,
}

struct Similar {
    messages: HashSet<u64>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    last: Timestamp,
}

/// The memory of what was told.
#[derive(Default)]
pub struct Correlator {
    hasher: RandomState,
    told: HashMap<u64, Told>,
    similar: HashMap<u64, Similar>,
    buckets: HashMap<u64, Bucket>,
}

impl Correlator {
    /// Judges one event at `now`.
    pub fn judge(&mut self, event: &Event, now: Timestamp) -> Verdict {
        let (message, combined) = self.combine(event, now);
        let key = if combined {
            self.hasher.hash_one((Object(&event.regarding), event.warning, event.reason))
        } else {
            self.hasher.hash_one((
                &event.regarding.field_path,
                Object(&event.regarding),
                event.reason,
                &message,
            ))
        };
        let verdict = match self.told.get_mut(&key) {
            Some(told) if !told.name.is_empty() => {
                told.count += 1;
                told.last = now;
                let Told { name, count, first, .. } = &*told;
                Verdict::Count { name: name.clone(), count: *count, first: *first, message, key }
            }
            _ => {
                self.told.insert(key, Told { name: String::new(), count: 1, first: now, last: now });
                Verdict::Create { message, key }
            }
        };
        let allowed = self.allowed(&event.regarding, now);
        self.forget_oldest();
        if allowed { verdict } else { Verdict::Drop }
    }

    /// The name under which the event of this key was created.
    pub fn named(&mut self, key: u64, name: String) {
        if let Some(told) = self.told.get_mut(&key) {
            told.name = name;
        }
    }

    fn combine(&mut self, event: &Event, now: Timestamp) -> (String, bool) {
        let group = self.hasher.hash_one((Object(&event.regarding), event.warning, event.reason));
        let similar =
            self.similar.entry(group).or_insert_with(|| Similar { messages: HashSet::new(), last: now });
        if now.duration_since(similar.last) > SIMILAR_WITHIN {
            similar.messages.clear();
        }
        similar.last = now;
        similar.messages.insert(self.hasher.hash_one(&event.message));
        if similar.messages.len() < SIMILAR {
            return (event.message.clone(), false);
        }
        // The set is full: forget one message, so that it stays full and no larger.
        if similar.messages.len() > SIMILAR
            && let Some(any) = similar.messages.iter().next().copied()
        {
            similar.messages.remove(&any);
        }
        (format!("(combined from similar events): {}", event.message), true)
    }

    fn allowed(&mut self, regarding: &Regarding, now: Timestamp) -> bool {
        let key = self.hasher.hash_one(Object(regarding));
        let bucket = self.buckets.entry(key).or_insert(Bucket { tokens: BURST, last: now });
        let seconds = now.duration_since(bucket.last).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + seconds * REFILL_PER_SECOND).min(BURST);
        bucket.last = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn forget_oldest(&mut self) {
        prune(&mut self.told, |t| t.last);
        prune(&mut self.similar, |s| s.last);
        prune(&mut self.buckets, |b| b.last);
    }
}

/// Removes the older half once the map is full.
fn prune<V>(map: &mut HashMap<u64, V>, last: impl Fn(&V) -> Timestamp) {
    if map.len() <= REMEMBERED {
        return;
    }
    let mut times: Vec<Timestamp> = map.values().map(&last).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    map.retain(|_, v| last(v) > middle);
}

/// Hashes the object without the part of it and without its version.
struct Object<'a>(&'a Regarding);

impl Hash for Object<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let Regarding { kind, namespace, name, uid, .. } = self.0;
        (kind, namespace, name, uid).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str) -> Event {
        let regarding = Regarding {
            kind: "Pod",
            namespace: "d".into(),
            name: "p".into(),
            uid: "u".into(),
            ..Regarding::default()
        };
        Event { regarding, warning: true, reason: "BackOff", message: message.to_owned() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("in range")
    }

    fn create(correlator: &mut Correlator, message: &str, now: Timestamp) -> u64 {
        match correlator.judge(&event(message), now) {
            Verdict::Create { key, .. } => key,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_event_again_raises_the_count() {
        let mut correlator = Correlator::default();
        let key = create(&mut correlator, "a", at(0));
        correlator.named(key, "p.1".into());
        let wanted = Verdict::Count { name: "p.1".into(), count: 2, first: at(0), message: "a".into(), key };
        assert_eq!(correlator.judge(&event("a"), at(5)), wanted);
        assert_ne!(create(&mut correlator, "b", at(6)), key);
    }

    #[test]
    fn another_container_or_another_pod_is_another_event() {
        let mut correlator = Correlator::default();
        let key = create(&mut correlator, "a", at(0));
        correlator.named(key, "p.1".into());
        let mut other = event("a");
        other.regarding.field_path = "spec.containers{c}".into();
        assert!(matches!(correlator.judge(&other, at(1)), Verdict::Create { .. }));
        let mut other = event("a");
        other.regarding.uid = "u2".into();
        assert!(matches!(correlator.judge(&other, at(1)), Verdict::Create { .. }));
    }

    #[test]
    fn ten_different_messages_are_combined() {
        let mut correlator = Correlator::default();
        for n in 0..9 {
            create(&mut correlator, &format!("m{n}"), at(n));
        }
        let key = match correlator.judge(&event("m9"), at(9)) {
            Verdict::Create { message, key } => {
                assert_eq!(message, "(combined from similar events): m9");
                key
            }
            other => panic!("{other:?}"),
        };
        correlator.named(key, "p.c".into());
        match correlator.judge(&event("m10"), at(10)) {
            Verdict::Count { name, count: 2, message, .. } => {
                assert_eq!((name.as_str(), message.as_str()), ("p.c", "(combined from similar events): m10"));
            }
            other => panic!("{other:?}"),
        }
        // Ten quiet minutes later messages count for themselves again.
        create(&mut correlator, "m11", at(700));
    }

    #[test]
    fn one_object_may_not_flood() {
        let mut correlator = Correlator::default();
        let key = create(&mut correlator, "a", at(0));
        correlator.named(key, "p.1".into());
        let sent = (0..100).filter(|_| correlator.judge(&event("a"), at(0)) != Verdict::Drop).count();
        assert_eq!(sent, 24);
        assert_eq!(correlator.judge(&event("a"), at(299)), Verdict::Drop);
        assert!(matches!(correlator.judge(&event("a"), at(300)), Verdict::Count { .. }));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut correlator = Correlator::default();
        for n in 0..5000 {
            let mut one = event("a");
            one.regarding.uid = format!("u{n}");
            correlator.judge(&one, at(n));
        }
        assert!(correlator.told.len() <= REMEMBERED + 1);
        assert!(correlator.buckets.len() <= REMEMBERED + 1);
    }
}
