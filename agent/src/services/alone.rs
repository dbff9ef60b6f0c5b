//! `orlop proxy run`: services without the rest of a node, beside a stock kubelet, in kube-proxy's place.
//!
//! Owns: its flags (kube-proxy's where there is one) and the wiring. Never: runs pods, or writes the Node.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use orlop_netproxy::objects::Node;
use orlop_netproxy::{Config, Event};
use tokio::sync::mpsc;

use super::{Listen, conntrack, control, feed};
use crate::api::client::Client;
use crate::api::events::Events;
use crate::api::kubeconfig;
use crate::api::list::Selection;
use crate::api::path::NODES;
use crate::api::watch::{Change, watch as watch_objects};
use crate::config::duration;
use crate::config::kube_proxy::{self, KubeProxyConfiguration};
use crate::config::services::{Conntrack, DetectLocalMode, Given, ServiceArgs, Services};
use crate::daemon::{Tasks, notify};
use crate::{logging, shutdown};

/// Program services without running pods: a kube-proxy for a node with another kubelet.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1); without it, kube-proxy's defaults hold. Unlike in
    /// kube-proxy, flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kubeconfig that says which API server to obey, and as whom [default: clientConnection.kubeconfig of the file]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Name of this node, instead of the machine's hostname
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Address of this node until its Node object names one, or one of each family separated by a comma
    #[arg(long, visible_alias = "bind-address", value_name = "ADDRESS", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// There is one way services are programmed
    #[arg(long, value_name = "MODE", value_enum)]
    proxy_mode: Option<ProxyMode>,
    /// The ranges all pods of the cluster have, separated by commas; for --detect-local-mode ClusterCIDR, the default
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    #[command(flatten)]
    services: ServiceArgs,
    /// Where /healthz and /livez are served; port 0 for nowhere [default: port 10256 of every address]
    #[arg(long, value_name = "ADDRESS")]
    healthz_bind_address: Option<SocketAddr>,
    /// Where /metrics and /proxyMode are served; port 0 for nowhere [default: port 10249 of loopback]
    #[arg(long, value_name = "ADDRESS")]
    metrics_bind_address: Option<SocketAddr>,
    #[command(flatten)]
    conntrack: ConntrackArgs,
    /// Directory of the socket that `orlop proxy status` and its sisters ask
    #[arg(long, value_name = "DIR", default_value = crate::config::RUN_DIR, env = "ORLOP_RUN_DIR")]
    run_dir: PathBuf,
    /// How much to log: 0 one line for each transition, 4 for finding faults, 6 everything
    #[arg(long = "v", short = 'v', value_name = "LEVEL", default_value_t = 0)]
    verbosity: u8,
}

/// `--proxy-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProxyMode {
    Nftables,
}

/// What the kernel is told of connection tracking, by kube-proxy's flags. 0 leaves what it has.
#[derive(Debug, Clone, Default, Args)]
struct ConntrackArgs {
    /// Connections the kernel tracks for each core; never lowers what it has [default: 32768]
    #[arg(long, value_name = "NUMBER")]
    conntrack_max_per_core: Option<u32>,
    /// At least so many connections [default: 131072]
    #[arg(long, value_name = "NUMBER")]
    conntrack_min: Option<u32>,
    /// How long an established TCP connection may be silent [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = time)]
    conntrack_tcp_timeout_established: Option<Duration>,
    /// How long a half-closed TCP connection is remembered [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = time)]
    conntrack_tcp_timeout_close_wait: Option<Duration>,
    /// Take packets outside of the window for valid
    #[arg(long)]
    conntrack_tcp_be_liberal: bool,
    /// How long a UDP flow that was not answered is remembered
    #[arg(long, value_name = "TIME", value_parser = time)]
    conntrack_udp_timeout: Option<Duration>,
    /// How long a UDP flow that was answered is remembered
    #[arg(long, value_name = "TIME", value_parser = time)]
    conntrack_udp_timeout_stream: Option<Duration>,
}

fn time(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("`{text}` is not a duration such as 30s or 1h30m"))
}

/// What the command line and the file say together.
#[derive(Debug)]
struct Settings {
    config: Config,
    services: Services,
    kubeconfig: PathBuf,
}

impl RunArgs {
    /// Beside the settings come the fields of the file that are not obeyed.
    fn load(&self) -> anyhow::Result<(Settings, Vec<String>)> {
        let (file, ignored) = match &self.config {
            Some(path) => kube_proxy::load(path)?,
            None => (KubeProxyConfiguration::default(), Vec::new()),
        };
        Ok((self.settings(&file)?, ignored))
    }

    fn settings(&self, file: &KubeProxyConfiguration) -> anyhow::Result<Settings> {
        let given = Given {
            default_mode: DetectLocalMode::ClusterCidr,
            cluster_cidrs: &self.cluster_cidr,
            file: self.config.as_deref().map(|path| (file, path)),
        };
        let mut services = Services::build(&self.services, given)?;
        services.healthz = self.healthz_bind_address.or(services.healthz);
        services.metrics = self.metrics_bind_address.or(services.metrics);
        self.conntrack.over(&mut services.conntrack);
        let in_file = file.client_connection.as_ref().and_then(|connection| connection.kubeconfig.clone());
        let in_file = in_file.filter(|path| !path.as_os_str().is_empty());
        let kubeconfig = self
            .kubeconfig
            .clone()
            .or(in_file)
            .context("no API server: give --kubeconfig, or --config with clientConnection.kubeconfig")?;
        let config = super::proxy_config(&services, self.node_name(file)?, self.node_addresses(file)?);
        Ok(Settings { config, services, kubeconfig })
    }

    fn node_name(&self, file: &KubeProxyConfiguration) -> anyhow::Result<String> {
        let in_file = file.hostname_override.as_ref().filter(|name| !name.is_empty());
        let name = match self.hostname_override.as_ref().or(in_file) {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname().context("hostname")?.to_string_lossy().into_owned(),
        };
        Ok(name.trim().to_lowercase())
    }

    fn node_addresses(&self, file: &KubeProxyConfiguration) -> anyhow::Result<Vec<IpAddr>> {
        let in_file = file.bind_address.as_deref().filter(|address| !address.is_empty());
        let given = match (&*self.node_ip, in_file) {
            ([], Some(text)) => {
                vec![text.parse().with_context(|| format!("bindAddress: `{text}` is not an address"))?]
            }
            (flags, _) => flags.to_vec(),
        };
        Ok(crate::node::facts::addresses(&given))
    }
}

impl ConntrackArgs {
    fn over(&self, limits: &mut Conntrack) {
        let time = |flag: Option<Duration>, below: Option<Duration>| match flag {
            Some(time) => Some(time).filter(|time| !time.is_zero()),
            None => below,
        };
        limits.max_per_core = self.conntrack_max_per_core.unwrap_or(limits.max_per_core);
        limits.min = self.conntrack_min.unwrap_or(limits.min);
        limits.tcp_established = time(self.conntrack_tcp_timeout_established, limits.tcp_established);
        limits.tcp_close_wait = time(self.conntrack_tcp_timeout_close_wait, limits.tcp_close_wait);
        limits.tcp_be_liberal |= self.conntrack_tcp_be_liberal;
        limits.udp = time(self.conntrack_udp_timeout, limits.udp);
        limits.udp_stream = time(self.conntrack_udp_timeout_stream, limits.udp_stream);
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
    let (settings, unsupported) = args.load()?;
    for field in unsupported {
        tracing::warn!(%field, "this field of the configuration is not supported and has no effect");
    }
    let access = kubeconfig::load(&settings.kubeconfig)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(settings, Client::new(&access)?, &args.run_dir))
}

async fn run(settings: Settings, client: Client, run_dir: &Path) -> anyhow::Result<()> {
    let Settings { config, services: wanted, .. } = settings;
    let stop = shutdown::on_signals()?;
    let mut tasks = Tasks::default();
    let (events, event_driver) = Events::new(client.clone(), config.node_name.clone());
    tasks.spawn("events", event_driver);
    let listen = Listen::new(&wanted, config.node_addresses.first(), run_dir.join(control::SOCKET));
    let name = config.node_name.clone();
    conntrack::apply(&wanted.conntrack);
    let services = super::start(config)?;
    let handle = services.handle.clone();
    let mut synced = services.synced.clone();
    tasks.spawn("services", feed::watch_services(client.clone(), handle.clone(), |_| {}));
    tasks.spawn("node", watch_node(client.clone(), name, handle));
    services.spawn(&client, events, &listen, &mut tasks);
    tasks.spawn("watchdog", notify::watchdog());
    tasks.spawn("ready", async move {
        if synced.wait_for(|synced| *synced).await.is_ok() {
            notify::ready("the services are programmed");
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
    use orlop_netproxy::{DetectLocal, NodePortAddresses};

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

    fn settings(line: &str) -> Settings {
        parse(line).settings(&KubeProxyConfiguration::default()).expect("complete")
    }

    #[test]
    fn flags_are_kube_proxys() {
        let Settings { config, services, kubeconfig } = settings(
            "--cluster-cidr 10.0.0.0/8 --nodeport-addresses 192.0.2.0/24,::/0 --masquerade-all --proxy-mode nftables \
             --bind-address 192.0.2.7 --conntrack-min 7 --conntrack-tcp-timeout-established 0 --conntrack-udp-timeout 9s",
        );
        assert_eq!((config.node_name.as_str(), kubeconfig.to_str()), ("n1", Some("k")));
        assert_eq!(config.node_addresses, ["192.0.2.7".parse::<IpAddr>().expect("an address")]);
        assert_eq!(
            config.detect_local,
            DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().expect("a range")])
        );
        assert!(matches!(config.node_port_addresses, NodePortAddresses::Ranges(ranges) if ranges.len() == 2));
        let limits = services.conntrack;
        assert_eq!((limits.min, limits.max_per_core, limits.tcp_established), (7, 32_768, None));
        assert_eq!(limits.udp, Some(Duration::from_secs(9)));
        let Settings { config, .. } = settings("");
        assert_eq!(
            (config.detect_local, config.node_port_addresses),
            (DetectLocal::Off, NodePortAddresses::Primary)
        );
    }

    #[test]
    fn the_file_says_what_no_flag_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.conf");
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
                    clientConnection: {kubeconfig: /k/kubeconfig.conf}\nhostnameOverride: Two\nbindAddress: 192.0.2.9\n\
                    detectLocalMode: NodeCIDR\nhealthzBindAddress: 127.0.0.1:7\nenableProfiling: true\n";
        std::fs::write(&file, text).expect("written");
        let line = |more: &str| {
            let line = format!("orlop --config {} {more}", file.display());
            Line::try_parse_from(line.split_whitespace()).expect("valid").run.load().expect("complete")
        };
        let (Settings { config, services, kubeconfig }, unsupported) = line("");
        assert_eq!(unsupported, ["enableProfiling"]);
        assert_eq!((config.node_name.as_str(), kubeconfig.to_str()), ("two", Some("/k/kubeconfig.conf")));
        assert_eq!(config.node_addresses, ["192.0.2.9".parse::<IpAddr>().expect("an address")]);
        assert_eq!(config.detect_local, DetectLocal::NodeCidr);
        assert_eq!(services.healthz.map(|address| address.port()), Some(7));
        let (Settings { config, services, .. }, _) =
            line("--hostname-override one --healthz-bind-address 127.0.0.1:8");
        assert_eq!(config.node_name, "one");
        assert_eq!(services.healthz.map(|address| address.port()), Some(8));
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = KubeProxyConfiguration::default();
        let error = parse("--detect-local-mode BridgeInterface").settings(&none).expect_err("no bridge");
        assert!(error.to_string().contains("--pod-bridge-interface"), "{error}");
        let error = parse("--nodeport-addresses all").settings(&none).expect_err("no range");
        assert!(error.to_string().contains("`all`"), "{error}");
        let alone = Line::try_parse_from(["orlop"]).expect("valid").run;
        let error = alone.settings(&none).expect_err("no server");
        assert!(error.to_string().contains("--kubeconfig"), "{error}");
        let error =
            Line::try_parse_from(["orlop", "--proxy-mode", "ipvs"]).map(|_| ()).expect_err("another mode");
        assert!(error.to_string().contains("nftables"), "{error}");
    }

    #[test]
    fn port_zero_serves_nowhere() {
        let Settings { services, .. } = settings("--healthz-bind-address 127.0.0.1:0");
        let primary = "192.0.2.2".parse().expect("an address");
        let listen = Listen::new(&services, Some(&primary), PathBuf::new());
        assert_eq!(listen.healthz, None);
        assert_eq!(listen.metrics, Some("127.0.0.1:10249".parse().expect("an address")));
    }
}
