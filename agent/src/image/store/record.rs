//! The small JSON files of the store: image records, layer marks, the generation. Each is written beside and renamed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::super::config::ImageConfig;
use super::super::digest::Digest;
use super::{At, Store, StoreError};

/// The file whose presence says that a layer is whole.
pub(super) const MARK: &str = "layer.json";

/// The extension of a file on its way to its name.
pub(super) const UNRENAMED: &str = "new";

/// One image as it stands on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Digest of the configuration.
    pub id: Digest,
    /// Full tagged names.
    pub tags: BTreeSet<String>,
    /// Full names with digest.
    pub digests: BTreeSet<String>,
    /// Bytes of files in all layers.
    pub size: u64,
    /// Execution parameters.
    pub config: ImageConfig,
    /// diffIDs, lowest layer first.
    pub layers: Vec<Digest>,
    /// Folders of the layers where they differ from the layers' own: see `layers::settle`. As long as `layers`, or empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<String>,
    /// When the record was written, in milliseconds since 1970: of two owners of a tag the later one has it.
    #[serde(default)]
    pub tagged_at: u64,
}

impl Record {
    /// Folders of the image's layers below `layers/`, lowest first.
    pub(super) fn layer_folders(&self) -> Vec<String> {
        let own = |(i, diff_id): (usize, &Digest)| {
            self.folders.get(i).cloned().unwrap_or_else(|| diff_id.file_name())
        };
        self.layers.iter().enumerate().map(own).collect()
    }

    /// Every folder that must stay for this image: the layers it uses, and those they were copied from.
    pub(super) fn kept_folders(&self) -> impl Iterator<Item = String> {
        let own = self.layers.iter().map(Digest::file_name).collect::<Vec<_>>();
        own.into_iter().chain(self.folders.clone())
    }
}

/// What is known about a whole layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerMark {
    /// Digest of its uncompressed tar stream.
    pub diff_id: Digest,
    /// Bytes in its files.
    pub size: u64,
    /// Number of its archive members.
    pub entries: u64,
    /// What is in its directory, by names and metadata: see `layers::census`.
    #[serde(default)]
    pub census: Option<Digest>,
    /// Directories it has entries in but does not describe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implied: Vec<PathBuf>,
}

impl Store {
    pub(super) fn record_path(&self, id: &Digest) -> PathBuf {
        self.root.join("records").join(format!("{}.json", id.file_name()))
    }

    /// What is known about a layer, if it is whole.
    #[must_use]
    pub fn layer_mark(&self, diff_id: &Digest) -> Option<LayerMark> {
        self.read_mark(&diff_id.file_name())
    }

    pub(super) fn read_mark(&self, folder: &str) -> Option<LayerMark> {
        let json = fs::read(self.root.join("layers").join(folder).join(MARK)).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// A record and when its image was last used. A record that cannot be parsed counts as absent: the next pull heals it.
    pub(super) fn read_record(&self, id: &Digest) -> Result<Option<(Record, SystemTime)>, StoreError> {
        read(&self.record_path(id))
    }

    pub(super) fn records(&self) -> Result<Vec<(Record, SystemTime)>, StoreError> {
        let folder = self.root.join("records");
        let mut records = Vec::new();
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let path = entry.at("read", &folder)?.path();
            if path.extension().is_some_and(|e| e == "json") {
                records.extend(read(&path)?);
            }
        }
        Ok(records)
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), StoreError> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let tagged_at = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let path = self.record_path(&record.id);
        let json = serde_json::to_vec(&Record { tagged_at, ..record.clone() }).at("write", &path)?;
        write_atomically(&path, &json)
    }

    /// A text that differs whenever a record has changed; `None` before the first change.
    pub(super) fn generation(&self) -> Result<Option<String>, StoreError> {
        let path = self.root.join("generation");
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).at("read", &path),
        }
    }

    pub(super) fn new_generation(&self) -> Result<(), StoreError> {
        let written =
            write_atomically(&self.root.join("generation"), uuid::Uuid::new_v4().to_string().as_bytes());
        self.changes.send_modify(|count| *count += 1);
        written
    }
}

fn read(path: &Path) -> Result<Option<(Record, SystemTime)>, StoreError> {
    let opened = File::open(path).and_then(|f| Ok((f.metadata()?.modified()?, io::read_to_string(f)?)));
    match opened {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read", path),
        Ok((used, json)) => match serde_json::from_str(&json) {
            Ok(record) => Ok(Some((record, used))),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "an image record is unreadable; the image counts as absent");
                Ok(None)
            }
        },
    }
}

/// Writes a file that is there in full or not at all. The store's lock keeps a second writer away.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let beside = path.with_extension(UNRENAMED);
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    if let Err(error) = write() {
        // What is half-written must not stay on a full disk.
        let _ = fs::remove_file(&beside);
        return Err(error).at("write", path);
    }
    sync_folder(path.parent().unwrap_or(path))
}

/// Makes renames in a folder last.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|f| f.sync_all()).at("sync", folder)
}
