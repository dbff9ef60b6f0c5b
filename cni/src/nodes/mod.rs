//! Ways to the pods of other nodes.
//!
//! Owns: routes marked with a protocol number of our own, one VXLAN device with its permanent neighbour and
//! forwarding entries, policy rules for one routing table, and the sets of node addresses and pod ranges that our
//! masquerade rules leave alone.
//! A peer on a link of this node gets direct routes; any other is reached by VXLAN (UDP 8472, VNI 1, flannel's
//! defaults). Which one it is is decided for each peer and family, anew at each change.
//! Never: watches Nodes. The caller says who the peers are, all of them, whenever that changes, and again when
//! [`disturbances`] tells of something.

mod plan;
mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use netlink_packet_route::route::RouteProtocol;
use nix::errno::Errno;

use crate::netlink::{
    AddressSpec, Channel, MAIN_TABLE, NetlinkError, RouteSpec, RuleSpec, VxlanSpec, tells_of_routes, unless,
    watch_routes,
};
use crate::netns::set_sysctl;

pub use plan::Problem;
use plan::{Links, Plan, Way, plan, tunnel_mac};
pub(crate) use sets::{declare_sets, nodes_set, pods_set, sets_are_empty};

/// Marks our routes; `ip route` shows it as `proto 111`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(111);
/// The table for what pods send to nodes behind the tunnel, and the number of the rules that lead there.
const TABLE: u32 = 28_530;
/// What VXLAN adds to a packet, bytes: outer Ethernet, IP, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;

/// Which ways may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Direct routes on a shared link, the tunnel elsewhere.
    #[default]
    Auto,
    /// Direct routes only.
    Direct,
    /// The tunnel only.
    Tunnel,
}

/// This node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// Its addresses; tunnels start from the first.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
}

/// Another node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its name, for messages.
    pub name: String,
    /// Its addresses (`InternalIP`).
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges (`Node.spec.podCIDRs`).
    pub pod_cidrs: Vec<IpNet>,
}

/// Settings that do not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodesConfig {
    /// Which ways may be taken.
    pub mode: Mode,
    /// The VXLAN device's name.
    pub device: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The nftables table; the same as the plugin's.
    pub table: String,
}

impl Default for NodesConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            device: "orlop.1".to_owned(),
            vni: 1,
            port: 8472,
            table: crate::plugin::KIND.to_owned(),
        }
    }
}

/// A route as it is compared: table and destination, then gateway, link, and whether the gateway is taken to be there.
type Key = (u32, IpNet);
type Hop = (Option<IpAddr>, u32, bool);

/// What is in the kernel now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Have {
    routes: BTreeMap<Key, Hop>,
    neighbours: BTreeMap<IpAddr, [u8; 6]>,
    forwardings: BTreeMap<[u8; 6], IpAddr>,
    rules: BTreeSet<RuleSpec>,
}

/// Keeps the ways to other nodes. All calls block; call from a thread in the node's namespace.
#[derive(Debug)]
pub struct Nodes {
    config: NodesConfig,
    route: Channel,
    netfilter: Channel,
}

impl Nodes {
    /// Opens the sockets; changes nothing yet.
    ///
    /// # Errors
    /// The sockets could not be opened.
    pub fn new(config: NodesConfig) -> Result<Self, NetlinkError> {
        Ok(Self { config, route: Channel::route()?, netfilter: Channel::netfilter()? })
    }

    /// Makes the kernel's state match these nodes. What is right already is not touched, so traffic goes on.
    ///
    /// Returns what could not be reached and why; everything else is in place.
    ///
    /// # Errors
    /// The first request the kernel refused. Calling again is safe and goes on from there.
    pub fn apply(&mut self, local: &Local, peers: &[Peer]) -> Result<Vec<Problem>, NetlinkError> {
        let links = self.links()?;
        let plan = plan(self.config.mode, local, &links, peers);
        // First nothing is masqueraded that should not be, then the routes come.
        sets::fill(&mut self.netfilter, &self.config.table, &plan)?;
        let device = self.tunnel(local, &links, &plan)?;
        let have = self.observe(device)?;
        let want = want(&plan, local, device);
        self.change(device.unwrap_or_default(), &have, &want)?;
        if device.is_none() {
            unless(self.route.delete_link(&self.config.device), &[Errno::ENODEV])?;
        }
        Ok(plan.problems)
    }

    /// Removes everything this owns.
    ///
    /// # Errors
    /// As [`Nodes::apply`].
    pub fn remove(&mut self) -> Result<(), NetlinkError> {
        self.apply(&Local::default(), &[]).map(|_| ())
    }

    /// The MTU pods should have so that their packets fit on every way that may be taken: that of the link of the
    /// node's first address, without room for the tunnel if tunnels are allowed. `None` while no link has the address.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn pod_mtu(&mut self, local: &Local) -> Result<Option<u32>, NetlinkError> {
        let Some(near_end) = local.addresses.first() else { return Ok(None) };
        let Some(index) = self.links()?.holding(*near_end) else { return Ok(None) };
        let link = self.route.link_by_index(index)?;
        let overhead = if self.config.mode == Mode::Direct { 0 } else { overhead(*near_end) };
        Ok(link.map(|l| l.mtu.saturating_sub(overhead)))
    }

    /// Addresses of links that are up, apart from our own device.
    fn links(&mut self) -> Result<Links, NetlinkError> {
        let links = self.route.links()?;
        let usable =
            |index: u32| links.iter().any(|l| l.index == index && l.up && l.name != self.config.device);
        let addresses = self.route.addresses(0)?.into_iter().filter(|(index, _)| usable(*index)).collect();
        Ok(Links { addresses })
    }

    /// The VXLAN device as it should be; none when no peer needs it.
    fn tunnel(&mut self, local: &Local, links: &Links, plan: &Plan) -> Result<Option<u32>, NetlinkError> {
        let Some(near_end) = local.addresses.first().filter(|_| plan.needs_tunnel()) else { return Ok(None) };
        let missing = |what: &dyn Display| NetlinkError {
            what: format!("make the tunnel device {}", self.config.device),
            errno: Errno::EADDRNOTAVAIL,
            words: Some(what.to_string()),
        };
        let underlay = links.holding(*near_end);
        let underlay =
            underlay.ok_or_else(|| missing(&format!("no link that is up has address {near_end}")))?;
        let mtu = self.route.link_by_index(underlay)?.map_or(1500, |l| l.mtu);
        let name = self.config.device.clone();
        let spec = VxlanSpec {
            name: &name,
            vni: self.config.vni,
            port: self.config.port,
            local: *near_end,
            underlay,
            mac: tunnel_mac(*near_end),
            mtu: mtu.saturating_sub(overhead(*near_end)),
        };
        let existing = self.route.link(&name)?;
        if existing.as_ref().is_some_and(|link| !spec.describes(link)) {
            unless(self.route.delete_link(&name), &[Errno::ENODEV])?;
        }
        if !existing.as_ref().is_some_and(|link| spec.describes(link)) {
            self.route.create_vxlan(&spec)?;
        }
        let Some(link) = self.route.link(&name)? else { return Err(missing(&"it disappeared")) };
        if !link.up {
            // Nobody answers to a link-local address there. Without IPv6 there is nothing to switch off.
            let _ = set_sysctl(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1");
            self.route.set_up(link.index)?;
        }
        if link.mtu != spec.mtu {
            let what = format!("set the MTU of {name} to {}", spec.mtu);
            self.route.change_link(&what, link.index, |l| l.mtu(spec.mtu))?;
        }
        // With an address of its own range the node speaks to far pods in a way that comes back through the tunnel.
        for range in &local.pod_cidrs {
            let address = AddressSpec::new(link.index, IpNet::from(range.network()));
            unless(self.route.add_address(&address), &[Errno::EEXIST])?;
        }
        Ok(Some(link.index))
    }

    fn observe(&mut self, device: Option<u32>) -> Result<Have, NetlinkError> {
        let routes = self.route.routes_by(PROTOCOL)?;
        let key = |r: &RouteSpec| (r.table.unwrap_or(MAIN_TABLE), r.dst);
        let mut have = Have {
            routes: routes.iter().map(|r| (key(r), (r.gateway, r.index, r.onlink))).collect(),
            rules: self.route.rules_to(TABLE)?.into_iter().collect(),
            ..Have::default()
        };
        if let Some(index) = device {
            have.neighbours = self.route.neighbours(index)?.into_iter().collect();
            have.forwardings =
                self.route.forwardings(index)?.into_iter().map(|(ip, mac)| (mac, ip)).collect();
        }
        Ok(have)
    }

    /// Additions in the order a packet needs them last to first, then removals the other way round.
    fn change(&mut self, device: u32, have: &Have, want: &Have) -> Result<(), NetlinkError> {
        let route = &mut self.route;
        for (mac, to) in want.forwardings.iter().filter(|(mac, to)| have.forwardings.get(*mac) != Some(*to)) {
            route.put_forwarding(device, *mac, *to)?;
        }
        for (ip, mac) in want.neighbours.iter().filter(|(ip, mac)| have.neighbours.get(*ip) != Some(*mac)) {
            route.put_neighbour(device, *ip, *mac)?;
        }
        for (key, hop) in want.routes.iter().filter(|(key, hop)| have.routes.get(*key) != Some(*hop)) {
            route.put_route(&spec(key, hop))?;
        }
        for rule in want.rules.difference(&have.rules) {
            unless(route.add_rule(rule), &[Errno::EEXIST])?;
        }
        for rule in have.rules.difference(&want.rules) {
            unless(route.delete_rule(rule), &[Errno::ENOENT])?;
        }
        for (key, hop) in have.routes.iter().filter(|(key, _)| !want.routes.contains_key(*key)) {
            unless(route.delete_route(&spec(key, hop)), &[Errno::ESRCH])?;
        }
        for ip in have.neighbours.keys().filter(|ip| !want.neighbours.contains_key(*ip)) {
            unless(route.delete_neighbour(device, *ip), &[Errno::ENOENT])?;
        }
        for (mac, to) in have.forwardings.iter().filter(|(mac, _)| !want.forwardings.contains_key(*mac)) {
            unless(route.delete_forwarding(device, *mac, *to), &[Errno::ENOENT])?;
        }
        Ok(())
    }
}

/// A socket that never blocks; each datagram read from it may be one that [`is_disturbance`] recognises.
///
/// # Errors
/// It could not be opened.
pub fn disturbances() -> Result<OwnedFd, NetlinkError> {
    watch_routes()
}

/// Whether what [`Nodes::apply`] made may have been lost: a link went down and came up again, got another address, or
/// somebody removed our routes. Calling it again puts things right.
#[must_use]
pub fn is_disturbance(datagram: &[u8]) -> bool {
    tells_of_routes(datagram, PROTOCOL)
}

fn overhead(near_end: IpAddr) -> u32 {
    if near_end.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 }
}

fn want(plan: &Plan, local: &Local, device: Option<u32>) -> Have {
    let hop = |way: &Way| match way {
        Way::Direct(gateway, index) => Some((Some(*gateway), *index, false)),
        Way::Tunnel(inside) => device.map(|index| (Some(*inside), index, true)),
    };
    let in_table = |table: u32, routes: &BTreeMap<IpNet, Way>| -> BTreeMap<Key, Hop> {
        routes.iter().filter_map(|(dst, way)| Some(((table, *dst), hop(way)?))).collect()
    };
    let mut routes = in_table(MAIN_TABLE, &plan.pods);
    routes.extend(in_table(TABLE, &plan.nodes));
    let sources = local.pod_cidrs.iter().filter(|_| device.is_some());
    let rules = sources.map(|net| RuleSpec { source: net.trunc(), table: TABLE, priority: TABLE }).collect();
    Have { routes, neighbours: plan.neighbours.clone(), forwardings: plan.forwardings.clone(), rules }
}

fn spec(key: &Key, hop: &Hop) -> RouteSpec {
    RouteSpec {
        gateway: hop.0,
        onlink: hop.2,
        table: Some(key.0),
        protocol: PROTOCOL,
        ..RouteSpec::new(key.1, hop.1)
    }
}
