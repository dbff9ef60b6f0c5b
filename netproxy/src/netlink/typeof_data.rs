//! The note stock nft leaves on a set so that it can print elements whose key holds a random number.
//!
//! Owns: the user data of the `endpoints` maps: nested (type, length, value) triples that say
//! `typeof ip daddr . meta l4proto . th dport . numgen random mod 3 : ip daddr . th dport`. The kernel stores it
//! unread. Without it `nft list ruleset` cannot tell how long the parts of the key are.
//! Never: affects packets.

use crate::objects::Family;

const KEY_BYTE_ORDER: u8 = 0;
const DATA_BYTE_ORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
const DATA_INTERVAL: u8 = 6;
const EXPRESSION: u8 = 0;
const DATA: u8 = 1;
const PAYLOAD: u32 = 7;
const META: u32 = 9;
const CONCAT: u32 = 13;
const NUMGEN: u32 = 23;
const META_L4PROTO: u32 = 16;
const HEADER_IP: u32 = 12;
const HEADER_IP6: u32 = 13;
const HEADER_TRANSPORT: u32 = 11;
const IP_DADDR: u32 = 12;
const IP6_DADDR: u32 = 9;
const TRANSPORT_DPORT: u32 = 2;

fn triple(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("a note is shorter than 256 bytes");
    [&[kind, length], value].concat()
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    triple(kind, &value.to_ne_bytes())
}

fn expression(kind: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
    [number(EXPRESSION, kind), triple(DATA, &attributes.concat())].concat()
}

fn payload(header: u32, field: u32) -> Vec<u8> {
    expression(PAYLOAD, &[number(0, header), number(1, field)])
}

fn concat(parts: &[Vec<u8>]) -> Vec<u8> {
    let numbered: Vec<Vec<u8>> = (0u8..).zip(parts).map(|(index, part)| triple(index, part)).collect();
    expression(CONCAT, &numbered)
}

/// The note on an endpoints map; `by_address` tells whether its key begins with an address.
pub fn of_endpoints(family: Family, by_address: bool) -> Vec<u8> {
    let address = match family {
        Family::V4 => payload(HEADER_IP, IP_DADDR),
        Family::V6 => payload(HEADER_IP6, IP6_DADDR),
    };
    let port = payload(HEADER_TRANSPORT, TRANSPORT_DPORT);
    let mut key = vec![
        expression(META, &[number(0, META_L4PROTO)]),
        port.clone(),
        // Random, modulo 3, offset 0: an example; each rule has a modulus of its own.
        expression(NUMGEN, &[number(0, 1), number(1, 3), number(2, 0)]),
    ];
    if by_address {
        key.insert(0, address.clone());
    }
    [
        number(KEY_BYTE_ORDER, 0),
        number(DATA_BYTE_ORDER, 0),
        triple(KEY_TYPEOF, &concat(&key)),
        triple(DATA_TYPEOF, &concat(&[address, port])),
        number(DATA_INTERVAL, 0),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::of_endpoints;
    use crate::objects::Family;

    #[test]
    fn the_note_is_what_stock_nft_writes() {
        // As `nft` 1.0.6 sends it for the declaration in the header.
        let expected = "00040000000001040000000003600004\
            0d00000001580014000407000000010c00040c00000001040c000000010e00040900000001060004100000000214\
            000407000000010c00040b000000010402000000031a00041700000001120004010000000104030000000204000000\
            00043400040d000000012c0014000407000000010c00040c00000001040c0000000114000407000000010c00040b0000\
            00010402000000060400000000";
        let hex: String = of_endpoints(Family::V4, true).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }
}
