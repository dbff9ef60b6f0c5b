//! The durable half: one redb file with one table of objects and one of facts about itself.
//!
//! After a failed write redb refuses everything until it is opened anew, so that is done at once; and a commit that would not
//! fit on the disk is not begun, so that reading goes on when the disk is full.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::{Overlay, StoreError};

const OBJECTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("objects");
const FACTS: TableDefinition<'static, &str, u64> = TableDefinition::new("facts");

/// Pages that redb may keep; the files of one node fit, and so does the daemon's memory.
const CACHE_BYTES: usize = 1 << 20;
/// Room for pages that a commit copies beside the objects themselves.
const SPARE_BYTES: u64 = 2 << 20;

pub(super) struct Disk {
    /// None only while it is opened anew, or when that failed.
    db: RwLock<Option<Database>>,
    file: PathBuf,
}

/// The database at one moment.
pub(super) struct Snapshot {
    table: ReadOnlyTable<&'static str, &'static [u8]>,
    file: PathBuf,
}

fn failed(file: &Path, error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database { path: file.display().to_string(), source: Box::new(error.into()) }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    let file = options.open(path).map_err(|source| StoreError::File {
        what: "open",
        path: path.display().to_string(),
        source,
    })?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.create_file(file).map_err(|e| failed(path, e))
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let disk = Self { db: RwLock::new(Some(open(path)?)), file: path.to_owned() };
        // Both tables exist from the start, so that a snapshot can always be taken.
        disk.change(|tx| {
            tx.open_table(OBJECTS)?;
            tx.open_table(FACTS)?;
            Ok(())
        })?;
        Ok(disk)
    }

    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let closed = || std::io::Error::other("closed after an error, and it could not be opened again");
        let db = db.as_ref().ok_or_else(|| failed(&self.file, redb::Error::Io(closed())))?;
        f(db).map_err(|e| failed(&self.file, e))
    }

    /// Lets go of a database that refuses everything after an error.
    pub(super) fn reopen(&self) {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *db = None;
        match open(&self.file) {
            Ok(fresh) => *db = Some(fresh),
            Err(error) => tracing::error!(%error, "open the database again"),
        }
    }

    fn check_room(&self, overlay: &Overlay) -> Result<(), StoreError> {
        let size: usize = overlay.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Bytes::len)).sum();
        let needed = size as u64 + SPARE_BYTES;
        let Ok(stat) = nix::sys::statvfs::statvfs(&self.file) else { return Ok(()) };
        let free = stat.blocks_available() * stat.fragment_size();
        if free >= needed {
            return Ok(());
        }
        let source = std::io::Error::other(format!("{free} bytes free, {needed} needed"));
        Err(StoreError::File { what: "no room to write", path: self.file.display().to_string(), source })
    }

    fn change(
        &self,
        f: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        self.with(|db| {
            let tx = db.begin_write()?;
            f(&tx)?;
            Ok(tx.commit()?)
        })
    }

    fn fact(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.with(|db| {
            let table = db.begin_read()?.open_table(FACTS)?;
            Ok(table.get(name)?.map(|v| v.value()))
        })
    }

    /// The version that the objects in the file show.
    pub(super) fn version(&self) -> Result<u64, StoreError> {
        Ok(self.fact("version")?.unwrap_or(0))
    }

    /// The version from which the last process counted.
    pub(super) fn given(&self) -> Result<u64, StoreError> {
        Ok(self.fact("given")?.unwrap_or(0))
    }

    pub(super) fn closed_cleanly(&self) -> Result<bool, StoreError> {
        Ok(self.fact("open")? != Some(1))
    }

    /// Marks the database as in use, and `version` as given out, durably.
    pub(super) fn mark_open(&self, version: u64) -> Result<(), StoreError> {
        self.change(|tx| {
            let mut facts = tx.open_table(FACTS)?;
            facts.insert("open", 1)?;
            facts.insert("given", version)?;
            Ok(())
        })
    }

    pub(super) fn mark_closed(&self) -> Result<(), StoreError> {
        self.change(|tx| {
            tx.open_table(FACTS)?.insert("open", 0)?;
            Ok(())
        })
    }

    /// Writes what changed, and the version that it shows, in one durable commit.
    pub(super) fn save(&self, overlay: &Overlay, version: u64) -> Result<(), StoreError> {
        self.check_room(overlay)?;
        let saved = self.change(|tx| {
            let mut table = tx.open_table(OBJECTS)?;
            for (key, value) in overlay {
                match value {
                    Some(bytes) => table.insert(key.as_str(), &bytes[..])?,
                    None => table.remove(key.as_str())?,
                };
            }
            tx.open_table(FACTS)?.insert("version", version)?;
            Ok(())
        });
        if saved.is_err() {
            self.reopen();
        }
        saved
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let table = self.with(|db| Ok(db.begin_read()?.open_table(OBJECTS)?))?;
        Ok(Snapshot { table, file: self.file.clone() })
    }
}

impl Snapshot {
    pub(super) fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let found = self.table.get(key).map_err(|e| failed(&self.file, e))?;
        Ok(found.map(|v| Bytes::copy_from_slice(v.value())))
    }

    /// The first `limit` objects from `start` that begin with `prefix`, with the overlay on top.
    pub(super) fn merge(
        &self,
        prefix: &str,
        start: &str,
        overlay: Overlay,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, StoreError> {
        let mut above = overlay.into_iter().peekable();
        let mut out = Vec::new();
        for entry in self.table.range(start..).map_err(|e| failed(&self.file, e))? {
            let (key, value) = entry.map_err(|e| failed(&self.file, e))?;
            let key = key.value();
            if !key.starts_with(prefix) || out.len() >= limit {
                break;
            }
            while above.peek().is_some_and(|(k, _)| k.as_str() < key) {
                out.extend(above.next().and_then(|(k, v)| Some((k, v?))));
            }
            if above.peek().is_some_and(|(k, _)| k == key) {
                out.extend(above.next().and_then(|(k, v)| Some((k, v?))));
            } else {
                out.push((key.to_owned(), Bytes::copy_from_slice(value.value())));
            }
        }
        while out.len() < limit {
            let Some((key, value)) = above.next() else { break };
            out.extend(value.map(|v| (key, v)));
        }
        out.truncate(limit);
        Ok(out)
    }
}
