//! The containers of the pod: starting, running, ended.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Pid, pipe2};

use crate::launch::{self, container::Stdio, report};
use crate::log::file::LogFile;
use crate::output::{Output, Turn};
use crate::protocol::{
    Answer, ContainerId, ContainerRecord, Event, Failure, FailureKind, RecordState, Security, StartContainer,
};
use crate::record::{new_container_id, now_ms, write_json};
use crate::sys::process::{Ended, signal};

use super::calls::bad_request;
use super::launches::{Outcome, Purpose};
use super::{Caller, Supervisor, Token, warn};

/// One attempt to run a container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: ContainerRecord,
    /// When it was asked for.
    called: Instant,
    pub(super) security: Security,
    /// Known as soon as the helper has read the spec.
    pub(super) cgroup: Option<PathBuf>,
    output: Option<Output>,
    /// Kept open for attach, if the container asked for stdin.
    stdin: Option<OwnedFd>,
    /// Those who wait for the start.
    waiting: Vec<Caller>,
    /// A signal that came before there was a process.
    early_signal: Option<i32>,
}

impl Container {
    pub(super) fn pid(&self) -> Option<Pid> {
        match self.record.state {
            RecordState::Running { pid, .. } => Some(Pid::from_raw(pid)),
            RecordState::Starting { .. } | RecordState::StartFailed { .. } | RecordState::Exited { .. } => {
                None
            }
        }
    }
}

fn cannot_create(what: impl std::fmt::Display) -> Failure {
    Failure { kind: FailureKind::CannotCreate, message: what.to_string() }
}

/// A pipe whose reading end does not block; the writing end, which becomes a program's, does.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (end, writer) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((end, writer))
}

/// Names become directories.
fn is_valid(id: &ContainerId) -> bool {
    !id.name.is_empty() && id.name.len() < 256 && !id.name.starts_with('.') && !id.name.contains(['/', '\0'])
}

impl Supervisor {
    pub(super) fn container_of(&self, pid: Pid) -> Option<u32> {
        self.containers.iter().find(|(_, one)| one.pid() == Some(pid)).map(|(index, _)| *index)
    }

    pub(super) fn find(&self, id: &ContainerId) -> Option<u32> {
        self.containers.iter().find(|(_, one)| one.record.id == *id).map(|(index, _)| *index)
    }

    /// Writes an attempt's record. Without its directory (somebody removed it) the supervisor goes on.
    pub(super) fn keep(&self, record: &ContainerRecord) {
        if let Err(error) = write_json(&self.site.dir.record(&record.id), record) {
            warn(format_args!("write record: {error}"));
        }
    }

    pub(super) fn start(&mut self, caller: Caller, start: &StartContainer) {
        if let Some(index) = self.find(&start.id) {
            return self.start_again(caller, index);
        }
        if !is_valid(&start.id) {
            return self.answer(
                caller,
                Err(bad_request(format_args!("{:?} is no container name", start.id.name))),
                None,
            );
        }
        if self.ending.is_some() {
            return self.answer(caller, Err(bad_request("the sandbox is shutting down")), None);
        }
        let container_id = match new_container_id() {
            Ok(id) => id,
            Err(error) => {
                return self.answer(caller, Err(cannot_create(format_args!("container id: {error}"))), None);
            }
        };
        let record = ContainerRecord {
            id: start.id.clone(),
            container_id,
            backoff_ms: start.backoff_ms,
            image: start.image.clone(),
            image_id: start.image_id.clone(),
            log_path: start.log_path.clone(),
            sandbox: self.site.sandbox,
            start_us: 0,
            state: RecordState::Starting { since_ms: now_ms() },
        };
        self.keep(&record);
        let index = self.take_index();
        let container = Container {
            record,
            called: Instant::now(),
            security: start.security.clone(),
            cgroup: None,
            output: None,
            stdin: None,
            waiting: vec![caller],
            early_signal: None,
        };
        self.containers.insert(index, container);
        if let Err(failure) = self.launch(index, start) {
            self.start_failed(index, &failure);
        }
    }

    /// A call that is repeated joins the first one, or gets what came of it.
    fn start_again(&mut self, caller: Caller, index: u32) {
        let Some(container) = self.containers.get_mut(&index) else { return };
        let record = &container.record;
        let result = match &record.state {
            RecordState::Starting { .. } => return container.waiting.push(caller),
            RecordState::Running { .. } | RecordState::Exited { .. } => Ok(Answer::Started(record.clone())),
            RecordState::StartFailed { kind, message, .. } => {
                Err(Failure { kind: *kind, message: message.clone() })
            }
        };
        self.answer(caller, result, None);
    }

    fn launch(&mut self, index: u32, start: &StartContainer) -> Result<(), Failure> {
        let log = LogFile::open(start.log_path.clone(), self.limits)
            .map_err(|error| cannot_create(format_args!("open log {}: {error}", start.log_path.display())))?;
        let mut output = Output::new(log);
        let pipe_failed = |errno: Errno| cannot_create(format_args!("make pipe: {errno}"));
        let mut stdio = Stdio::default();
        let mut stdin = None;
        if !start.tty {
            for stream in 0..2 {
                let (end, writer) = output_pipe().map_err(pipe_failed)?;
                self.watch(&end, Token::Output(index, stream)).map_err(pipe_failed)?;
                output.add(stream, end);
                if stream == 0 { stdio.stdout = Some(writer) } else { stdio.stderr = Some(writer) }
            }
            if start.stdin {
                let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(pipe_failed)?;
                stdio.stdin = Some(reader);
                stdin = Some(writer);
            }
        }
        let (channel, theirs) =
            report::channel().map_err(|errno| cannot_create(format_args!("channel: {errno}")))?;
        let Some(container) = self.containers.get_mut(&index) else { return Ok(()) };
        container.output = Some(output);
        container.stdin = stdin;
        let container_id = &container.record.container_id;
        let helper = launch::container::fork(&self.site, start, container_id, stdio, theirs)
            .map_err(|errno| cannot_create(format_args!("fork: {errno}")))?;
        self.follow(Purpose::Container(index), channel, helper);
        Ok(())
    }

    /// A helper's channel has ended.
    pub(super) fn container_launched(&mut self, index: u32, mut outcome: Outcome) {
        let Some(container) = self.containers.get_mut(&index) else { return };
        container.cgroup = outcome.cgroup.take();
        let pid = match outcome.conclude() {
            Ok(pid) => pid,
            Err(failure) => return self.start_failed(index, &failure),
        };
        container.record.start_us = u64::try_from(container.called.elapsed().as_micros()).unwrap_or(u64::MAX);
        container.record.state = RecordState::Running { pid: pid.as_raw(), started_at_ms: now_ms() };
        let (record, waiting) = (container.record.clone(), std::mem::take(&mut container.waiting));
        let early_signal = container.early_signal.take();
        if let Some(master) = outcome.master {
            self.add_terminal(index, master);
        }
        self.keep(&record);
        for caller in waiting {
            self.answer(caller, Ok(Answer::Started(record.clone())), None);
        }
        self.announce(Event::Started(record));
        if let Some(number) = early_signal {
            // Gone already: then its end is about to be handled.
            let _ = signal(pid, number);
        }
        self.handle_early(pid);
    }

    fn add_terminal(&mut self, index: u32, master: OwnedFd) {
        let ready = fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))
            .and_then(|_| self.watch(&master, Token::Output(index, 0)));
        if let Err(errno) = ready {
            return warn(format_args!("watch terminal: {errno}"));
        }
        if let Some(output) = self.containers.get_mut(&index).and_then(|one| one.output.as_mut()) {
            output.add(0, master);
        }
    }

    fn start_failed(&mut self, index: u32, failure: &Failure) {
        let Some(container) = self.containers.get_mut(&index) else { return };
        container.record.state = RecordState::StartFailed {
            at_ms: now_ms(),
            kind: failure.kind,
            message: failure.message.clone(),
        };
        container.output = None;
        container.stdin = None;
        let (record, waiting) = (container.record.clone(), std::mem::take(&mut container.waiting));
        if let Some(cgroup) = &container.cgroup {
            self.site.hierarchies.kill(cgroup);
        }
        self.keep(&record);
        for caller in waiting {
            self.answer(caller, Err(failure.clone()), None);
        }
        self.announce(Event::Exited(record));
    }

    /// The container's first process has been reaped.
    pub(super) fn container_ended(&mut self, index: u32, ended: Ended) {
        let Some(container) = self.containers.get_mut(&index) else { return };
        let RecordState::Running { started_at_ms, .. } = container.record.state else { return };
        let finished_at_ms = now_ms();
        if let Some(output) = &mut container.output {
            output.drain(&mut self.clock);
        }
        container.stdin = None;
        let oom_killed = container.cgroup.as_ref().is_some_and(|path| self.site.hierarchies.oom_killed(path));
        let (exit_code, signal) = match ended {
            Ended::Exited(code) => (code, None),
            Ended::Killed(signal) => (128 + signal, Some(signal)),
        };
        container.record.state =
            RecordState::Exited { started_at_ms, finished_at_ms, exit_code, signal, oom_killed };
        let record = container.record.clone();
        if let Some(path) = &container.cgroup {
            // With a pid namespace of its own nothing is left; in a shared one, or the node's, orphans may be.
            self.site.hierarchies.kill(path);
        }
        self.keep(&record);
        self.announce(Event::Exited(record));
    }

    pub(super) fn pump(&mut self, index: u32, stream: usize) {
        let Some(container) = self.containers.get_mut(&index) else { return };
        let Some(output) = &mut container.output else { return };
        if output.pump(stream, &mut self.clock) == Turn::Ended
            && output.end(0).is_none()
            && output.end(1).is_none()
        {
            // A terminal's other end may be closed while the program goes on; without one both pipes have ended.
            let dropped = output.take_dropped();
            if dropped > 0 {
                warn(format_args!("{dropped} lines of the log of {} were lost", container.record.id));
            }
            container.output = None;
        }
    }

    pub(super) fn signal(&mut self, id: &ContainerId, number: i32, all: bool) -> Result<Answer, Failure> {
        let Some(index) = self.find(id) else { return Ok(Answer::Done) };
        let Some(container) = self.containers.get_mut(&index) else { return Ok(Answer::Done) };
        if let RecordState::Starting { .. } = container.record.state {
            if number != 0 {
                container.early_signal = Some(number);
            }
            return Ok(Answer::Done);
        }
        let Some(pid) = container.pid() else { return Ok(Answer::Done) };
        match (&container.cgroup, all) {
            (Some(path), true) if number == libc::SIGKILL => self.site.hierarchies.kill(path),
            (Some(path), true) => self.site.hierarchies.signal(path, number),
            (None, _) | (Some(_), false) => match signal(pid, number) {
                // It has ended and is about to be reaped.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(bad_request(format_args!("signal {number} to {id}: {errno}"))),
            },
        }
        Ok(Answer::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_directory_are_refused() {
        let valid = |name: &str| is_valid(&ContainerId { name: name.to_owned(), attempt: 0 });
        assert!(valid("app-1"));
        for name in ["", ".", "..", ".hidden", "a/b", "a\0b"] {
            assert!(!valid(name), "{name:?}");
        }
    }
}
