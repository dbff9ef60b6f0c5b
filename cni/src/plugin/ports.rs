//! Host ports: a port of the node that leads to a container.
//!
//! Owns: two maps for each family, from protocol and port (and a host address, if one is given) to the container's
//! address and port, and the constant chains that look into them. A container's ports are elements of the maps with
//! the attachment as their comment; taking them out frees the ports at once.
//! Access by 127.0.0.1 works: such connections are masqueraded, and what comes from elsewhere for 127.0.0.0/8 is
//! dropped before routing, since `route_localnet` would let it in (CVE-2020-8558).

use std::net::IpAddr;

use nix::errno::Errno;

use crate::netlink::{Batch, Channel, Element, Family, Rule, SetSpec, unless};
use crate::netns::set_sysctl;
use crate::spec::{CniError, IpConfig, code};
use crate::store::Owner;

use super::Plugin;
use super::conf::{Conf, PortMapping, Protocol};

const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DESTINATION_NAT: i32 = -100;
const PRIORITY_SOURCE_NAT: i32 = 100;

/// Tells these rules from those of another version of this program.
const RULES: &str = "host ports 1";
const LOOKUP: &str = "host-ports";
const GUARD: &str = "guard-loopback";
const INCOMING: &str = "host-ports-incoming";
const OUTGOING: &str = "host-ports-outgoing";
const RETURN: &str = "host-ports-return";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn ports(family: Family) -> &'static str {
    match family {
        Family::V4 => "ports4",
        Family::V6 => "ports6",
    }
}

fn address_ports(family: Family) -> &'static str {
    match family {
        Family::V4 => "address-ports4",
        Family::V6 => "address-ports6",
    }
}

/// Containers with host ports, each paired with itself: what they send to their own host port.
fn own(family: Family) -> &'static str {
    match family {
        Family::V4 => "self4",
        Family::V6 => "self6",
    }
}

impl Plugin {
    /// Opens the configured host ports for a container. `link` is the interface its packets come in by.
    pub(super) fn map_ports(
        &self,
        conf: &Conf,
        owner: &Owner,
        ips: &[IpConfig],
        link: &str,
    ) -> Result<(), CniError> {
        let v4 = ips.iter().any(|ip| ip.address.addr().is_ipv4());
        if v4 {
            let key = format!("net/ipv4/conf/{link}/route_localnet");
            set_sysctl(&key, "1").map_err(|e| CniError::new(code::IO, e.to_string()))?;
        }
        self.with_netfilter(|channel| {
            ensure_chains(channel, &conf.table)?;
            let targets: Vec<IpAddr> = ips.iter().map(|ip| ip.address.addr()).collect();
            let batch = elements(conf, owner, &targets);
            let mapped = channel.commit("open host ports", batch);
            mapped.map_err(|e| match e.errno {
                Errno::EEXIST => busy(channel, conf, owner),
                _ => e.into(),
            })?;
            forget_flows(
                channel,
                conf.ports.iter().filter(|p| p.protocol == Protocol::Udp).map(|p| p.host_port),
            )
        })
    }

    /// Closes the host ports of these attachments.
    pub(super) fn unmap_ports(&self, conf: &Conf, owners: &[Owner]) -> Result<(), CniError> {
        let comments: Vec<String> = owners.iter().map(comment).collect();
        self.with_netfilter(|channel| {
            if channel.chain_comment(&conf.table, INCOMING)?.is_none() {
                return Ok(());
            }
            let mut batch = Batch::new(&conf.table);
            let mut udp = Vec::new();
            for set in FAMILIES.iter().flat_map(|f| [ports(*f), address_ports(*f), own(*f)]) {
                for found in channel.elements(&conf.table, set)? {
                    if !comments.contains(&found.comment) {
                        continue;
                    }
                    batch.remove(set, &found.element);
                    let port = found.protocol_and_port().filter(|(p, _)| *p == Protocol::Udp as u8);
                    udp.extend(port.filter(|_| found.target().is_some()).map(|(_, port)| port));
                }
            }
            // Another process may have closed them in between.
            unless(channel.commit("close host ports", batch), &[Errno::ENOENT])?;
            forget_flows(channel, udp.into_iter())
        })
    }
}

/// What elements of an attachment are marked with.
fn comment(owner: &Owner) -> String {
    // nft keeps 127 bytes; a container ID is at most 64 with every known runtime.
    let short: String = owner.container.chars().take(100).collect();
    format!("{short}/{}", owner.ifname)
}

fn elements(conf: &Conf, owner: &Owner, targets: &[IpAddr]) -> Batch {
    let comment = comment(owner);
    let mut batch = Batch::new(&conf.table);
    for target in targets {
        let family = Family::of(*target);
        batch.add(own(family), &Element::pair(*target, *target).comment(&comment));
        for PortMapping { host_address, host_port, container_port, protocol } in &conf.ports {
            let element =
                Element::port(*host_address, *protocol as u8, *host_port, (*target, *container_port))
                    .comment(&comment);
            match host_address {
                None => batch.add(ports(family), &element),
                Some(address) if Family::of(*address) == family => batch.add(address_ports(family), &element),
                Some(_) => {}
            }
        }
    }
    batch
}

/// The error for a port that leads elsewhere already, with the attachment that has it.
fn busy(channel: &mut Channel, conf: &Conf, owner: &Owner) -> CniError {
    let wanted: Vec<_> = conf.ports.iter().map(|p| (p.protocol as u8, p.host_port)).collect();
    let sets = FAMILIES.iter().flat_map(|f| [ports(*f), address_ports(*f)]);
    let taken = sets.filter_map(|set| channel.elements(&conf.table, set).ok()).flatten().find(|e| {
        e.protocol_and_port().is_some_and(|key| wanted.contains(&key)) && e.comment != comment(owner)
    });
    let which = taken.and_then(|e| e.protocol_and_port().map(|(_, port)| (port, e.comment)));
    match which {
        Some((port, holder)) => {
            CniError::config(format!("host port {port} is in use")).details(format!("by attachment {holder}"))
        }
        None => CniError::config("a host port is in use"),
    }
}

fn ensure_chains(channel: &mut Channel, table: &str) -> Result<(), CniError> {
    if channel.chain_comment(table, INCOMING)?.as_deref() == Some(RULES) {
        return Ok(());
    }
    let mut batch = Batch::new(table);
    batch.table();
    for family in FAMILIES {
        batch.set(ports(family), SetSpec::PortMap(family));
        batch.set(address_ports(family), SetSpec::AddressPortMap(family));
        batch.set(own(family), SetSpec::Pairs(family));
    }
    let base = |batch: &mut Batch| {
        batch.base_chain(INCOMING, "nat", HOOK_PREROUTING, PRIORITY_DESTINATION_NAT, RULES);
        batch.base_chain(OUTGOING, "nat", HOOK_OUTPUT, PRIORITY_DESTINATION_NAT, RULES);
        batch.base_chain(RETURN, "nat", HOOK_POSTROUTING, PRIORITY_SOURCE_NAT, RULES);
        batch.base_chain(GUARD, "filter", HOOK_PREROUTING, PRIORITY_RAW, RULES);
    };
    batch.chain(LOOKUP);
    base(&mut batch);
    for chain in [INCOMING, OUTGOING, RETURN, GUARD, LOOKUP] {
        batch.delete_chain(chain);
    }
    batch.chain(LOOKUP);
    base(&mut batch);
    for family in FAMILIES {
        batch.rule(LOOKUP, &Rule::new().dnat_by(family, address_ports(family), true));
        batch.rule(LOOKUP, &Rule::new().dnat_by(family, ports(family), false));
        batch.rule(RETURN, &Rule::new().translated().pair_in(family, own(family)).masquerade());
    }
    let loopback = "127.0.0.0/8".parse().expect("a constant");
    batch.rule(INCOMING, &Rule::new().to_local().jump(LOOKUP));
    batch.rule(OUTGOING, &Rule::new().to_local().jump(LOOKUP));
    batch.rule(RETURN, &Rule::new().translated().source(loopback).masquerade());
    batch.rule(GUARD, &Rule::new().not_from("lo").destination(loopback).drop());
    batch.rule(GUARD, &Rule::new().not_from("lo").source(loopback).drop());
    channel.commit("make the chains for host ports", batch).map_err(Into::into)
}

/// Removes the chains and sets when no container has a host port, and the table when nothing is left in it.
pub(super) fn forget_empty_table(channel: &mut Channel, table: &str) -> Result<(), CniError> {
    let mut sets = FAMILIES.iter().flat_map(|f| [ports(*f), address_ports(*f)]);
    let in_use = sets.any(|set| !matches!(channel.elements(table, set), Ok(found) if found.is_empty()));
    if in_use {
        return Ok(());
    }
    if channel.chain_comment(table, INCOMING)?.is_some() {
        let mut batch = Batch::new(table);
        for chain in [INCOMING, OUTGOING, RETURN, GUARD, LOOKUP] {
            batch.delete_chain(chain);
        }
        for set in FAMILIES.iter().flat_map(|f| [ports(*f), address_ports(*f), own(*f)]) {
            batch.delete_set(set);
        }
        unless(channel.commit("remove the chains for host ports", batch), &[Errno::ENOENT, Errno::EBUSY])?;
    }
    if channel.chains(table)?.is_empty() && crate::nodes::sets_are_empty(channel, table)? {
        let mut batch = Batch::new(table);
        batch.delete_table();
        unless(channel.commit(&format!("remove table {table}"), batch), &[Errno::ENOENT])?;
    }
    Ok(())
}

/// Datagrams that go on flowing keep the translation they started with, so the flows of a port that now leads
/// elsewhere are forgotten.
fn forget_flows(channel: &mut Channel, ports: impl Iterator<Item = u16>) -> Result<(), CniError> {
    let ports: Vec<u16> = ports.collect();
    if ports.is_empty() {
        return Ok(());
    }
    channel.forget_udp_flows(&ports).map_err(Into::into)
}
