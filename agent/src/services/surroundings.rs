//! What changes on the machine itself and matters to the proxy: addresses of interfaces, and our own table in the hands
//! of others.
//!
//! Owns: a thread that sleeps on two netlink sockets. Never: wakes by the clock, or looks at what was changed (addresses
//! are listed again; the proxy compares the table and repairs it).

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use orlop_netproxy::Event;
use orlop_netproxy::netlink::{Monitor, interface_addresses};

use super::driver::Handle;

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// Tells which addresses the interfaces have, now and whenever that changes; and, with a monitor, of changes that others
/// make to our table. In the network namespace of the caller, until the process ends.
///
/// # Errors
/// When the kernel refuses a socket, or the thread.
pub fn start(monitor: Option<Monitor>, proxy: Handle) -> anyhow::Result<()> {
    let announcements = announcements().context("listen for addresses of interfaces")?;
    let ears = Ears { announcements, monitor, told: None, proxy };
    std::thread::Builder::new()
        .name("orlop-ears".into())
        .stack_size(128 << 10)
        .spawn(move || ears.run())
        .context("start the thread that listens to the kernel")?;
    Ok(())
}

fn announcements() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, ADDRESS_GROUPS))?;
    Ok(socket)
}

struct Ears {
    announcements: OwnedFd,
    monitor: Option<Monitor>,
    /// The addresses last told.
    told: Option<Vec<IpAddr>>,
    proxy: Handle,
}

impl Ears {
    fn run(mut self) {
        loop {
            // Listening began before the first look: what changes in between is announced.
            if !self.tell_addresses() || !self.tell_foreign_change() {
                return;
            }
            if let Err(errno) = self.wait() {
                tracing::warn!(%errno, "new addresses of interfaces go unnoticed");
                return;
            }
        }
    }

    /// False once the proxy has ended.
    fn tell_addresses(&mut self) -> bool {
        match interface_addresses() {
            Ok(addresses) if self.told.as_ref() != Some(&addresses) => {
                self.told = Some(addresses.clone());
                self.proxy.send(Event::InterfaceAddresses(addresses))
            }
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "the addresses of the interfaces are unknown");
                true
            }
        }
    }

    fn tell_foreign_change(&mut self) -> bool {
        if !self.monitor.as_mut().is_some_and(Monitor::changed) {
            return true;
        }
        tracing::warn!("somebody else changed the service rules; repairing them");
        self.proxy.send(Event::ForeignChange)
    }

    /// Sleeps until something is announced, and takes what there is of addresses.
    fn wait(&self) -> Result<(), Errno> {
        let mut sockets = vec![PollFd::new(self.announcements.as_fd(), PollFlags::POLLIN)];
        sockets.extend(self.monitor.as_ref().map(|monitor| PollFd::new(monitor.as_fd(), PollFlags::POLLIN)));
        match poll(&mut sockets, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let mut buffer = [0; 8192];
        loop {
            match recv(self.announcements.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                // So many that some were lost: they are listed anew anyway.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }
}
