//! Work under way: a folder of its own for each operation, and the rename that makes a layer visible.
//!
//! Owns: `tmp/`. A folder there is flocked by its process; one that is not belongs to nobody any more and is removed at
//! the next open.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use super::super::layers::census::census;
use super::super::layers::{Unpacked, remove_path};
use super::record::{LayerMark, MARK, UNRENAMED, sync_folder};
use super::{At, Store, StoreError};

/// A folder for one operation, removed when dropped.
pub struct Work {
    path: PathBuf,
    /// Held for the life of the folder; released by the kernel however the process ends.
    _lock: Flock<File>,
}

impl Work {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory that a layer is to be unpacked into, and returns it.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn layer_directory(&self) -> Result<PathBuf, StoreError> {
        let path = self.path.join("layer/fs");
        fs::create_dir_all(&path).at("make", &path)?;
        // The root directory of a layer that does not describe it.
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, permissions).at("set the mode of", &path)?;
        Ok(path)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(errno) = remove_path(&self.path) {
            tracing::warn!(path = %self.path.display(), %errno, "cannot remove a work folder; the next start will try again");
        }
    }
}

impl Store {
    /// Begins an operation.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn begin(&self) -> Result<Work, StoreError> {
        loop {
            let path = self.root.join("tmp").join(uuid::Uuid::new_v4().to_string());
            fs::create_dir(&path).at("make", &path)?;
            if let Some(lock) = try_lock(&path)? {
                return Ok(Work { path, _lock: lock });
            }
            // Another process swept the folder before it was locked.
        }
    }

    /// Makes an unpacked layer visible, once all of it is on the disk. If it is there already, that one stays.
    ///
    /// # Errors
    /// Failing file operations.
    pub fn commit_layer(&self, work: &Work, unpacked: &Unpacked) -> Result<(), StoreError> {
        let mark = LayerMark {
            diff_id: unpacked.diff_id.clone(),
            size: unpacked.size,
            entries: unpacked.entries,
            census: None,
            implied: unpacked.implied.clone(),
        };
        self.publish(work, &mark, &unpacked.diff_id.file_name())
    }

    /// Renames the work's layer to its folder, mark and all, once it is on the disk.
    pub(super) fn publish(&self, work: &Work, mark: &LayerMark, folder: &str) -> Result<(), StoreError> {
        let (from, layers) = (work.path.join("layer"), self.root.join("layers"));
        let to = layers.join(folder);
        let mark_path = from.join(MARK);
        let census = Some(census(&from.join("fs")).at("look through", &from)?);
        let json = serde_json::to_vec(&LayerMark { census, ..mark.clone() }).at("write", &mark_path)?;
        fs::write(&mark_path, json).at("write", &mark_path)?;
        let opened = File::open(&from).at("open", &from)?;
        nix::unistd::syncfs(&opened).at("sync", &from)?;
        match renameat2(AT_FDCWD, &from, AT_FDCWD, &to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => sync_folder(&layers),
            Err(Errno::EEXIST | Errno::ENOTEMPTY) if self.whole_layer(folder).is_some() => Ok(()),
            Err(Errno::EEXIST | Errno::ENOTEMPTY) => {
                // A folder without its mark was damaged by hand or by a failing disk: swap it out.
                renameat2(AT_FDCWD, &from, AT_FDCWD, &to, RenameFlags::RENAME_EXCHANGE).at("replace", &to)?;
                sync_folder(&layers)
            }
            Err(errno) => Err(errno).at("rename a layer to", &to),
        }
    }

    /// Removes the work folders of processes that are no more.
    pub(super) fn sweep_work(&self) -> Result<(), StoreError> {
        let folder = self.root.join("tmp");
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let path = entry.at("read", &folder)?.path();
            if let Some(_lock) = try_lock(&path)? {
                remove_path(&path).at("remove", &path)?;
            }
        }
        self.sweep_unrenamed()
    }

    /// Removes files that were written and never renamed. Under the lock: the living have none then.
    fn sweep_unrenamed(&self) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        for folder in [self.root.clone(), self.root.join("records")] {
            for entry in fs::read_dir(&folder).at("read", &folder)? {
                let path = entry.at("read", &folder)?.path();
                if path.extension().is_some_and(|e| e == UNRENAMED) {
                    fs::remove_file(&path).at("remove", &path)?;
                }
            }
        }
        Ok(())
    }
}

/// Locks a folder if nobody has it and it is still there.
fn try_lock(path: &Path) -> Result<Option<Flock<File>>, StoreError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.at("open", path)?,
    };
    let inode = file.metadata().at("look at", path)?.ino();
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).at("lock", path),
        Ok(lock) => Ok(fs::metadata(path).is_ok_and(|m| m.ino() == inode).then_some(lock)),
    }
}
