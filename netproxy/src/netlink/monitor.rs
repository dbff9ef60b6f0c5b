//! Hearing of changes that others make to our table.
//!
//! Owns: a socket in the multicast group of nf_tables. It becomes readable when anything in nf_tables changes; `changed`
//! then tells whether it was our table, and not by us.
//! Never: looks at what was changed; the proxy compares and repairs.

use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NlasIterator;
use nix::Error as Errno;

use super::socket::Socket;
use crate::backend::BackendError;

const NFNLGRP_NFTABLES: u32 = 7;
const NEWGEN: u8 = 15;

/// The listening socket.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    table: Vec<u8>,
    own_port: u32,
}

impl Monitor {
    pub(super) fn open(table: &str, own_port: u32) -> Result<Self, BackendError> {
        let socket = Socket::open(1 << (NFNLGRP_NFTABLES - 1))?;
        Ok(Self { socket, table: super::expression::text(table), own_port })
    }

    /// Reads what was announced since the last call. True when someone else changed our table, or when so much was
    /// announced that some of it was lost.
    pub fn changed(&mut self) -> bool {
        let (table, own_port) = (&self.table, self.own_port);
        let mut foreign = false;
        let outcome = self.socket.drain(|raw| {
            let message = raw.kind.to_le_bytes()[0];
            // In every message of nf_tables but the generation's, the first attribute is the table.
            let about_ours = || {
                NlasIterator::new(raw.attributes).flatten().any(|nla| nla.kind() == 1 && nla.value() == table)
            };
            if raw.port != own_port && message != NEWGEN && about_ours() {
                foreign = true;
            }
        });
        match outcome {
            Ok(()) => foreign,
            Err(Errno::ENOBUFS) => true,
            Err(errno) => {
                tracing::warn!(%errno, "nf_tables announcements cannot be read");
                foreign
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
