//! Transactions in the kernel's form.
//!
//! Owns: one encoder for each operation, and the types of sets. Built with `netlink-packet-netfilter`.
//! Never: sends anything.

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, InetHookNumber, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetDescription, SetFlags, SetMessage, TableAttribute,
    TableFlags, TableMessage,
};

use super::element::{attribute, encode as encode_element};
use super::socket::Batch;
use super::{expression, typeof_data};
use crate::backend::{Operation, Transaction};
use crate::objects::Family;
use crate::ruleset::{Chain, DataKind, Element, HookPoint, KeyKind, SetName};

const NEWSETELEM: u8 = 12;
const DELSETELEM: u8 = 14;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3 | (1 << 15);
const NF_ACCEPT: u32 = 1;
/// An attribute's length has sixteen bits; stop adding elements well before.
const LIST_BYTES: usize = 60_000;
/// More clients than this with session affinity to one service port, and the next ones are not remembered.
const CLIENTS_MAX: u32 = 262_144;

const TYPE_INTEGER: u32 = 4;
const TYPE_IP: u32 = 7;
const TYPE_IP6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_VERDICT: u32 = 0xffff_ff00;

/// A batch, and which operation each of its messages came from.
pub struct Encoded {
    /// What is sent.
    pub batch: Batch,
    /// For each message, the index of its operation.
    pub operations: Vec<usize>,
}

/// Encodes a transaction. With `protect`, tables get the flags `owner` and `persist`.
pub fn transaction(transaction: &Transaction, protect: bool) -> Encoded {
    let mut encoder =
        Encoder { table: &transaction.table, protect, batch: Batch::new(), set_id: 0, messages: 0 };
    let mut operations = Vec::new();
    for (index, operation) in transaction.operations.iter().enumerate() {
        encoder.operation(operation);
        operations.resize(encoder.messages, index);
    }
    Encoded { batch: encoder.batch.finish(), operations }
}

struct Encoder<'a> {
    table: &'a str,
    protect: bool,
    batch: Batch,
    set_id: u32,
    messages: usize,
}

impl Encoder<'_> {
    fn add(&mut self, family: Family, message: NfTablesMessage, flags: u16) {
        self.messages += 1;
        self.batch.add(family, message, NLM_F_REQUEST | flags);
    }

    fn operation(&mut self, operation: &Operation) {
        let table = self.table.to_owned();
        let make = NLM_F_CREATE | NLM_F_EXCL;
        match operation {
            Operation::CreateTable(family) => {
                self.add(*family, NfTablesMessage::NewTable(self.table_message()), make);
            }
            Operation::ClaimTable(family) if self.protect => {
                self.add(*family, NfTablesMessage::NewTable(self.table_message()), 0);
            }
            Operation::ClaimTable(_) => {}
            Operation::DeleteTable(family) => {
                let attributes = vec![TableAttribute::Name(table)];
                self.add(*family, NfTablesMessage::DeleteTable(TableMessage { attributes }), 0);
            }
            Operation::CreateSet(family, set) => {
                self.set_id += 1;
                let attributes = set_attributes(table, *family, set, self.set_id);
                self.add(*family, NfTablesMessage::NewSet(SetMessage { attributes }), make);
            }
            Operation::DeleteSet(family, set) => {
                let attributes = vec![SetAttribute::Table(table), SetAttribute::Name(set.to_string())];
                self.add(*family, NfTablesMessage::DeleteSet(SetMessage { attributes }), 0);
            }
            Operation::CreateChain(family, chain) => {
                let attributes = chain_attributes(table, chain);
                self.add(*family, NfTablesMessage::NewChain(ChainMessage { attributes }), make);
            }
            Operation::FlushChain(family, chain) => {
                let attributes = vec![RuleAttribute::Table(table), RuleAttribute::Chain(chain.to_string())];
                self.add(*family, NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0);
            }
            Operation::AddRule(family, chain, rule) => {
                let attributes = vec![
                    RuleAttribute::Table(table),
                    RuleAttribute::Chain(chain.to_string()),
                    RuleAttribute::Expressions(expression::encode(*family, rule)),
                ];
                let message = NfTablesMessage::NewRule(RuleMessage { attributes });
                self.add(*family, message, NLM_F_CREATE | NLM_F_APPEND);
            }
            Operation::DeleteChain(family, chain) => {
                let attributes = vec![ChainAttribute::Table(table), ChainAttribute::Name(chain.to_string())];
                self.add(*family, NfTablesMessage::DeleteChain(ChainMessage { attributes }), 0);
            }
            Operation::AddElements(family, set, elements) => {
                self.elements(*family, set, elements, (NEWSETELEM, make));
            }
            Operation::DeleteElements(family, set, elements) => {
                self.elements(*family, set, elements, (DELSETELEM, 0));
            }
        }
    }

    fn table_message(&self) -> TableMessage {
        let mut attributes = vec![TableAttribute::Name(self.table.to_owned())];
        if self.protect {
            attributes.push(TableAttribute::Flags(TableFlags::Owner | TableFlags::Persisent));
        }
        TableMessage { attributes }
    }

    fn elements(&mut self, family: Family, set: &SetName, elements: &[Element], (message, flags): (u8, u16)) {
        let name = set.to_string();
        let mut rest = elements.iter().peekable();
        while rest.peek().is_some() {
            self.messages += 1;
            self.batch.add_raw(family, message, NLM_F_REQUEST | flags, |bytes| {
                attribute(bytes, LIST_TABLE, |bytes| bytes.extend(expression::text(self.table)));
                attribute(bytes, LIST_SET, |bytes| bytes.extend(expression::text(&name)));
                attribute(bytes, LIST_ELEMENTS, |bytes| {
                    let start = bytes.len();
                    while let Some(element) = rest.next_if(|_| bytes.len() - start < LIST_BYTES) {
                        encode_element(bytes, element, message == NEWSETELEM);
                    }
                });
            });
        }
    }
}

fn chain_attributes(table: String, chain: &Chain) -> Vec<ChainAttribute> {
    let mut attributes = vec![ChainAttribute::Table(table), ChainAttribute::Name(chain.to_string())];
    if let Some(hook) = chain.hook() {
        let point = match hook.point {
            HookPoint::Prerouting => InetHookNumber::PreRouting,
            HookPoint::Output => InetHookNumber::LocalOut,
            HookPoint::Postrouting => InetHookNumber::PostRouting,
        };
        attributes.extend([
            ChainAttribute::Hook(vec![
                HookAttribute::Number(HookNumber::Inet(point)),
                HookAttribute::Priority(hook.priority.cast_unsigned()),
            ]),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type(if hook.nat { "nat" } else { "filter" }.to_owned()),
        ]);
    }
    attributes
}

/// The types of a set, as far as the kernel tells them back.
#[derive(PartialEq, Eq, Debug)]
pub struct SetTypes {
    /// Flags, types and lengths.
    pub flags: u32,
    /// nft's number of the key's type, for concatenations six bits each.
    pub key_type: u32,
    /// Bytes.
    pub key_length: u32,
    /// nft's number of the value's type.
    pub data_type: u32,
    /// Bytes; verdicts have none.
    pub data_length: u32,
}

/// The parts of a key: types and bytes.
fn key_parts(family: Family, kind: KeyKind) -> Vec<(u32, u32)> {
    let address = match family {
        Family::V4 => (TYPE_IP, 4),
        Family::V6 => (TYPE_IP6, 16),
    };
    let (protocol, port, slot) = ((TYPE_PROTOCOL, 1), (TYPE_PORT, 2), (TYPE_INTEGER, 4));
    match kind {
        KeyKind::Vip => vec![address, protocol, port],
        KeyKind::VipSlot => vec![address, protocol, port, slot],
        KeyKind::Port => vec![protocol, port],
        KeyKind::PortSlot => vec![protocol, port, slot],
        KeyKind::Address => vec![address],
        KeyKind::Hairpin => vec![address, address, protocol, port],
        KeyKind::Source => vec![address, protocol, port, address],
    }
}

fn concatenated(parts: &[(u32, u32)]) -> (u32, u32) {
    parts
        .iter()
        .fold((0, 0), |(kind, length), part| ((kind << 6) | part.0, length + part.1.next_multiple_of(4)))
}

/// What a set of this name should be.
pub fn set_types(family: Family, set: &SetName) -> SetTypes {
    let (key_type, key_length) = concatenated(&key_parts(family, set.key_kind()));
    let address = concatenated(&key_parts(family, KeyKind::Address));
    let (data_type, data_length) = match set.data_kind() {
        DataKind::None => (0, 0),
        DataKind::Verdict => (TYPE_VERDICT, 0),
        DataKind::Target => ((address.0 << 6) | TYPE_PORT, address.1 + 4),
    };
    let mut flags = SetFlags::empty();
    if set.data_kind() != DataKind::None {
        flags |= SetFlags::Map;
    }
    if set.is_dynamic() {
        flags |= SetFlags::Timeout | SetFlags::Eval;
    }
    if set.key_kind() == KeyKind::Source {
        flags |= SetFlags::Interval | SetFlags::Concat;
    }
    SetTypes { flags: flags.bits(), key_type, key_length, data_type, data_length }
}

fn set_attributes(table: String, family: Family, set: &SetName, id: u32) -> Vec<SetAttribute> {
    let types = set_types(family, set);
    let mut attributes = vec![
        SetAttribute::Table(table),
        SetAttribute::Name(set.to_string()),
        SetAttribute::Flags(SetFlags::from_bits_retain(types.flags)),
        SetAttribute::KeyType(types.key_type),
        SetAttribute::KeyLen(types.key_length),
        SetAttribute::Id(id),
    ];
    if set.data_kind() != DataKind::None {
        attributes
            .extend([SetAttribute::DataType(types.data_type), SetAttribute::DataLen(types.data_length)]);
    }
    if set.is_dynamic() {
        attributes.push(SetAttribute::Description(vec![SetDescription::Size(CLIENTS_MAX)]));
    }
    match set.key_kind() {
        KeyKind::Source => {
            let fields = key_parts(family, KeyKind::Source);
            let concat = fields.into_iter().map(|(_, length)| field_length(length)).collect();
            attributes.push(SetAttribute::Description(vec![SetDescription::Concat(concat)]));
        }
        KeyKind::VipSlot => attributes.push(SetAttribute::UserData(typeof_data::of_endpoints(family, true))),
        KeyKind::PortSlot => {
            attributes.push(SetAttribute::UserData(typeof_data::of_endpoints(family, false)))
        }
        KeyKind::Vip | KeyKind::Port | KeyKind::Address | KeyKind::Hairpin => {}
    }
    attributes
}

/// `NFTA_LIST_ELEM { NFTA_SET_FIELD_LEN }`
fn field_length(length: u32) -> DefaultNla {
    const LIST_ELEM: u16 = 1 | (1 << 15);
    let mut inner = Vec::new();
    attribute(&mut inner, 1, |bytes| bytes.extend(length.to_be_bytes()));
    DefaultNla::new(LIST_ELEM, inner)
}
