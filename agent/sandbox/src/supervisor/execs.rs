//! Processes that were exec'd into containers.
//!
//! Each has a child cgroup of its own below its container's, so that it can be killed with all it has started. What it
//! leaves running when it ends by itself stays in the container, as with other runtimes.

use std::os::fd::OwnedFd;

use nix::unistd::Pid;

use crate::launch::exec::{Target, cgroup_name};
use crate::launch::{self, report};
use crate::protocol::{Answer, Event, ExecProcess, Failure, FailureKind};
use crate::sys::process::{Ended, signal};

use super::calls::{bad_request, not_running};
use super::launches::{Outcome, Purpose};
use super::{Caller, Supervisor};

/// One exec'd process.
#[derive(Debug)]
pub(super) struct Exec {
    exec_id: u64,
    container: u32,
    pid: Option<Pid>,
    caller: Caller,
    early_signal: Option<i32>,
}

/// How often the timer tries; later only the end of some process is a reason to try again.
const MOST_TRIES: u32 = 20;

/// The cgroup of an exec'd process that has ended.
#[derive(Debug)]
pub(super) struct Leftover {
    container: u32,
    exec_id: u64,
    tries: u32,
}

impl Supervisor {
    pub(super) fn exec_of(&self, pid: Pid) -> Option<u32> {
        self.execs.iter().find(|(_, one)| one.pid == Some(pid)).map(|(index, _)| *index)
    }

    fn find_exec(&self, exec_id: u64) -> Option<u32> {
        self.execs.iter().find(|(_, one)| one.exec_id == exec_id).map(|(index, _)| *index)
    }

    pub(super) fn exec(&mut self, caller: Caller, exec: &ExecProcess, stdio: Vec<OwnedFd>) {
        if let Err(failure) = self.try_exec(caller, exec, stdio) {
            self.answer(caller, Err(failure), None);
        }
    }

    fn try_exec(&mut self, caller: Caller, exec: &ExecProcess, stdio: Vec<OwnedFd>) -> Result<(), Failure> {
        let wanted = if exec.tty { 0 } else { 3 };
        if stdio.len() != wanted {
            return Err(bad_request(format_args!("exec takes {wanted} descriptors, got {}", stdio.len())));
        }
        if exec.args.first().is_none_or(String::is_empty) {
            return Err(bad_request("exec: no program"));
        }
        if self.find_exec(exec.exec_id).is_some() {
            return Err(bad_request(format_args!("exec {} is there already", exec.exec_id)));
        }
        let container = self.find(&exec.id).ok_or_else(|| not_running(&exec.id))?;
        let target = self.containers.get(&container).ok_or_else(|| not_running(&exec.id))?;
        let pid = target.pid().ok_or_else(|| not_running(&exec.id))?;
        let cgroup = target.cgroup.as_deref().ok_or_else(|| not_running(&exec.id))?;
        let cannot = |what: &str, errno: nix::errno::Errno| Failure {
            kind: FailureKind::CannotCreate,
            message: format!("{what}: {errno}"),
        };
        let (channel, theirs) = report::channel().map_err(|errno| cannot("channel", errno))?;
        let target = Target {
            container_id: &target.record.container_id,
            pid: pid.as_raw(),
            security: &target.security,
            cgroup,
        };
        let helper = launch::exec::fork(&self.site, exec, &target, stdio, theirs)
            .map_err(|errno| cannot("fork", errno))?;
        let index = self.take_index();
        let exec = Exec { exec_id: exec.exec_id, container, pid: None, caller, early_signal: None };
        self.execs.insert(index, exec);
        self.follow(Purpose::Exec(index), channel, helper);
        Ok(())
    }

    /// A helper's channel has ended.
    pub(super) fn exec_launched(&mut self, index: u32, mut outcome: Outcome) {
        let Some(exec) = self.execs.get_mut(&index) else { return };
        let caller = exec.caller;
        match outcome.conclude() {
            Ok(pid) => {
                exec.pid = Some(pid);
                let early_signal = exec.early_signal.take();
                self.answer(caller, Ok(Answer::ExecStarted { pid: pid.as_raw() }), outcome.master);
                if let Some(number) = early_signal {
                    self.signal_exec(index, number);
                }
                self.handle_early(pid);
            }
            Err(failure) => {
                self.forget_exec(index);
                self.answer(caller, Err(failure), None);
            }
        }
    }

    /// An exec'd process has been reaped.
    pub(super) fn exec_ended(&mut self, index: u32, ended: Ended) {
        let exit_code = match ended {
            Ended::Exited(code) => code,
            Ended::Killed(signal) => 128 + signal,
        };
        if let Some(exec_id) = self.forget_exec(index) {
            self.announce(Event::ExecExited { exec_id, exit_code });
        }
    }

    fn forget_exec(&mut self, index: u32) -> Option<u64> {
        let exec = self.execs.remove(&index)?;
        self.leftovers.push(Leftover { container: exec.container, exec_id: exec.exec_id, tries: 0 });
        self.remove_leftovers();
        Some(exec.exec_id)
    }

    /// Removes the cgroups of exec'd processes that have ended. Those in which something still runs are tried again when
    /// a child has been reaped, for a short time also by the timer, and go with their container at last.
    pub(super) fn remove_leftovers(&mut self) {
        let (hierarchies, containers) = (&self.site.hierarchies, &self.containers);
        self.leftovers.retain_mut(|leftover| {
            leftover.tries = leftover.tries.saturating_add(1);
            let path = containers.get(&leftover.container).and_then(|one| one.cgroup.as_ref());
            path.is_some_and(|path| !hierarchies.remove_child(path, &cgroup_name(leftover.exec_id)))
        });
        if self.leftovers.iter().any(|leftover| leftover.tries < MOST_TRIES) {
            self.arm_timer();
        }
    }

    pub(super) fn exec_signal(&mut self, exec_id: u64, number: i32) -> Result<Answer, Failure> {
        let Some(index) = self.find_exec(exec_id) else { return Ok(Answer::Done) };
        match self.execs.get_mut(&index) {
            Some(exec) if exec.pid.is_none() => exec.early_signal = Some(number),
            _ => self.signal_exec(index, number),
        }
        Ok(Answer::Done)
    }

    /// Signals the process and everything that it has started.
    fn signal_exec(&self, index: u32, number: i32) {
        let Some(exec) = self.execs.get(&index) else { return };
        if let Some(path) = self.containers.get(&exec.container).and_then(|one| one.cgroup.as_ref()) {
            let own = path.join(cgroup_name(exec.exec_id));
            match number {
                libc::SIGKILL => self.site.hierarchies.kill(&own),
                _ => self.site.hierarchies.signal(&own, number),
            }
        } else if let Some(pid) = exec.pid {
            // Gone already: then its end is about to be handled.
            let _ = signal(pid, number);
        }
    }
}
