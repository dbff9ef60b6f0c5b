//! Links: finding, creating, changing and deleting interfaces.
//!
//! Owns: the shapes of the RTM_*LINK requests this crate makes.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};
use nix::errno::Errno;
use rtnetlink::{LinkBridge, LinkIfb, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use super::{Channel, NEW, NetlinkError, unless};

/// What is known of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; empty for some kinds.
    pub mac: Vec<u8>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The bridge (or other controller) it is a port of.
    pub master: Option<u32>,
    /// Its kind as `ip link` shows it: `bridge`, `veth`, `vxlan`; none for hardware.
    pub kind: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it carries packets: up, and its carrier has been noticed.
    pub running: bool,
    /// The kind's own settings, for a comparison with what is wanted.
    pub data: Option<InfoData>,
}

/// A veth pair, one end in another namespace.
#[derive(Debug)]
pub struct VethSpec<'a> {
    /// Name of the end in this namespace.
    pub host: &'a str,
    /// Hardware address of that end.
    pub host_mac: [u8; 6],
    /// The bridge that end joins, if any.
    pub bridge: Option<u32>,
    /// Name of the other end.
    pub inside: &'a str,
    /// Hardware address of the other end; the kernel chooses when absent.
    pub inside_mac: Option<[u8; 6]>,
    /// The other end's namespace.
    pub netns: BorrowedFd<'a>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

/// A VXLAN device without learning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanSpec<'a> {
    /// Name.
    pub name: &'a str,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The address tunnels start from.
    pub local: IpAddr,
    /// The interface tunnels leave by.
    pub underlay: u32,
    /// Hardware address of this end.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
}

/// `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn format_mac(mac: &[u8]) -> String {
    mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

impl Channel {
    /// The link called `name`.
    ///
    /// # Errors
    /// As the kernel answers; a missing link is `None`, not an error.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let message = LinkUnspec::new_with_name(name).append_extra_attribute(no_statistics()).build();
        let found = self.get(&format!("look for link {name}"), RouteNetlinkMessage::GetLink(message));
        let found = unless(found, &[Errno::ENODEV])?;
        Ok(found.into_iter().find_map(describe))
    }

    /// The link with this index.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(no_statistics()).build();
        let found = self.get(&format!("look for link {index}"), RouteNetlinkMessage::GetLink(message));
        Ok(unless(found, &[Errno::ENODEV])?.into_iter().find_map(describe))
    }

    /// Every link of the namespace.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().append_extra_attribute(no_statistics()).build();
        let found = self.dump("list links", &RouteNetlinkMessage::GetLink(message))?;
        Ok(found.into_iter().filter_map(describe).collect())
    }

    /// Creates a bridge that is up and keeps its hardware address when ports come and go.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, else as the kernel answers.
    pub fn create_bridge(&mut self, name: &str, mac: [u8; 6], mtu: Option<u32>) -> Result<(), NetlinkError> {
        let mut bridge = LinkBridge::new(name).address(mac.to_vec());
        if let Some(mtu) = mtu {
            bridge = bridge.mtu(mtu);
        }
        self.new_link(&format!("create bridge {name}"), bridge.build())
    }

    /// Creates a veth pair: this end up (and on its bridge), the other end inside the other namespace and still down.
    /// The kernel refuses to bring the far end up before the near one exists.
    ///
    /// # Errors
    /// `EEXIST` when either name is taken, else as the kernel answers.
    pub fn create_veth(&mut self, spec: &VethSpec<'_>) -> Result<(), NetlinkError> {
        let mut peer =
            LinkUnspec::new_with_name(spec.inside).mtu(spec.mtu).setns_by_fd(spec.netns.as_raw_fd());
        if let Some(mac) = spec.inside_mac {
            peer = peer.address(mac.to_vec());
        }
        let mut veth = LinkVeth::new(spec.host, spec.inside)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .address(spec.host_mac.to_vec())
            .mtu(spec.mtu)
            .up();
        if let Some(bridge) = spec.bridge {
            veth = veth.controller(bridge);
        }
        self.new_link(&format!("create veth {} for {}", spec.host, spec.inside), veth.build())
    }

    /// Creates an intermediate functional block device that is up.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn create_ifb(&mut self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        self.new_link(&format!("create ifb {name}"), LinkIfb::new(name).mtu(mtu).up().build())
    }

    /// Creates a VXLAN device that learns nothing and is not up yet.
    ///
    /// # Errors
    /// `EEXIST` when the name, or the VNI and port, are taken; else as the kernel answers.
    pub fn create_vxlan(&mut self, spec: &VxlanSpec<'_>) -> Result<(), NetlinkError> {
        let vxlan = LinkVxlan::new(spec.name, spec.vni)
            .dev(spec.underlay)
            .port(spec.port)
            .learning(false)
            .address(spec.mac.to_vec())
            .mtu(spec.mtu);
        let vxlan = match spec.local {
            IpAddr::V4(local) => vxlan.local(local),
            IpAddr::V6(local) => vxlan.local6(local),
        };
        self.new_link(&format!("create vxlan {}", spec.name), vxlan.build())
    }

    fn new_link(&mut self, what: &str, message: LinkMessage) -> Result<(), NetlinkError> {
        self.ack(what, RouteNetlinkMessage::NewLink(message), NEW)
    }

    /// Changes a link: `change` gets a builder for it.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn change_link(
        &mut self,
        what: &str,
        index: u32,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.ack(what, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.change_link(&format!("bring link {index} up"), index, LinkMessageBuilder::up)
    }

    /// Sets hairpin mode and isolation of a bridge port.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn set_bridge_port(&mut self, name: &str, hairpin: bool, isolated: bool) -> Result<(), NetlinkError> {
        let data = vec![InfoBridgePort::HairpinMode(hairpin), InfoBridgePort::Isolated(isolated)];
        // Port settings of a link that exists travel in RTM_NEWLINK without NLM_F_CREATE.
        let message = LinkUnspec::new_with_name(name)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(data))
            .build();
        self.ack(&format!("set bridge port {name}"), RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Deletes the link called `name` and waits until the kernel has let go of it.
    ///
    /// # Errors
    /// `ENODEV` when it is not there, else as the kernel answers.
    pub fn delete_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_name(name).build();
        self.ack(&format!("delete link {name}"), RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Puts a link into a group, for [`Channel::delete_group`].
    ///
    /// # Errors
    /// `ENODEV` when it is not there, else as the kernel answers.
    pub fn set_group(&mut self, name: &str, group: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_name(name).link_group(group).build();
        self.ack(&format!("put link {name} into group {group}"), RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Deletes every link of a group in one go: one grace period of the kernel's instead of one for each.
    ///
    /// # Errors
    /// `ENODEV` when the group is empty, else as the kernel answers.
    pub fn delete_group(&mut self, group: u32) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().link_group(group).build();
        self.ack(&format!("delete the links of group {group}"), RouteNetlinkMessage::DelLink(message), 0)
    }
}

impl VxlanSpec<'_> {
    /// Whether a link that exists is this device.
    #[must_use]
    pub fn describes(&self, link: &Link) -> bool {
        let Some(InfoData::Vxlan(infos)) = &link.data else { return false };
        let local = match self.local {
            IpAddr::V4(ip) => InfoVxlan::Local(ip),
            IpAddr::V6(ip) => InfoVxlan::Local6(ip),
        };
        let parts =
            [InfoVxlan::Id(self.vni), InfoVxlan::Port(self.port), InfoVxlan::Link(self.underlay), local];
        link.name == self.name && link.mac == self.mac && parts.iter().all(|part| infos.contains(part))
    }
}

fn no_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn describe(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: Vec::new(),
        mtu: 0,
        master: None,
        kind: None,
        up: message.header.flags.contains(LinkFlags::Up),
        running: false,
        data: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::OperState(state) => link.running = state == State::Up,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind_name(&kind)),
                        LinkInfo::Data(data) => link.data = Some(data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}
