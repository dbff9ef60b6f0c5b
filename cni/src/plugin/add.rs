//! ADD: an interface in the container, joined to the network.
//!
//! Owns: the order of the steps and undoing them when one fails.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::netlink::{
    AddressSpec, Channel, Link, LinkWatch, NetlinkError, RouteSpec, VethSpec, format_mac, unless,
};
use crate::netns::{Netns, set_sysctl};
use crate::spec::{CniError, Interface, IpConfig, NetworkResult, code};
use crate::store::Owner;

use super::conf::{Conf, Mode};
use super::inside::{self, Inside};
use super::request::Request;
use super::{Plugin, ipam, names};

/// When neither the configuration nor a default route says.
const ETHERNET_MTU: u32 = 1500;
/// How long the kernel may take to notice the carrier of a link.
const CARRIER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);
/// `RT_SCOPE_HOST`: what the reference point-to-point plugin gives its routes to containers.
const SCOPE_HOST: u8 = 254;

/// What one ADD works on.
struct Attachment<'a> {
    conf: &'a Conf,
    owner: &'a Owner,
    netns: &'a Netns,
    host: String,
    /// A runtime that calls in process leaves the loopback interface to us, and saves entering the namespace twice.
    loopback: bool,
}

impl Attachment<'_> {
    fn inside<'a>(&'a self, ips: &'a [IpConfig], routes: &'a [crate::spec::Route]) -> Inside<'a> {
        Inside { ifname: &self.owner.ifname, ips, routes, loopback: self.loopback }
    }
}

impl Plugin {
    pub(super) fn add(&self, request: &Request, conf: &Conf) -> Result<NetworkResult, CniError> {
        let owner = request.owner()?;
        let path = request.netns.as_deref();
        let path =
            path.ok_or_else(|| CniError::new(code::INVALID_ENVIRONMENT, "CNI_NETNS not set for ADD"))?;
        let netns = Netns::open(path)?;
        refuse_own_namespace(&netns)?;
        let host = names::host_link(&conf.network, &owner);
        if let Some(reaper) = &self.reaper {
            reaper.wait_for(&host);
        }
        let addresses = self.lease(request, conf, &owner)?;
        let loopback = self.reaper.is_some();
        let attachment = Attachment { conf, owner: &owner, netns: &netns, host, loopback };
        let result = self.connect(&attachment, addresses);
        if result.is_err() {
            self.undo(request, conf, &owner);
        }
        result.map(|r| merge(conf.previous.as_ref(), r))
    }

    /// Everything after the lease.
    fn connect(
        &self,
        attachment: &Attachment<'_>,
        addresses: NetworkResult,
    ) -> Result<NetworkResult, CniError> {
        let conf = attachment.conf;
        let routes = ipam::routes(conf, &addresses)?;
        if conf.is_gateway {
            enable_forwarding(&addresses.ips)?;
        }
        let mut result = self.with_route(|channel| match conf.mode {
            Mode::Bridge => join_bridge(channel, attachment, &addresses, &routes),
            Mode::Ptp => point_to_point(channel, attachment, &addresses, &routes),
        })?;
        result.dns = if conf.dns == Default::default() { addresses.dns } else { conf.dns.clone() };
        result.routes = routes;
        if conf.masquerade {
            self.masquerade(conf, &result.ips)?;
        }
        if conf.bandwidth != Default::default() {
            self.with_route(|channel| {
                super::shape::limit(channel, conf, attachment.owner, &attachment.host)
            })?;
        }
        if !conf.ports.is_empty() {
            self.map_ports(conf, attachment.owner, &result.ips, host_side(attachment))?;
        }
        Ok(result)
    }

    /// Takes back what a failed ADD has done so far. Errors are logged: the first one is the caller's.
    pub(super) fn undo(&self, request: &Request, conf: &Conf, owner: &Owner) {
        if let Err(e) = self.remove(request, conf, owner) {
            tracing::warn!(container = %owner.container, error = %e, "undoing a failed ADD");
        }
    }
}

/// The interface by which the host sees the container's packets.
fn host_side<'a>(attachment: &'a Attachment<'_>) -> &'a str {
    match attachment.conf.mode {
        Mode::Bridge => &attachment.conf.bridge,
        Mode::Ptp => &attachment.host,
    }
}

fn refuse_own_namespace(netns: &Netns) -> Result<(), CniError> {
    let own = Netns::current()?;
    let inode = |n: &Netns| n.inode().map_err(|e| CniError::io("look at a network namespace", &e));
    if inode(&own)? == inode(netns)? {
        let msg = format!("{} is the network namespace of the node itself", netns.path().display());
        return Err(CniError::new(code::INVALID_ENVIRONMENT, msg));
    }
    Ok(())
}

fn enable_forwarding(ips: &[IpConfig]) -> Result<(), CniError> {
    let io = |e: std::io::Error| CniError::new(code::IO, e.to_string());
    if ips.iter().any(|ip| ip.address.addr().is_ipv4()) {
        set_sysctl("net/ipv4/ip_forward", "1").map_err(io)?;
    }
    if ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
        keep_router_advertisements().map_err(io)?;
        set_sysctl("net/ipv6/conf/all/forwarding", "1").map_err(io)?;
    }
    Ok(())
}

/// A node that forwards no longer listens to its router (`accept_ra` 1), and loses its default route, unless it is
/// told to all the same (2).
fn keep_router_advertisements() -> std::io::Result<()> {
    let root = std::path::Path::new("/proc/sys/net/ipv6/conf");
    if std::fs::read_to_string(root.join("all/forwarding"))?.trim() == "1" {
        return Ok(());
    }
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path().join("accept_ra");
        if std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            std::fs::write(&path, "2")?;
        }
    }
    Ok(())
}

fn join_bridge(
    channel: &mut Channel,
    attachment: &Attachment<'_>,
    addresses: &NetworkResult,
    routes: &[crate::spec::Route],
) -> Result<NetworkResult, CniError> {
    let conf = attachment.conf;
    let bridge = ensure_bridge(channel, conf, &addresses.ips)?;
    let mtu = conf.mtu.unwrap_or(bridge.mtu);
    let mut watch = LinkWatch::new()?;
    create_pair(channel, attachment, Some(bridge.index), mtu, &addresses.ips)?;
    if conf.hairpin || conf.isolated {
        channel.set_bridge_port(&attachment.host, conf.hairpin, conf.isolated)?;
    }
    let wanted = attachment.inside(&addresses.ips, routes);
    let container = inside::configure(attachment.netns, conf, &wanted)?;
    if !watch.wait(channel, &attachment.host, CARRIER_PATIENCE)? {
        tracing::warn!(link = %attachment.host, "the bridge does not forward to a new port yet");
    }
    if let Some(mac) = conf.mac {
        inside::announce(attachment.netns, &container, mac)?;
    }
    let bridge_interface = Interface {
        name: bridge.name,
        mac: format_mac(&bridge.mac),
        mtu: Some(bridge.mtu),
        ..Interface::default()
    };
    let interfaces =
        vec![bridge_interface, host_interface(attachment, mtu), container_interface(attachment, &container)];
    Ok(NetworkResult { ips: on_interface(&addresses.ips, 2), interfaces, ..NetworkResult::default() })
}

fn point_to_point(
    channel: &mut Channel,
    attachment: &Attachment<'_>,
    addresses: &NetworkResult,
    routes: &[crate::spec::Route],
) -> Result<NetworkResult, CniError> {
    let conf = attachment.conf;
    let mtu = match conf.mtu {
        Some(mtu) => mtu,
        None => detect_mtu(channel)?,
    };
    create_pair(channel, attachment, None, mtu, &addresses.ips)?;
    be_neighbour_at_once(conf, &attachment.host, &addresses.ips)?;
    let wanted = attachment.inside(&addresses.ips, routes);
    let container = inside::configure(attachment.netns, conf, &wanted)?;
    let host = require(channel, &attachment.host)?;
    for ip in &addresses.ips {
        let gateway =
            ip.gateway.ok_or_else(|| CniError::config(format!("address {} has no gateway", ip.address)))?;
        channel.add_address(&AddressSpec::new(host.index, IpNet::from(gateway)))?;
        let route = RouteSpec::new(IpNet::from(ip.address.addr()), host.index);
        let scope = ip.address.addr().is_ipv4().then_some(SCOPE_HOST);
        channel.add_route(&RouteSpec { scope, ..route })?;
    }
    let interfaces = vec![host_interface(attachment, mtu), container_interface(attachment, &container)];
    Ok(NetworkResult { ips: on_interface(&addresses.ips, 1), interfaces, ..NetworkResult::default() })
}

fn create_pair(
    channel: &mut Channel,
    attachment: &Attachment<'_>,
    bridge: Option<u32>,
    mtu: u32,
    ips: &[IpConfig],
) -> Result<(), CniError> {
    let Attachment { conf, owner, netns, host, .. } = attachment;
    let by_address = ips.first().map(|ip| names::mac_of(ip.address.addr()));
    let inside_mac = conf.mac.or(by_address).unwrap_or_else(|| names::container_mac(&conf.network, owner));
    let spec = VethSpec {
        host,
        host_mac: names::host_mac(&conf.network, owner),
        bridge,
        inside: &owner.ifname,
        inside_mac: Some(inside_mac),
        netns: std::os::fd::AsFd::as_fd(*netns),
        mtu,
    };
    match channel.create_veth(&spec) {
        // The lease is new, so a host end of this name is what an ADD killed in between left behind.
        Err(e) if e.errno == Errno::EEXIST && channel.link(host)?.is_some() => {
            unless(channel.delete_link(host), &[Errno::ENODEV])?;
            channel.create_veth(&spec)?;
            Ok(())
        }
        other => other.map_err(Into::into),
    }
}

/// The bridge as it should be, made if need be. Several processes may do this at once.
fn ensure_bridge(channel: &mut Channel, conf: &Conf, ips: &[IpConfig]) -> Result<Link, CniError> {
    let bridge = match channel.link(&conf.bridge)? {
        Some(link) => link,
        None => {
            let mtu = match conf.mtu {
                Some(mtu) => mtu,
                None => detect_mtu(channel)?,
            };
            let gateway = ips.iter().find_map(|ip| ip.gateway);
            let mac = names::mac_of(gateway.unwrap_or(IpAddr::from([0_u8; 16])));
            unless(channel.create_bridge(&conf.bridge, mac, Some(mtu)), &[Errno::EEXIST])?;
            if conf.promiscuous {
                let link = require(channel, &conf.bridge)?;
                channel.change_link("make the bridge promiscuous", link.index, |l| l.promiscuous(true))?;
            }
            require(channel, &conf.bridge)?
        }
    };
    if bridge.kind.as_deref() != Some("bridge") {
        return Err(CniError::config(format!("interface {} exists and is not a bridge", conf.bridge)));
    }
    if !bridge.up {
        be_neighbour_at_once(conf, &conf.bridge, ips)?;
        channel.set_up(bridge.index)?;
    }
    if conf.is_gateway {
        for ip in ips {
            be_gateway(channel, conf, &bridge, ip)?;
        }
    }
    Ok(bridge)
}

/// Lets the node's end of a link have its link-local address as soon as the link works: the kernel asks for neighbours of
/// forwarded packets by that address alone (`ndisc_solicit`), and looks for duplicates of it for two seconds first. There are
/// none: nobody else makes hardware addresses on this link.
fn be_neighbour_at_once(conf: &Conf, link: &str, ips: &[IpConfig]) -> Result<(), CniError> {
    if conf.detect_duplicates || ips.iter().all(|ip| ip.address.addr().is_ipv4()) {
        return Ok(());
    }
    set_sysctl(&format!("net/ipv6/conf/{link}/accept_dad"), "0")
        .map_err(|e| CniError::new(code::IO, e.to_string()))
}

/// Gives the bridge the gateway's address. Nearly always it has it already.
fn be_gateway(channel: &mut Channel, conf: &Conf, bridge: &Link, ip: &IpConfig) -> Result<(), CniError> {
    let Some(gateway) = ip.gateway else { return Ok(()) };
    let wanted = IpNet::new(gateway, ip.address.prefix_len())
        .map_err(|_| CniError::config(format!("gateway {gateway} is not of the family of {}", ip.address)))?;
    match channel.add_address(&AddressSpec::new(bridge.index, wanted)) {
        Err(e) if e.errno == Errno::EEXIST => return Ok(()),
        other => other?,
    }
    // It was new: is there an older one for the same subnet?
    let others = channel.addresses(bridge.index)?.into_iter().map(|(_, net)| net);
    let overlapping = |net: &IpNet| *net != wanted && (net.contains(&wanted) || wanted.contains(net));
    for other in others.filter(|net| overlapping(net) && !is_link_local(net.addr())) {
        if conf.force_address {
            unless(channel.delete_address(bridge.index, other), &[Errno::EADDRNOTAVAIL])?;
        } else {
            unless(channel.delete_address(bridge.index, wanted), &[Errno::EADDRNOTAVAIL])?;
            let msg = format!("bridge {} already has address {other}, wanted {wanted}", bridge.name);
            return Err(CniError::config(msg).details("forceAddress would replace it"));
        }
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The MTU of the interface the default route leaves by.
fn detect_mtu(channel: &mut Channel) -> Result<u32, NetlinkError> {
    let default = channel.routes()?.into_iter().find(|r| r.dst.prefix_len() == 0);
    let Some(route) = default else { return Ok(ETHERNET_MTU) };
    Ok(channel.link_by_index(route.index)?.map_or(ETHERNET_MTU, |link| link.mtu))
}

fn require(channel: &mut Channel, name: &str) -> Result<Link, CniError> {
    let gone = || CniError::new(code::TRY_AGAIN, format!("interface {name} disappeared"));
    channel.link(name)?.ok_or_else(gone)
}

fn host_interface(attachment: &Attachment<'_>, mtu: u32) -> Interface {
    let mac = names::host_mac(&attachment.conf.network, attachment.owner);
    Interface { name: attachment.host.clone(), mac: format_mac(&mac), mtu: Some(mtu), ..Interface::default() }
}

fn container_interface(attachment: &Attachment<'_>, link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: format_mac(&link.mac),
        mtu: Some(link.mtu),
        sandbox: attachment.netns.path().display().to_string(),
        ..Interface::default()
    }
}

fn on_interface(ips: &[IpConfig], interface: usize) -> Vec<IpConfig> {
    ips.iter().map(|ip| IpConfig { interface: Some(interface), ..ip.clone() }).collect()
}

/// The result of the plugins before this one, with ours behind it.
fn merge(previous: Option<&NetworkResult>, mut ours: NetworkResult) -> NetworkResult {
    let Some(previous) = previous else { return ours };
    let mut merged = previous.clone();
    for ip in &mut ours.ips {
        ip.interface = ip.interface.map(|i| i + previous.interfaces.len());
    }
    merged.interfaces.append(&mut ours.interfaces);
    merged.ips.append(&mut ours.ips);
    merged.routes.append(&mut ours.routes);
    if merged.dns == Default::default() {
        merged.dns = ours.dns;
    }
    merged
}
