//! The ways to reach a service.
//!
//! Owns: from a service's spec and status to frontends, one family and port at a time. Pure.
//! Never: settles who wins an address that two services want (see `claims`).

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::objects::{Family, Service, ServiceKind, ServicePort};
use crate::program::{Address, Frontend, Masquerade, Traffic};
use crate::ruleset::{NodePort, Vip};

/// What kind of claim a service has on an address: lower wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// Allocated by the API server: cluster address or node port.
    Allocated,
    /// Assigned by a load balancer controller.
    LoadBalancer,
    /// Written by whoever may write services; must not take over the others (CVE-2020-8554).
    ExternalIp,
}

/// What else decides about frontends.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Whether `spec.externalIPs` is honoured.
    pub external_ips: bool,
    /// The node's own addresses.
    pub node_addresses: &'a [IpAddr],
}

/// The frontends of one port in one family, the strongest claim to each address only. A service is in the families it
/// has cluster addresses of (`spec.ipFamilies`), with everything else it has.
pub fn of(
    service: &Service,
    port: &ServicePort,
    family: Family,
    context: Context<'_>,
) -> Vec<(Class, Frontend)> {
    let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| Family::of(address) == family).collect()
    };
    let vip = |address| Address::Vip(Vip { address, protocol: port.protocol, port: port.port.get() });
    let (outside, masquerade) = match service.external_local {
        true => (Traffic::Split, Masquerade::Node),
        false => (Traffic::Cluster, Masquerade::Everyone),
    };
    let inside = if service.internal_local { Traffic::Local } else { Traffic::Cluster };
    let mut found: Vec<(Class, Frontend)> = Vec::new();
    let mut known: HashSet<Address> = HashSet::new();
    let mut add = |class, address, traffic, masquerade, sources| {
        if known.insert(address) {
            found.push((class, Frontend { address, traffic, masquerade, sources }));
        }
    };
    // The API server gives at most one cluster address of each family; a second one would be nobody's.
    let Some(cluster_ip) = of_family(&service.cluster_ips).into_iter().next() else { return Vec::new() };
    add(Class::Allocated, vip(cluster_ip), inside, Masquerade::Internal, None);
    if service.kind == ServiceKind::LoadBalancer {
        let ingress = of_family(&service.ingress);
        let sources = sources(service, family, &ingress, context.node_addresses);
        for address in ingress {
            add(Class::LoadBalancer, vip(address), outside, masquerade, sources.clone());
        }
    }
    if context.external_ips {
        for address in of_family(&service.external_ips) {
            add(Class::ExternalIp, vip(address), outside, masquerade, None);
        }
    }
    if let (ServiceKind::NodePort | ServiceKind::LoadBalancer, Some(number)) = (service.kind, port.node_port)
    {
        let address = Address::NodePort(family, NodePort { protocol: port.protocol, port: number.get() });
        add(Class::Allocated, address, outside, masquerade, None);
    }
    found
}

/// `loadBalancerSourceRanges` for a family, none of them inside another. Ranges of the other family only restrict the
/// other family, as kube-proxy has it. A node in a range may also connect through the load balancer's address, which
/// is then its source address.
fn sources(service: &Service, family: Family, ingress: &[IpAddr], node: &[IpAddr]) -> Option<Box<[IpNet]>> {
    let all = service.source_ranges.as_ref()?;
    let mut ranges: Vec<IpNet> =
        all.iter().copied().filter(|range| Family::of(&range.addr()) == family).collect();
    if (ranges.is_empty() && !all.is_empty()) || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    if node.iter().any(|address| ranges.iter().any(|range| range.contains(address))) {
        ranges.extend(ingress.iter().map(|address| IpNet::from(*address)));
    }
    // Ranges nest or are apart: in this order one that is inside another comes after it, and before any that is apart.
    ranges.sort_unstable_by_key(|range| (range.network(), range.prefix_len()));
    let mut outermost: Vec<IpNet> = Vec::with_capacity(ranges.len());
    for range in ranges {
        if !outermost.last().is_some_and(|outer| outer.contains(&range)) {
            outermost.push(range);
        }
    }
    Some(outermost.into())
}
