//! Routes.
//!
//! Owns: the shapes of the RTM_*ROUTE requests this crate makes.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Channel, NEW, NetlinkError, PUT};

/// `RT_TABLE_MAIN`.
pub const MAIN_TABLE: u32 = 254;

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub index: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// The gateway is taken to be on the link even if no route says so.
    pub onlink: bool,
    /// Scope as the kernel numbers it; by default `link` without a gateway (IPv4) and `global` otherwise.
    pub scope: Option<u8>,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Largest TCP segment to announce, bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table; the main one by default.
    pub table: Option<u32>,
    /// Who made it, as `ip route` shows it (`proto`).
    pub protocol: RouteProtocol,
}

impl RouteSpec {
    /// A route to `dst` by interface `index`.
    #[must_use]
    pub fn new(dst: IpNet, index: u32) -> Self {
        Self {
            dst,
            gateway: None,
            index,
            source: None,
            onlink: false,
            scope: None,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            protocol: RouteProtocol::Boot,
        }
    }

    /// The same route through a gateway.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let v4 = self.dst.addr().is_ipv4();
        let header = &mut message.header;
        header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        header.destination_prefix_length = self.dst.prefix_len();
        header.protocol = self.protocol;
        header.kind = RouteType::Unicast;
        let default = if self.gateway.is_none() && v4 { RouteScope::Link } else { RouteScope::Universe };
        header.scope = self.scope.map_or(default, RouteScope::from);
        header.flags.set(RouteFlags::Onlink, self.onlink);
        let table = self.table.unwrap_or(MAIN_TABLE);
        header.table = u8::try_from(table).unwrap_or(0);
        let attributes = &mut message.attributes;
        if u8::try_from(table).is_err() {
            attributes.push(RouteAttribute::Table(table));
        }
        if self.dst.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(self.dst.network().into()));
        }
        attributes.push(RouteAttribute::Oif(self.index));
        attributes.extend(self.gateway.map(|g| RouteAttribute::Gateway(g.into())));
        attributes.extend(self.source.map(|s| RouteAttribute::PrefSource(s.into())));
        attributes.extend(self.priority.map(RouteAttribute::Priority));
        let metrics: Vec<_> =
            self.mtu.map(RouteMetric::Mtu).into_iter().chain(self.advmss.map(RouteMetric::Advmss)).collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }
}

impl Channel {
    /// Adds a route.
    ///
    /// # Errors
    /// `EEXIST` when there is one to the same destination, else as the kernel answers.
    pub fn add_route(&mut self, spec: &RouteSpec) -> Result<(), NetlinkError> {
        self.ack(&describe_request("add", spec), RouteNetlinkMessage::NewRoute(spec.message()), NEW)
    }

    /// Adds a route or replaces the one to the same destination.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn put_route(&mut self, spec: &RouteSpec) -> Result<(), NetlinkError> {
        self.ack(&describe_request("put", spec), RouteNetlinkMessage::NewRoute(spec.message()), PUT)
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// `ESRCH` when it is not there, else as the kernel answers.
    pub fn delete_route(&mut self, spec: &RouteSpec) -> Result<(), NetlinkError> {
        self.ack(&describe_request("delete", spec), RouteNetlinkMessage::DelRoute(spec.message()), 0)
    }

    /// Every unicast route of the main table.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn routes(&mut self) -> Result<Vec<RouteSpec>, NetlinkError> {
        let found = self.all_routes()?;
        Ok(found.into_iter().filter(|r| r.table.unwrap_or(MAIN_TABLE) == MAIN_TABLE).collect())
    }

    /// Every unicast route made by `protocol`, in any table.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn routes_by(&mut self, protocol: RouteProtocol) -> Result<Vec<RouteSpec>, NetlinkError> {
        Ok(self.all_routes()?.into_iter().filter(|r| r.protocol == protocol).collect())
    }

    fn all_routes(&mut self) -> Result<Vec<RouteSpec>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let routes = self.dump("list routes", &RouteNetlinkMessage::GetRoute(message))?;
            found.extend(routes.into_iter().filter_map(describe));
        }
        Ok(found)
    }
}

fn describe_request(verb: &str, spec: &RouteSpec) -> String {
    match spec.gateway {
        Some(gateway) => format!("{verb} route to {} via {gateway}", spec.dst),
        None => format!("{verb} route to {} on link {}", spec.dst, spec.index),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

pub(super) fn describe(message: RouteNetlinkMessage) -> Option<RouteSpec> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let everything: IpNet = match message.header.address_family {
        AddressFamily::Inet => Ipv4Net::default().into(),
        AddressFamily::Inet6 => Ipv6Net::default().into(),
        _ => return None,
    };
    let mut route = RouteSpec::new(everything, 0);
    route.protocol = message.header.protocol;
    route.scope = Some(message.header.scope.into());
    route.onlink = message.header.flags.contains(RouteFlags::Onlink);
    route.table = Some(u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(dst) => {
                route.dst = IpNet::new(ip(dst)?, message.header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Oif(index) => route.index = *index,
            RouteAttribute::Priority(priority) => route.priority = Some(*priority),
            RouteAttribute::Table(table) => route.table = Some(*table),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                        RouteMetric::Advmss(mss) => route.advmss = Some(*mss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(route)
}
