//! Images from files: OCI layout archives, `docker save` archives, and plain root file systems.
//!
//! Owns: [`import`]. The kind of an archive follows from its top-level names: `index.json` with `oci-layout`, or
//! `manifest.json`, or neither, which makes it a root file system and one layer of a new image. Every blob is checked
//! against its digest. An archive that fails leaves nothing in the store. Blocks; call it on a thread made for that.
//! Never: writes a file under a name the archive chose, except inside a layer's directory.

mod archive;
mod docker;
mod oci;
mod pack;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::archive::{Archive, Layout};
use super::config::{ImageConfig, ParsedConfig, parse_config};
use super::digest::Digest;
use super::layers::{Algorithms, LayerError, unpack};
use super::manifest::{ManifestError, Platform};
use super::reference::Reference;
use super::store::{Image, Record, Store, StoreError};

/// Where an image comes from.
pub enum Source<'a> {
    /// An archive, or a directory that becomes the root file system.
    Path(&'a Path),
    /// An archive as a stream, such as standard input.
    Stream(&'a mut dyn Read),
}

/// What to make of it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Names for the image, instead of those in the archive.
    pub tags: Vec<Reference>,
    /// Take the archive for a root file system whatever is in it.
    pub rootfs: bool,
    /// Execution parameters for a root file system.
    pub config: ImageConfig,
}

/// What an import does, as it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Looking through the archive.
    Reading,
    /// So many layers of an image are to be unpacked.
    Layers(usize),
    /// Bytes of layers read since the last such message.
    Read(u64),
    /// A layer is whole.
    Layer(Digest),
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive cannot be read.
    #[error("cannot read {what}: {cause}")]
    Read {
        /// The file.
        what: String,
        /// Why.
        cause: io::Error,
    },
    /// The archive is not what it should be.
    #[error("{what}: {reason}")]
    Malformed {
        /// The archive, or the member of it.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A member of the archive has another content than its digest says.
    #[error("{what} has digest {found}, not {wanted}: the archive is corrupt")]
    WrongDigest {
        /// Which member.
        what: String,
        /// As named.
        wanted: Digest,
        /// As computed.
        found: Digest,
    },
    /// A manifest in the archive is of no use.
    #[error("{what}: {cause}")]
    Manifest {
        /// Which member.
        what: String,
        /// Why.
        cause: ManifestError,
    },
    /// A layer cannot be unpacked.
    #[error("layer {layer}: {cause}")]
    Layer {
        /// Which member.
        layer: String,
        /// Why.
        cause: LayerError,
    },
    /// One name was given for an archive of several images.
    #[error("the archive holds {0} images, so they cannot all get the names given")]
    SeveralImages(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One image found in an archive, its layers not unpacked yet.
struct Found {
    id: Digest,
    config: ParsedConfig,
    layers: Vec<archive::Blob>,
    names: Vec<Reference>,
    manifest: Option<Digest>,
}

/// Imports what the source holds. Returns the images, already in the store.
///
/// # Errors
/// See [`ImportError`]; the store is then as before.
pub fn import(
    store: &Store,
    source: Source<'_>,
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Image>, ImportError> {
    progress(Progress::Reading);
    let work = store.begin()?;
    let (file, what) = match source {
        Source::Path(path) if path.is_dir() => {
            (pack::pack_directory(path, work.path())?, path.display().to_string())
        }
        Source::Path(path) => {
            let what = path.display().to_string();
            (File::open(path).map_err(|cause| ImportError::Read { what: what.clone(), cause })?, what)
        }
        Source::Stream(stream) => (archive::spool(stream, work.path())?, "standard input".to_owned()),
    };
    let (archive, layout) = Archive::scan(file, what, options.rootfs)?;
    let (archive, mut found) = match layout {
        Layout::RootFs => {
            return pack::import_root_fs(store, &archive, options, progress).map(|image| vec![image]);
        }
        Layout::Oci => {
            let archive = archive.seekable(work.path())?;
            let found = oci::images(&archive, &Platform::host())?;
            (archive, found)
        }
        Layout::Docker => {
            let archive = archive.seekable(work.path())?;
            let found = docker::images(&archive)?;
            (archive, found)
        }
    };
    if !options.tags.is_empty() {
        match &mut found[..] {
            [one] => one.names.clone_from(&options.tags),
            several => return Err(ImportError::SeveralImages(several.len())),
        }
    }
    found.iter().map(|image| take_in(store, &archive, image, progress)).collect()
}

/// Unpacks what is missing of an image's layers and records it.
fn take_in(
    store: &Store,
    archive: &Archive,
    image: &Found,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Image, ImportError> {
    let wanted: Vec<(&Digest, &archive::Blob)> = image.config.diff_ids.iter().zip(&image.layers).collect();
    let mut seen = BTreeSet::new();
    let missing: Vec<_> =
        wanted.into_iter().filter(|(d, _)| store.layer(d).is_none() && seen.insert((*d).clone())).collect();
    progress(Progress::Layers(missing.len()));
    let unpacked = unpack_all(store, archive, &missing, progress);
    let committed = unpacked.and_then(|()| record(store, image));
    if committed.is_err() {
        let diff_ids: Vec<Digest> = missing.iter().map(|(d, _)| (*d).clone()).collect();
        if let Err(error) = store.drop_unused(&diff_ids) {
            tracing::warn!(%error, "cannot remove the layers of an import that failed");
        }
    }
    committed
}

fn record(store: &Store, image: &Found) -> Result<Image, ImportError> {
    let digests = match &image.manifest {
        Some(digest) => image.names.iter().map(|name| name.repo_digest(digest)).collect(),
        None => BTreeSet::new(),
    };
    let size = image.config.diff_ids.iter().filter_map(|d| store.layer_mark(d)).map(|m| m.size).sum();
    Ok(store.commit(Record {
        id: image.id.clone(),
        tags: image.names.iter().filter_map(Reference::repo_tag).collect(),
        digests,
        size,
        config: image.config.config.clone(),
        layers: image.config.diff_ids.clone(),
        folders: Vec::new(),
        tagged_at: 0,
    })?)
}

/// Unpacks layers on a few threads; the first error stops those not begun.
fn unpack_all(
    store: &Store,
    archive: &Archive,
    layers: &[(&Digest, &archive::Blob)],
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), ImportError> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4).min(layers.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((diff_id, blob)) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = unpack_one(store, archive, diff_id, blob, progress);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.is_some() {
                        return;
                    }
                    if let Err(error) = result {
                        *failed = Some(error);
                        return;
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn unpack_one(
    store: &Store,
    archive: &Archive,
    diff_id: &Digest,
    blob: &archive::Blob,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), ImportError> {
    let work = store.begin()?;
    let algorithms = Algorithms {
        blob: blob.digest.as_ref().map_or_else(|| Algorithms::default().blob, Digest::algorithm),
        diff_id: diff_id.algorithm(),
    };
    let source = Counted { inner: archive.reader(blob), progress };
    let unpacked = unpack(source, &work.layer_directory()?, algorithms)
        .map_err(|cause| ImportError::Layer { layer: archive.member(&blob.name), cause })?;
    let checks = [(blob.digest.as_ref(), &unpacked.blob), (Some(diff_id), &unpacked.diff_id)];
    for (wanted, found) in checks {
        if let Some(wanted) = wanted.filter(|w| *w != found) {
            let (wanted, found) = (wanted.clone(), found.clone());
            return Err(ImportError::WrongDigest {
                what: format!("layer {}", archive.member(&blob.name)),
                wanted,
                found,
            });
        }
    }
    store.commit_layer(&work, &unpacked)?;
    progress(Progress::Layer(diff_id.clone()));
    Ok(())
}

/// Reads a configuration and checks that it fits the number of layers.
fn checked_config(json: &[u8], what: &str, layers: usize) -> Result<ParsedConfig, ImportError> {
    let config = parse_config(json)
        .map_err(|reason| ImportError::Malformed { what: format!("image configuration {what}"), reason })?;
    if config.diff_ids.len() != layers {
        let reason = format!("it lists {} layers where the manifest has {layers}", config.diff_ids.len());
        return Err(ImportError::Malformed { what: format!("image configuration {what}"), reason });
    }
    let accepted = Platform::host().accept(&config.platform);
    accepted.map_err(|cause| ImportError::Manifest { what: format!("image configuration {what}"), cause })?;
    Ok(config)
}

struct Counted<'a, R> {
    inner: R,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        (self.progress)(Progress::Read(n as u64));
        Ok(n)
    }
}

fn file_in(folder: &Path, name: &str) -> Result<(File, PathBuf), ImportError> {
    let path = folder.join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(|cause| StoreError::Io { action: "make", path: path.clone(), cause })?;
    Ok((file, path))
}
