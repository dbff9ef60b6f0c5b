//! One connection to one supervisor.
//!
//! Owns: the socket and the calls that wait for an answer. Does: sends requests, hands replies to their callers and
//! events to whoever opened the connection. Never: reconnects (a closed connection means the sandbox is lost).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::{self, MsgFlags};
use orlop_sandbox::protocol::{
    Answer, Call, Event, Failure, FailureKind, FromSupervisor, MAX_PACKET, Request,
};
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;

type Waiting = HashMap<u64, oneshot::Sender<Result<Answer, Failure>>>;

/// A connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// A `SOCK_SEQPACKET` socket: the runtime has no type for it, and a connected datagram socket is read and written by
    /// the same system calls.
    socket: UnixDatagram,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    next_id: u64,
    waiting: Waiting,
    closed: bool,
}

/// Why a call got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The supervisor said no.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The supervisor is gone.
    #[error("the pod's supervisor is gone")]
    Lost,
    /// The socket failed.
    #[error("talk to the pod's supervisor: {0}")]
    Io(#[from] io::Error),
}

impl CallError {
    /// The supervisor's word for it, if it had one.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            CallError::Refused(failure) => Some(failure.kind),
            CallError::Lost | CallError::Io(_) => None,
        }
    }
}

impl Connection {
    /// Takes a connected, non-blocking `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixDatagram::from_std(socket.into())?;
        Ok(Self { inner: Arc::new(Inner { socket, calls: Mutex::default() }) })
    }

    /// Whether both are the same connection.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Connects to a supervisor's listening socket.
    pub fn connect(path: &std::path::Path) -> io::Result<Self> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::new(socket)
    }

    /// Makes a call and waits for its answer. Dropping the future abandons the answer, not the call.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut calls = self.calls();
            if calls.closed {
                return Err(CallError::Lost);
            }
            calls.next_id += 1;
            let id = calls.next_id;
            calls.waiting.insert(id, sender);
            id
        };
        let packet = serde_json::to_vec(&Request { id, call }).map_err(io::Error::other)?;
        if let Err(error) = self.send(&packet).await {
            self.calls().waiting.remove(&id);
            return Err(error.into());
        }
        match receiver.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(CallError::Lost),
        }
    }

    /// Reads until the supervisor hangs up; every event goes to `on_event`. Exactly one task runs this.
    pub async fn read(&self, mut on_event: impl FnMut(Event)) {
        while let Ok(Some(packet)) = self.receive().await {
            match serde_json::from_slice(&packet) {
                Ok(FromSupervisor::Reply(reply)) => {
                    let waiting = self.calls().waiting.remove(&reply.id);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(reply.result);
                    }
                }
                Ok(FromSupervisor::Event(event)) => on_event(event),
                Err(error) => tracing::warn!(%error, "a supervisor sent a packet that makes no sense"),
            }
        }
        let mut calls = self.calls();
        calls.closed = true;
        calls.waiting.clear();
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.inner.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, packet: &[u8]) -> io::Result<()> {
        if packet.len() > MAX_PACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "request larger than a packet"));
        }
        self.inner
            .socket
            .async_io(tokio::io::Interest::WRITABLE, || {
                Ok(socket::send(self.inner.socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL)?)
            })
            .await?;
        Ok(())
    }

    /// The next packet, or `None` at the end. The buffer is as large as the packet: an idle connection holds none.
    async fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        self.inner
            .socket
            .async_io(tokio::io::Interest::READABLE, || {
                let raw = self.inner.socket.as_raw_fd();
                let size = socket::recv(raw, &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?;
                let mut packet = vec![0; size];
                let read = socket::recv(raw, &mut packet, MsgFlags::empty())?;
                packet.truncate(read);
                Ok((read > 0).then_some(packet))
            })
            .await
    }
}
