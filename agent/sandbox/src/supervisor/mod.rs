//! The supervisor: one thread, one event loop, everything of one pod.
//!
//! Owns: connections, containers, helpers on their way, the record of each attempt. Never: blocks (helpers do what takes
//! time), ends by a signal (only `Shutdown` ends it), cares whether a daemon is there.
//!
//! # Life of an attempt
//! ```text
//! Start ─► Starting ──(channel ends: pid, no failure)──► Running ──(reaped)──► Exited ──┐
//!              └──(failure, or the channel ends without a pid)──► StartFailed ──────────┴─ Remove ─► forgotten
//! ```
//! Each step is written to the record before anybody is told.
//!
//! # Pids
//! Every process that `libcontainer` makes is this process's child, and only this thread reaps: a pid it has not reaped
//! cannot mean another process, so that signals need no pidfd. A child may end before its helper has reported its pid;
//! such ends are kept in [`Supervisor::early`] until the reports that are under way have come.

mod calls;
mod containers;
mod ending;
mod execs;
mod launches;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::sockopt::SockType as SocketType;
use nix::sys::socket::{SockType, getsockopt};
use nix::sys::stat::Mode;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::unistd::{Pid, dup2_stdin};

use crate::cgroup::Hierarchies;
use crate::connection::{Connection, Incoming};
use crate::launch::Site;
use crate::log::Clock;
use crate::log::file::Limits;
use crate::protocol::{Event, Failure, FailureKind, FromSupervisor, Reply, SandboxDir, SupervisorRecord};
use crate::setup::{self, Sandbox, SetupError};
use crate::sys::descriptor;
use crate::sys::memory::{release_free_memory, release_program};
use crate::sys::process::{Ended, close_from, reap};

use containers::Container;
use ending::Removal;
use execs::{Exec, Leftover};
use launches::Launch;

/// How long a failed set-up waits for the daemon's first packet, to say why in the answer.
const FAREWELL_MS: u16 = 5000;
/// Without work for so long, what the work needed is given back.
const QUIET_MS: u16 = 5000;
/// Packets read from one client before others get their turn.
const PACKETS_PER_TURN: usize = 16;

/// What an epoll event is about. Indices are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Listener,
    Signals,
    Timer,
    Connection(u32),
    Launch(u32),
    Output(u32, usize),
}

impl Token {
    fn encode(self) -> u64 {
        let of = |kind: u64, index: u32| kind << 32 | u64::from(index);
        match self {
            Token::Listener => of(0, 0),
            Token::Signals => of(1, 0),
            Token::Timer => of(2, 0),
            Token::Connection(index) => of(3, index),
            Token::Launch(index) => of(4, index),
            Token::Output(index, 0) => of(5, index),
            Token::Output(index, _) => of(6, index),
        }
    }

    fn decode(data: u64) -> Option<Self> {
        let index = data as u32;
        Some(match data >> 32 {
            0 => Token::Listener,
            1 => Token::Signals,
            2 => Token::Timer,
            3 => Token::Connection(index),
            4 => Token::Launch(index),
            5 => Token::Output(index, 0),
            6 => Token::Output(index, 1),
            _ => return None,
        })
    }
}

/// Whom to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Caller {
    connection: u32,
    request: u64,
}

struct Supervisor {
    site: Site,
    record: SupervisorRecord,
    limits: Limits,
    epoll: Epoll,
    listener: OwnedFd,
    signals: SignalFd,
    timer: TimerFd,
    clock: Clock,
    next_index: u32,
    connections: BTreeMap<u32, Connection>,
    containers: BTreeMap<u32, Container>,
    execs: BTreeMap<u32, Exec>,
    launches: BTreeMap<u32, Launch>,
    /// Children that ended while helpers were under way that may yet name them.
    early: Vec<(Pid, Ended)>,
    removals: Vec<Removal>,
    leftovers: Vec<Leftover>,
    /// Those who asked for the end; `Some` means that it has begun.
    ending: Option<Vec<Caller>>,
}

/// Says something on stderr, which is a log file or the journal. That nobody can hear it is no reason to fail.
fn warn(message: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "orlop sandbox: {message}");
}

/// `orlop sandbox --dir <run-dir>/pods/<uid> [--pod <namespace>/<name>]`: the life of one pod's supervisor.
///
/// `args` are those behind the program's name and the word `sandbox`. `--pod` is only there to be seen in `ps`. Standard
/// input may be the first connection. If the sandbox cannot be made, the first request on it is
/// answered with why.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(Arguments { dir, sealed }) = parse(args) else {
        warn("usage: orlop sandbox --dir DIRECTORY [--pod NAMESPACE/NAME]");
        return ExitCode::from(2);
    };
    if !sealed {
        warn(format_args!("execute from a read-only mount: {}", setup::seal_program()));
    }
    let _ = close_from(3);
    let first = take_stdin().map(Connection::new);
    match start(&dir) {
        Ok(mut supervisor) => supervisor.run(first),
        Err(error) => {
            warn(&error);
            if let Some(connection) = first {
                say_why(connection, &error);
            }
            ExitCode::FAILURE
        }
    }
}

/// The first connection, if standard input is one. `/dev/null` takes its place, so that no child inherits it.
fn take_stdin() -> Option<OwnedFd> {
    let stdin = std::io::stdin();
    let is_ours = getsockopt(&stdin, SocketType).is_ok_and(|kind| kind == SockType::SeqPacket);
    let connection = is_ours.then(|| stdin.as_fd().try_clone_to_owned().ok()).flatten()?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    dup2_stdin(&null).ok()?;
    Some(connection)
}

/// The command line.
struct Arguments {
    dir: SandboxDir,
    sealed: bool,
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let (mut dir, mut sealed) = (None, false);
    while let Some(arg) = args.next() {
        match arg.to_str()? {
            "--dir" => dir = Some(PathBuf::from(args.next()?)),
            "--pod" => drop(args.next()?),
            setup::SEALED => sealed = true,
            _ => return None,
        }
    }
    let dir = dir.filter(|dir| dir.is_absolute()).map(SandboxDir)?;
    Some(Arguments { dir, sealed })
}

fn start(dir: &SandboxDir) -> Result<Supervisor, SetupError> {
    setup::detach()?;
    let config = setup::read_config(dir)?;
    let sandbox = setup::make(dir, &config)?;
    let site = Site {
        dir: dir.clone(),
        state_dir: config.state_dir,
        sandbox: config.attempt,
        pid_ns_holder: sandbox.record.pid_ns_holder,
        hierarchies: Hierarchies::detect()
            .map_err(|source| crate::record::FileError { path: "/proc/self/mounts".into(), source })?,
    };
    let limits = Limits { max_bytes: config.log_max_bytes, max_files: config.log_max_files };
    Supervisor::new(site, limits, sandbox)
        .map_err(|errno| SetupError::Step { step: "make event loop", errno })
}

/// Answers the first request with the reason why there is no sandbox.
fn say_why(mut connection: Connection, error: &SetupError) {
    let mut ready = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(FAREWELL_MS)).is_ok_and(|count| count > 0)
        && let Incoming::Request(request, _) = connection.receive()
    {
        let failure =
            Failure { kind: FailureKind::CannotCreate, message: format!("create sandbox: {error}") };
        // A client that is gone needs no answer.
        let _ = connection.send(&FromSupervisor::Reply(Reply { id: request.id, result: Err(failure) }), None);
    }
}

impl Supervisor {
    fn new(site: Site, limits: Limits, sandbox: Sandbox) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut child_ended = SigSet::empty();
        child_ended.add(Signal::SIGCHLD);
        let signals = SignalFd::with_flags(&child_ended, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let listening = |token: Token| EpollEvent::new(EpollFlags::EPOLLIN, token.encode());
        epoll.add(&sandbox.listener, listening(Token::Listener))?;
        epoll.add(&signals, listening(Token::Signals))?;
        epoll.add(&timer, listening(Token::Timer))?;
        Ok(Supervisor {
            site,
            record: sandbox.record,
            limits,
            epoll,
            listener: sandbox.listener,
            signals,
            timer,
            clock: Clock::default(),
            next_index: 0,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            launches: BTreeMap::new(),
            early: Vec::new(),
            removals: Vec::new(),
            leftovers: Vec::new(),
            ending: None,
        })
    }

    fn run(&mut self, first: Option<Connection>) -> ExitCode {
        if let Some(connection) = first {
            self.add_connection(connection);
        }
        let mut events = [EpollEvent::empty(); 16];
        let mut patience = EpollTimeout::from(QUIET_MS);
        loop {
            let count = match self.epoll.wait(&mut events, patience) {
                Ok(0) => {
                    release_program();
                    release_free_memory();
                    patience = EpollTimeout::NONE;
                    0
                }
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    warn(format_args!("wait for events: {errno}"));
                    return ExitCode::FAILURE;
                }
            };
            let mut worked = false;
            for event in &events[..count] {
                if let Some(token) = Token::decode(event.data()) {
                    self.handle(token);
                    // Copying output is frequent and leaves nothing worth the call.
                    worked |= !matches!(token, Token::Output(..));
                }
            }
            if worked {
                release_free_memory();
                patience = EpollTimeout::from(QUIET_MS);
            }
            if self.advance_ending() {
                return ExitCode::SUCCESS;
            }
        }
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.reap_all(),
            Token::Timer => self.retry_removals(),
            Token::Connection(index) => self.serve(index),
            Token::Launch(index) => self.read_reports(index),
            Token::Output(index, stream) => self.pump(index, stream),
        }
    }

    fn take_index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index
    }

    /// Adds a descriptor to the event loop; it leaves it by itself when it is closed.
    fn watch(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.encode()))
    }

    fn accept(&mut self) {
        while let Ok(socket) = descriptor::accept(&self.listener) {
            self.add_connection(Connection::new(socket));
        }
    }

    fn add_connection(&mut self, connection: Connection) {
        let index = self.take_index();
        match self.watch(&connection, Token::Connection(index)) {
            Ok(()) => drop(self.connections.insert(index, connection)),
            Err(errno) => warn(format_args!("watch connection: {errno}")),
        }
    }

    fn serve(&mut self, index: u32) {
        for _ in 0..PACKETS_PER_TURN {
            let Some(connection) = self.connections.get_mut(&index) else { return };
            match connection.receive() {
                Incoming::Request(request, fds) => self.call(index, request, fds),
                Incoming::Malformed(request, failure) => {
                    self.answer(Caller { connection: index, request }, Err(failure), None);
                }
                Incoming::Nothing => break,
                Incoming::Closed => return drop(self.connections.remove(&index)),
            }
        }
        if let Some(connection) = self.connections.get_mut(&index)
            && connection.is_waiting()
        {
            let flushed = connection.flush().is_ok();
            self.settle(index, flushed);
        }
    }

    /// Sends to one client, if it is still there.
    fn send(&mut self, index: u32, message: &FromSupervisor, descriptor: Option<OwnedFd>) {
        if let Some(connection) = self.connections.get_mut(&index) {
            let sent = connection.send(message, descriptor).is_ok();
            self.settle(index, sent);
        }
    }

    /// After a send: waits for room in the client's socket exactly while something waits; drops a client that is gone
    /// or does not read.
    fn settle(&mut self, index: u32, fine: bool) {
        let Some(connection) = self.connections.get(&index) else { return };
        let mut interest = EpollFlags::EPOLLIN;
        interest.set(EpollFlags::EPOLLOUT, connection.is_waiting());
        let mut event = EpollEvent::new(interest, Token::Connection(index).encode());
        if !fine || self.epoll.modify(connection, &mut event).is_err() {
            self.connections.remove(&index);
        }
    }

    fn answer(
        &mut self,
        caller: Caller,
        result: Result<crate::protocol::Answer, Failure>,
        descriptor: Option<OwnedFd>,
    ) {
        let reply = FromSupervisor::Reply(Reply { id: caller.request, result });
        self.send(caller.connection, &reply, descriptor);
    }

    fn announce(&mut self, event: Event) {
        let message = FromSupervisor::Event(event);
        let listeners: Vec<u32> =
            self.connections.iter().filter(|(_, one)| one.greeted).map(|(index, _)| *index).collect();
        for index in listeners {
            self.send(index, &message, None);
        }
    }

    /// Takes every child that has ended.
    fn reap_all(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some((pid, ended)) = reap() {
            self.ended(pid, ended);
        }
        if !self.leftovers.is_empty() {
            self.remove_leftovers();
        }
    }

    fn ended(&mut self, pid: Pid, ended: Ended) {
        if let Some(index) = self.container_of(pid) {
            self.container_ended(index, ended);
        } else if let Some(index) = self.exec_of(pid) {
            self.exec_ended(index, ended);
        } else if let Some(index) = self.launch_of(pid) {
            self.helper_ended(index);
        } else if Some(pid.as_raw()) == self.site.pid_ns_holder {
            self.site.pid_ns_holder = None;
            if self.ending.is_none() {
                warn("the pod's PID 1 was killed, and every container with it");
            }
        } else if !self.launches.is_empty() {
            self.early.push((pid, ended));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Listener,
            Token::Signals,
            Token::Timer,
            Token::Connection(7),
            Token::Launch(u32::MAX),
            Token::Output(3, 0),
            Token::Output(3, 1),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }

    #[test]
    fn arguments_name_the_directory() {
        let parsed = |args: &[&str]| parse(args.iter().map(OsString::from)).map(|parsed| parsed.dir.0);
        assert_eq!(parsed(&["--dir", "/d", "--pod", "ns/p"]), Some("/d".into()));
        assert_eq!(parsed(&["--dir", "relative"]), None);
        assert_eq!(parsed(&["--dir"]), None);
        assert_eq!(parsed(&[]), None);
        assert_eq!(parsed(&["--dir", "/d", "--what"]), None);
    }
}
