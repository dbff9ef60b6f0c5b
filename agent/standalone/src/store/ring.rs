//! The latest changes of one kind, for watchers that resume.
//!
//! Owns: a bounded queue, ordered by version. Never: waits for a slow watcher; one that falls behind gets `TooOld` and
//! lists again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::Slim;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It was there before.
    Modified,
    /// It is gone.
    Deleted,
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    /// The version of the change.
    pub version: u64,
    /// What happened.
    pub change: Change,
    /// The bytes after the change; the last bytes if it was deleted.
    pub object: Bytes,
    /// What selectors see of them.
    pub slim: Slim,
    /// The bytes before the change and what selectors saw of them.
    pub before: Option<(Bytes, Slim)>,
}

impl Event {
    /// The object as it was found when the server started.
    pub fn initial(object: Bytes) -> Self {
        Self::new(0, Change::Added, object, None)
    }

    pub(super) fn new(version: u64, change: Change, object: Bytes, before: Option<Bytes>) -> Self {
        let slim = Slim::of(&object);
        let before = before.map(|b| {
            let slim = Slim::of(&b);
            (b, slim)
        });
        Self { version, change, object, slim, before }
    }
}

/// The version asked for is older than what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld {
    /// The oldest version from which one can go on.
    pub oldest: u64,
}

const MAX_EVENTS: usize = 1024;
const MAX_BYTES: usize = 1 << 20;

struct Inner {
    events: VecDeque<Arc<Event>>,
    /// Changes up to this version may be forgotten.
    forgotten: u64,
    bytes: usize,
}

pub(super) struct Ring {
    inner: Mutex<Inner>,
    newest: watch::Sender<u64>,
}

impl Ring {
    pub(super) fn new(version: u64) -> Self {
        let inner = Inner { events: VecDeque::new(), forgotten: version, bytes: 0 };
        Self { inner: Mutex::new(inner), newest: watch::Sender::new(version) }
    }

    pub(super) fn push(&self, event: Arc<Event>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.bytes += event.object.len();
        inner.events.push_back(event);
        while inner.events.len() > MAX_EVENTS || (inner.bytes > MAX_BYTES && inner.events.len() > 64) {
            let Some(gone) = inner.events.pop_front() else { break };
            inner.bytes -= gone.object.len();
            inner.forgotten = gone.version;
        }
    }

    pub(super) fn announce(&self, version: u64) {
        self.newest.send_replace(version);
    }

    pub(super) fn since(&self, version: u64) -> Result<Vec<Arc<Event>>, TooOld> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if version < inner.forgotten {
            return Err(TooOld { oldest: inner.forgotten });
        }
        let from = inner.events.partition_point(|e| e.version <= version);
        Ok(inner.events.range(from..).cloned().collect())
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(version: u64) -> Arc<Event> {
        Arc::new(Event::new(version, Change::Added, Bytes::from_static(b"{}"), None))
    }

    #[test]
    fn a_watcher_goes_on_after_its_version_and_is_told_when_that_is_forgotten() {
        let ring = Ring::new(10);
        ring.push(event(12));
        ring.push(event(15));
        let versions = |v| ring.since(v).map(|e| e.iter().map(|e| e.version).collect::<Vec<_>>());
        assert_eq!(versions(10), Ok(vec![12, 15]));
        assert_eq!(versions(12), Ok(vec![15]));
        assert_eq!(versions(15), Ok(vec![]));
        assert_eq!(versions(9), Err(TooOld { oldest: 10 }));
        for version in 16..16 + MAX_EVENTS as u64 {
            ring.push(event(version));
        }
        assert_eq!(versions(14), Err(TooOld { oldest: 15 }));
        assert_eq!(ring.since(15).unwrap().len(), MAX_EVENTS);
    }
}
