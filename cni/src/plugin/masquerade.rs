//! Masquerade: what containers send to the outside leaves with the node's address.
//!
//! Owns: a chain for each subnet, `masquerade-<network>-<subnet>`, made once and never changed by a container coming or
//! going; none of it changes when nodes come and go: those are in sets of [`crate::nodes`].
//! A chain carries a digest of its rules as its comment, so finding it in place costs one small request.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::netlink::{Batch, Family, Rule};
use crate::nodes::{declare_sets, nodes_set, pods_set};
use crate::spec::{CniError, IpConfig};

use super::conf::Conf;
use super::{Plugin, names, ports};

const HOOK_POSTROUTING: u32 = 4;
/// `NF_IP_PRI_NAT_SRC`.
const PRIORITY_SOURCE_NAT: i32 = 100;

impl Plugin {
    /// Puts the rules for the subnets of these addresses in place, unless they are.
    pub(super) fn masquerade(&self, conf: &Conf, ips: &[IpConfig]) -> Result<(), CniError> {
        let subnets: BTreeSet<IpNet> = ips.iter().map(|ip| ip.address.trunc()).collect();
        self.with_netfilter(|channel| {
            for subnet in subnets {
                let (name, comment) = (chain_name(&conf.network, subnet), comment(conf, subnet));
                let found = channel.chain_comment(&conf.table, &name)?;
                if found.as_deref() != Some(&comment) {
                    channel.commit(
                        &format!("masquerade {subnet}"),
                        replace_chain(conf, subnet, &name, &comment),
                    )?;
                }
            }
            Ok(())
        })
    }

    /// Removes what this network has in the table, and the table when nothing else is in it.
    pub(super) fn forget_network(&self, conf: &Conf) -> Result<(), CniError> {
        self.with_netfilter(|channel| {
            let mut batch = Batch::new(&conf.table);
            // By name, not by configuration: the network may have had other ranges before.
            for name in channel.chains(&conf.table)?.iter().filter(|name| is_chain_of(&conf.network, name)) {
                batch.delete_chain(name);
            }
            channel.commit(&format!("forget the rules of network {}", conf.network), batch)?;
            ports::forget_empty_table(channel, &conf.table)
        })
    }
}

fn chain_name(network: &str, subnet: IpNet) -> String {
    let subnet = subnet.to_string().replace('/', "-").replace(':', "_");
    format!("masquerade-{network}-{subnet}")
}

/// Whether [`chain_name`] made this name for this network.
fn is_chain_of(network: &str, name: &str) -> bool {
    let subnet = name.strip_prefix("masquerade-").and_then(|n| n.strip_prefix(network)?.strip_prefix('-'));
    let parts = subnet.and_then(|s| s.rsplit_once('-'));
    parts.is_some_and(|(ip, len)| format!("{}/{len}", ip.replace('_', ":")).parse::<IpNet>().is_ok())
}

fn comment(conf: &Conf, subnet: IpNet) -> String {
    let inside: Vec<_> = inside(conf, subnet).iter().map(ToString::to_string).collect();
    names::digest(&format!("2 {subnet} {}", inside.join(" ")))
}

/// Destinations that are not outside.
fn inside(conf: &Conf, subnet: IpNet) -> BTreeSet<IpNet> {
    let v4 = subnet.addr().is_ipv4();
    let multicast: IpNet = if v4 { "224.0.0.0/4" } else { "ff00::/8" }.parse().expect("a constant");
    let configured = conf.inside.iter().filter(|net| net.addr().is_ipv4() == v4).map(IpNet::trunc);
    configured.chain([subnet, multicast]).collect()
}

fn replace_chain(conf: &Conf, subnet: IpNet, name: &str, comment: &str) -> Batch {
    let family = Family::of(subnet.addr());
    let mut batch = Batch::new(&conf.table);
    batch.table();
    declare_sets(&mut batch);
    // A chain's comment is given when it is made, so one with other rules is made anew.
    batch.base_chain(name, "nat", HOOK_POSTROUTING, PRIORITY_SOURCE_NAT, comment);
    batch.delete_chain(name);
    batch.base_chain(name, "nat", HOOK_POSTROUTING, PRIORITY_SOURCE_NAT, comment);
    for net in inside(conf, subnet) {
        batch.rule(name, &Rule::new().destination(net).ret());
    }
    batch.rule(name, &Rule::new().destination_in(family, nodes_set(family)).ret());
    batch.rule(name, &Rule::new().destination_in(family, pods_set(family)).ret());
    batch.rule(name, &Rule::new().source(subnet).masquerade());
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_knows_its_own_chains() {
        for subnet in ["10.244.1.0/24", "fd00:244::/64"] {
            let name = chain_name("a", subnet.parse().unwrap());
            assert!(is_chain_of("a", &name), "{name}");
            assert!(!is_chain_of("b", &name) && !is_chain_of("a-b", &name));
            assert!(!is_chain_of("a", &chain_name("a-b", subnet.parse().unwrap())));
        }
        assert!(!is_chain_of("a", "host-ports"));
    }
}
