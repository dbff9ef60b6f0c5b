//! Waiting for a link to be ready to carry packets.
//!
//! Owns: a socket that hears of changes of links. A link that is up has its carrier noticed by a worker of the kernel's
//! a moment later; only then does a bridge forward by it, and what is sent before, such as the announcement of an
//! address, is lost.

use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

use super::{Channel, NetlinkError};

/// `RTNLGRP_LINK`.
const LINKS: u32 = 1;

/// Hears of changes from when it was made.
#[derive(Debug)]
pub struct LinkWatch {
    channel: Channel,
}

impl LinkWatch {
    /// Begins to listen in the namespace of the calling thread.
    ///
    /// # Errors
    /// The socket could not be opened.
    pub fn new() -> Result<Self, NetlinkError> {
        let what = "listen for changes of links";
        let channel = Channel::open(NETLINK_ROUTE, what)?;
        channel.socket.add_membership(LINKS).map_err(|e| NetlinkError::io(what, &e))?;
        Ok(Self { channel })
    }

    /// Waits until the link `name` carries packets; `false` when it does not within `patience`, or is gone. Questions
    /// are asked by `asker`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn wait(
        &mut self,
        asker: &mut Channel,
        name: &str,
        patience: Duration,
    ) -> Result<bool, NetlinkError> {
        let deadline = Instant::now() + patience;
        loop {
            match asker.link(name)? {
                Some(link) if link.running => return Ok(true),
                Some(_) => {}
                None => return Ok(false),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // A timeout of zero would wait for ever.
            let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
            let timeout = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
            let set = setsockopt(&self.channel.socket, ReceiveTimeout, &timeout);
            set.map_err(|e| NetlinkError::new("listen for changes of links", e))?;
            // Whatever comes, even the news that too much came to be kept, is a reason to look again.
            let _ = self.channel.receive("listen for changes of links");
        }
    }
}
