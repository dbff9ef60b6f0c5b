//! Two links and a router between them, and nodes on either: what a cluster that spans two networks looks like.
//!
//! Owns: the router's namespaces and the nodes' links; they end when it is dropped. Never: starts a daemon.

use std::process::Child;

use crate::namespaces;
use crate::node::Node;

/// A router with the links 10.0.1.0/24 and 10.0.2.0/24; it is .254 on both.
pub struct Crossroads {
    holder: Child,
}

/// Forwards, and bridges each link so that nodes on it are neighbours.
const ROUTER: &str = "echo 1 > /proc/sys/net/ipv4/ip_forward && for link in 1 2; do ip link add link$link type bridge && \
    ip addr add 10.0.$link.254/24 dev link$link && ip link set link$link up || exit 1; done";

impl Crossroads {
    /// Without nodes yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { holder: namespaces::hold("router", ROUTER)? })
    }

    /// A prepared node with the address 10.0.`link`.`number`. It drops packets that come by another way than answers would
    /// leave, so a way that is not the way back as well shows.
    pub fn node(&self, link: u8, number: u8) -> anyhow::Result<Node> {
        let mut node =
            Node::with_link("for f in all default; do echo 1 > /proc/sys/net/ipv4/conf/$f/rp_filter; done")?;
        let (port, netns) = (format!("port{number}"), node.holder().to_string());
        self.run(&["ip", "link", "add", &port, "type", "veth", "peer", "name", "uplink0", "netns", &netns])?;
        self.place(&mut node, &port, link, number)?;
        Ok(node)
    }

    /// Moves a node to a link, with another number; it was made with the number `port`.
    pub fn move_node(&self, node: &mut Node, port: u8, link: u8, number: u8) -> anyhow::Result<()> {
        self.place(node, &format!("port{port}"), link, number)
    }

    fn place(&self, node: &mut Node, port: &str, link: u8, number: u8) -> anyhow::Result<()> {
        self.run(&["ip", "link", "set", port, "master", &format!("link{link}"), "up"])?;
        let address = format!("10.0.{link}.{number}");
        let script = format!(
            "ip addr flush dev uplink0 && ip addr add {address}/24 dev uplink0 && ip link set uplink0 up && \
             ip route replace default via 10.0.{link}.254"
        );
        node.run_inside(&["sh", "-c", &script])?;
        node.set_address(address);
        Ok(())
    }

    fn run(&self, command: &[&str]) -> anyhow::Result<()> {
        namespaces::run(self.holder.id(), command).map(|_| ())
    }
}

impl Drop for Crossroads {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
