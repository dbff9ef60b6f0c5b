//! After a power loss: layers that the disk did not keep are dropped, so that the next pull brings them again.
//!
//! Layers are synced before they become visible, but disks lie and file systems are repaired. Looking at every file's
//! metadata once for each boot costs little beside a container that starts with an empty program.

use std::fs;

use super::super::layers::census::census;
use super::record::write_atomically;
use super::{At, Store, StoreError};

impl Store {
    /// Checks every layer, once for each boot; names the folders of those it dropped. To be called before containers run:
    /// a layer in use must not be removed. `boot_id` is that of `/proc/sys/kernel/random/boot_id`.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn verify_after_boot(&self, boot_id: &str) -> Result<Vec<String>, StoreError> {
        let seen = self.root.join("verified-boot");
        if fs::read_to_string(&seen).is_ok_and(|before| before == boot_id) {
            return Ok(Vec::new());
        }
        let work = self.begin()?;
        let mut damaged = Vec::new();
        let folder = self.root.join("layers");
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let Ok(name) = entry.at("read", &folder)?.file_name().into_string() else { continue };
            if !self.is_as_unpacked(&name) {
                let _lock = self.lock()?;
                self.discard_layer(&name, &work)?;
                damaged.push(name);
            }
        }
        if !damaged.is_empty() {
            tracing::warn!(layers = %damaged.join(", "), "layers damaged on disk were dropped; their images will be pulled again");
        }
        write_atomically(&seen, boot_id.as_bytes())?;
        Ok(damaged)
    }

    fn is_as_unpacked(&self, folder: &str) -> bool {
        let Some(directory) = self.whole_layer(folder) else { return false };
        let Some(mark) = self.read_mark(folder) else { return false };
        census(&directory).is_ok_and(|found| mark.census == Some(found))
    }
}
