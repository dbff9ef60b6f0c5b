//! The objects: their bytes, their one counter of versions, and what changed lately.
//!
//! ```text
//! write ─► log file (one write(2)) ─► overlay in memory ─► ring of changes ─► watchers
//!                                        └─ every second or so, in the background ─► redb, one durable commit ─► log dropped
//! ```
//! Owns: the database file, the log files, the rings. Reads merge the overlay with redb. A write is a few microseconds and
//! survives SIGKILL at once, because the log is in the page cache; a power cut can take back the writes since the last
//! durable commit (a second; ten for leases and events), never anything older and never a half of one.
//! Never: knows what an object means.

mod disk;
mod log;
mod ring;
mod slim;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Notify, watch};

pub use ring::{Change, Event, TooOld};
pub use slim::Slim;

use crate::object;
use crate::resource::{ALL_KINDS, KINDS, Kind};
use disk::Disk;
use log::Log;
use ring::Ring;

/// What can go wrong below the API.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be made, written or removed.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: String,
        /// Why it did not work.
        source: std::io::Error,
    },
    /// redb refused.
    #[error("database {path}: {source}")]
    Database {
        /// The file.
        path: String,
        /// Why.
        source: Box<redb::Error>,
    },
}

type Overlay = BTreeMap<String, Option<Bytes>>;

#[derive(Default)]
struct Memory {
    active: Overlay,
    frozen: Option<Arc<Overlay>>,
}

/// Called with each change while the writer's lock is held: must be quick and must not write.
pub type Observer = Box<dyn Fn(Kind, &Arc<Event>) + Send + Sync>;

/// The store. Shared by reference; every method takes `&self`.
pub struct Store {
    writer: Mutex<Log>,
    memory: RwLock<Memory>,
    disk: Disk,
    rings: [Ring; KINDS],
    version: AtomicU64,
    counts: Mutex<HashMap<Kind, usize>>,
    observer: std::sync::OnceLock<Observer>,
    /// Held while the frozen overlay is on its way to the disk.
    flushing: Mutex<()>,
    dirty: Notify,
    urgent: Notify,
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    /// Keys and stored bytes, in the order of the keys.
    pub items: Vec<(String, Bytes)>,
    /// The version that the page shows.
    pub version: u64,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// The key of an object.
pub fn key(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}", kind.prefix())
}

impl Store {
    /// Opens or creates the store in a directory and replays what a killed process left in its log.
    ///
    /// # Errors
    /// When the directory cannot be used or the database is not one.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let disk = Disk::open(&dir.join("objects.redb"))?;
        let saved = disk.version()?;
        let (log, replayed) = Log::open(dir, saved)?;
        let mut version = saved.max(disk.given()?);
        let mut active = Overlay::new();
        for op in replayed {
            version = version.max(op.version);
            active.insert(op.key, op.value);
        }
        if !disk.closed_cleanly()? {
            // A power cut may have taken back versions that clients saw. What they hold must read as old, not as the future.
            version += 10_000;
        }
        disk.mark_open(version)?;
        let store = Self {
            writer: Mutex::new(log),
            memory: RwLock::new(Memory { active, frozen: None }),
            disk,
            rings: std::array::from_fn(|_| Ring::new(version)),
            version: AtomicU64::new(version),
            counts: Mutex::default(),
            observer: std::sync::OnceLock::new(),
            flushing: Mutex::default(),
            dirty: Notify::new(),
            urgent: Notify::new(),
        };
        for kind in ALL_KINDS {
            let count = store.list(kind, None, None, usize::MAX)?.items.len();
            lock(&store.counts).insert(kind, count);
        }
        store.dirty.notify_one();
        Ok(store)
    }

    /// Sets the one observer of all changes. Later calls change nothing.
    pub fn observe(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        lock(&self.counts).get(&kind).copied().unwrap_or(0)
    }

    /// The stored bytes of an object.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.get_key(&key(kind, namespace, name))
    }

    fn get_key(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = memory.active.get(key) {
            return Ok(found.clone());
        }
        if let Some(found) = memory.frozen.as_ref().and_then(|f| f.get(key)) {
            return Ok(found.clone());
        }
        let snapshot = self.disk.snapshot()?;
        drop(memory);
        snapshot.get(key)
    }

    /// The objects of a kind, of one namespace or of all, behind the key `after`, at most `limit`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let prefix = match namespace {
            Some(ns) => format!("{}/{ns}/", kind.prefix()),
            None => format!("{}/", kind.prefix()),
        };
        let start = after.map_or_else(|| prefix.clone(), |a| format!("{a}\0"));
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let version = self.version();
        let mut overlay = Overlay::new();
        let layers = memory.frozen.as_deref().into_iter().chain(std::iter::once(&memory.active));
        for layer in layers {
            for (k, v) in layer.range(start.clone()..).take_while(|(k, _)| k.starts_with(&prefix)) {
                overlay.insert(k.clone(), v.clone());
            }
        }
        let snapshot = self.disk.snapshot()?;
        drop(memory);
        let mut items = snapshot.merge(&prefix, &start, overlay, limit.saturating_add(1))?;
        let more = items.len() > limit;
        items.truncate(limit);
        Ok(Page { items, version, more })
    }

    /// Runs one change of any number of objects. Others wait, so what `f` reads stays true until it ends. An error of `f`
    /// changes nothing.
    ///
    /// # Errors
    /// The error of `f`, or of the log.
    pub fn write<T, E: From<StoreError>>(&self, f: impl FnOnce(&mut Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        let mut log = lock(&self.writer);
        let mut tx = Tx { store: self, next: self.version() + 1, ops: Vec::new() };
        let result = f(&mut tx)?;
        let Tx { ops, .. } = tx;
        if !ops.is_empty() {
            self.commit(&mut log, &ops).map_err(E::from)?;
        }
        Ok(result)
    }

    fn commit(&self, log: &mut Log, ops: &[Pending]) -> Result<(), StoreError> {
        log.append(ops.iter().map(|p| (p.event.version, p.key.as_str(), p.value())))?;
        let last = ops.last().map_or(0, |p| p.event.version);
        let mut urgent = log.is_long();
        {
            let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            for op in ops {
                memory.active.insert(op.key.clone(), op.value().cloned());
            }
            for op in ops {
                self.rings[op.kind as usize].push(Arc::clone(&op.event));
            }
            self.version.store(last, Ordering::Release);
        }
        for op in ops {
            urgent |= !matches!(op.kind, Kind::Lease | Kind::Event);
            self.count_change(op);
            if let Some(observer) = self.observer.get() {
                observer(op.kind, &op.event);
            }
            self.rings[op.kind as usize].announce(op.event.version);
        }
        self.dirty.notify_one();
        if urgent {
            self.urgent.notify_one();
        }
        Ok(())
    }

    fn count_change(&self, op: &Pending) {
        let mut counts = lock(&self.counts);
        let count = counts.entry(op.kind).or_default();
        match op.event.change {
            Change::Added => *count += 1,
            Change::Modified => {}
            Change::Deleted => *count = count.saturating_sub(1),
        }
    }

    /// The changes of a kind after a version.
    ///
    /// # Errors
    /// When some of them are no longer remembered.
    pub fn since(&self, kind: Kind, version: u64) -> Result<Vec<Arc<Event>>, TooOld> {
        self.rings[kind as usize].since(version)
    }

    /// Tells when a kind changes: the version of its newest change.
    pub fn subscribe(&self, kind: Kind) -> watch::Receiver<u64> {
        self.rings[kind as usize].subscribe()
    }

    /// Waits until something must be made durable: a second after a change, ten after one of a lease or an event.
    pub async fn wait_until_due(&self) {
        self.dirty.notified().await;
        let patient = tokio::time::sleep(std::time::Duration::from_secs(10));
        tokio::select! {
            () = patient => {}
            () = self.urgent.notified() => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
        }
    }

    /// Makes everything durable that was written before the call. Writers go on meanwhile. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk refuses; nothing is lost, the next call tries again.
    pub fn flush(&self) -> Result<(), StoreError> {
        let _alone = lock(&self.flushing);
        let (frozen, version, old_logs) = {
            let mut log = lock(&self.writer);
            let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            if memory.active.is_empty() && memory.frozen.is_none() {
                return Ok(());
            }
            let old = log.rotate()?;
            let mut merged = memory.frozen.take().map(Arc::unwrap_or_clone).unwrap_or_default();
            merged.append(&mut memory.active);
            let frozen = Arc::new(merged);
            memory.frozen = Some(Arc::clone(&frozen));
            (frozen, self.version(), old)
        };
        if let Err(error) = self.disk.save(&frozen, version) {
            lock(&self.writer).keep(old_logs);
            // Tried again in ten seconds, or a second after the next write.
            self.dirty.notify_one();
            return Err(error);
        }
        self.memory.write().unwrap_or_else(PoisonError::into_inner).frozen = None;
        for path in old_logs {
            log::remove(&path)?;
        }
        Ok(())
    }

    /// The last flush of a clean end.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn close(&self) -> Result<(), StoreError> {
        self.flush()?;
        self.disk.mark_closed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Pending {
    kind: Kind,
    key: String,
    event: Arc<Event>,
}

impl Pending {
    fn value(&self) -> Option<&Bytes> {
        (self.event.change != Change::Deleted).then_some(&self.event.object)
    }
}

/// A change that is being made.
pub struct Tx<'a> {
    store: &'a Store,
    next: u64,
    ops: Vec<Pending>,
}

impl Tx<'_> {
    /// The stored bytes of an object, with what this change did so far.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Bytes>, StoreError> {
        let key = key(kind, namespace, name);
        if let Some(op) = self.ops.iter().rev().find(|op| op.key == key) {
            return Ok(op.value().cloned());
        }
        self.store.get_key(&key)
    }

    /// Stores an object under the namespace and name in its metadata, with a new resourceVersion, and returns its bytes.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn put(&mut self, kind: Kind, mut object: Value) -> Result<Bytes, StoreError> {
        let (namespace, name) = (object::namespace(&object).to_owned(), object::name(&object).to_owned());
        let before = self.get(kind, &namespace, &name)?;
        let version = self.take_version();
        object::metadata(&mut object).insert("resourceVersion".into(), version.to_string().into());
        let bytes = Bytes::from(object.to_string());
        let change = if before.is_some() { Change::Modified } else { Change::Added };
        self.push(kind, key(kind, &namespace, &name), Event::new(version, change, bytes.clone(), before));
        Ok(bytes)
    }

    /// Removes an object and returns its last bytes, which carry the version of the removal; none if it was not there.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Bytes>, StoreError> {
        let Some(before) = self.get(kind, namespace, name)? else { return Ok(None) };
        let version = self.take_version();
        let mut last = object::parse(&before);
        object::metadata(&mut last).insert("resourceVersion".into(), version.to_string().into());
        let bytes = Bytes::from(last.to_string());
        let event = Event::new(version, Change::Deleted, bytes.clone(), Some(before));
        self.push(kind, key(kind, namespace, name), event);
        Ok(Some(bytes))
    }

    fn take_version(&mut self) -> u64 {
        let version = self.next;
        self.next += 1;
        version
    }

    fn push(&mut self, kind: Kind, key: String, event: Event) {
        self.ops.push(Pending { kind, key, event: Arc::new(event) });
    }
}

#[cfg(test)]
mod tests;
