//! Rules, as the few statements the ruleset is made of.
//!
//! Owns: the typed rule. It is encoded for the kernel by `netlink`, and evaluated packet by packet by `trace`.
//! Never: offers a statement that stock nft cannot list.

use ipnet::IpNet;

use super::{Chain, SetName};
use crate::objects::Protocol;

/// A value loaded from the packet or its connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Load {
    /// `ip saddr`
    SourceAddress,
    /// `ip daddr`
    DestinationAddress,
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    DestinationPort,
    /// `ct original ip daddr`
    OriginalAddress,
    /// `ct original proto-dst`
    OriginalPort,
    /// `numgen random mod count offset first`
    Random {
        /// How many slots.
        count: u32,
        /// The first slot.
        first: u32,
    },
}

/// What the sender of a rejected packet gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RejectWith {
    /// A TCP reset.
    TcpReset,
    /// ICMP port unreachable.
    PortUnreachable,
}

/// One statement. All but the last of a rule are conditions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// `ct state new`
    New,
    /// `ct status dnat`
    Translated,
    /// `fib saddr type local`, or its opposite for addresses of others
    FromNode,
    /// `fib daddr type local`
    ToNode,
    /// `meta l4proto <protocol>`
    ProtocolIs(Protocol),
    /// `ip saddr <range>`, or `!=`
    SourceIn(IpNet, bool),
    /// `ip daddr <range>`, or `!=`
    DestinationIn(IpNet, bool),
    /// `iifname "<name>"` or `"<name>*"`, or `!=`
    Interface {
        /// The name, or its beginning.
        name: Box<str>,
        /// Whether the name is a beginning only.
        prefix: bool,
        /// `true` for "is", `false` for "is not".
        is: bool,
    },
    /// `<key> @set`, or `!=`
    In(Vec<Load>, SetName, bool),
    /// `<key> vmap @map`
    Dispatch(Vec<Load>, SetName),
    /// `dnat ip addr . port to <key> map @map`
    Translate(Vec<Load>, SetName),
    /// `update @map { ip saddr timeout <seconds> : ip daddr . th dport }`
    Remember(SetName, u32),
    /// `masquerade fully-random`
    Masquerade,
    /// `reject with ...`
    Reject(RejectWith),
    /// `drop`
    Drop,
    /// `return`
    Return,
    /// `goto <chain>`
    Goto(Chain),
    /// `jump <chain>`
    Jump(Chain),
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule(pub Vec<Statement>);

impl Rule {
    /// The chains the rule itself names.
    pub fn targets(&self) -> impl Iterator<Item = &Chain> {
        self.0.iter().filter_map(|statement| match statement {
            Statement::Goto(chain) | Statement::Jump(chain) => Some(chain),
            _ => None,
        })
    }
}
