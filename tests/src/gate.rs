//! A gate before a server: it stops in the middle of an answer, until it is opened. What a test needs to do something
//! during a transfer, at no particular speed.
//!
//! Owns: the listening socket in a node's network namespace and its threads; they end when dropped. Never: changes a byte.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::node::Node;

/// Passes connections on, and of each answer only the first bytes until it is opened.
pub struct Gate {
    state: Arc<State>,
    address: SocketAddr,
    netns: File,
}

#[derive(Default)]
struct State {
    open: Mutex<(bool, u32)>,
    changed: Condvar,
    ended: Mutex<bool>,
}

impl Gate {
    /// Listens on a port of the node's loopback, before another one. Each answer stops after `limit` bytes.
    pub fn before(node: &Node, port: u16, target: u16, limit: u64) -> anyhow::Result<Self> {
        let netns = node.netns()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        let inside = netns.try_clone()?;
        let (ready, listening) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("gate".into()).spawn(move || {
            let listener = nix::sched::setns(&inside, nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(anyhow::Error::from)
                .and_then(|()| Ok(TcpListener::bind(address)?));
            let listener = match listener {
                Ok(listener) => listener,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            for client in listener.incoming().flatten() {
                if *shared.ended.lock().unwrap_or_else(PoisonError::into_inner) {
                    return;
                }
                let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], target)));
                if let Ok(server) = server {
                    pass(client, server, &shared, limit);
                }
            }
        })?;
        listening.recv().context("the gate's thread ended")??;
        Ok(Self { state, address, netns })
    }

    /// Waits until an answer stands before the gate.
    pub fn wait_stopped(&self, limit: Duration) -> anyhow::Result<()> {
        let guard = self.state.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, timeout) = self
            .state
            .changed
            .wait_timeout_while(guard, limit, |(_, waiting)| *waiting == 0)
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(!timeout.timed_out(), "nothing came to the gate within {limit:?}");
        drop(guard);
        Ok(())
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.state.open.lock().unwrap_or_else(PoisonError::into_inner).0 = true;
        self.state.changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        *self.state.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.open();
        // The listener's thread looks at `ended` with the next connection, which only a thread in there can make.
        if let Ok(netns) = self.netns.try_clone() {
            let address = self.address;
            let last = std::thread::spawn(move || {
                let inside = nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET);
                inside.map(|()| TcpStream::connect(address).map(drop))
            });
            let _ = last.join();
        }
    }
}

fn pass(client: TcpStream, server: TcpStream, state: &Arc<State>, limit: u64) {
    let Ok((mut asks, mut asked)) = client.try_clone().and_then(|c| Ok((c, server.try_clone()?))) else {
        return;
    };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut asks, &mut asked);
        let _ = asked.shutdown(Shutdown::Write);
    });
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        let (mut from, mut to) = (server, client);
        let mut passed = 0;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length) = from.read(&mut buffer) {
            if length == 0 || to.write_all(&buffer[..length]).is_err() {
                break;
            }
            passed += length as u64;
            if passed > limit {
                let mut guard = state.open.lock().unwrap_or_else(PoisonError::into_inner);
                guard.1 += 1;
                state.changed.notify_all();
                drop(
                    state
                        .changed
                        .wait_while(guard, |(open, _)| !*open)
                        .unwrap_or_else(PoisonError::into_inner),
                );
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
