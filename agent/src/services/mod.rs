//! Services on this node: the proxy's thread, what feeds it, and what it tells.
//!
//! - `driver`: the thread that owns the proxy
//! - `feed`: watches at the API server; `surroundings`: what changes on the machine itself
//! - `http`: `/healthz`, `/livez`, `/metrics`, `/configz`; `checks`: health check node ports
//! - `conntrack`: the kernel's limits of connection tracking
//! - `control`: what `orlop proxy status` and its sisters ask
//! - `alone`: `orlop proxy run`, without the rest of a node
//!
//! Owns: how these are put together. Never: decides what a rule is (the crate `orlop-netproxy` does).

pub mod alone;
mod checks;
pub mod conntrack;
pub mod control;
mod driver;
pub mod feed;
mod http;
mod surroundings;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::SystemTime;

use anyhow::Context;
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::{Config, DetectLocal, Health, Metrics, NodePortAddresses, Proxy};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::client::Client;
use crate::api::events::Events;
use crate::config::services::Services as Settings;
use crate::daemon::Tasks;

use checks::Checks;
use driver::Driver;
pub use driver::Handle;

/// The proxy, running.
pub struct Services {
    /// The way to it.
    pub handle: Handle,
    /// True once the kernel has what the first complete lists say.
    pub synced: watch::Receiver<bool>,
    health: watch::Receiver<Health>,
    checks: watch::Receiver<Checks>,
    metrics: Metrics,
    registry: Arc<Registry>,
}

/// Where the proxy is asked.
#[derive(Debug, Clone)]
pub struct Listen {
    /// `/healthz` and `/livez`; kube-proxy's `healthzBindAddress`.
    pub healthz: Option<SocketAddr>,
    /// `/metrics`, `/proxyMode` and `/configz`; kube-proxy's `metricsBindAddress`.
    pub metrics: Option<SocketAddr>,
    /// The socket for `orlop proxy`.
    pub control: PathBuf,
    /// The settings in force: what `/configz` answers.
    pub configz: Value,
}

/// kube-proxy's port for health.
const HEALTHZ_PORT: u16 = 10256;
/// kube-proxy's port for metrics.
const METRICS_PORT: u16 = 10249;

/// The proxy's own configuration.
pub fn proxy_config(services: &Settings, node_name: String, node_addresses: Vec<IpAddr>) -> Config {
    Config {
        node_name,
        node_addresses,
        node_port_addresses: services.node_port_addresses.clone(),
        detect_local: services.detect_local.clone(),
        masquerade_all: services.masquerade_all,
        external_ips: services.external_ips,
        service_cidrs: services.service_cidrs.clone(),
        ..Config::default()
    }
}

impl Listen {
    /// Where it was asked for, else where kube-proxy listens; nowhere at port 0. `primary` is as for [`Self::defaults`].
    pub fn new(services: &Settings, primary: Option<&IpAddr>, control: PathBuf) -> Self {
        let defaults = Self::defaults(primary, control);
        let set = |given: Option<SocketAddr>, default: Option<SocketAddr>| {
            given.or(default).filter(|address| address.port() != 0)
        };
        Self {
            healthz: set(services.healthz, defaults.healthz),
            metrics: set(services.metrics, defaults.metrics),
            control: defaults.control,
            configz: json!({ "kubeproxy.config.k8s.io": services }),
        }
    }

    /// Where kube-proxy listens by default: health on every address, metrics on loopback. `primary` is the node's first
    /// address: its family decides.
    fn defaults(primary: Option<&IpAddr>, control: PathBuf) -> Self {
        let (any, loopback) = match primary {
            Some(IpAddr::V6(_)) => {
                (IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED), IpAddr::from(std::net::Ipv6Addr::LOCALHOST))
            }
            Some(IpAddr::V4(_)) | None => {
                (IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED), IpAddr::from(std::net::Ipv4Addr::LOCALHOST))
            }
        };
        Self {
            healthz: Some(SocketAddr::new(any, HEALTHZ_PORT)),
            metrics: Some(SocketAddr::new(loopback, METRICS_PORT)),
            control,
            configz: Value::Null,
        }
    }
}

/// Starts its threads, in the network namespace of the caller. They end with the process; the tables stay in the kernel.
///
/// # Errors
/// Without nf_tables in the kernel, or without the right to use it.
pub fn start(mut config: Config) -> anyhow::Result<Services> {
    for doubt in doubts(&config) {
        tracing::warn!("{doubt}");
    }
    let mut backend = Netlink::open().context("open nf_tables over netlink")?;
    config.families = backend.families();
    let monitor = match backend.protects() {
        true => None,
        false => Some(backend.monitor(&config.table).context("listen for changes of nf_tables")?),
    };
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry, &config.families);
    let (sender, messages) = channel();
    let (synced, synced_seen) = watch::channel(false);
    let (health, health_seen) = watch::channel(Health::new(&config.families, SystemTime::now()));
    let (checks, checks_seen) = watch::channel(Checks::default());
    let told = driver::Told { synced, health, checks, metrics: metrics.clone() };
    let driver = Driver::new(Proxy::new(config, backend), told);
    std::thread::Builder::new()
        .name("orlop-proxy".into())
        .stack_size(512 << 10)
        .spawn(move || driver.run(&messages))
        .context("start the service proxy's thread")?;
    let handle = Handle::new(sender);
    surroundings::start(monitor, handle.clone())?;
    Ok(Services {
        handle,
        synced: synced_seen,
        health: health_seen,
        checks: checks_seen,
        metrics,
        registry: Arc::new(registry),
    })
}

/// What works, though perhaps not as it was meant.
fn doubts(config: &Config) -> Vec<String> {
    let mut doubts = Vec::new();
    if config.detect_local == DetectLocal::Off {
        doubts.push(
            "pods cannot be told from others (no --cluster-cidr, no --detect-local-mode): what comes from outside to a \
             cluster address keeps its source"
                .to_owned(),
        );
    }
    if let NodePortAddresses::Ranges(ranges) = &config.node_port_addresses {
        let loopback = ranges.iter().filter(|range| range.addr().is_loopback());
        doubts.extend(
            loopback.map(|range| format!("no node port is served at loopback addresses: {range} is skipped")),
        );
    }
    doubts
}

impl Services {
    /// Starts everything around the proxy but the watch of services and of the own node: those are the caller's.
    pub fn spawn(self, client: &Client, events: Events, listen: &Listen, tasks: &mut Tasks) {
        let handle = self.handle;
        tasks.spawn("endpoint slices", feed::watch_slices(client.clone(), handle.clone()));
        tasks.spawn("service ranges", feed::watch_ranges(client.clone(), handle.clone()));
        let seen = http::Seen {
            handle: handle.clone(),
            health: self.health.clone(),
            metrics: self.metrics,
            registry: self.registry,
            configz: Arc::new(listen.configz.clone()),
        };
        if let Some(address) = listen.healthz {
            tasks.spawn("proxy health", http::serve(address, http::health(seen.clone())));
        }
        if let Some(address) = listen.metrics {
            tasks.spawn("proxy metrics", http::serve(address, http::metrics(seen)));
        }
        tasks.spawn("health check ports", checks::run(self.checks, self.health, events));
        tasks.spawn("proxy control", control::serve(listen.control.clone(), handle));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_meant_is_told() {
        let told = |detect_local, ranges: &[&str]| {
            let ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
            let node_port_addresses = NodePortAddresses::Ranges(ranges);
            doubts(&Config { detect_local, node_port_addresses, ..Config::default() })
        };
        assert_eq!(told(DetectLocal::NodeCidr, &["192.0.2.0/24", "0.0.0.0/0"]), Vec::<String>::new());
        assert!(told(DetectLocal::Off, &[])[0].contains("--cluster-cidr"));
        assert!(
            told(DetectLocal::NodeCidr, &["127.0.0.0/8", "10.0.0.0/8", "::1/128"])
                .join(" ")
                .contains("127.0.0.0/8")
        );
    }
}
