//! Blobs on their way: each a file named by its digest, so that a pull goes on where the last one stopped.
//!
//! A file is flocked by who writes it. A second process that wants the same blob writes a copy of its own in its work folder
//! instead of waiting: waiting could not be cancelled.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::super::digest::Digest;
use super::{At, Store, StoreError, Work};

/// A blob's file, locked for this operation.
pub struct Partial {
    file: Flock<File>,
    path: PathBuf,
}

impl Partial {
    /// The file, for reading and writing at offsets.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it: it has served, or its content is wrong.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn discard(&self) -> Result<(), StoreError> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.at("remove", &self.path),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Still locked here: nobody else can have begun to write.
        if self.file.metadata().is_ok_and(|m| m.len() == 0 && m.nlink() > 0) {
            let _ = self.discard();
        }
    }
}

impl Store {
    /// Opens what there is of a blob, or starts it.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn partial(&self, digest: &Digest, work: &Work) -> Result<Partial, StoreError> {
        let mut path = self.root.join("partial").join(digest.file_name());
        loop {
            let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            match Flock::lock(options.at("open", &path)?, FlockArg::LockExclusiveNonblock) {
                // Its former writer may have removed it after it was opened here.
                Ok(file) if file.metadata().at("look at", &path)?.nlink() == 0 => {}
                Ok(file) => return Ok(Partial { file, path }),
                Err((_, Errno::EWOULDBLOCK)) => path = work.path().join("blob"),
                Err((_, errno)) => return Err(errno).at("lock", &path),
            }
        }
    }

    /// Removes blobs nobody has written to for `age`. Returns the bytes freed.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn sweep_partial(&self, age: Duration, now: SystemTime) -> Result<u64, StoreError> {
        let folder = self.root.join("partial");
        let mut freed = 0;
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let path = entry.at("read", &folder)?.path();
            let file = match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.at("open", &path)?,
            };
            let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
            let metadata = file.metadata().at("look at", &path)?;
            let idle = metadata.modified().ok().and_then(|t| now.duration_since(t).ok()).unwrap_or_default();
            if idle >= age {
                fs::remove_file(&path).at("remove", &path)?;
                freed += metadata.len();
            }
        }
        Ok(freed)
    }
}
