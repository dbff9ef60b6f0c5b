//! What is left of the pods' network and of the services: attachments, devices, routes, tables.
//!
//! Owns: their removal, in the network namespace of this process. Never: removes a bridge that has ports, or that no lease of
//! ours was for.

use std::path::Path;
use std::time::Duration;

use orlop_cni::netlink::{Batch, Channel, unless};
use orlop_cni::nodes::{Nodes, NodesConfig};
use orlop_cni::plugin::KIND;
use orlop_cni::runtime::DefaultNetwork;
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::Family;
use orlop_netproxy::{Backend as _, Config};

use crate::config::network::{Network as Settings, NetworkPlugin, PodRoutes};
use crate::join::args::Places;
use crate::network::{Network, NetworkSettings};

/// How long another project's plugin may take to detach a pod.
const PLUGIN_PATIENCE: Duration = Duration::from_secs(20);

/// What there is, for people.
pub fn look(run_dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let table = Config::default().table;
    if let Ok(mut netlink) = Netlink::open() {
        let has = |netlink: &mut Netlink, family| netlink.inspect(&table, family).is_ok_and(|t| t.is_some());
        let families = Family::ALL.into_iter().filter(|family| has(&mut netlink, *family));
        found.extend(families.map(|family| format!("nftables table {family} {table}: the services")));
    }
    let Ok(mut route) = Channel::route() else { return found };
    let links = route.links().unwrap_or_default();
    let device = NodesConfig::default().device;
    let named = |name: &str| links.iter().any(|link| link.name == name);
    if named(&device) {
        found.push(format!("device {device}: the way to other nodes' pods"));
    }
    if run_dir.join("cni").exists() {
        let bridge = DefaultNetwork::default().bridge;
        if named(&bridge) {
            found.push(format!("device {bridge}: the bridge of this node's pods"));
        }
        found.push(format!("nftables table inet {KIND}: masquerading and host ports"));
    }
    found
}

/// Removes it.
///
/// # Errors
/// The first thing that stays; the rest was tried.
pub fn remove(places: &Places) -> Result<(), String> {
    let mut first = Ok(());
    let state = places.run_dir.join("cni");
    if state.exists() {
        first = first.and(detach(places));
    }
    first = first.and(Nodes::new(NodesConfig::default()).and_then(|mut nodes| nodes.remove()).map_err(text));
    if state.exists() {
        first = first.and(bridge());
        first = first.and(table());
    }
    let services = Netlink::open().map_err(|error| error.to_string());
    first.and(services.and_then(|mut netlink| {
        netlink.remove_table(&Config::default().table).map(drop).map_err(|error| error.to_string())
    }))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Every attachment that is recorded, by the plugin that made it.
fn detach(places: &Places) -> Result<(), String> {
    let network = Network::open(NetworkSettings {
        config: Settings {
            plugin: NetworkPlugin::Orlop,
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            pod_routes: Some(PodRoutes::None),
            cluster_cidrs: Vec::new(),
            plugin_timeout: PLUGIN_PATIENCE,
        },
        addresses: Vec::new(),
        state_dir: places.run_dir.join("cni"),
        cidrs_file: places.root_dir.join("pod-cidrs.json"),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(network.collect_garbage(&[]))
}

fn bridge() -> Result<(), String> {
    let name = DefaultNetwork::default().bridge;
    let mut route = Channel::route().map_err(text)?;
    let links = route.links().map_err(text)?;
    let Some(bridge) = links.iter().find(|link| link.name == name) else { return Ok(()) };
    let ports: Vec<&str> = links
        .iter()
        .filter(|link| link.master == Some(bridge.index))
        .map(|link| link.name.as_str())
        .collect();
    if !ports.is_empty() {
        return Err(format!("bridge {name} still has the ports {}", ports.join(", ")));
    }
    unless(route.delete_link(&name), &[nix::errno::Errno::ENODEV]).map_err(text)
}

fn table() -> Result<(), String> {
    let mut netfilter = Channel::netfilter().map_err(text)?;
    let mut batch = Batch::new(KIND);
    // Made where it is not there: deleting then always works.
    batch.table();
    batch.delete_table();
    netfilter.commit("delete the plugin's table", batch).map_err(text)
}
