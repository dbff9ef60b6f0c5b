//! Records of attachments: a small file for each, written beside and renamed into place.
//!
//! Owns: `<cache>/<container>@<ifname>.json`. A record without a result is of an ADD that was begun.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::{NetworkList, NetworkResult};
use crate::store::Owner;

use super::attachment::{Attached, Attachment};
use super::{LoadError, RuntimeError};

/// One attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// The configuration it is made by.
    network: Value,
    pub(super) attachment: Attachment,
    /// What tells the namespace from another at the same path.
    pub(super) netns_inode: u64,
    /// The last plugin's result, when ADD was complete.
    pub(super) result: Option<Value>,
}

impl Record {
    pub(super) fn begin(network: &NetworkList, attachment: &Attachment, netns_inode: u64) -> Self {
        Self { network: network.to_value(), attachment: attachment.clone(), netns_inode, result: None }
    }

    pub(super) fn network(&self) -> Result<NetworkList, RuntimeError> {
        let unusable = |error| LoadError::Unusable { file: PathBuf::from("record of an attachment"), error };
        NetworkList::from_value(self.network.clone()).map_err(|e| unusable(e).into())
    }

    pub(super) fn attached(&self) -> Option<Attached> {
        let network = self.network().ok()?;
        let result = NetworkResult::from_json(self.result.as_ref()?, network.version).ok()?;
        Some(Attached::new(network.name, result))
    }
}

/// The directory of records.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RuntimeError + 'a {
    move |source| RuntimeError::Record { what, path: path.to_owned(), source }
}

impl Cache {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self, owner: &Owner) -> PathBuf {
        self.dir.join(format!("{}@{}.json", owner.container, owner.ifname))
    }

    pub(super) fn read(&self, owner: &Owner) -> Result<Option<Record>, RuntimeError> {
        read_file(&self.path(owner))
    }

    pub(super) fn write(&self, owner: &Owner, record: &Record) -> Result<(), RuntimeError> {
        let path = self.path(owner);
        let temporary = path.with_extension("json.new");
        let bytes = serde_json::to_vec(record).map_err(|e| failed("write", &path)(e.into()))?;
        let written = match fs::write(&temporary, &bytes) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.dir).map_err(failed("create", &self.dir))?;
                fs::write(&temporary, &bytes)
            }
            other => other,
        };
        written.and_then(|()| fs::rename(&temporary, &path)).map_err(failed("write", &path))
    }

    pub(super) fn remove(&self, owner: &Owner) -> Result<(), RuntimeError> {
        let path = self.path(owner);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Every record. One that cannot be read is dropped.
    pub(super) fn list(&self) -> Result<Vec<(Owner, Record)>, RuntimeError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("read", &self.dir)(e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("read", &self.dir))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read_file(&path) {
                Ok(None) => {}
                Ok(Some(record)) => found.extend(record.attachment.owner().ok().map(|owner| (owner, record))),
                Err(error) => {
                    // What it recorded cannot be known any more; our own plugin's GC finds its part by the leases.
                    tracing::error!(%error, "dropping the record of an attachment");
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
            }
        }
        Ok(found)
    }
}

fn read_file(path: &Path) -> Result<Option<Record>, RuntimeError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", path)(e)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| failed("read", path)(e.into()))
}
