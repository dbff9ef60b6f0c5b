//! A client of the supervisor's socket, as the daemon is one.
//!
//! Owns: the connection, and events that came while an answer was waited for. Never: starts or ends a supervisor.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;
use orlop_sandbox::descriptor;
use orlop_sandbox::protocol::*;

use super::PATIENCE;

/// A client of the supervisor's socket.
pub struct Client {
    socket: OwnedFd,
    next: u64,
    /// Events that came while a reply was waited for.
    events: Vec<Event>,
}

impl Client {
    pub fn new(socket: OwnedFd) -> Self {
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0)).unwrap();
        Client { socket, next: 1, events: Vec::new() }
    }

    pub fn connect(dir: &SandboxDir) -> Self {
        let mut client = Client::connect_silently(dir);
        client.hello();
        client
    }

    pub fn connect_silently(dir: &SandboxDir) -> Self {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(&dir.socket()).unwrap()).unwrap();
        Client::new(socket)
    }

    pub fn hello(&mut self) -> SupervisorRecord {
        match self.call(Call::Hello { version: VERSION }) {
            Ok(Answer::Hello { supervisor, .. }) => supervisor,
            other => panic!("{other:?}"),
        }
    }

    pub fn raw(&self, text: &[u8]) {
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(text)], &[], MsgFlags::empty(), None).unwrap();
    }

    pub fn send(&mut self, call: Call, fds: &[i32]) -> u64 {
        let id = self.next;
        self.next += 1;
        let text = serde_json::to_vec(&Request { id, call }).unwrap();
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&text)], control, MsgFlags::empty(), None)
            .unwrap();
        id
    }

    pub fn receive(&mut self) -> Option<(FromSupervisor, Option<OwnedFd>)> {
        let mut text = vec![0u8; MAX_PACKET];
        let message =
            descriptor::receive(self.socket.as_fd(), &mut text, MsgFlags::empty()).expect("a packet in time");
        let parse = || serde_json::from_slice(&text[..message.length]).unwrap();
        (message.length > 0).then(|| (parse(), message.descriptors.into_iter().next()))
    }

    pub fn reply(&mut self, id: u64) -> (Result<Answer, Failure>, Option<OwnedFd>) {
        loop {
            match self.receive().expect("the supervisor lives") {
                (FromSupervisor::Reply(reply), fd) => {
                    assert_eq!(reply.id, id);
                    return (reply.result, fd);
                }
                (FromSupervisor::Event(event), _) => self.events.push(event),
            }
        }
    }

    /// Sends without waiting; an error when the socket is full or closed.
    pub fn try_send(&mut self, call: Call) -> Result<(), nix::Error> {
        let text = serde_json::to_vec(&Request { id: 1, call }).unwrap();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&text)], &[], flags, None).map(drop)
    }

    /// A call with an id of one's own choice.
    pub fn call_as(&mut self, id: u64, call: Call) -> Result<Answer, Failure> {
        self.next = id;
        self.call(call)
    }

    pub fn call(&mut self, call: Call) -> Result<Answer, Failure> {
        let id = self.send(call, &[]);
        self.reply(id).0
    }

    pub fn start(&mut self, start: StartContainer) -> Result<ContainerRecord, Failure> {
        match self.call(Call::Start(Box::new(start)))? {
            Answer::Started(record) => Ok(record),
            other => panic!("{other:?}"),
        }
    }

    pub fn event(&mut self) -> Event {
        if !self.events.is_empty() {
            return self.events.remove(0);
        }
        match self.receive().expect("the supervisor lives").0 {
            FromSupervisor::Event(event) => event,
            FromSupervisor::Reply(reply) => panic!("{reply:?}"),
        }
    }

    /// The end of a container: exit code, signal, whether by the OOM killer.
    pub fn exit(&mut self, name: &str) -> (i32, Option<i32>, bool) {
        loop {
            if let Event::Exited(record) = self.event()
                && record.id.name == name
            {
                match record.state {
                    RecordState::Exited { exit_code, signal, oom_killed, .. } => {
                        return (exit_code, signal, oom_killed);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    pub fn exec_exit(&mut self, id: u64) -> i32 {
        loop {
            match self.event() {
                Event::ExecExited { exec_id, exit_code } if exec_id == id => return exit_code,
                _ => {}
            }
        }
    }

    pub fn state(&mut self) -> Vec<ContainerRecord> {
        match self.call(Call::State) {
            Ok(Answer::State { containers, truncated: false }) => containers,
            other => panic!("{other:?}"),
        }
    }
}
