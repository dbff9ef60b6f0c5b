//! The container's end: addresses and routes inside its namespace.
//!
//! Owns: what is done by a thread that has entered the namespace, over a socket opened there.

use std::net::IpAddr;

use crate::netlink::{AddressSpec, Channel, Link, RouteSpec};
use crate::netns::{Netns, set_sysctl};
use crate::spec::{CniError, IpConfig, Route, code};
use ipnet::IpNet;

use super::conf::{Conf, Mode};

/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;
/// `RT_SCOPE_LINK`.
const SCOPE_LINK: u8 = 253;

/// What the container's end gets.
pub(super) struct Inside<'a> {
    pub(super) ifname: &'a str,
    pub(super) ips: &'a [IpConfig],
    pub(super) routes: &'a [Route],
    /// Bring the loopback interface up as well.
    pub(super) loopback: bool,
}

/// Configures the container's end and brings it up.
pub(super) fn configure(netns: &Netns, conf: &Conf, wanted: &Inside<'_>) -> Result<Link, CniError> {
    netns.run(|| {
        let mut channel = Channel::route()?;
        if wanted.loopback {
            channel.set_up(LOOPBACK)?;
        }
        let link = find(&mut channel, wanted.ifname)?;
        if wanted.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
            let key = format!("net/ipv6/conf/{}/disable_ipv6", wanted.ifname);
            set_sysctl(&key, "0").map_err(|e| CniError::new(code::IO, e.to_string()))?;
        }
        let address = |ip: &IpConfig| AddressSpec {
            no_prefix_route: conf.mode == Mode::Ptp,
            detect_duplicates: conf.detect_duplicates,
            ..AddressSpec::new(link.index, ip.address)
        };
        channel.set_up(link.index)?;
        for ip in wanted.ips {
            channel.add_address(&address(ip))?;
        }
        if conf.mode == Mode::Ptp {
            for ip in wanted.ips {
                reach_gateway(&mut channel, link.index, ip)?;
            }
        }
        for route in wanted.routes {
            channel.add_route(&spec(route, &link, wanted.ips)?)?;
        }
        Ok(link)
    })?
}

/// Tells neighbours of the interface's addresses, once they can hear it. Needed only with a hardware address of the
/// caller's choice: ours follow from the IP address, so what neighbours remember of it is right.
pub(super) fn announce(netns: &Netns, link: &Link, mac: [u8; 6]) -> Result<(), CniError> {
    netns.run(|| {
        for key in ["ipv4/conf/{}/arp_notify", "ipv6/conf/{}/ndisc_notify"] {
            let key = format!("net/{}", key.replace("{}", &link.name));
            match set_sysctl(&key, "1") {
                // A kernel without IPv6.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(|e| CniError::new(code::IO, e.to_string()))?,
            }
        }
        // Giving it the hardware address that it has makes the kernel send the announcements.
        let what = format!("announce the addresses of {}", link.name);
        Channel::route()?.change_link(&what, link.index, |l| l.address(mac.to_vec())).map_err(CniError::from)
    })?
}

/// On a point-to-point link nothing is a neighbour but the gateway; the subnet is reached through it.
fn reach_gateway(channel: &mut Channel, index: u32, ip: &IpConfig) -> Result<(), CniError> {
    let gateway =
        ip.gateway.ok_or_else(|| CniError::config(format!("address {} has no gateway", ip.address)))?;
    let source = Some(ip.address.addr());
    channel.add_route(&RouteSpec {
        scope: Some(SCOPE_LINK),
        source,
        ..RouteSpec::new(IpNet::from(gateway), index)
    })?;
    let subnet = ip.address.trunc();
    if subnet != IpNet::from(ip.address.addr()) {
        channel.add_route(&RouteSpec { source, ..RouteSpec::new(subnet, index).via(gateway) })?;
    }
    Ok(())
}

/// A route as the kernel wants it: without a gateway of its own it goes through that of the address's subnet.
fn spec(route: &Route, link: &Link, ips: &[IpConfig]) -> Result<RouteSpec, CniError> {
    let v4 = route.dst.addr().is_ipv4();
    let of_subnet = || ips.iter().filter(|ip| ip.address.addr().is_ipv4() == v4).find_map(|ip| ip.gateway);
    let on_link = route.scope == Some(SCOPE_LINK);
    let gateway: Option<IpAddr> = route.gw.or_else(|| if on_link { None } else { of_subnet() });
    if gateway.is_none() && !on_link {
        return Err(CniError::config(format!("route to {} has no gateway", route.dst)));
    }
    let scope = route.scope.filter(|_| gateway.is_none());
    Ok(RouteSpec {
        gateway,
        scope,
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        table: route.table,
        ..RouteSpec::new(route.dst.trunc(), link.index)
    })
}

/// What is really inside, for CHECK.
pub(super) struct Found {
    pub(super) link: Link,
    pub(super) addresses: Vec<IpNet>,
    pub(super) routes: Vec<RouteSpec>,
}

/// Looks at the container's end.
pub(super) fn look(netns: &Netns, ifname: &str) -> Result<Found, CniError> {
    netns.run(|| {
        let mut channel = Channel::route()?;
        let link = find(&mut channel, ifname)?;
        let addresses = channel.addresses(link.index)?.into_iter().map(|(_, net)| net).collect();
        let routes = channel.routes()?;
        Ok(Found { link, addresses, routes })
    })?
}

/// Brings the loopback interface of a namespace up. Already up is fine.
pub(crate) fn loopback_up(netns: &Netns) -> Result<(), CniError> {
    netns.run(|| {
        let mut channel = Channel::route()?;
        channel.set_up(LOOPBACK).map_err(CniError::from)
    })?
}

/// The hardware address of an interface inside, if there is one.
pub(crate) fn hardware_address(netns: &Netns, ifname: &str) -> Option<String> {
    let link = netns.run(|| Channel::route().and_then(|mut channel| channel.link(ifname)));
    Some(crate::netlink::format_mac(&link.ok()?.ok()??.mac))
}

fn find(channel: &mut Channel, ifname: &str) -> Result<Link, CniError> {
    let missing = || CniError::new(code::CHECK_FAILED, format!("the container has no interface {ifname}"));
    channel.link(ifname)?.ok_or_else(missing)
}
