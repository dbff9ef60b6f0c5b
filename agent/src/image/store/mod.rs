//! Images on disk, and nothing but the disk: every answer is true for a daemon just started as for one long running.
//!
//! Owns the folder it is opened on:
//! ```text
//! lock                 flock: exclusive while records change, for milliseconds
//! generation           changes with every change of a record; what caches are checked against
//! records/<id>.json    one image: names, configuration, layers
//! layers/<diffID>/     fs/ is the layer, layer.json the mark that it is whole
//! partial/<digest>     blobs on their way
//! holds/<id>/<owner>   who uses an image; held images are not removed
//! verified-boot        the boot in which layers were last looked through
//! tmp/<uuid>/          work under way, flocked by who does it
//! ```
//! Guarantees: records and layers appear by a rename after their content is on the disk, so they are whole or absent,
//! whenever a process or the power fails. Daemon and command line may work on the same store at once.
//! Never: unpacks, pulls, or decides what to remove.

mod gc;
mod hold;
mod partial;
mod record;
mod settle;
mod verify;
mod work;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

pub use self::gc::{Candidate, Reclaimed, plan_removal};
pub use self::hold::InvalidOwner;
pub use self::partial::Partial;
pub use self::record::{LayerMark, Record};
pub use self::work::Work;
use tokio::sync::watch;

use super::config::ImageConfig;
use super::digest::Digest;
use super::reference::Reference;

/// An image that is whole on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration: the image ID of docker and the CRI.
    pub id: Digest,
    /// Full tagged names, sorted.
    pub repo_tags: Vec<String>,
    /// Full names with the digest of the manifest or index they were pulled by, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of its files on this disk; layers shared with other images count for each.
    pub size: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// Directories of its layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// When it was last used or pulled.
    pub last_used: SystemTime,
}

impl Image {
    /// What a container status shows as `imageID`: a name with digest if there is one, otherwise the ID.
    #[must_use]
    pub fn status_id(&self) -> String {
        self.repo_digests.first().cloned().unwrap_or_else(|| self.id.to_string())
    }
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("{action} {path}: {cause}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// No image of that name or ID.
    #[error("image {0:?} is not in the store")]
    NotFound(String),
    /// An abbreviated ID fits several images.
    #[error("image ID {0:?} fits more than one image")]
    Ambiguous(String),
    /// The image is in use.
    #[error("image {id} is in use by {owners}", owners = .owners.join(", "))]
    InUse {
        /// Which image.
        id: Digest,
        /// Who holds it.
        owners: Vec<String>,
    },
    /// Layers vanished between unpacking and recording, by a removal in another process.
    #[error("layers of image {id} are missing from the store")]
    MissingLayers {
        /// Which image.
        id: Digest,
    },
    /// The owner of a hold cannot be a file name.
    #[error(transparent)]
    InvalidOwner(#[from] InvalidOwner),
}

impl StoreError {
    /// Whether the cause is a full disk or quota.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { cause, .. } => {
                matches!(cause.raw_os_error(), Some(nix::libc::ENOSPC | nix::libc::EDQUOT))
            }
            Self::NotFound(_)
            | Self::Ambiguous(_)
            | Self::InUse { .. }
            | Self::MissingLayers { .. }
            | Self::InvalidOwner(_) => false,
        }
    }
}

/// Adds what was attempted on which path to an I/O error.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|e| StoreError::Io { action, path: path.to_owned(), cause: e.into() })
    }
}

/// The store in one folder.
pub struct Store {
    root: PathBuf,
    names: Mutex<Names>,
    /// Counts the changes of records by this process.
    changes: watch::Sender<u64>,
}

/// Which name means which image, as of a generation. Small: the records themselves stay on the disk.
#[derive(Default)]
struct Names {
    generation: Option<String>,
    by_name: HashMap<String, Digest>,
}

impl Store {
    /// Opens the store, making its folder if need be, and removes what dead processes left half-done.
    ///
    /// # Errors
    /// Folders that cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for folder in ["records", "layers", "partial", "holds", "tmp"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).at("make", &path)?;
        }
        // Images hold programs with setuid bits and files of any owner: no user of the host may walk in.
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).at("close to other users", root)?;
        let store =
            Self { root: root.to_owned(), names: Mutex::default(), changes: watch::Sender::default() };
        store.sweep_work()?;
        Ok(store)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Tells of images that this process adds, renames or removes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The image of that name (`busybox`, `host/x:tag`, `host/x@sha256:…`) or ID (`sha256:…`, or at least the first
    /// seven digits of it). An image that lacks a layer counts as absent, so that the next pull heals it.
    ///
    /// # Errors
    /// An unreadable store, or an abbreviated ID that fits several images.
    pub fn resolve(&self, name: &str) -> Result<Option<Image>, StoreError> {
        self.refresh_names()?;
        let id = {
            let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            match names.find(name) {
                Err(Ambiguous) => return Err(StoreError::Ambiguous(name.to_owned())),
                Ok(None) => return Ok(None),
                Ok(Some(id)) => id,
            }
        };
        let record = self.read_record(&id)?;
        Ok(record.and_then(|(record, last_used)| self.image(record, last_used)))
    }

    /// Every whole image, ordered by name.
    ///
    /// # Errors
    /// An unreadable store.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let mut images: Vec<Image> =
            self.records()?.into_iter().filter_map(|(record, used)| self.image(record, used)).collect();
        images.sort_by(|a, b| {
            (&a.repo_tags, &a.repo_digests, &a.id).cmp(&(&b.repo_tags, &b.repo_digests, &b.id))
        });
        Ok(images)
    }

    /// Notes that the image was used just now.
    ///
    /// # Errors
    /// Everything but the image's absence.
    pub fn touch(&self, id: &Digest) -> Result<(), StoreError> {
        let path = self.record_path(id);
        match fs::File::open(&path).and_then(|f| f.set_modified(SystemTime::now())) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.at("touch", &path),
        }
    }

    /// Where a layer's files are, if it is whole.
    #[must_use]
    pub fn layer(&self, diff_id: &Digest) -> Option<PathBuf> {
        self.whole_layer(&diff_id.file_name())
    }

    fn whole_layer(&self, folder: &str) -> Option<PathBuf> {
        let path = self.root.join("layers").join(folder);
        path.join(record::MARK).exists().then(|| path.join("fs"))
    }

    /// Records an image whose layers are all there. Its tags are taken from whoever had them; names of an image recorded
    /// before stay.
    ///
    /// # Errors
    /// [`StoreError::MissingLayers`] if a layer is not there (any more), and failing file operations.
    pub fn commit(&self, mut record: Record) -> Result<Image, StoreError> {
        record.folders = self.settle(&record)?;
        let _lock = self.lock()?;
        if record.kept_folders().any(|folder| self.whole_layer(&folder).is_none()) {
            return Err(StoreError::MissingLayers { id: record.id });
        }
        if let Some((before, _)) = self.read_record(&record.id)? {
            record.tags.extend(before.tags);
            record.digests.extend(before.digests);
        }
        // The new owner of a tag is written before the old one gives it up: a crash in between leaves two, and readers
        // take the newer.
        self.write_record(&record)?;
        for (mut other, used) in self.records()? {
            let kept: BTreeSet<_> = other.tags.difference(&record.tags).cloned().collect();
            if other.id != record.id && kept.len() != other.tags.len() {
                other.tags = kept;
                self.write_record(&other)?;
                let path = self.record_path(&other.id);
                fs::File::open(&path).and_then(|f| f.set_modified(used)).at("touch", &path)?;
            }
        }
        self.new_generation()?;
        let written = self.read_record(&record.id)?;
        let image = written.and_then(|(record, last_used)| self.image(record, last_used));
        image.ok_or(StoreError::MissingLayers { id: record.id })
    }

    /// Removes an image and the layers no other image has. Returns the bytes freed.
    ///
    /// # Errors
    /// [`StoreError::InUse`] names who holds it.
    pub fn remove(&self, id: &Digest) -> Result<u64, StoreError> {
        let work = self.begin()?;
        let mut freed = 0;
        {
            let _lock = self.lock()?;
            let Some((record, _)) = self.read_record(id)? else {
                return Err(StoreError::NotFound(id.to_string()));
            };
            let owners = self.owners(id)?;
            if !owners.is_empty() {
                return Err(StoreError::InUse { id: id.clone(), owners });
            }
            let path = self.record_path(id);
            fs::remove_file(&path).at("remove", &path)?;
            self.new_generation()?;
            let kept = self.kept_folders()?;
            for folder in record.kept_folders().filter(|folder| !kept.contains(folder)) {
                freed += self.discard_layer(&folder, &work)?;
            }
        }
        Ok(freed)
    }

    /// Takes one name off its image. Returns whether the image has other names left.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if no image has that name.
    pub fn untag(&self, reference: &Reference) -> Result<bool, StoreError> {
        let name = reference.to_string();
        let _lock = self.lock()?;
        for (mut record, _) in self.records()? {
            if record.tags.remove(&name) | record.digests.remove(&name) {
                self.write_record(&record)?;
                self.new_generation()?;
                return Ok(!record.tags.is_empty());
            }
        }
        Err(StoreError::NotFound(name))
    }

    /// Folders of layers that some image needs.
    fn kept_folders(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(self.records()?.iter().flat_map(|(record, _)| record.kept_folders()).collect())
    }

    /// Moves a layer out of sight at once; its files go when `work` is dropped, after the lock. Returns its bytes.
    fn discard_layer(&self, folder: &str, work: &Work) -> Result<u64, StoreError> {
        let path = self.root.join("layers").join(folder);
        // The files of a settled copy belong to the layer it was copied from.
        let size =
            Digest::from_file_name(folder).and_then(|d| self.layer_mark(&d)).map_or(0, |mark| mark.size);
        match fs::rename(&path, work.path().join(folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            other => other.map(|()| size).at("remove", &path),
        }
    }

    fn image(&self, record: Record, last_used: SystemTime) -> Option<Image> {
        let layers =
            record.layer_folders().iter().map(|f| self.whole_layer(f)).collect::<Option<Vec<_>>>()?;
        Some(Image {
            id: record.id,
            repo_tags: record.tags.into_iter().collect(),
            repo_digests: record.digests.into_iter().collect(),
            size: record.size,
            config: record.config,
            layers,
            last_used,
        })
    }

    fn lock(&self) -> Result<Flock<fs::File>, StoreError> {
        let path = self.root.join("lock");
        let file =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
        loop {
            match Flock::lock(file.try_clone().at("open", &path)?, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(lock),
                Err((_, nix::errno::Errno::EINTR)) => {}
                Err((_, errno)) => return Err(errno).at("lock", &path),
            }
        }
    }

    fn refresh_names(&self) -> Result<(), StoreError> {
        let generation = self.generation()?;
        {
            let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if generation.is_some() && names.generation == generation {
                return Ok(());
            }
        }
        let mut records = self.records()?;
        records.sort_by_key(|(record, _)| record.tagged_at);
        let mut fresh = Names { generation, by_name: HashMap::new() };
        for (record, _) in records {
            for name in record.tags.into_iter().chain(record.digests).chain([record.id.to_string()]) {
                fresh.by_name.insert(name, record.id.clone());
            }
        }
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

struct Ambiguous;

impl Names {
    fn find(&self, name: &str) -> Result<Option<Digest>, Ambiguous> {
        if let Some(id) = self.by_name.get(name) {
            return Ok(Some(id.clone()));
        }
        if let Ok(reference) = name.parse::<Reference>() {
            let full = match reference.digest() {
                Some(digest) => reference.repo_digest(digest),
                None => reference.to_string(),
            };
            if let Some(id) = self.by_name.get(&full) {
                return Ok(Some(id.clone()));
            }
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.len() < 7 || !prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Ok(None);
        }
        let fitting: BTreeSet<&Digest> =
            self.by_name.values().filter(|id| id.hex().starts_with(prefix)).collect();
        let mut fitting = fitting.into_iter();
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(Ambiguous),
            (found, _) => Ok(found.cloned()),
        }
    }
}

#[cfg(test)]
mod tests;
