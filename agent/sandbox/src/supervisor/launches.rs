//! Helpers on their way: from the fork to the end of their channel, which says what came of it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::unistd::Pid;

use crate::launch::report::{Received, Report, receive};
use crate::protocol::{Failure, FailureKind};

use super::{Supervisor, Token, warn};

/// A helper, and what it has reported so far.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) purpose: Purpose,
    channel: OwnedFd,
    helper: Pid,
    outcome: Outcome,
}

/// What a helper is to start: indices of [`Supervisor::containers`] or [`Supervisor::execs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Container(u32),
    Exec(u32),
}

/// What has been reported.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) pid: Option<Pid>,
    pub(super) master: Option<OwnedFd>,
    pub(super) cgroup: Option<PathBuf>,
    failure: Option<Failure>,
    detail: Option<String>,
}

fn died() -> Failure {
    let message = "the helper that creates it ended before its work was done; was it killed?".to_owned();
    Failure { kind: FailureKind::CannotCreate, message }
}

impl Outcome {
    fn take(&mut self, report: Report, descriptor: Option<OwnedFd>) {
        match report {
            Report::Cgroup(path) => self.cgroup = Some(path),
            Report::Created { pid } => {
                self.pid = Some(Pid::from_raw(pid));
                self.master = descriptor;
            }
            Report::Detail(text) => self.detail = self.detail.take().or(Some(text)),
            // The first failure is the cause of the others, except that a program which cannot be executed is the
            // cause of whatever libcontainer makes of it.
            Report::Failed(failure) => {
                let decides = self.failure.as_ref().is_none_or(|known| {
                    known.kind != FailureKind::CannotRun && failure.kind == FailureKind::CannotRun
                });
                if decides {
                    self.failure = Some(failure);
                }
            }
        }
    }

    /// The pid of what runs, or why nothing does.
    pub(super) fn conclude(&mut self) -> Result<Pid, Failure> {
        match (self.failure.take(), self.pid) {
            (Some(mut failure), _) => {
                if let Some(detail) = self.detail.take()
                    && failure.kind == FailureKind::CannotCreate
                    && !failure.message.contains(&detail)
                {
                    failure.message = format!("{} ({detail})", failure.message);
                }
                Err(failure)
            }
            (None, Some(pid)) => Ok(pid),
            (None, None) => Err(died()),
        }
    }
}

impl Supervisor {
    /// Follows a helper.
    pub(super) fn follow(&mut self, purpose: Purpose, channel: OwnedFd, helper: Pid) {
        let index = self.take_index();
        if let Err(errno) = self.watch(&channel, Token::Launch(index)) {
            warn(format_args!("watch helper: {errno}"));
        }
        self.launches.insert(index, Launch { purpose, channel, helper, outcome: Outcome::default() });
    }

    pub(super) fn launch_of(&self, helper: Pid) -> Option<u32> {
        self.launches.iter().find(|(_, one)| one.helper == helper).map(|(index, _)| *index)
    }

    /// A helper has been reaped. One that was killed (by the OOM killer, say) before it had said anything may leave a
    /// process behind that waits for ever and holds the channel; so the outcome is known without the channel's end. The
    /// process is in the container's cgroup, or about to enter it, and is killed with it.
    pub(super) fn helper_ended(&mut self, index: u32) {
        self.read_reports(index);
        let silent = |launch: &Launch| launch.outcome.pid.is_none() && launch.outcome.failure.is_none();
        if self.launches.get(&index).is_some_and(silent) {
            self.conclude(index);
        }
    }

    fn conclude(&mut self, index: u32) {
        if let Some(launch) = self.launches.remove(&index) {
            match launch.purpose {
                Purpose::Container(container) => self.container_launched(container, launch.outcome),
                Purpose::Exec(exec) => self.exec_launched(exec, launch.outcome),
            }
        }
        if self.launches.is_empty() {
            self.early = Vec::new();
        }
    }

    pub(super) fn read_reports(&mut self, index: u32) {
        loop {
            let Some(launch) = self.launches.get_mut(&index) else { return };
            match receive(&launch.channel) {
                Received::Report(report, descriptor) => launch.outcome.take(report, descriptor),
                Received::Nothing => return,
                Received::End => break,
            }
        }
        self.conclude(index);
    }

    /// The end of a process that came before its pid was known, if it has.
    pub(super) fn handle_early(&mut self, pid: Pid) {
        if let Some(at) = self.early.iter().position(|(early, _)| *early == pid) {
            let (pid, ended) = self.early.swap_remove(at);
            self.ended(pid, ended);
        }
    }
}
