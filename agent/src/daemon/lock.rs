//! One daemon for each run directory: two would fight over every pod in it.
//!
//! Owns: the lock. It is one of the process (fcntl(2), `F_SETLK`), not of an open file: a supervisor forked in the moment the
//! daemon is killed does not inherit it, and the kernel says who holds it. Never: waits for it, removes its file.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Below the run directory. It stays when the daemon ends.
pub const FILE: &str = "daemon.lock";

/// A lock for writing, of the whole file.
const WHOLE: libc::flock = libc::flock {
    l_type: libc::F_WRLCK as libc::c_short,
    l_whence: libc::SEEK_SET as libc::c_short,
    l_start: 0,
    l_len: 0,
    l_pid: 0,
};

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
    match fcntl(&file, FcntlArg::F_SETLK(&WHOLE)) {
        Ok(_) => Ok(Lock { _file: file }),
        Err(Errno::EACCES | Errno::EAGAIN) => {
            let holder = holder(run_dir).map_or_else(String::new, |pid| format!(" (process {pid})"));
            bail!(
                "another orlop{holder} is the node of {}: end it first, or give this one a --run-dir and a --root-dir of its own",
                run_dir.display()
            )
        }
        Err(errno) => Err(errno).with_context(|| format!("lock {}", path.display())),
    }
}

/// The daemon of a run directory, if another process than this one is it.
///
/// # Caveats
/// The daemon itself would lose its lock by asking: closing any descriptor of the file gives it up (fcntl(2)).
pub fn holder(run_dir: &Path) -> Option<i32> {
    let file = File::options().write(true).open(run_dir.join(FILE)).ok()?;
    let mut found = WHOLE;
    fcntl(&file, FcntlArg::F_GETLK(&mut found)).ok()?;
    (i32::from(found.l_type) != libc::F_UNLCK).then_some(found.l_pid)
}
