//! Policy rules: which routing table a source address looks into.
//!
//! Owns: the shapes of the RTM_*RULE requests this crate makes.

use ipnet::IpNet;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Channel, NEW, NetlinkError};

/// Packets from `source` look into `table`, as the rule number `priority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSpec {
    /// Source addresses.
    pub source: IpNet,
    /// The table.
    pub table: u32,
    /// Rules are tried by ascending number.
    pub priority: u32,
}

impl RuleSpec {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let v4 = self.source.addr().is_ipv4();
        message.header.family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.src_len = self.source.prefix_len();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Source(self.source.network()),
            RuleAttribute::Table(self.table),
            RuleAttribute::Priority(self.priority),
        ];
        message
    }
}

impl Channel {
    /// Adds a rule.
    ///
    /// # Errors
    /// `EEXIST` when it is there, else as the kernel answers.
    pub fn add_rule(&mut self, spec: &RuleSpec) -> Result<(), NetlinkError> {
        let what = format!("add rule from {} to table {}", spec.source, spec.table);
        self.ack(&what, RouteNetlinkMessage::NewRule(spec.message()), NEW)
    }

    /// Deletes a rule.
    ///
    /// # Errors
    /// `ENOENT` when it is not there, else as the kernel answers.
    pub fn delete_rule(&mut self, spec: &RuleSpec) -> Result<(), NetlinkError> {
        let what = format!("delete rule from {} to table {}", spec.source, spec.table);
        self.ack(&what, RouteNetlinkMessage::DelRule(spec.message()), 0)
    }

    /// The rules that look into `table` by a source address.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn rules_to(&mut self, table: u32) -> Result<Vec<RuleSpec>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let rules = self.dump("list rules", &RouteNetlinkMessage::GetRule(message))?;
            found.extend(rules.into_iter().filter_map(describe));
        }
        Ok(found.into_iter().filter(|r| r.table == table).collect())
    }
}

fn describe(message: RouteNetlinkMessage) -> Option<RuleSpec> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    let (mut source, mut table, mut priority) = (None, u32::from(message.header.table), 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => source = IpNet::new(*ip, message.header.src_len).ok(),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            _ => {}
        }
    }
    Some(RuleSpec { source: source?, table, priority })
}
