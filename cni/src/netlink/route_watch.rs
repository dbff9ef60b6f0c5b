//! Learning that routes have changed by somebody else's doing.
//!
//! Owns: which socket tells, and which of the things it tells matter. The caller waits and reads by its own means: each
//! read gives one datagram, and too much told at once is the error ENOBUFS.
//! A link that goes down takes its IPv4 routes with it, and the kernel says nothing; but when the link comes up again,
//! its connected routes are told of, and that is the moment when other routes over it can be made again.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::routes::describe;
use super::{Channel, Frames, MAIN_TABLE, NetlinkError, RouteSpec};

/// `RTNLGRP_IPV4_ROUTE` and `RTNLGRP_IPV6_ROUTE`.
const GROUPS: [u32; 2] = [7, 11];
const WHAT: &str = "listen for changes of routes";

/// A socket that is readable when routes have changed, and never blocks, in the namespace of the calling thread.
///
/// # Errors
/// It could not be opened.
pub fn watch_routes() -> Result<OwnedFd, NetlinkError> {
    let channel = Channel::open(NETLINK_ROUTE, WHAT)?;
    let io = |e: std::io::Error| NetlinkError::io(WHAT, &e);
    for group in GROUPS {
        channel.socket.add_membership(group).map_err(io)?;
    }
    channel.socket.set_non_blocking(true).map_err(io)?;
    channel.socket.as_fd().try_clone_to_owned().map_err(io)
}

/// Whether a datagram tells of something that matters to one whose routes are marked with `own`: a connected route came
/// or went, or one of our own went.
#[must_use]
pub fn tells_of_routes(datagram: &[u8], own: RouteProtocol) -> bool {
    Frames(datagram).any(|frame| matters(frame.bytes, own))
}

fn matters(frame: &[u8], own: RouteProtocol) -> bool {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(frame);
    let Ok(NetlinkPayload::InnerMessage(message)) = message.map(|message| message.payload) else {
        return false;
    };
    let (came, route) = match message {
        RouteNetlinkMessage::NewRoute(route) => (true, route),
        RouteNetlinkMessage::DelRoute(route) => (false, route),
        _ => return false,
    };
    let Some(route) = describe(RouteNetlinkMessage::NewRoute(route)) else { return false };
    is_connected(&route) || (!came && route.protocol == own)
}

/// A subnet on a link. Every link has one of link-local addresses too, which nobody routes by.
fn is_connected(route: &RouteSpec) -> bool {
    let link_local = match route.dst.addr() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    };
    route.protocol == RouteProtocol::Kernel
        && route.gateway.is_none()
        && route.table.unwrap_or(MAIN_TABLE) == MAIN_TABLE
        && !link_local
}
