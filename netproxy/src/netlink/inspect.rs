//! Reading back what is in the kernel.
//!
//! Owns: dumps of tables, sets, chains, rules and elements, and the comparison of a rule with its dump.
//! Never: changes anything.

use netlink_packet_core::{Emitable, NLA_F_NESTED, NlasIterator, Parseable};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, InetHookNumber, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetElementList, SetElementMessage, SetMessage, TableAttribute,
    TableFlags, TableMessage,
};
use nix::Error as Errno;

use super::encode::{SetTypes, set_types};
use super::socket::Socket;
use super::{element, expression};
use crate::backend::{FoundChain, FoundRule, FoundTable};
use crate::objects::Family;
use crate::ruleset::{Element, Hook, HookPoint, Rule, SetName};

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENTS: u16 = 3;
const DATA_TYPE_NONE: u32 = 0;

/// Reads a table's shape.
pub fn table(
    socket: &mut Socket,
    name: &str,
    family: Family,
    (protect, own_port): (bool, u32),
) -> Result<Option<FoundTable>, Errno> {
    let mut found = None;
    let message = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    socket.dump(family, message.into(), |raw| {
        let Ok(TableMessage { attributes }) = TableMessage::parse(raw.attributes) else { return };
        if !attributes.iter().any(|attribute| matches!(attribute, TableAttribute::Name(n) if n == name)) {
            return;
        }
        let flags = attributes.iter().find_map(|attribute| match attribute {
            TableAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        let owner = attributes.iter().find_map(|attribute| match attribute {
            TableAttribute::Owner(port) => Some(*port),
            _ => None,
        });
        let persists = flags.unwrap_or_default().contains(TableFlags::Persisent);
        found = Some(FoundTable {
            foreign_owner: owner.is_some_and(|port| port != 0 && port != own_port),
            protected: persists == protect,
            ..FoundTable::default()
        });
    })?;
    let Some(mut found) = found else { return Ok(None) };
    sets(socket, name, family, &mut found)?;
    chains(socket, name, family, &mut found)?;
    rules(socket, name, family, &mut found)?;
    Ok(Some(found))
}

fn sets(socket: &mut Socket, table: &str, family: Family, found: &mut FoundTable) -> Result<(), Errno> {
    let attributes = vec![SetAttribute::Table(table.to_owned())];
    socket.dump(family, NfTablesMessage::GetSet(SetMessage { attributes }).into(), |raw| {
        let Ok(SetMessage { attributes }) = SetMessage::parse(raw.attributes) else { return };
        let mut name = None;
        let (mut flags, mut key_type, mut key_length) = (0, 0, 0);
        let (mut data_type, mut data_length) = (DATA_TYPE_NONE, 0);
        for attribute in attributes {
            match attribute {
                SetAttribute::Table(other) if other != table => return,
                SetAttribute::Name(text) => name = Some(text),
                SetAttribute::Flags(bits) => flags = bits.bits(),
                SetAttribute::KeyType(number) => key_type = number,
                SetAttribute::KeyLen(length) => key_length = length,
                SetAttribute::DataType(number) => data_type = number,
                SetAttribute::DataLen(length) => data_length = length,
                _ => {}
            }
        }
        let Some(name) = name else { return };
        let is = SetTypes { flags, key_type, key_length, data_type, data_length };
        let as_named = SetName::parse(&name).is_some_and(|set| {
            let mut wanted = set_types(family, &set);
            // A verdict's length is what the kernel makes it.
            wanted.data_length = if wanted.data_length == 0 { is.data_length } else { wanted.data_length };
            wanted == is
        });
        found.sets.insert(name, as_named);
    })
}

fn chains(socket: &mut Socket, table: &str, family: Family, found: &mut FoundTable) -> Result<(), Errno> {
    let attributes = vec![ChainAttribute::Table(table.to_owned())];
    socket.dump(family, NfTablesMessage::GetChain(ChainMessage { attributes }).into(), |raw| {
        let Ok(ChainMessage { attributes }) = ChainMessage::parse(raw.attributes) else { return };
        let (mut name, mut nat, mut place) = (None, false, (None, None));
        for attribute in attributes {
            match attribute {
                ChainAttribute::Table(other) if other != table => return,
                ChainAttribute::Name(text) => name = Some(text),
                ChainAttribute::Type(kind) => nat = kind == "nat",
                ChainAttribute::Hook(parts) => place = hook(&parts),
                _ => {}
            }
        }
        let Some(name) = name else { return };
        let hook = match place {
            (Some(point), Some(priority)) => Some(Hook { point, nat, priority }),
            _ => None,
        };
        found.chains.insert(name, FoundChain { hook, rules: Vec::new() });
    })
}

fn hook(parts: &[HookAttribute]) -> (Option<HookPoint>, Option<i32>) {
    parts.iter().fold((None, None), |(point, priority), part| match part {
        HookAttribute::Number(HookNumber::Inet(number)) => (
            match number {
                InetHookNumber::PreRouting => Some(HookPoint::Prerouting),
                InetHookNumber::LocalOut => Some(HookPoint::Output),
                InetHookNumber::PostRouting => Some(HookPoint::Postrouting),
                _ => None,
            },
            priority,
        ),
        HookAttribute::Priority(value) => (point, Some(value.cast_signed())),
        _ => (point, priority),
    })
}

fn rules(socket: &mut Socket, table: &str, family: Family, found: &mut FoundTable) -> Result<(), Errno> {
    let attributes = vec![RuleAttribute::Table(table.to_owned())];
    socket.dump(family, NfTablesMessage::GetRule(RuleMessage { attributes }).into(), |raw| {
        let (mut chain, mut expressions, mut ours) = (None, Vec::new(), false);
        for nla in NlasIterator::new(raw.attributes).flatten() {
            match nla.kind() {
                RULE_TABLE => ours = string(nla.value()) == Some(table),
                RULE_CHAIN => chain = string(nla.value()).map(str::to_owned),
                RULE_EXPRESSIONS => expressions = nla.value().to_vec(),
                _ => {}
            }
        }
        if let (true, Some(chain)) = (ours, chain) {
            found.chains.entry(chain).or_default().rules.push(FoundRule::Raw(expressions));
        }
    })
}

fn string(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

/// Reads the elements of a set.
pub fn elements(
    socket: &mut Socket,
    table: &str,
    family: Family,
    set: &SetName,
) -> Result<Vec<Element>, Errno> {
    let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_string())];
    let mut found = Vec::new();
    socket.dump(family, NfTablesMessage::GetSetElement(SetElementMessage { attributes }).into(), |raw| {
        let lists = NlasIterator::new(raw.attributes).flatten().filter(|nla| nla.kind() == LIST_ELEMENTS);
        for list in lists {
            let each = NlasIterator::new(list.value()).flatten();
            found.extend(each.filter_map(|nla| element::decode(family, set, nla.value())));
        }
    })?;
    Ok(found)
}

/// Whether the kernel's dump of a rule's expressions says what the rule says. The kernel adds attributes that were
/// left at their defaults, so everything wanted must be there, not the other way round.
pub fn same_rule(family: Family, found: &[u8], wanted: &Rule) -> bool {
    let expressions = expression::encode(family, wanted);
    let mut bytes = vec![0; expressions.as_slice().buffer_len()];
    expressions.as_slice().emit(&mut bytes);
    let (mut theirs, mut ours) = (NlasIterator::new(found), NlasIterator::new(bytes.as_slice()));
    loop {
        match (theirs.next(), ours.next()) {
            (None, None) => return true,
            (Some(Ok(theirs)), Some(Ok(ours))) if contains(theirs.value(), ours.value()) => {}
            _ => return false,
        }
    }
}

/// Whether every attribute of `wanted` is in `found`.
fn contains(found: &[u8], wanted: &[u8]) -> bool {
    NlasIterator::new(wanted).all(|wanted| {
        let Ok(wanted) = wanted else { return false };
        NlasIterator::new(found).flatten().filter(|found| found.kind() == wanted.kind()).any(|found| {
            found.value() == wanted.value()
                || (wanted.nested_flag() && contains(found.value(), wanted.value()))
        })
    })
}

const _: () = assert!(NLA_F_NESTED == 1 << 15, "nested attributes are marked by the highest bit");
