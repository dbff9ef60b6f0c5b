//! Where pods' network comes from. Owns: its flags and what they mean. Never: reads a network configuration.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::duration::GoDuration;

/// The network's flags of `orlop run`.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// Who connects pods where --cni-conf-dir holds no configuration: this node's own plugin, or nobody, so that the node
    /// is not Ready until a configuration is there
    #[arg(long, value_name = "PLUGIN", default_value = "orlop")]
    pub network_plugin: NetworkPlugin,

    /// CNI configurations; the first by name wins over this node's own network, and is followed when it changes
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,

    /// Programs of CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,

    /// How pods of other nodes are reached: by routes on a shared link and by VXLAN elsewhere (auto), by one of these alone,
    /// or not by this node's doing [default: auto; none where --cni-conf-dir names another plugin]
    #[arg(long, value_name = "WAYS")]
    pub pod_routes: Option<PodRoutes>,

    /// Networks of all pods of the cluster, separated by a comma: pods speak to them with their own address. The podCIDRs of
    /// all Nodes are known without this
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
}

/// `--network-plugin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkPlugin {
    /// The node's own, from its podCIDRs.
    Orlop,
    /// Only what a configuration names.
    None,
}

/// `--pod-routes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PodRoutes {
    /// Direct routes on a shared link, VXLAN elsewhere.
    Auto,
    /// Direct routes only.
    Direct,
    /// VXLAN only.
    Vxlan,
    /// Another network does it.
    None,
}

/// Where pods' network comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Whether the node's own plugin serves while no configuration is there.
    pub plugin: NetworkPlugin,
    /// Configurations.
    pub conf_dir: PathBuf,
    /// Plugins.
    pub bin_dir: PathBuf,
    /// Ways to other nodes' pods; `None` where it depends on whose plugin is in force.
    pub pod_routes: Option<PodRoutes>,
    /// Networks that pods reach by their own addresses, beside those of the Nodes.
    pub cluster_cidrs: Vec<IpNet>,
    /// `runtimeRequestTimeout`: a plugin that takes longer is killed.
    pub plugin_timeout: Duration,
}

impl Network {
    pub(super) fn build(args: &NetworkArgs, runtime_request_timeout: GoDuration) -> Self {
        let routes = match args.network_plugin {
            NetworkPlugin::Orlop => args.pod_routes,
            NetworkPlugin::None => args.pod_routes.or(Some(PodRoutes::None)),
        };
        Self {
            plugin: args.network_plugin,
            conf_dir: args.cni_conf_dir.clone(),
            bin_dir: args.cni_bin_dir.clone(),
            pod_routes: routes,
            cluster_cidrs: args.cluster_cidr.clone(),
            plugin_timeout: runtime_request_timeout.or(Duration::from_secs(120)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        network: NetworkArgs,
    }

    fn network(line: &str) -> Network {
        let words = std::iter::once("orlop").chain(line.split_whitespace());
        Network::build(&Line::parse_from(words).network, GoDuration::default())
    }

    #[test]
    fn the_nodes_own_network_is_the_default() {
        let network = network("");
        assert_eq!((network.plugin, network.pod_routes), (NetworkPlugin::Orlop, None));
        assert_eq!(network.conf_dir.to_str(), Some("/etc/cni/net.d"));
        assert_eq!(network.plugin_timeout, Duration::from_secs(120));
    }

    #[test]
    fn nobody_routes_to_other_nodes_where_another_plugin_is_to_come() {
        assert_eq!(network("--network-plugin none").pod_routes, Some(PodRoutes::None));
        assert_eq!(network("--network-plugin none --pod-routes auto").pod_routes, Some(PodRoutes::Auto));
        let routes = network("--pod-routes vxlan --cluster-cidr 10.0.0.0/8,fd00::/48");
        assert_eq!((routes.pod_routes, routes.cluster_cidrs.len()), (Some(PodRoutes::Vxlan), 2));
    }
}
