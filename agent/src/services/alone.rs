//! `orlop proxy run`: services without the rest of a node, beside a stock kubelet, in kube-proxy's place.
//!
//! Owns: its flags (kube-proxy's where there is one) and the wiring. Never: runs pods, or writes the Node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use orlop_netproxy::objects::Node;
use orlop_netproxy::{Config, DetectLocal, Event, NodePortAddresses};
use tokio::sync::mpsc;

use super::{Listen, control, feed};
use crate::api::client::Client;
use crate::api::events::Events;
use crate::api::kubeconfig;
use crate::api::list::Selection;
use crate::api::path::NODES;
use crate::api::watch::{Change, watch as watch_objects};
use crate::daemon::{Tasks, notify};
use crate::{logging, shutdown};

/// Program services without running pods: a kube-proxy for a node with another kubelet.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Kubeconfig that says which API server to obey, and as whom
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Name of this node, instead of the machine's hostname
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Address of this node until its Node object names one, or one of each family separated by a comma
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// How pods of this node are told from others
    #[arg(long, value_name = "MODE", value_enum, default_value = "ClusterCIDR")]
    detect_local_mode: DetectLocalMode,
    /// The ranges all pods of the cluster have, separated by commas; for --detect-local-mode ClusterCIDR
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// The bridge of the pods; for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pod_bridge_interface: String,
    /// How the names of pods' interfaces begin; for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pod_interface_name_prefix: String,
    /// Which of the node's addresses serve node ports: `primary`, or ranges separated by commas
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "primary")]
    nodeport_addresses: Vec<String>,
    /// Masquerade everything sent to a cluster address
    #[arg(long)]
    masquerade_all: bool,
    /// Where /healthz and /livez are served; port 0 for nowhere [default: port 10256 of every address]
    #[arg(long, value_name = "ADDRESS")]
    healthz_bind_address: Option<SocketAddr>,
    /// Where /metrics and /proxyMode are served; port 0 for nowhere [default: port 10249 of loopback]
    #[arg(long, value_name = "ADDRESS")]
    metrics_bind_address: Option<SocketAddr>,
    /// Directory of the socket that `orlop proxy status` and its sisters ask
    #[arg(long, value_name = "DIR", default_value = crate::config::RUN_DIR, env = "ORLOP_RUN_DIR")]
    run_dir: PathBuf,
    /// How much to log: 0 one line for each transition, 4 for finding faults, 6 everything
    #[arg(long = "v", short = 'v', value_name = "LEVEL", default_value_t = 0)]
    verbosity: u8,
}

/// kube-proxy's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it, and they are the command line's help too")]
pub enum DetectLocalMode {
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    #[value(name = "NodeCIDR")]
    NodeCidr,
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

impl RunArgs {
    fn config(&self) -> anyhow::Result<Config> {
        let name = match &self.hostname_override {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname().context("hostname")?.to_string_lossy().into_owned(),
        };
        let named = |flag: &str, value: &str| match value {
            "" => bail!("--detect-local-mode {:?} needs {flag}", self.detect_local_mode),
            value => Ok(Box::<str>::from(value)),
        };
        let detect_local = match self.detect_local_mode {
            DetectLocalMode::ClusterCidr if self.cluster_cidr.is_empty() => DetectLocal::Off,
            DetectLocalMode::ClusterCidr => DetectLocal::ClusterCidr(self.cluster_cidr.clone()),
            DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
            DetectLocalMode::BridgeInterface => {
                DetectLocal::BridgeInterface(named("--pod-bridge-interface", &self.pod_bridge_interface)?)
            }
            DetectLocalMode::InterfaceNamePrefix => DetectLocal::InterfaceNamePrefix(named(
                "--pod-interface-name-prefix",
                &self.pod_interface_name_prefix,
            )?),
        };
        let node_port_addresses = match &*self.nodeport_addresses {
            [only] if only == "primary" => NodePortAddresses::Primary,
            ranges => {
                let parse = |range: &String| {
                    range.parse().with_context(|| format!("--nodeport-addresses: {range:?} is not a range"))
                };
                NodePortAddresses::Ranges(ranges.iter().map(parse).collect::<anyhow::Result<_>>()?)
            }
        };
        Ok(Config {
            node_name: name.trim().to_lowercase(),
            node_addresses: crate::node::facts::addresses(&self.node_ip),
            node_port_addresses,
            detect_local,
            masquerade_all: self.masquerade_all,
            ..Config::default()
        })
    }

    fn listen(&self, config: &Config) -> Listen {
        let mut listen = Listen::defaults(config.node_addresses.first(), self.run_dir.join(control::SOCKET));
        let set = |given: Option<SocketAddr>, default: Option<SocketAddr>| {
            given.or(default).filter(|address| address.port() != 0)
        };
        listen.healthz = set(self.healthz_bind_address, listen.healthz);
        listen.metrics = set(self.metrics_bind_address, listen.metrics);
        listen
    }
}

/// `orlop proxy run`.
///
/// # Errors
/// Whatever keeps it from starting, by name. Once it runs it does not give up.
pub fn main(args: &RunArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("services are programmed as root: sudo orlop proxy run ...");
    }
    logging::start(args.verbosity);
    let config = args.config()?;
    let access = kubeconfig::load(&args.kubeconfig)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(config, Client::new(&access)?, args))
}

async fn run(config: Config, client: Client, args: &RunArgs) -> anyhow::Result<()> {
    let stop = shutdown::on_signals()?;
    let mut tasks = Tasks::default();
    let (events, event_driver) = Events::new(client.clone(), config.node_name.clone());
    tasks.spawn("events", event_driver);
    let (listen, name) = (args.listen(&config), config.node_name.clone());
    let services = super::start(config)?;
    let handle = services.handle.clone();
    let mut synced = services.synced.clone();
    tasks.spawn("services", feed::watch_services(client.clone(), handle.clone(), |_| {}));
    tasks.spawn("node", watch_node(client.clone(), name, handle));
    services.spawn(&client, events, &listen, &mut tasks);
    tasks.spawn("watchdog", notify::watchdog());
    tasks.spawn("ready", async move {
        if synced.wait_for(|synced| *synced).await.is_ok() {
            notify::ready();
        }
    });
    stop.cancelled().await;
    notify::stopping();
    tasks.end().await;
    Ok(())
}

/// Follows the own Node: zone, addresses, pod ranges, and whether it is about to go.
async fn watch_node(client: Client, name: String, proxy: super::Handle) {
    let (sender, mut changes) = mpsc::channel(8);
    let selection = Selection::all(NODES).fields(format!("metadata.name={name}"));
    let source = watch_objects(client, selection, feed::decode::<Node>, sender);
    let sink = async {
        while let Some(change) = changes.recv().await {
            let node = match change {
                Change::Synced(nodes) => {
                    if nodes.is_empty() {
                        tracing::warn!(node = %name, "there is no such Node; no rules are made before there is");
                    }
                    nodes.into_iter().next()
                }
                Change::Applied(node) => Some(node),
                // What is programmed stays until the node is back, or this process is ended with it.
                Change::Deleted(_) => None,
            };
            if let Some(node) = node
                && !proxy.send(Event::NodeApplied(Box::new(node)))
            {
                return;
            }
        }
    };
    // Both run until the task is aborted at shutdown; neither holds anything that a drop could lose.
    tokio::join!(source, sink);
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &str) -> RunArgs {
        let words = ["orlop", "--kubeconfig", "k", "--hostname-override", "N1"];
        Line::try_parse_from(words.into_iter().chain(line.split_whitespace())).expect("valid").run
    }

    #[test]
    fn flags_are_kube_proxys() {
        let config =
            parse("--cluster-cidr 10.0.0.0/8 --nodeport-addresses 192.0.2.0/24,::/0 --masquerade-all");
        let config = config.config().expect("complete");
        assert_eq!(config.node_name, "n1");
        assert_eq!(
            config.detect_local,
            DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().expect("a range")])
        );
        assert!(matches!(config.node_port_addresses, NodePortAddresses::Ranges(ranges) if ranges.len() == 2));
        let config = parse("").config().expect("complete");
        assert_eq!(
            (config.detect_local, config.node_port_addresses),
            (DetectLocal::Off, NodePortAddresses::Primary)
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = parse("--detect-local-mode BridgeInterface").config().expect_err("no bridge");
        assert!(error.to_string().contains("--pod-bridge-interface"), "{error}");
        let error = parse("--nodeport-addresses all").config().expect_err("no range");
        assert!(error.to_string().contains("\"all\""), "{error}");
    }

    #[test]
    fn port_zero_serves_nowhere() {
        let args = parse("--healthz-bind-address 127.0.0.1:0 --node-ip 192.0.2.2");
        let listen = args.listen(&args.config().expect("complete"));
        assert_eq!(listen.healthz, None);
        assert_eq!(listen.metrics, Some("127.0.0.1:10249".parse().expect("an address")));
    }
}
