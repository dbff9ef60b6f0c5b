//! Forgetting attempts, and the end of the sandbox.
//!
//! A cgroup can be removed only when its last process is gone. Version 1 tells nobody when that is, so a removal that is
//! too early is tried again, at short intervals and for a bounded time; everything else here is driven by events.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
use nix::unistd::Pid;

use crate::protocol::{Answer, ContainerId, Failure, FailureKind};
use crate::rootfs::unmount_root;
use crate::sys::process::signal;

use super::calls::bad_request;
use super::{Caller, Supervisor, warn};

const RETRY: Duration = Duration::from_millis(10);
const MOST_TRIES: u32 = 500;

/// An attempt that is to be forgotten but is still held by something.
#[derive(Debug)]
pub(super) struct Removal {
    container: u32,
    caller: Option<Caller>,
    tries: u32,
}

fn remove_directory(path: &Path) -> Result<(), String> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

impl Supervisor {
    pub(super) fn remove(&mut self, caller: Caller, id: &ContainerId) {
        let Some(index) = self.find(id) else { return self.answer(caller, Ok(Answer::Done), None) };
        let over = self.containers.get(&index).is_none_or(|one| one.record.state.is_over());
        if !over {
            return self.answer(caller, Err(bad_request(format_args!("container {id} is running"))), None);
        }
        self.remove_or_retry(Removal { container: index, caller: Some(caller), tries: 0 });
    }

    fn remove_or_retry(&mut self, mut removal: Removal) {
        removal.tries += 1;
        let result = match self.try_remove(removal.container) {
            Ok(()) => {
                self.containers.remove(&removal.container);
                Ok(Answer::Done)
            }
            Err(_) if removal.tries < MOST_TRIES => {
                self.removals.push(removal);
                return self.arm_timer();
            }
            Err(what) => {
                warn(format_args!("remove container: {what}"));
                if self.ending.is_some() {
                    // The end does not wait for ever; what is left is the daemon's to find.
                    self.containers.remove(&removal.container);
                }
                Err(Failure { kind: FailureKind::CannotCreate, message: what })
            }
        };
        if let Some(caller) = removal.caller {
            self.answer(caller, result, None);
        }
    }

    /// In the reverse order of making; every step may have been done before.
    fn try_remove(&self, index: u32) -> Result<(), String> {
        let Some(container) = self.containers.get(&index) else { return Ok(()) };
        let record = &container.record;
        if let Some(cgroup) = &container.cgroup
            && let Err((path, errno)) = self.site.hierarchies.remove(cgroup)
        {
            self.site.hierarchies.kill(cgroup);
            return Err(format!("remove cgroup {}: {errno}", path.display()));
        }
        let root = self.site.dir.rootfs(&record.id);
        unmount_root(&root).map_err(|errno| format!("unmount {}: {errno}", root.display()))?;
        remove_directory(&self.site.state(&record.container_id))?;
        if self.ending.is_some() {
            return Ok(());
        }
        remove_directory(&self.site.dir.attempt(&record.id))?;
        // The directory of all attempts goes with the last one.
        if let Some(parent) = self.site.dir.attempt(&record.id).parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    pub(super) fn arm_timer(&self) {
        let once = Expiration::OneShot(TimeSpec::from_duration(RETRY));
        if let Err(errno) = self.timer.set(once, TimerSetTimeFlags::empty()) {
            warn(format_args!("set timer: {errno}"));
        }
    }

    pub(super) fn retry_removals(&mut self) {
        // Reading makes the descriptor quiet again; the count does not matter.
        let _ = self.timer.wait();
        for removal in std::mem::take(&mut self.removals) {
            self.remove_or_retry(removal);
        }
        self.remove_leftovers();
    }

    pub(super) fn shut_down(&mut self, caller: Caller) {
        self.ending.get_or_insert_default().push(caller);
        for container in self.containers.values() {
            if let Some(cgroup) = &container.cgroup {
                self.site.hierarchies.kill(cgroup);
            }
        }
        self.kill_running();
    }

    /// Goes on with the end, if it has begun. True when nothing is left and everybody has been told.
    pub(super) fn advance_ending(&mut self) -> bool {
        if self.ending.is_none() || !self.launches.is_empty() {
            return false;
        }
        self.kill_running();
        if self.containers.values().any(|one| !one.record.state.is_over()) {
            return false;
        }
        let removing: Vec<u32> = self.removals.iter().map(|removal| removal.container).collect();
        let left: Vec<u32> =
            self.containers.keys().copied().filter(|index| !removing.contains(index)).collect();
        for index in left {
            self.remove_or_retry(Removal { container: index, caller: None, tries: 0 });
        }
        if !self.removals.is_empty() {
            return false;
        }
        if let Some(pid) = self.site.pid_ns_holder {
            // Its end is seen like that of any other child.
            let _ = signal(Pid::from_raw(pid), libc::SIGKILL);
            return false;
        }
        self.finish();
        true
    }

    /// Helpers under way are left to finish, since what they have made could not be found otherwise; what they started
    /// is killed then.
    fn kill_running(&self) {
        for pid in self.containers.values().filter_map(super::containers::Container::pid) {
            // Gone already: then its end is about to be handled.
            let _ = signal(pid, libc::SIGKILL);
        }
    }

    fn finish(&mut self) {
        // Gone already is as well.
        let _ = fs::remove_file(self.site.dir.socket());
        for caller in self.ending.take().unwrap_or_default() {
            self.answer(caller, Ok(Answer::Done), None);
        }
    }
}
