//! `orlop exec`: run a program in a running container, by talking to the pod's supervisor. Needs no daemon.
//!
//! Owns: finding the container, the packet with the three standard descriptors. Never: has a terminal of its own (`-t`
//! belongs to the issue that brings exec to the node's server).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg, socket,
};
use orlop_sandbox::protocol::{
    Answer, Call, ContainerId, ContainerRecord, Event, ExecProcess, FromSupervisor, MAX_PACKET, RecordState,
    Request, SandboxConfig, SandboxDir, VERSION,
};

use super::Dirs;
use crate::host::files::read_json;

/// The flags of `orlop exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    dirs: Dirs,
    /// The pod, by name or UID
    pod: String,
    /// The pod's namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The container; the pod's first one if not given
    #[arg(short, long)]
    container: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the program; its exit code is ours, 128 + signal for a signal.
pub fn main(args: &ExecArgs) -> ExitCode {
    match exec(args) {
        Ok(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)),
        Err(error) => {
            eprintln!("orlop exec: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn exec(args: &ExecArgs) -> anyhow::Result<i32> {
    let dir = find_pod(&args.dirs.run_dir.join("pods"), &args.namespace, &args.pod)?;
    let mut session = Session::open(&dir)?;
    session.call(Call::Hello { version: VERSION }, &[])?;
    let Answer::State { containers, .. } = session.call(Call::State, &[])? else {
        bail!("unexpected answer")
    };
    let id = pick(&containers, args.container.as_deref(), &args.pod)?;
    let exec_id = u64::from(std::process::id()) << 32 | 1;
    let process = ExecProcess { exec_id, id, args: args.command.clone(), env: vec![], cwd: None, tty: false };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [stdin.as_fd().as_raw_fd(), stdout.as_fd().as_raw_fd(), stderr.as_fd().as_raw_fd()];
    session.call(Call::Exec(Box::new(process)), &streams)?;
    session.wait(exec_id)
}

fn find_pod(pods: &Path, namespace: &str, pod: &str) -> anyhow::Result<SandboxDir> {
    for entry in std::fs::read_dir(pods).with_context(|| format!("read {}", pods.display()))?.flatten() {
        let dir = SandboxDir(entry.path());
        let Ok(config) = read_json::<SandboxConfig>(&dir.config()) else { continue };
        if config.uid == pod || (config.name == pod && config.namespace == namespace) {
            return Ok(dir);
        }
    }
    bail!("pod {pod:?} in namespace {namespace:?} is not on this node; `orlop ps` lists those that are")
}

fn pick(records: &[ContainerRecord], wanted: Option<&str>, pod: &str) -> anyhow::Result<ContainerId> {
    let mut running = records
        .iter()
        .filter(|record| matches!(record.state, RecordState::Running { .. }))
        .map(|record| &record.id);
    let found = match wanted {
        Some(name) => running.find(|id| id.name == name),
        None => running.next(),
    };
    match (found, wanted) {
        (Some(id), _) => Ok(id.clone()),
        (None, Some(name)) => bail!("container {name:?} of pod {pod:?} is not running"),
        (None, None) => bail!("no container of pod {pod:?} is running"),
    }
}

/// A blocking conversation with a supervisor.
struct Session {
    socket: OwnedFd,
    next_id: u64,
    /// Exits that were told while an answer was waited for.
    exits: Vec<(u64, i32)>,
}

impl Session {
    fn open(dir: &SandboxDir) -> anyhow::Result<Self> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let path = dir.socket();
        connect(socket.as_raw_fd(), &UnixAddr::new(&path)?)
            .with_context(|| format!("the pod's supervisor does not answer on {}", path.display()))?;
        Ok(Self { socket, next_id: 0, exits: vec![] })
    }

    fn call(&mut self, call: Call, fds: &[i32]) -> anyhow::Result<Answer> {
        self.next_id += 1;
        let packet = serde_json::to_vec(&Request { id: self.next_id, call })?;
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&packet)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        loop {
            match self.receive()? {
                FromSupervisor::Reply(reply) if reply.id == self.next_id => return Ok(reply.result?),
                FromSupervisor::Reply(_) => {}
                FromSupervisor::Event(event) => self.note(&event),
            }
        }
    }

    fn wait(&mut self, exec_id: u64) -> anyhow::Result<i32> {
        loop {
            if let Some((_, code)) = self.exits.iter().find(|(id, _)| *id == exec_id) {
                return Ok(*code);
            }
            if let FromSupervisor::Event(event) = self.receive()? {
                self.note(&event);
            }
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::ExecExited { exec_id, exit_code } => self.exits.push((*exec_id, *exit_code)),
            Event::Started(_) | Event::Exited(_) => {}
        }
    }

    fn receive(&self) -> anyhow::Result<FromSupervisor> {
        let mut packet = vec![0; MAX_PACKET];
        let size = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty())?;
        if size == 0 {
            bail!("the pod's supervisor ended");
        }
        Ok(serde_json::from_slice(&packet[..size])?)
    }
}
