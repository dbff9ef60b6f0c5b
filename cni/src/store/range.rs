//! Ranges of addresses and sets of them.
//!
//! Owns: reading a range as `host-local` spells it (`subnet`, `rangeStart`, `rangeEnd`, `gateway`), its defaults and
//! its checks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

/// Addresses of one subnet that may be given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The subnet.
    pub subnet: IpNet,
    /// The first address to give out.
    pub start: IpAddr,
    /// The last address to give out.
    pub end: IpAddr,
    /// The gateway, never given out.
    pub gateway: IpAddr,
}

/// Ranges of one family, tried in order. A container gets one address of each set.
pub type RangeSet = Vec<Range>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRange {
    subnet: IpNet,
    #[serde(default)]
    range_start: Option<IpAddr>,
    #[serde(default)]
    range_end: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = RawRange::deserialize(deserializer)?;
        Self::new(raw.subnet, raw.range_start, raw.range_end, raw.gateway).map_err(serde::de::Error::custom)
    }
}

impl Range {
    /// A range with defaults: everything but the network's own address, an IPv4 broadcast address and the gateway,
    /// which is the subnet's first address.
    ///
    /// # Errors
    /// A sentence that names what does not fit.
    pub fn new(
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, String> {
        let subnet = subnet.trunc();
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(format!("subnet {subnet} is too small to give out addresses from"));
        }
        let (first, last) = (number(subnet.network()), number(subnet.broadcast()));
        let v4 = subnet.addr().is_ipv4();
        let in_subnet = |what: &str, ip: IpAddr| {
            if subnet.contains(&ip) { Ok(ip) } else { Err(format!("{what} {ip} is not in subnet {subnet}")) }
        };
        let start = in_subnet("rangeStart", start.unwrap_or_else(|| address(first + 1, v4)))?;
        let last_usable = if v4 { last - 1 } else { last };
        let end = in_subnet("rangeEnd", end.unwrap_or_else(|| address(last_usable, v4)))?;
        if number(start) > number(end) {
            return Err(format!("rangeStart {start} is after rangeEnd {end}"));
        }
        let gateway = gateway.unwrap_or_else(|| address(first + 1, v4));
        if gateway.is_ipv4() != v4 {
            return Err(format!("gateway {gateway} is not of the family of subnet {subnet}"));
        }
        Ok(Self { subnet, start, end, gateway })
    }

    /// Whether `ip` may be given out.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4()
            && (number(self.start)..=number(self.end)).contains(&number(ip))
            && ip != self.gateway
    }

    /// Whether some address is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4()
            && number(self.start) <= number(other.end)
            && number(other.start) <= number(self.end)
    }

    /// The addresses from the first, or from the one after `ip`, to the last.
    pub(super) fn addresses_after(&self, ip: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.start.is_ipv4();
        let gateway = self.gateway;
        let first = ip.map_or(number(self.start), |ip| number(ip).saturating_add(1));
        (first..=number(self.end)).map(move |n| address(n, v4)).filter(move |a| *a != gateway)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// An address as a number; the families share the space, so compare within one only.
fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from(number))
    }
}

/// Checks that every set is of one family and that no address is in two ranges.
///
/// # Errors
/// A sentence that names the ranges.
pub(crate) fn check_sets(sets: &[RangeSet]) -> Result<(), String> {
    let all: Vec<_> = sets.iter().flatten().collect();
    for set in sets {
        let Some(first) = set.first() else { return Err("a range set is empty".to_owned()) };
        if let Some(other) = set.iter().find(|r| r.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(format!("ranges {first} and {other} of one set are of different families"));
        }
    }
    for (i, a) in all.iter().enumerate() {
        if let Some(b) = all[i + 1..].iter().find(|b| a.overlaps(b)) {
            return Err(format!("ranges {a} and {b} overlap"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn range(value: serde_json::Value) -> Result<Range, String> {
        serde_json::from_value(value).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_leave_out_network_gateway_and_broadcast() {
        let r = range(json!({"subnet": "10.0.0.0/29"})).unwrap();
        assert_eq!(r.gateway.to_string(), "10.0.0.1");
        let all: Vec<_> = r.addresses_after(None).map(|a| a.to_string()).collect();
        assert_eq!(all, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert!(!r.contains("10.0.0.1".parse().unwrap()) && !r.contains("10.0.0.7".parse().unwrap()));
        let r = range(json!({"subnet": "fd00::/126"})).unwrap();
        let all: Vec<_> = r.addresses_after(None).map(|a| a.to_string()).collect();
        assert_eq!(all, ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn wrong_ranges_name_what_is_wrong() {
        let cases = [
            (json!({"subnet": "10.0.0.0/31"}), "too small"),
            (json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}), "rangeStart 10.0.1.1"),
            (json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}), "is after"),
            (json!({"subnet": "10.0.0.0/24", "gateway": "fd00::1"}), "gateway fd00::1"),
        ];
        for (value, words) in cases {
            let error = range(value).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn sets_that_overlap_or_mix_families_are_refused() {
        let r = |s: &str| range(json!({"subnet": s})).unwrap();
        assert!(check_sets(&[vec![r("10.0.0.0/24")], vec![r("fd00::/64")]]).is_ok());
        assert!(check_sets(&[vec![r("10.0.0.0/24"), r("fd00::/64")]]).unwrap_err().contains("families"));
        assert!(
            check_sets(&[vec![r("10.0.0.0/24")], vec![r("10.0.0.0/16")]]).unwrap_err().contains("overlap")
        );
        assert!(check_sets(&[vec![]]).is_err());
    }
}
