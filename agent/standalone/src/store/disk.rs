//! The durable half: one redb file with one table of objects and one of facts about itself.

use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::{Overlay, StoreError};

const OBJECTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("objects");
const FACTS: TableDefinition<'static, &str, u64> = TableDefinition::new("facts");

/// Pages that redb may keep; the files of one node fit, and so does the daemon's memory.
const CACHE_BYTES: usize = 1 << 20;

pub(super) struct Disk {
    db: Database,
    path: String,
}

/// The database at one moment.
pub(super) struct Snapshot {
    table: ReadOnlyTable<&'static str, &'static [u8]>,
    path: String,
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::OpenOptionsExt;
        let name = path.display().to_string();
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| StoreError::File { what: "open", path: name.clone(), source })?;
        let wrap = |e: redb::Error| StoreError::Database { path: name.clone(), source: Box::new(e) };
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let db = builder.create_file(file).map_err(|e| wrap(e.into()))?;
        let disk = Self { db, path: name };
        // Both tables exist from the start, so that a snapshot can always be taken.
        disk.change(|tx| {
            tx.open_table(OBJECTS)?;
            tx.open_table(FACTS)?;
            Ok(())
        })?;
        Ok(disk)
    }

    fn wrap(&self, error: impl Into<redb::Error>) -> StoreError {
        StoreError::Database { path: self.path.clone(), source: Box::new(error.into()) }
    }

    fn change(
        &self,
        f: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let tx = self.db.begin_write().map_err(|e| self.wrap(e))?;
        f(&tx).map_err(|e| self.wrap(e))?;
        tx.commit().map_err(|e| self.wrap(e))
    }

    fn fact(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let tx = self.db.begin_read().map_err(|e| self.wrap(e))?;
        let table = tx.open_table(FACTS).map_err(|e| self.wrap(e))?;
        Ok(table.get(name).map_err(|e| self.wrap(e))?.map(|v| v.value()))
    }

    pub(super) fn version(&self) -> Result<u64, StoreError> {
        Ok(self.fact("version")?.unwrap_or(0))
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
        self.change(|tx| {
            let mut table = tx.open_table(OBJECTS)?;
            for (key, value) in overlay {
                match value {
                    Some(bytes) => table.insert(key.as_str(), &bytes[..])?,
                    None => table.remove(key.as_str())?,
                };
            }
            tx.open_table(FACTS)?.insert("version", version)?;
            Ok(())
        })
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let tx = self.db.begin_read().map_err(|e| self.wrap(e))?;
        let table = tx.open_table(OBJECTS).map_err(|e| self.wrap(e))?;
        Ok(Snapshot { table, path: self.path.clone() })
    }
}

impl Snapshot {
    fn wrap(&self, error: impl Into<redb::Error>) -> StoreError {
        StoreError::Database { path: self.path.clone(), source: Box::new(error.into()) }
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let found = self.table.get(key).map_err(|e| self.wrap(e))?;
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
        for entry in self.table.range(start..).map_err(|e| self.wrap(e))? {
            let (key, value) = entry.map_err(|e| self.wrap(e))?;
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
