//! nftables: one batch is one transaction.
//!
//! Owns: the framing of a batch, and listing what is there.
//! Never: reads rules back. What a chain holds is recognised by the comment it was made with.

use std::collections::HashSet;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NlasIterator};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;

use super::nft_rule::{Rule, attr, nested, number, text};
use super::nft_set::{Element, ElementInfo, SetSpec, comment_bytes, read_comment, read_element};
use super::{Channel, HEADER_BYTES, NetlinkError, frame, unless};

/// Half of what a socket's buffer holds by default.
const LARGE_BATCH_BYTES: usize = 100_000;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const GET_CHAIN: u8 = 4;
const DELETE_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const NEW_SET: u8 = 9;
const DELETE_SET: u8 = 11;
const NEW_ELEMENT: u8 = 12;
const GET_ELEMENT: u8 = 13;
const DELETE_ELEMENT: u8 = 14;
/// Netfilter's own header in front of the attributes.
const FAMILY_HEADER_BYTES: usize = 4;

/// Commands that take effect together or not at all.
#[derive(Debug)]
pub struct Batch {
    table: String,
    commands: Vec<(u8, u16, Vec<DefaultNla>)>,
    sets: u32,
}

impl Batch {
    /// An empty batch for the `inet` table `table`.
    #[must_use]
    pub fn new(table: &str) -> Self {
        Self { table: table.to_owned(), commands: Vec::new(), sets: 0 }
    }

    fn push(&mut self, kind: u8, flags: u16, mut attributes: Vec<DefaultNla>) {
        attributes.insert(0, text(1, &self.table));
        self.commands.push((kind, flags, attributes));
    }

    /// Makes the table unless it exists.
    pub fn table(&mut self) {
        self.push(NEW_TABLE, NLM_F_CREATE, vec![]);
    }

    /// Deletes the table with everything in it.
    pub fn delete_table(&mut self) {
        self.push(DELETE_TABLE, 0, vec![]);
    }

    /// Makes a chain that is only jumped to, unless it exists.
    pub fn chain(&mut self, name: &str) {
        self.push(NEW_CHAIN, NLM_F_CREATE, vec![text(3, name)]);
    }

    /// Makes a chain at a hook: `kind` is `nat` or `filter`, `hook` and `priority` as the kernel numbers them.
    pub fn base_chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32, comment: &str) {
        let place = nested(4, &[number(1, hook), attr(2, &priority.to_be_bytes())]);
        self.push(
            NEW_CHAIN,
            NLM_F_CREATE,
            vec![text(3, name), place, text(7, kind), attr(12, &comment_bytes(comment))],
        );
    }

    /// Deletes a chain with its rules. It must exist.
    pub fn delete_chain(&mut self, name: &str) {
        self.push(DELETE_CHAIN, 0, vec![text(3, name)]);
    }

    /// Appends a rule.
    pub fn rule(&mut self, chain: &str, rule: &Rule) {
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, vec![text(2, chain), nested(4, rule.expressions())]);
    }

    /// Makes a set or map unless it exists.
    pub fn set(&mut self, name: &str, spec: SetSpec) {
        let ((kind, len), value) = spec.layout();
        self.sets += 1;
        let mut attributes = vec![
            text(2, name),
            number(3, spec.flags()),
            number(4, kind),
            number(5, len),
            number(10, self.sets),
        ];
        if let Some((kind, len)) = value {
            attributes.extend([number(6, kind), number(7, len)]);
        }
        self.push(NEW_SET, NLM_F_CREATE, attributes);
    }

    /// Deletes a set that no rule uses. It must exist.
    pub fn delete_set(&mut self, name: &str) {
        self.push(DELETE_SET, 0, vec![text(2, name)]);
    }

    /// Adds an element. One that is there with another value makes the batch fail with `EEXIST`.
    pub fn add(&mut self, set: &str, element: &Element) {
        self.push(NEW_ELEMENT, NLM_F_CREATE, vec![text(2, set), nested(3, &[element.attributes(true)])]);
    }

    /// Deletes an element. It must exist.
    pub fn remove(&mut self, set: &str, element: &Element) {
        self.push(DELETE_ELEMENT, 0, vec![text(2, set), nested(3, &[element.attributes(false)])]);
    }

    /// Deletes every element of a set, which must exist.
    pub fn clear(&mut self, set: &str) {
        self.push(DELETE_ELEMENT, 0, vec![text(2, set)]);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

fn message(kind: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
    let inner =
        NetfilterMessageInner::Other { subsys: NetfilterSubsystem::NfTables, message_type: kind, attributes };
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), inner)
}

fn control(message: ControlMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), message)
}

impl Channel {
    /// Carries a batch out.
    ///
    /// # Errors
    /// The first command the kernel refused; nothing of the batch is then in force.
    pub fn commit(&mut self, what: &str, batch: Batch) -> Result<(), NetlinkError> {
        let Some(last) = batch.commands.len().checked_sub(1) else { return Ok(()) };
        let first = self.next_sequence();
        let mut bytes = frame(control(ControlMessage::BatchBegin), 0, first);
        for (position, (kind, flags, attributes)) in batch.commands.into_iter().enumerate() {
            let flags = if position == last { flags | NLM_F_ACK } else { flags };
            let sequence = self.next_sequence();
            bytes.extend(frame(message(kind, attributes), flags, sequence));
        }
        let acked = self.sequence;
        let end = self.next_sequence();
        bytes.extend(frame(control(ControlMessage::BatchEnd), 0, end));
        if bytes.len() > LARGE_BATCH_BYTES {
            // One batch must go in one piece. Without the right to do this, the kernel says that it is too large.
            let _ = setsockopt(&self.socket, SndBufForce, &(bytes.len() * 2));
        }
        self.send_bytes(what, &bytes)?;
        self.read_batch_end(what, first, acked)
    }

    /// Whether a chain exists, and the comment it was made with.
    ///
    /// # Errors
    /// As the kernel answers; a missing table or chain is `None`.
    pub fn chain_comment(&mut self, table: &str, chain: &str) -> Result<Option<String>, NetlinkError> {
        let what = format!("look for chain {chain} of table {table}");
        let request = message(GET_CHAIN, vec![text(1, table), text(3, chain)]);
        let mut found = None;
        let sequence = self.send(&what, request, NLM_F_ACK)?;
        let answer = self.read_until_end(&what, sequence, |frame| {
            let comment = attributes(frame).find(|(kind, _)| *kind == 12).and_then(|(_, v)| read_comment(&v));
            found = Some(comment.unwrap_or_default());
            Ok(())
        });
        unless(answer, &[Errno::ENOENT])?;
        Ok(found)
    }

    /// The names of a table's chains.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn chains(&mut self, table: &str) -> Result<HashSet<String>, NetlinkError> {
        let what = format!("list the chains of table {table}");
        let mut found = HashSet::new();
        let named = [table.as_bytes(), &[0]].concat();
        self.dump_frames(&what, &message(GET_CHAIN, Vec::new()), |frame| {
            let parts: Vec<_> = attributes(frame).collect();
            if parts.iter().any(|(kind, value)| *kind == 1 && *value == named) {
                let name = parts.into_iter().find(|(kind, _)| *kind == 3).map(|(_, name)| name);
                found.extend(name.map(|n| String::from_utf8_lossy(&n).trim_end_matches('\0').to_owned()));
            }
        })?;
        Ok(found)
    }

    /// The elements of a set.
    ///
    /// # Errors
    /// As the kernel answers; a missing table or set has no elements.
    pub fn elements(&mut self, table: &str, set: &str) -> Result<Vec<ElementInfo>, NetlinkError> {
        let what = format!("list set {set} of table {table}");
        let request = message(GET_ELEMENT, vec![text(1, table), text(2, set)]);
        let mut found: Vec<ElementInfo> = Vec::new();
        let answer = self.dump_frames(&what, &request, |frame| {
            for (_, list) in attributes(frame).filter(|(kind, _)| *kind == 3) {
                found.extend(split(&list).filter_map(|(_, element)| read_element(&element)));
            }
        });
        unless(answer, &[Errno::ENOENT])?;
        // A listing that had to be begun anew shows some twice.
        let mut seen = HashSet::new();
        found.retain(|info| seen.insert(info.element.clone()));
        Ok(found)
    }
}

/// The attributes of a whole netfilter frame.
pub(super) fn attributes(frame: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> + '_ {
    split(frame.get(HEADER_BYTES + FAMILY_HEADER_BYTES..).unwrap_or_default())
}

pub(super) fn split(bytes: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> + '_ {
    NlasIterator::new(bytes).map_while(Result::ok).map(|nla| (nla.kind(), nla.value().to_vec()))
}
