//! The sets our masquerade rules look into: addresses and pod ranges of other nodes.
//!
//! Owns: `nodes4`, `nodes6`, `pods4` and `pods6` of the plugin's table. They are read back before they are changed, so
//! it does not matter who flushed them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::netlink::{Batch, Channel, Element, Family, NetlinkError, SetSpec};

use super::plan::Plan;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The set of other nodes' addresses.
pub(crate) fn nodes_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "nodes4",
        Family::V6 => "nodes6",
    }
}

/// The set of other nodes' pod ranges.
pub(crate) fn pods_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "pods4",
        Family::V6 => "pods6",
    }
}

/// Makes the sets unless they exist.
pub(crate) fn declare_sets(batch: &mut Batch) {
    for family in FAMILIES {
        batch.set(nodes_set(family), SetSpec::Addresses(family));
        batch.set(pods_set(family), SetSpec::Networks(family));
    }
}

/// Whether no other node is in the sets.
pub(crate) fn sets_are_empty(channel: &mut Channel, table: &str) -> Result<bool, NetlinkError> {
    for set in FAMILIES.iter().flat_map(|f| [nodes_set(*f), pods_set(*f)]) {
        if !channel.elements(table, set)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the sets hold what the plan says.
pub(super) fn fill(channel: &mut Channel, table: &str, plan: &Plan) -> Result<(), NetlinkError> {
    let mut batch = Batch::new(table);
    batch.table();
    declare_sets(&mut batch);
    let mut different = false;
    for family in FAMILIES {
        let ours = |ip: &IpAddr| Family::of(*ip) == family;
        let nodes = plan.node_addresses.iter().filter(|ip| ours(ip)).map(|ip| vec![Element::address(*ip)]);
        let ranges = merged(plan.pod_ranges.iter().filter(|net| ours(&net.addr())));
        let ranges = ranges.into_iter().map(|(first, last)| Element::range(first, last));
        let sets: [(&str, BTreeSet<Vec<Element>>); 2] =
            [(nodes_set(family), nodes.collect()), (pods_set(family), ranges.collect())];
        for (name, want) in sets {
            let have = channel.elements(table, name)?;
            let have = together(have.into_iter().map(|info| info.element).collect());
            different |= have != want;
            have.difference(&want).flatten().for_each(|element| batch.remove(name, element));
            want.difference(&have).flatten().for_each(|element| batch.add(name, element));
        }
    }
    if !different {
        return Ok(());
    }
    channel.commit("tell the masquerade rules of other nodes", batch)
}

/// Ranges as few as can be, with their first and last addresses. The kernel wants them so: of two that touch, it would
/// have to know whether the end of one or the start of the other comes first.
fn merged<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Vec<(IpAddr, IpAddr)> {
    let mut sorted: Vec<_> = nets.map(|net| (net.network(), net.broadcast())).collect();
    sorted.sort();
    let mut merged: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if touches(*end, first) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Whether no address is between.
fn touches(end: IpAddr, start: IpAddr) -> bool {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    number(start) <= number(end).saturating_add(1)
}

/// Elements read back, the bounds of a range together.
fn together(mut elements: Vec<Element>) -> BTreeSet<Vec<Element>> {
    elements.sort();
    let mut groups: Vec<Vec<Element>> = Vec::new();
    for element in elements {
        match groups.last_mut() {
            Some(group) if element.ends_range() => group.push(element),
            _ => groups.push(vec![element]),
        }
    }
    groups.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let nets: Vec<IpNet> =
            ["10.0.3.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.5.0/24", "255.255.255.0/24"]
                .iter()
                .map(|n| n.parse().unwrap())
                .collect();
        let all: Vec<_> = merged(nets.iter()).into_iter().map(|(a, b)| format!("{a}-{b}")).collect();
        assert_eq!(all, ["10.0.1.0-10.0.3.255", "10.0.5.0-10.0.5.255", "255.255.255.0-255.255.255.255"]);
    }

    #[test]
    fn elements_read_back_are_the_ranges_that_were_written() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let ranges = BTreeSet::from([
            Element::range(ip("10.0.1.0"), ip("10.0.3.255")),
            Element::range(ip("10.0.5.0"), ip("10.0.5.255")),
            // The last range of all has no end.
            Element::range(ip("255.255.255.0"), ip("255.255.255.255")),
        ]);
        let mut elements: Vec<Element> = ranges.iter().flatten().cloned().collect();
        elements.reverse();
        assert_eq!(together(elements), ranges);
    }
}
