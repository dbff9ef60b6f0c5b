//! One daemon for each run directory: two would fight over every pod in it.
//!
//! Owns: the lock. It is one of the process (fcntl(2), `F_SETLK`), not of an open file: a supervisor forked in the moment the
//! daemon is killed does not inherit it, and the kernel says who holds it.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Below the run directory. It stays when the daemon ends.
pub const FILE: &str = "daemon.lock";

/// Held as long as the process lives and this is not dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the lock of a run directory, which is made if it is not there.
///
/// # Errors
/// When another process holds it: which one.
pub fn take(run_dir: &Path) -> anyhow::Result<Lock> {
    fs::create_dir_all(run_dir).with_context(|| format!("make {}", run_dir.display()))?;
    let path = run_dir.join(FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let mut whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_SETLK(&whole)) {
        Ok(_) => Ok(Lock { _file: file }),
        Err(Errno::EACCES | Errno::EAGAIN) => {
            let holder = fcntl(&file, FcntlArg::F_GETLK(&mut whole)).ok().filter(|_| whole.l_pid > 0);
            let holder = holder.map_or_else(String::new, |_| format!(" (process {})", whole.l_pid));
            bail!(
                "another orlop{holder} is the node of {}: end it first, or give this one a --run-dir and a --root-dir of its own",
                run_dir.display()
            )
        }
        Err(errno) => Err(errno).with_context(|| format!("lock {}", path.display())),
    }
}
