//! Who uses which image. A hold is an empty file, so it outlives the daemon as the containers do.
//!
//! Overlay mounts keep using the directories of their layers: removing an image in use would change running containers.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::super::digest::Digest;
use super::{At, Store, StoreError};

/// An owner must be usable as a file name: a pod UID is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot hold an image: letters, digits, -, _ and . only")]
pub struct InvalidOwner(pub String);

impl Store {
    /// Keeps an image from being removed until [`Store::release`]. Holding twice is holding once.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the image has been removed meanwhile.
    pub fn hold(&self, id: &Digest, owner: &str) -> Result<(), StoreError> {
        let path = self.hold_path(id, owner)?;
        // Who holds an image already need not wait for the lock: it has not been removed.
        if path.exists() && self.record_path(id).exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        if self.read_record(id)?.is_none() {
            return Err(StoreError::NotFound(id.to_string()));
        }
        let folder = self.root.join("holds").join(id.file_name());
        fs::create_dir_all(&folder).at("make", &folder)?;
        File::create(&path).at("make", &path)?;
        self.touch(id)
    }

    /// Ends a hold. One that is not there has ended.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn release(&self, id: &Digest, owner: &str) -> Result<(), StoreError> {
        let path = self.hold_path(id, owner)?;
        // Under the lock: the folder must not vanish while somebody puts a hold into it.
        let _lock = self.lock()?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.at("remove", &path)?,
        }
        // Fails while others hold the image, as it should.
        let _ = fs::remove_dir(self.root.join("holds").join(id.file_name()));
        self.touch(id)
    }

    /// Ends every hold of an owner. Returns how many there were.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn release_all(&self, owner: &str) -> Result<usize, StoreError> {
        let folder = self.root.join("holds");
        let mut released = 0;
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let path = entry.at("read", &folder)?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(Digest::from_file_name);
            if let Some(id) = id
                && self.hold_path(&id, owner)?.exists()
            {
                self.release(&id, owner)?;
                released += 1;
            }
        }
        Ok(released)
    }

    /// Everyone who holds an image. A daemon that starts releases those that are gone.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn holds(&self) -> Result<Vec<(Digest, String)>, StoreError> {
        let folder = self.root.join("holds");
        let mut holds = Vec::new();
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let name = entry.at("read", &folder)?.file_name();
            if let Some(id) = name.to_str().and_then(Digest::from_file_name) {
                holds.extend(self.owners(&id)?.into_iter().map(|owner| (id.clone(), owner)));
            }
        }
        Ok(holds)
    }

    pub(super) fn owners(&self, id: &Digest) -> Result<Vec<String>, StoreError> {
        let folder = self.root.join("holds").join(id.file_name());
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at("read", &folder)?,
        };
        let names = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>, _>>().at("read", &folder)?;
        names.sort();
        Ok(names)
    }

    fn hold_path(&self, id: &Digest, owner: &str) -> Result<PathBuf, InvalidOwner> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if owner.is_empty() || owner.len() > 200 || owner.starts_with('.') || !owner.bytes().all(fits) {
            return Err(InvalidOwner(owner.to_owned()));
        }
        Ok(self.root.join("holds").join(id.file_name()).join(owner))
    }
}
