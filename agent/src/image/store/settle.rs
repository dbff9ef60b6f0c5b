//! Which folder an image takes for each of its layers: the layer's own, or a settled copy of it.
//!
//! A copy is named by the layer and by what was settled in it, so images with the same layers below share it.

use std::path::PathBuf;

use super::super::digest::Digest;
use super::super::layers::settle::{Settled, copy_settled, differing};
use super::{At, Record, Store, StoreError};

impl Store {
    /// The folders of an image's layers, copies made where they are needed; empty if none is.
    pub(super) fn settle(&self, record: &Record) -> Result<Vec<String>, StoreError> {
        let missing = || StoreError::MissingLayers { id: record.id.clone() };
        let mut folders = Vec::new();
        let mut below: Vec<PathBuf> = Vec::new();
        for diff_id in &record.layers {
            let own = self.layer(diff_id).ok_or_else(missing)?;
            let mark = self.layer_mark(diff_id).ok_or_else(missing)?;
            let settled = differing(&mark.implied, &below).at("look below", &own)?;
            let folder =
                if settled.is_empty() { diff_id.file_name() } else { self.settled_copy(diff_id, &settled)? };
            below.push(self.whole_layer(&folder).ok_or_else(missing)?);
            folders.push(folder);
        }
        let own = record.layers.iter().map(Digest::file_name);
        Ok(if own.eq(folders.iter().cloned()) { Vec::new() } else { folders })
    }

    fn settled_copy(&self, diff_id: &Digest, settled: &[Settled]) -> Result<String, StoreError> {
        let missing = || StoreError::NotFound(diff_id.to_string());
        let own = self.layer(diff_id).ok_or_else(missing)?;
        let what = serde_json::to_vec(settled).at("settle", &own)?;
        let folder = format!("{}+{}", diff_id.file_name(), Digest::of(&what).short());
        if self.whole_layer(&folder).is_none() {
            let work = self.begin()?;
            let to = work.layer_directory()?;
            copy_settled(&own, &to, settled).at("copy", &own)?;
            self.publish(&work, &self.layer_mark(diff_id).ok_or_else(missing)?, &folder)?;
        }
        Ok(folder)
    }
}
