//! One packet's way through the rules, without a kernel.
//!
//! Owns: an evaluator of the typed rules over typed elements. What it says of a packet is what the rules say, not a
//! second opinion of what services mean, so `explain` and the scenario tables test the ruleset itself.
//! Never: draws a random number: a choice among N endpoints is all N.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use crate::objects::{Family, Protocol};
use crate::ruleset::{
    Chain, Key, KeyKind, Load, NodePort, Rule, SetName, Statement, Target, Value, Verdict, Vip,
};

/// Elements by family and set.
pub type Sets = HashMap<(Family, SetName), BTreeMap<Key, Value>>;

/// Rules and elements of both families.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Contents {
    /// Chains with their rules.
    pub chains: HashMap<(Family, Chain), Vec<Rule>>,
    /// Sets with their elements.
    pub sets: Sets,
}

/// The first packet of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Who sends it.
    pub source: IpAddr,
    /// Where to.
    pub destination: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
    /// The interface it comes in by; none if the node itself sends it.
    pub interface: Option<String>,
    /// Whether the source is an address of the node.
    pub from_node: bool,
    /// Whether the destination is an address of the node.
    pub to_node: bool,
}

/// What becomes of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is sent to one of these endpoints; `true` where its source is replaced by the node's address.
    Sent(Vec<(Target, bool)>),
    /// The sender is told that nobody is there.
    Refused,
    /// It disappears.
    Dropped,
    /// The rules have nothing to do with it.
    Untouched,
}

/// What becomes of it, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// The result.
    pub outcome: Outcome,
    /// The chains it went through, each with what it found there.
    pub path: Vec<String>,
}

/// How a chain ends.
enum End {
    /// At its last rule, or by `return`.
    Fallen,
    Drop,
    Reject,
    Masquerade,
    Translate(Vec<Target>),
}

struct Walk<'a> {
    contents: &'a Contents,
    family: Family,
    packet: &'a Packet,
    /// Where it goes now, once translated.
    translated: Option<Target>,
    path: Vec<String>,
}

/// Follows a packet.
pub fn trace(contents: &Contents, packet: &Packet) -> Trace {
    let family = Family::of(&packet.destination);
    let mut walk = Walk { contents, family, packet, translated: None, path: Vec::new() };
    let outcome = walk.outcome();
    Trace { outcome, path: walk.path }
}

impl Walk<'_> {
    fn outcome(&mut self) -> Outcome {
        if matches!(self.chain(&Chain::Firewall), End::Drop) {
            return Outcome::Dropped;
        }
        match self.chain(&Chain::Services) {
            End::Translate(targets) => Outcome::Sent(
                targets
                    .into_iter()
                    .map(|target| {
                        self.translated = Some(target);
                        (target, matches!(self.chain(&Chain::Masquerading), End::Masquerade))
                    })
                    .collect(),
            ),
            End::Drop => Outcome::Dropped,
            End::Reject => Outcome::Refused,
            End::Fallen | End::Masquerade => match self.chain(&Chain::Refusing) {
                End::Drop => Outcome::Dropped,
                End::Reject => Outcome::Refused,
                End::Fallen | End::Masquerade | End::Translate(_) => Outcome::Untouched,
            },
        }
    }

    fn chain(&mut self, chain: &Chain) -> End {
        let contents = self.contents;
        let rules = contents.chains.get(&(self.family, chain.clone())).map(Vec::as_slice).unwrap_or_default();
        for rule in rules {
            if let Some(end) = self.rule(chain, rule) {
                return end;
            }
        }
        End::Fallen
    }

    /// `None` goes on with the next rule.
    fn rule(&mut self, chain: &Chain, rule: &Rule) -> Option<End> {
        for statement in &rule.0 {
            let holds = match statement {
                Statement::New => true,
                Statement::Translated => self.translated.is_some(),
                Statement::FromNode => self.packet.from_node,
                Statement::ToNode => self.packet.to_node,
                Statement::ProtocolIs(protocol) => self.packet.protocol == *protocol,
                Statement::SourceIn(range, is) => range.contains(&self.packet.source) == *is,
                Statement::DestinationIn(range, is) => range.contains(&self.destination().address) == *is,
                Statement::Interface { name, prefix, is } => self.comes_by(name, *prefix) == *is,
                Statement::In(key, set, is) => self.find(key, set).is_some() == *is,
                Statement::Dispatch(key, map) => match self.find(key, map) {
                    Some(Value::Verdict(Verdict::Drop)) => {
                        self.note(chain, &format!("{map}: drop"));
                        return Some(End::Drop);
                    }
                    Some(Value::Verdict(Verdict::Goto(next))) => {
                        self.note(chain, &format!("{map}: goto {next}"));
                        return Some(self.chain(&next));
                    }
                    Some(Value::None | Value::Target(_)) | None => false,
                },
                Statement::Translate(key, map) => {
                    let targets = self.targets(key, map);
                    if !targets.is_empty() {
                        self.note(chain, &format!("{map}: {} endpoints", targets.len()));
                        return Some(End::Translate(targets));
                    }
                    false
                }
                Statement::Remember(..) => true,
                Statement::Masquerade => return Some(self.end(chain, "masquerade", End::Masquerade)),
                Statement::Reject(_) => return Some(self.end(chain, "reject", End::Reject)),
                Statement::Drop => return Some(self.end(chain, "drop", End::Drop)),
                Statement::Return => return Some(End::Fallen),
                Statement::Goto(next) => return Some(self.chain(next)),
                Statement::Jump(next) => match self.chain(next) {
                    End::Fallen => true,
                    end => return Some(end),
                },
            };
            if !holds {
                return None;
            }
        }
        None
    }

    fn end(&mut self, chain: &Chain, what: &str, end: End) -> End {
        self.note(chain, what);
        end
    }

    fn note(&mut self, chain: &Chain, what: &str) {
        self.path.push(format!("{chain}: {what}"));
    }

    fn comes_by(&self, name: &str, prefix: bool) -> bool {
        match (&self.packet.interface, prefix) {
            (None, _) => false,
            (Some(interface), true) => interface.starts_with(name),
            (Some(interface), false) => interface == name,
        }
    }

    fn destination(&self) -> Target {
        self.translated.unwrap_or(Target { address: self.packet.destination, port: self.packet.port })
    }

    fn map(&self, set: &SetName) -> Option<&BTreeMap<Key, Value>> {
        self.contents.sets.get(&(self.family, set.clone()))
    }

    /// The addresses and the port a key is made of, in order.
    fn loaded(&self, parts: &[Load]) -> (Vec<IpAddr>, u16) {
        let mut port = 0;
        let mut addresses = Vec::new();
        for part in parts {
            match part {
                Load::SourceAddress => addresses.push(self.packet.source),
                Load::DestinationAddress => addresses.push(self.destination().address),
                Load::OriginalAddress => addresses.push(self.packet.destination),
                Load::DestinationPort => port = self.destination().port,
                Load::OriginalPort => port = self.packet.port,
                Load::Protocol | Load::Random { .. } => {}
            }
        }
        (addresses, port)
    }

    fn find(&self, parts: &[Load], set: &SetName) -> Option<Value> {
        let (addresses, port) = self.loaded(parts);
        let protocol = self.packet.protocol;
        let vip = |address: &IpAddr| Vip { address: *address, protocol, port };
        let map = self.map(set)?;
        let key = match (set.key_kind(), addresses.as_slice()) {
            (KeyKind::Vip, [address]) => Key::Vip(vip(address)),
            (KeyKind::Port, []) => Key::Port(NodePort { protocol, port }),
            (KeyKind::Address, [address]) => Key::Address(*address),
            (KeyKind::Hairpin, [source, destination]) if source == destination => Key::Hairpin(vip(source)),
            (KeyKind::Source, [address, source]) => {
                let allows = |key: &&Key| match key {
                    Key::Source(to, range) => *to == vip(address) && range.contains(source),
                    _ => false,
                };
                *map.keys().find(allows)?
            }
            _ => return None,
        };
        map.get(&key).cloned()
    }

    fn targets(&self, parts: &[Load], map: &SetName) -> Vec<Target> {
        let random = parts.iter().find_map(|part| match part {
            Load::Random { count, first } => Some((*count, *first)),
            _ => None,
        });
        let as_target = |value: Option<Value>| match value {
            Some(Value::Target(target)) => Some(target),
            _ => None,
        };
        let Some((count, first)) = random else {
            return as_target(self.find(parts, map)).into_iter().collect();
        };
        let Some(elements) = self.map(map) else { return Vec::new() };
        let (addresses, port) = self.loaded(parts);
        let protocol = self.packet.protocol;
        let key = |slot: u32| match addresses.first() {
            Some(address) => Key::VipSlot(Vip { address: *address, protocol, port }, slot),
            None => Key::PortSlot(NodePort { protocol, port }, slot),
        };
        (first..first + count).filter_map(|slot| as_target(elements.get(&key(slot)).cloned())).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Dropped => f.write_str("dropped"),
            Self::Untouched => f.write_str("not a service"),
            Self::Sent(targets) => {
                f.write_str("sent to ")?;
                for (index, (target, masqueraded)) in targets.iter().enumerate() {
                    let (comma, note) =
                        (if index > 0 { ", " } else { "" }, if *masqueraded { " (masqueraded)" } else { "" });
                    write!(f, "{comma}{target}{note}")?;
                }
                Ok(())
            }
        }
    }
}
