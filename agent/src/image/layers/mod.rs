//! From a layer's stream of bytes to a directory that overlayfs can use as a lower layer.
//!
//! Owns: [`unpack`]. Reads a tar stream, compressed or not, once; computes the digests of both forms on the way. What the
//! archive says is untrusted: see [`root`] for why nothing escapes. Whiteouts become what overlayfs understands
//! (`Documentation/filesystems/overlayfs.rst`): a 0/0 character device, and `trusted.overlay.opaque`.
//! Never: decides where layers live, whether a digest is the wanted one, or touches the network. Blocks; call it on a thread
//! made for that.

pub mod census;
pub mod decompress;
mod entry;
mod pax;
mod remove;
mod root;
pub mod settle;
mod sparse;
pub mod tar;
mod xattr;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

pub use remove::{remove_path, remove_tree};

use self::decompress::Decoder;
use self::entry::Unpacker;
use self::tar::TarReader;
use super::digest::{Algorithm, Digest, DigestReader};

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the stream as it came.
    pub blob: Digest,
    /// Bytes of the stream as it came.
    pub blob_size: u64,
    /// Digest of the uncompressed tar stream.
    pub diff_id: Digest,
    /// Bytes in regular files.
    pub size: u64,
    /// Number of archive members.
    pub entries: u64,
    /// Directories the archive left out although it has entries in them. They were made with mode 0755, owned by root.
    pub implied: Vec<PathBuf>,
}

/// Why a layer could not be unpacked. As everywhere in `image`, the text of an error holds its cause, so that `source` is not
/// said twice. Every variant names the entry or the thing at fault.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A name or a hard link's target leads out of the layer.
    #[error("entry {entry:?}: {what} leads out of the layer")]
    Escapes {
        /// The entry's name.
        entry: String,
        /// `its name`, or the link with its target.
        what: String,
    },
    /// The archive contradicts itself at this entry.
    #[error("entry {entry:?}: {reason}")]
    Entry {
        /// The entry's name.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The disk, or the quota on it, is full.
    #[error("no space left on the file system of {directory} while writing {entry:?}")]
    DiskFull {
        /// The entry's name.
        entry: String,
        /// The directory being filled.
        directory: PathBuf,
    },
    /// A system call on an entry failed.
    #[error("entry {entry:?}: {action}: {errno}")]
    System {
        /// The entry's name.
        entry: String,
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        errno: Errno,
    },
    /// The stream is not a (gzip, zstd or plain) tar archive, or ends early.
    #[error("not a readable layer archive: {0}")]
    Corrupt(String),
    /// The stream could not be read.
    #[error("reading the layer: {0}")]
    Source(io::Error),
}

/// How the stream's digests are to be computed: by the functions of the digests they will be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithms {
    /// For the stream as it comes.
    pub blob: Algorithm,
    /// For the uncompressed stream.
    pub diff_id: Algorithm,
}

impl Default for Algorithms {
    fn default() -> Self {
        Self { blob: Algorithm::Sha256, diff_id: Algorithm::Sha256 }
    }
}

/// Unpacks a stream into an empty directory and reads it to its end, so that the digests cover every byte.
///
/// On error the directory holds a part of the layer; the caller removes it.
///
/// # Errors
/// See [`LayerError`].
pub fn unpack(source: impl Read, directory: &Path, algorithms: Algorithms) -> Result<Unpacked, LayerError> {
    let mut blob = DigestReader::new(source, algorithms.blob);
    let decoder = Decoder::new(&mut blob).map_err(read_error)?;
    let mut tar = DigestReader::new(decoder, algorithms.diff_id);
    let (size, entries, implied) = unpack_tar(&mut tar, directory)?;
    io::copy(&mut tar, &mut io::sink()).map_err(read_error)?;
    let (diff_id, _) = tar.finish();
    io::copy(&mut blob, &mut io::sink()).map_err(read_error)?;
    let (blob, blob_size) = blob.finish();
    Ok(Unpacked { blob, blob_size, diff_id, size, entries, implied })
}

fn unpack_tar(tar: &mut impl Read, directory: &Path) -> Result<(u64, u64, Vec<PathBuf>), LayerError> {
    let mut reader = TarReader::new(tar);
    let mut unpacker = Unpacker::new(directory)?;
    let mut entries = 0;
    while let Some(member) = reader.next_member().map_err(read_error)? {
        entries += 1;
        unpacker.entry(&member, &mut reader.data())?;
    }
    let (size, implied) = unpacker.finish()?;
    Ok((size, entries, implied))
}

/// Tells a broken archive from a broken source.
fn read_error(error: io::Error) -> LayerError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            LayerError::Corrupt(error.to_string())
        }
        // zstd's own errors come as `Other` with a text.
        io::ErrorKind::Other
            if error.raw_os_error().is_none() && error.get_ref().is_none_or(|e| !e.is::<SourceLost>()) =>
        {
            LayerError::Corrupt(error.to_string())
        }
        _ => LayerError::Source(error),
    }
}

/// The error a source wraps in an [`io::Error`] when it gives up, so that it is not taken for a corrupt archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SourceLost(pub String);
