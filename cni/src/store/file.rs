//! The log as a file: locking, catching up, appending, rewriting.
//!
//! Owns: the descriptors, and the memory of how far the log has been read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::log::{self, Record};
use super::pick::pick;
use super::range::RangeSet;
use super::state::State;
use super::{Lease, Owner, StoreError};

/// The log is rewritten when it holds more than this many records, and four times what is needed.
const REWRITE_FROM: usize = 1024;

/// The leases of one network.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    path: PathBuf,
    /// Unlocked between calls; `Flock` owns the file while it is locked.
    lock: Option<File>,
    log: Option<Log>,
    state: State,
}

#[derive(Debug)]
struct Log {
    file: File,
    inode: u64,
    read: u64,
}

impl Store {
    /// The store of `network` under `state_dir`. Nothing is opened before the first use.
    #[must_use]
    pub fn new(state_dir: &Path, network: &str) -> Self {
        let directory = state_dir.join("networks").join(network);
        Self { path: directory.join("leases"), directory, lock: None, log: None, state: State::default() }
    }

    /// Leases one address of each set to `owner`. Requested addresses are taken from the first set they fit.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is leased then.
    pub fn lease(
        &mut self,
        owner: &Owner,
        sets: &[RangeSet],
        requested: &[IpAddr],
    ) -> Result<Vec<Lease>, StoreError> {
        self.locked(|store| {
            store.refuse_twice(owner)?;
            let picked = pick(&store.state, sets, requested)?;
            let records: Vec<_> = picked
                .iter()
                .map(|l| Record::Leased { set: l.set, address: l.address, owner: owner.clone() })
                .collect();
            store.append(&records)?;
            Ok(picked)
        })
    }

    /// Notes an attachment whose addresses come from elsewhere, so that GC finds it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn attach(&mut self, owner: &Owner) -> Result<(), StoreError> {
        self.locked(|store| {
            store.refuse_twice(owner)?;
            store.append(&[Record::Attached(owner.clone())])
        })
    }

    fn refuse_twice(&self, owner: &Owner) -> Result<(), StoreError> {
        match self.state.leases(owner) {
            Some(_) => Err(StoreError::AlreadyLeased {
                container: owner.container.clone(),
                ifname: owner.ifname.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Gives back everything these owners have. Owners without leases are fine.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn release(&mut self, owners: &[Owner]) -> Result<(), StoreError> {
        self.locked(|store| {
            let known = owners.iter().filter(|o| store.state.leases(o).is_some());
            let records: Vec<_> = known.map(|o| Record::Released(o.clone())).collect();
            store.append(&records)
        })
    }

    /// Every owner, and the addresses of each.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn owners(&mut self) -> Result<Vec<(Owner, Vec<IpAddr>)>, StoreError> {
        self.locked(|store| {
            let addresses =
                |o: &Owner| store.state.leases(o).unwrap_or_default().iter().map(|l| l.address).collect();
            Ok(store.state.owners().map(|o| (o.clone(), addresses(o))).collect())
        })
    }

    /// The addresses of one owner; `None` when it is not known at all.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn addresses(&mut self, owner: &Owner) -> Result<Option<Vec<IpAddr>>, StoreError> {
        self.locked(|store| Ok(store.state.leases(owner).map(|l| l.iter().map(|l| l.address).collect())))
    }

    /// Whether a lease from each set could be given now.
    ///
    /// # Errors
    /// [`StoreError::Exhausted`] names the ranges that are full.
    pub fn has_free(&mut self, sets: &[RangeSet]) -> Result<(), StoreError> {
        self.locked(|store| pick(&store.state, sets, &[]).map(|_| ()))
    }

    /// Runs `work` if nobody has a lease, while nobody can get one.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn while_empty(&mut self, work: impl FnOnce()) -> Result<bool, StoreError> {
        self.locked(|store| {
            let empty = store.state.len() == 0;
            if empty {
                work();
            }
            Ok(empty)
        })
    }

    /// Takes the lock, reads what others wrote, and runs `work`.
    fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let file = match self.lock.take() {
            Some(file) => file,
            None => self.open_lock()?,
        };
        let guard = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| StoreError::io("lock", &self.directory, e.into()))?;
        let result = self.catch_up().and_then(|()| work(self));
        // Unlocking can only fail on a bad descriptor; dropping the guard closes it, which unlocks as well.
        self.lock = guard.unlock().ok();
        result
    }

    fn open_lock(&self) -> Result<File, StoreError> {
        fs::create_dir_all(&self.directory).map_err(|e| StoreError::io("create", &self.directory, e))?;
        let path = self.directory.join("lock");
        let options =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        options.map_err(|e| StoreError::io("open", &path, e))
    }

    /// Reads what was appended since the last time; starts over when the log was rewritten.
    fn catch_up(&mut self) -> Result<(), StoreError> {
        let io = |e| StoreError::io("read", &self.path, e);
        let (inode, size) = match fs::metadata(&self.path) {
            Ok(metadata) => (metadata.ino(), metadata.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.state = State::default();
                return self.rewrite();
            }
            Err(e) => return Err(io(e)),
        };
        if self.log.as_ref().is_none_or(|log| log.inode != inode || log.read > size) {
            let file = OpenOptions::new().read(true).write(true).open(&self.path).map_err(io)?;
            self.log = Some(Log { file, inode, read: 0 });
            self.state = State::default();
        }
        let log = self.log.as_mut().expect("opened just above");
        if log.read == size {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(size - log.read).unwrap_or(usize::MAX)];
        log.file.read_exact_at(&mut bytes, log.read).map_err(io)?;
        let parsed = log::parse(&bytes);
        let good = log.read + parsed.good as u64;
        if parsed.damaged {
            self.log = None;
            return Err(StoreError::Damaged { path: self.path.display().to_string(), offset: good });
        }
        let fresh = log.read == 0;
        log.read = good;
        if good < size {
            log.file.set_len(good).map_err(|e| StoreError::io("cut the torn end off", &self.path, e))?;
        }
        if fresh && parsed.records.first() != Some(&Record::Boot(boot_id())) {
            self.state = State::default();
            return self.rewrite();
        }
        parsed.records.iter().for_each(|r| self.state.apply(r));
        Ok(())
    }

    fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let text: String = records.iter().map(Record::line).collect();
        let log = self.log.as_mut().expect("the log is open while the lock is held");
        if let Err(e) = log.file.write_all_at(text.as_bytes(), log.read) {
            // What was written in part must not be taken for a record later.
            let _ = log.file.set_len(log.read);
            return Err(StoreError::io("append to", &self.path, e));
        }
        log.read += text.len() as u64;
        records.iter().for_each(|r| self.state.apply(r));
        if self.state.records > REWRITE_FROM && self.state.records > 4 * self.state.summary().len() {
            self.rewrite()?;
        }
        Ok(())
    }

    /// Writes a new log with only what matters beside the old one, then puts it in its place.
    fn rewrite(&mut self) -> Result<(), StoreError> {
        let records = self.state.summary();
        let text: String = std::iter::once(Record::Boot(boot_id()))
            .chain(records.iter().cloned())
            .map(|r| r.line())
            .collect();
        let temporary = self.directory.join("leases.new");
        let io = |e| StoreError::io("rewrite", &self.path, e);
        let options = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&temporary);
        let mut file = options.map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        fs::rename(&temporary, &self.path).map_err(io)?;
        let inode = file.metadata().map_err(io)?.ino();
        self.log = Some(Log { file, inode, read: text.len() as u64 });
        self.state = State::default();
        records.iter().for_each(|r| self.state.apply(r));
        Ok(())
    }
}

/// What tells this boot from any other.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = id.trim();
    if id.is_empty() { "unknown".to_owned() } else { id.to_owned() }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
