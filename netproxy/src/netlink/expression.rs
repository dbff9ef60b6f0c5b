//! Rules in the kernel's form.
//!
//! Owns: one encoder for each statement of [`Rule`]. Expressions `netlink-packet-netfilter` knows are built with it;
//! `nat`, `numgen`, `ct`, `fib`, `dynset`, `masq` and `reject` are encoded here, after
//! `include/uapi/linux/netfilter/nf_tables.h`.
//! Never: sends anything.

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use crate::objects::Family;
use crate::ruleset::{Chain, Load, RejectWith, Rule, SetName, Statement};

/// An expression of a rule.
pub type Expression = ListAttribute<ExpressionAttribute>;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const NF_DROP: u32 = 0;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_PROTO_DST: u32 = 12;
const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;
const CT_STATE_NEW: u32 = 1 << 3;
const CT_STATUS_DNAT: u32 = 1 << 5;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const RANDOM_FULLY: u32 = 1 << 4;
const NAT_DNAT: u32 = 1;
const NUMGEN_RANDOM: u32 = 1;
const DYNSET_UPDATE: u32 = 1;
const REJECT_ICMP: u32 = 0;
const REJECT_TCP_RST: u32 = 1;
const LOOKUP_INVERT: u32 = 1;
const IFNAMSIZ: usize = 16;

/// The first of the sixteen four-byte registers.
const FIRST: u32 = 0;

/// A four-byte register by its index; those that begin a sixteen-byte register go by that one's number, as the
/// kernel itself dumps them.
fn register(index: u32) -> Register {
    if index.is_multiple_of(4) { Register::from(index / 4 + 1) } else { Register::from(index + 8) }
}

fn be(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn to_register(kind: u16, index: u32) -> DefaultNla {
    be(kind, register(index).into())
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expression {
    Expressions::Other { expression_type: name.to_owned(), attributes }.into()
}

const fn address_words(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// The expressions of a rule.
pub fn encode(family: Family, rule: &Rule) -> Vec<Expression> {
    let mut encoder = Encoder { family, expressions: Vec::new() };
    for statement in &rule.0 {
        encoder.statement(statement);
    }
    encoder.expressions
}

struct Encoder {
    family: Family,
    expressions: Vec<Expression>,
}

impl Encoder {
    fn push(&mut self, expression: impl Into<Expression>) {
        self.expressions.push(expression.into());
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::New => self.flag(CT_STATE, CT_STATE_NEW),
            Statement::Translated => self.flag(CT_STATUS, CT_STATUS_DNAT),
            Statement::FromNode => self.is_local(FIB_SADDR),
            Statement::ToNode => self.is_local(FIB_DADDR),
            Statement::ProtocolIs(protocol) => {
                self.load(Load::Protocol, FIRST);
                self.compare(true, vec![protocol.number()]);
            }
            Statement::SourceIn(range, is) => self.in_range(Load::SourceAddress, range, *is),
            Statement::DestinationIn(range, is) => self.in_range(Load::DestinationAddress, range, *is),
            Statement::Interface { name, prefix, is } => self.interface(name, *prefix, *is),
            Statement::In(key, set, is) => {
                self.key(key);
                let flags = if *is { 0 } else { LOOKUP_INVERT };
                self.lookup(set, [Lookup::Flags(flags)]);
            }
            Statement::Dispatch(key, map) => {
                self.key(key);
                self.lookup(map, [Lookup::DestinationRegister(Register::Verdict)]);
            }
            Statement::Translate(key, map) => {
                self.key(key);
                self.lookup(map, [Lookup::DestinationRegister(register(FIRST))]);
                self.translate();
            }
            Statement::Remember(map, seconds) => self.remember(map, *seconds),
            Statement::Masquerade => self.push(other("masq", vec![be(1, RANDOM_FULLY)])),
            Statement::Reject(with) => self.reject(*with),
            Statement::Drop => self.verdict(Verdict::Other(NF_DROP), None),
            Statement::Return => self.verdict(Verdict::Return, None),
            Statement::Goto(chain) => self.verdict(Verdict::Goto, Some(chain)),
            Statement::Jump(chain) => self.verdict(Verdict::Jump, Some(chain)),
        }
    }

    /// Loads the parts of a key one after the other, from the first register on.
    fn key(&mut self, parts: &[Load]) {
        parts.iter().fold(FIRST, |index, part| index + self.load(*part, index));
    }

    /// Loads a value and tells how many registers it took.
    fn load(&mut self, load: Load, index: u32) -> u32 {
        let words = address_words(self.family);
        let (source, destination, length) = match self.family {
            Family::V4 => (12, 16, 4),
            Family::V6 => (8, 24, 16),
        };
        match load {
            Load::SourceAddress => self.payload(NETWORK_HEADER, source, length, index),
            Load::DestinationAddress => self.payload(NETWORK_HEADER, destination, length, index),
            Load::DestinationPort => self.payload(TRANSPORT_HEADER, 2, 2, index),
            Load::Protocol => self.push(Expressions::Meta(vec![
                Meta::Key(MetaKey::L4Proto),
                Meta::DestinationRegister(register(index)),
            ])),
            Load::OriginalAddress => {
                let key = if self.family == Family::V4 { CT_DST_IP } else { CT_DST_IP6 };
                self.original(key, index);
            }
            Load::OriginalPort => self.original(CT_PROTO_DST, index),
            Load::Random { count, first } => self.push(other(
                "numgen",
                vec![to_register(1, index), be(2, count), be(3, NUMGEN_RANDOM), be(4, first)],
            )),
        }
        match load {
            Load::SourceAddress | Load::DestinationAddress | Load::OriginalAddress => words,
            Load::DestinationPort | Load::Protocol | Load::OriginalPort | Load::Random { .. } => 1,
        }
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, index: u32) {
        self.push(Expressions::Payload(vec![
            Payload::DestinationRegister(register(index)),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(length),
        ]));
    }

    /// A value of the connection as its first packet had it.
    fn original(&mut self, key: u32, index: u32) {
        self.push(other("ct", vec![be(2, key), to_register(1, index), DefaultNla::new(3, vec![0])]));
    }

    /// Whether a bit of the connection's state or status is set.
    fn flag(&mut self, key: u32, bit: u32) {
        self.push(other("ct", vec![be(2, key), to_register(1, FIRST)]));
        self.mask(bit.to_ne_bytes().to_vec());
        self.compare(false, vec![0; 4]);
    }

    fn is_local(&mut self, which: u32) {
        self.push(other("fib", vec![to_register(1, FIRST), be(2, FIB_RESULT_ADDRTYPE), be(3, which)]));
        self.compare(true, RTN_LOCAL.to_ne_bytes().to_vec());
    }

    fn in_range(&mut self, load: Load, range: &IpNet, is: bool) {
        self.load(load, FIRST);
        let (mask, network, bits) = match range {
            IpNet::V4(net) => (net.netmask().octets().to_vec(), net.network().octets().to_vec(), 32),
            IpNet::V6(net) => (net.netmask().octets().to_vec(), net.network().octets().to_vec(), 128),
        };
        if range.prefix_len() < bits {
            self.mask(mask);
        }
        self.compare(is, network);
    }

    fn interface(&mut self, name: &str, prefix: bool, is: bool) {
        self.push(Expressions::Meta(vec![
            Meta::Key(MetaKey::Iifname),
            Meta::DestinationRegister(register(FIRST)),
        ]));
        let mut bytes = name.as_bytes().to_vec();
        bytes.truncate(IFNAMSIZ - 1);
        if !prefix {
            bytes.resize(IFNAMSIZ, 0);
        }
        self.compare(is, bytes);
    }

    fn mask(&mut self, mask: Vec<u8>) {
        let length = u32::try_from(mask.len()).expect("a mask is at most sixteen bytes");
        self.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(register(FIRST)),
            Bitwise::DestinationRegister(register(FIRST)),
            Bitwise::Length(length),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
            Bitwise::Mask(DataAttribute::Value(mask)),
        ]));
    }

    fn compare(&mut self, equal: bool, value: Vec<u8>) {
        let operator = if equal { Operator::Equal } else { Operator::NotEqual };
        self.push(Expressions::Cmp(vec![
            Cmp::SourceRegister(register(FIRST)),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value)),
        ]));
    }

    fn lookup<const N: usize>(&mut self, set: &SetName, more: [Lookup; N]) {
        let mut attributes = vec![Lookup::Set(set.to_string()), Lookup::SourceRegister(register(FIRST))];
        attributes.extend(more);
        self.push(Expressions::Lookup(attributes));
    }

    /// The map's value stands in the registers: the address first, then the port.
    fn translate(&mut self) {
        let family = match self.family {
            Family::V4 => NFPROTO_IPV4,
            Family::V6 => NFPROTO_IPV6,
        };
        let port = address_words(self.family);
        self.push(other(
            "nat",
            vec![be(1, NAT_DNAT), be(2, family), to_register(3, FIRST), to_register(5, port)],
        ));
    }

    fn remember(&mut self, map: &SetName, seconds: u32) {
        let words = address_words(self.family);
        self.load(Load::SourceAddress, FIRST);
        // The value begins at a sixteen-byte register, as stock nft lays it out.
        let value = 4;
        self.load(Load::DestinationAddress, value);
        self.load(Load::DestinationPort, value + words);
        let milliseconds = u64::from(seconds) * 1000;
        self.push(other(
            "dynset",
            vec![
                DefaultNla::new(1, text(&map.to_string())),
                be(3, DYNSET_UPDATE),
                to_register(4, FIRST),
                to_register(5, value),
                DefaultNla::new(6, milliseconds.to_be_bytes().to_vec()),
            ],
        ));
    }

    fn reject(&mut self, with: RejectWith) {
        let port_unreachable = match self.family {
            Family::V4 => 3,
            Family::V6 => 4,
        };
        let attributes = match with {
            RejectWith::TcpReset => vec![be(1, REJECT_TCP_RST)],
            RejectWith::PortUnreachable => {
                vec![be(1, REJECT_ICMP), DefaultNla::new(2, vec![port_unreachable])]
            }
        };
        self.push(other("reject", attributes));
    }

    fn verdict(&mut self, verdict: Verdict, chain: Option<&Chain>) {
        let mut attributes = vec![VerdictAttribute::Code(verdict)];
        attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.to_string())));
        self.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(attributes)),
        ]));
    }
}

/// A name with the zero at its end.
pub fn text(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
