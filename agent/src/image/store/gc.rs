//! What to remove when the disk fills, and layers that no image has.
//!
//! The choice is pure ([`plan_removal`]); the kubelet's order: least recently used first, nothing younger than the
//! minimum age (`imageMinimumGCAge`), nothing in use.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use super::super::digest::Digest;
use super::{At, Image, Store, StoreError};

/// An image as a collector sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its ID.
    pub id: Digest,
    /// When it was last used or pulled.
    pub last_used: SystemTime,
    /// Bytes of its files.
    pub size: u64,
    /// Whether something runs from it or holds it.
    pub in_use: bool,
}

/// What a sweep freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reclaimed {
    /// Layers removed.
    pub layers: u64,
    /// Bytes freed.
    pub bytes: u64,
}

/// Chooses images to remove until `wanted` bytes are free, or until nothing removable is left.
#[must_use]
pub fn plan_removal(
    candidates: &[Candidate],
    wanted: u64,
    minimum_age: Duration,
    now: SystemTime,
) -> Vec<Digest> {
    let old_enough = |c: &&Candidate| now.duration_since(c.last_used).is_ok_and(|age| age >= minimum_age);
    let mut removable: Vec<&Candidate> = candidates.iter().filter(|c| !c.in_use).filter(old_enough).collect();
    removable.sort_by_key(|c| (c.last_used, c.id.clone()));
    let mut freed = 0u64;
    let enough = |c: &&&Candidate| {
        let more = freed < wanted;
        freed = freed.saturating_add(c.size);
        more
    };
    removable.iter().take_while(enough).map(|c| c.id.clone()).collect()
}

impl Store {
    /// All images as [`plan_removal`] wants them. `in_use` adds to the holds on disk.
    ///
    /// # Errors
    /// An unreadable store.
    pub fn candidates(&self, in_use: &BTreeSet<Digest>) -> Result<Vec<Candidate>, StoreError> {
        let held: BTreeSet<Digest> = self.holds()?.into_iter().map(|(id, _)| id).collect();
        let candidate = |Image { id, last_used, size, .. }: Image| Candidate {
            in_use: in_use.contains(&id) || held.contains(&id),
            id,
            last_used,
            size,
        };
        Ok(self.list()?.into_iter().map(candidate).collect())
    }

    /// Removes those of the given layers that no image has: what an import that failed in the middle had unpacked.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn drop_unused(&self, diff_ids: &[Digest]) -> Result<(), StoreError> {
        let work = self.begin()?;
        let _lock = self.lock()?;
        let kept = self.kept_folders()?;
        for folder in diff_ids.iter().map(Digest::file_name).filter(|folder| !kept.contains(folder)) {
            self.discard_layer(&folder, &work)?;
        }
        Ok(())
    }

    /// Removes layers that no image has and that are older than `age`: those of pulls that were never finished, and of
    /// records that a failing disk made unreadable.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn sweep_layers(&self, age: Duration, now: SystemTime) -> Result<Reclaimed, StoreError> {
        let work = self.begin()?;
        let mut reclaimed = Reclaimed::default();
        let _lock = self.lock()?;
        let kept = self.kept_folders()?;
        let folder = self.root.join("layers");
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let entry = entry.at("read", &folder)?;
            let Ok(layer) = entry.file_name().into_string() else { continue };
            let changed = entry.metadata().and_then(|m| m.modified()).at("look at", &entry.path())?;
            let old = now.duration_since(changed).is_ok_and(|idle| idle >= age);
            if old && !kept.contains(&layer) {
                reclaimed.bytes += self.discard_layer(&layer, &work)?;
                reclaimed.layers += 1;
            }
        }
        Ok(reclaimed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_unused_images_go_first_and_only_as_many_as_needed() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let candidate = |n: u8, age: u64, in_use: bool| Candidate {
            id: Digest::of(&[n]),
            last_used: now - Duration::from_secs(age),
            size: 100,
            in_use,
        };
        let all = [
            candidate(1, 50, false),
            candidate(2, 500, false),
            candidate(3, 900, true),
            candidate(4, 400, false),
        ];
        let plan = |wanted, age| plan_removal(&all, wanted, Duration::from_secs(age), now);
        assert_eq!(plan(150, 0), [all[1].id.clone(), all[3].id.clone()]);
        assert_eq!(plan(1, 0), [all[1].id.clone()]);
        assert_eq!(plan(0, 0), []);
        assert_eq!(plan(u64::MAX, 120), [all[1].id.clone(), all[3].id.clone()]);
    }
}
