//! Network namespaces: opening one, doing something inside one, and the sysctls of the one a thread is in.
//!
//! Owns: the threads that enter a namespace. Such a thread does one piece of work and ends; it never goes back to
//! serve anything else, so no caller's thread can be left in a foreign namespace.
//! Never: creates or removes a namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::fstatfs;

/// `NSFS_MAGIC` of the kernel's `magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Enough for the netlink work done inside; the default of 2 MiB would only be address space.
const STACK_BYTES: usize = 256 * 1024;

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path does not exist: the sandbox is gone.
    #[error("network namespace {0} does not exist")]
    Gone(PathBuf),
    /// The path is something else.
    #[error("{0} is not a namespace")]
    NotNamespace(PathBuf),
    /// It could not be opened or looked at.
    #[error("open network namespace {path}: {source}")]
    Open {
        /// What was opened.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It could not be entered.
    #[error("enter network namespace {path}: {source}")]
    Enter {
        /// What was entered.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Netns {
    /// Opens the namespace at `path`: a bind mount or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// [`NetnsError::Gone`] when there is nothing, other variants as they say.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let open_error = |source| NetnsError::Open { path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            // ESRCH is /proc's word for a process that has just ended.
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
                return Err(NetnsError::Gone(path.to_owned()));
            }
            Err(e) => return Err(open_error(e)),
        };
        let statfs = fstatfs(&file).map_err(|e| open_error(e.into()))?;
        // A path under /run that lost its bind mount is an ordinary empty file.
        #[allow(clippy::unnecessary_cast)]
        if statfs.filesystem_type().0 as i64 != NSFS_MAGIC {
            return Err(NetnsError::NotNamespace(path.to_owned()));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The namespace the calling thread is in.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells this namespace from any other that lives: the inode of its file.
    ///
    /// # Errors
    /// The kernel could not say.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Runs `work` on a new thread inside the namespace and waits for it.
    ///
    /// # Errors
    /// The thread could not be started or could not enter the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let enter_error = |source| NetnsError::Enter { path: self.path.clone(), source };
        thread::scope(|scope| {
            let inside = thread::Builder::new()
                .name("cni-netns".into())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, || -> io::Result<T> {
                    setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                });
            match inside.map_err(enter_error)?.join() {
                Ok(result) => result.map_err(enter_error),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Sets `/proc/sys/<key>` of the calling thread's namespace, unless it already has that value.
///
/// # Errors
/// The file cannot be read or written; the error names it.
pub fn set_sysctl(key: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys").join(key);
    let naming = |e: io::Error| io::Error::new(e.kind(), format!("set {} to {value}: {e}", path.display()));
    if fs::read_to_string(&path).map_err(naming)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(naming)
}
