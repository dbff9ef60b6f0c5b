//! Rules of nftables as the kernel takes them: a list of expressions over registers.
//!
//! Owns: the few matches and actions this crate uses, by the kernel's attribute numbers
//! (`include/uapi/linux/netfilter/nf_tables.h`).
//! Registers are addressed in 32-bit words from `NFT_REG32_00` on; a key of several fields takes consecutive words.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};

use super::nft_set::Family;

/// `NFT_REG32_00`.
const WORD: u32 = 8;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATUS: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const FIB_ADDRTYPE: u32 = 3;
const FIB_F_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const NF_DROP: i32 = 0;
const NFT_JUMP: i32 = -3;
const NFT_RETURN: i32 = -5;
const NAT_DNAT: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two connections never fight for one source port.
const RANDOM_FULLY: u32 = 1 << 4;

/// One attribute.
pub(super) fn attr(kind: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, value.to_vec())
}

/// One attribute, a number in network order as nftables has it.
pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    attr(kind, &value.to_be_bytes())
}

/// One attribute, a string ended by a zero byte.
pub(super) fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

/// Attributes inside an attribute.
pub(super) fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// `NFTA_DATA_VALUE` inside `kind`.
pub(super) fn data(kind: u16, value: &[u8]) -> DefaultNla {
    nested(kind, &[attr(1, value)])
}

/// A rule under construction; matches in order, then an action.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    expressions: Vec<DefaultNla>,
}

impl Rule {
    /// A rule that matches everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn expressions(&self) -> &[DefaultNla] {
        &self.expressions
    }

    fn with(mut self, name: &str, attributes: &[DefaultNla]) -> Self {
        self.expressions.push(nested(1, &[text(1, name), nested(2, attributes)]));
        self
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        self.with("cmp", &[number(1, WORD), number(2, operator), data(3, value)])
    }

    fn meta(self, key: u32, word: u32) -> Self {
        self.with("meta", &[number(1, WORD + word), number(2, key)])
    }

    fn payload(self, base: u32, offset: u32, len: u32, word: u32) -> Self {
        let load = [number(1, WORD + word), number(2, base), number(3, offset), number(4, len)];
        self.with("payload", &load)
    }

    fn mask(self, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).expect("a mask is at most 16 bytes");
        let zero = vec![0; mask.len()];
        self.with(
            "bitwise",
            &[number(1, WORD), number(2, WORD), number(3, len), data(4, mask), data(5, &zero)],
        )
    }

    /// The packet is of this family.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        self.meta(META_NFPROTO, 0).compare(CMP_EQ, &[family.number()])
    }

    fn source_at(self, family: Family, word: u32) -> Self {
        match family {
            Family::V4 => self.payload(BASE_NETWORK, 12, 4, word),
            Family::V6 => self.payload(BASE_NETWORK, 8, 16, word),
        }
    }

    fn destination_at(self, family: Family, word: u32) -> Self {
        match family {
            Family::V4 => self.payload(BASE_NETWORK, 16, 4, word),
            Family::V6 => self.payload(BASE_NETWORK, 24, 16, word),
        }
    }

    fn within(self, net: IpNet) -> Self {
        let (address, mask) = match net {
            IpNet::V4(n) => (n.network().octets().to_vec(), n.netmask().octets().to_vec()),
            IpNet::V6(n) => (n.network().octets().to_vec(), n.netmask().octets().to_vec()),
        };
        self.mask(&mask).compare(CMP_EQ, &address)
    }

    /// The source address is in `net`. Implies the family.
    #[must_use]
    pub fn source(self, net: IpNet) -> Self {
        let family = Family::of(net.addr());
        self.family(family).source_at(family, 0).within(net)
    }

    /// The destination address is in `net`. Implies the family.
    #[must_use]
    pub fn destination(self, net: IpNet) -> Self {
        let family = Family::of(net.addr());
        self.family(family).destination_at(family, 0).within(net)
    }

    /// The destination address is in the set `name` of addresses of this family.
    #[must_use]
    pub fn destination_in(self, family: Family, name: &str) -> Self {
        self.family(family).destination_at(family, 0).lookup(name)
    }

    /// Source and destination together are in the set `name`.
    #[must_use]
    pub fn pair_in(self, family: Family, name: &str) -> Self {
        self.family(family).source_at(family, 0).destination_at(family, family.words()).lookup(name)
    }

    fn lookup(self, set: &str) -> Self {
        self.with("lookup", &[text(1, set), number(2, WORD)])
    }

    /// The packet did not come in by the interface `name`.
    #[must_use]
    pub fn not_from(self, name: &str) -> Self {
        let mut padded = [0; 16];
        let len = name.len().min(15);
        padded[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.meta(META_IIFNAME, 0).compare(CMP_NEQ, &padded)
    }

    /// The destination is an address of this machine.
    #[must_use]
    pub fn to_local(self) -> Self {
        self.with("fib", &[number(1, WORD), number(2, FIB_ADDRTYPE), number(3, FIB_F_DADDR)])
            .compare(CMP_EQ, &RTN_LOCAL.to_ne_bytes())
    }

    /// The connection's destination was translated.
    #[must_use]
    pub fn translated(self) -> Self {
        self.with("ct", &[number(1, WORD), number(2, CT_STATUS)])
            .mask(&IPS_DST_NAT.to_ne_bytes())
            .compare(CMP_NEQ, &[0; 4])
    }

    /// Translates the destination to what `map` says for `[address .] protocol . port`.
    #[must_use]
    pub fn dnat_by(self, family: Family, map: &str, with_address: bool) -> Self {
        let first = if with_address { family.words() } else { 0 };
        let rule = self.family(family);
        let rule = if with_address { rule.destination_at(family, 0) } else { rule };
        rule.meta(META_L4PROTO, first)
            .payload(BASE_TRANSPORT, 2, 2, first + 1)
            .with("lookup", &[text(1, map), number(2, WORD), number(3, WORD)])
            .with(
                "nat",
                &[
                    number(1, NAT_DNAT),
                    number(2, u32::from(family.number())),
                    number(3, WORD),
                    number(5, WORD + family.words()),
                ],
            )
    }

    /// Replaces the source by the address of the interface the packet leaves by.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.with("masq", &[number(1, RANDOM_FULLY)])
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        let mut inner = vec![attr(1, &code.to_be_bytes())];
        inner.extend(chain.map(|c| text(2, c)));
        self.with("immediate", &[number(1, 0), nested(2, &[nested(2, &inner)])])
    }

    /// Ends this chain.
    #[must_use]
    pub fn ret(self) -> Self {
        self.verdict(NFT_RETURN, None)
    }

    /// Drops the packet.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(NF_DROP, None)
    }

    /// Goes on in another chain, then comes back.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(NFT_JUMP, Some(chain))
    }
}

/// An address as the words of a key.
pub(super) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
