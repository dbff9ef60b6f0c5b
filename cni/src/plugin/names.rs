//! Names and hardware addresses that follow from what they are for. Pure.
//!
//! Owns: the derivation. The same attachment has the same names in every process and after every crash, and a reused
//! address has the hardware address its neighbours may still remember.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::store::Owner;

fn hash(words: &[&str]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for word in words {
        digest.update(word.as_bytes());
        digest.update([0]);
    }
    digest.finalize().into()
}

fn named(prefix: &str, network: &str, owner: &Owner) -> String {
    let hash = hash(&[network, &owner.container, &owner.ifname]);
    let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    format!("{prefix}{}", &hex[..15 - prefix.len()])
}

/// The host's end of an attachment's veth pair.
pub(super) fn host_link(network: &str, owner: &Owner) -> String {
    named("veth", network, owner)
}

/// The device that shapes what an attachment sends.
pub(super) fn ifb_link(network: &str, owner: &Owner) -> String {
    named("ifb", network, owner)
}

/// The hardware address of the host's end.
pub(super) fn host_mac(network: &str, owner: &Owner) -> [u8; 6] {
    local(&hash(&["host", network, &owner.container, &owner.ifname]))
}

/// The hardware address of the container's end without an address.
pub(super) fn container_mac(network: &str, owner: &Owner) -> [u8; 6] {
    local(&hash(&["container", network, &owner.container, &owner.ifname]))
}

/// The hardware address that goes with an IP address.
pub(super) fn mac_of(address: IpAddr) -> [u8; 6] {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [0x0a, 0x58, a, b, c, d]
        }
        IpAddr::V6(ip) => local(&hash(&[&ip.to_string()])),
    }
}

/// Individual and locally administered.
fn local(hash: &[u8; 32]) -> [u8; 6] {
    [hash[0] & 0xfc | 0x02, hash[1], hash[2], hash[3], hash[4], hash[5]]
}

/// A short digest of a rule set's text, to recognise it by.
pub(super) fn digest(text: &str) -> String {
    hash(&[text]).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::valid_ifname;

    #[test]
    fn names_fit_and_differ() {
        let (a, b) = (Owner::new("c1", "eth0"), Owner::new("c1", "eth1"));
        for name in [host_link("n", &a), ifb_link("n", &a)] {
            assert!(valid_ifname(&name) && name.len() == 15, "{name}");
        }
        assert_ne!(host_link("n", &a), host_link("n", &b));
        assert_ne!(host_link("n", &a), host_link("m", &a));
        assert_eq!(host_link("n", &a), host_link("n", &a));
    }

    #[test]
    fn hardware_addresses_are_individual_and_local() {
        let owner = Owner::new("c1", "eth0");
        let all = [host_mac("n", &owner), container_mac("n", &owner), mac_of("fd00::5".parse().unwrap())];
        assert!(all.iter().all(|m| m[0] & 3 == 2));
        assert_eq!(mac_of("10.0.0.5".parse().unwrap()), [0x0a, 0x58, 10, 0, 0, 5]);
    }
}
