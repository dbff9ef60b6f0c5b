//! How services are programmed: kube-proxy's flags and KubeProxyConfiguration in, settings out.
//!
//! Owns: the flags that `orlop run` and `orlop proxy run` share, kube-proxy's defaults, and the checks. A flag wins over the
//! file. Never: reads a file (that is `kube_proxy`).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use orlop_netproxy::{DetectLocal, NodePortAddresses};
use serde::{Serialize, Serializer};
use serde_json::json;

use super::ConfigError;
use super::kube_proxy::{self, Conntrack as ConntrackFile, KubeProxyConfiguration};

/// Flags of kube-proxy.
#[derive(Debug, Clone, Default, Args)]
pub struct ServiceArgs {
    /// How pods of this node are told from others
    #[arg(long, value_name = "MODE", value_enum)]
    pub detect_local_mode: Option<DetectLocalMode>,

    /// The bridge of the pods; for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// How the names of pods' interfaces begin; for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// Which of the node's addresses serve node ports: `primary`, or ranges separated by commas [default: primary]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,

    /// Masquerade everything sent to a cluster address
    #[arg(long)]
    pub masquerade_all: bool,
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

/// How services are programmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    /// How pods of this node are told from others.
    pub detect_local: DetectLocal,
    /// Which of the node's addresses serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Whether everything sent to a cluster address is masqueraded.
    pub masquerade_all: bool,
    /// Whether `spec.externalIPs` is honoured.
    pub external_ips: bool,
    /// Ranges of cluster addresses, where the server has no ServiceCIDR objects to tell them.
    pub service_cidrs: Vec<IpNet>,
    /// Where `/healthz` and `/livez` are, if not at the default; port 0 for nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is, if not at the default; port 0 for nowhere.
    pub metrics: Option<SocketAddr>,
    /// The kernel's limits of connection tracking.
    pub conntrack: Conntrack,
}

/// What the kernel is told of connection tracking. `None` and 0 leave what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections for each core.
    pub max_per_core: u32,
    /// At least so many connections.
    pub min: u32,
    /// How long an established TCP connection may be silent.
    pub tcp_established: Option<Duration>,
    /// How long a half-closed TCP connection is remembered.
    pub tcp_close_wait: Option<Duration>,
    /// Packets outside of the window are not invalid.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow that was not answered is remembered.
    pub udp: Option<Duration>,
    /// How long one that was is.
    pub udp_stream: Option<Duration>,
}

/// kube-proxy's.
impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32 << 10,
            min: 128 << 10,
            tcp_established: Some(Duration::from_secs(24 * 3600)),
            tcp_close_wait: Some(Duration::from_secs(3600)),
            tcp_be_liberal: false,
            udp: None,
            udp_stream: None,
        }
    }
}

/// What depends on whose services they are.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// How pods are told from others if nobody says.
    pub default_mode: DetectLocalMode,
    /// `--cluster-cidr`.
    pub cluster_cidrs: &'a [IpNet],
    /// The file, if there is one, with its name.
    pub file: Option<(&'a KubeProxyConfiguration, &'a Path)>,
}

const PRIMARY: &str = "primary";
/// kube-proxy's ports for health and metrics, where an address comes without one.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

impl Services {
    /// Puts flags and file together. Pure.
    ///
    /// # Errors
    /// Names the flag, or the file and its field.
    pub fn build(args: &ServiceArgs, given: Given<'_>) -> Result<Self, ConfigError> {
        let nothing = KubeProxyConfiguration::default();
        let (file, path) = given.file.unwrap_or((&nothing, Path::new("(none)")));
        let wrong = |field: &str, reason: String| ConfigError::Field {
            file: path.to_owned(),
            field: field.to_owned(),
            reason,
        };
        let bind = |field: &str, text: &Option<String>, port| {
            bind(text.as_deref().unwrap_or_default(), port).map_err(|reason| wrong(field, reason))
        };
        let other_mode = file.mode.as_deref() != Some("nftables");
        let masquerades = |rules: &Option<super::kube_proxy::Rules>| {
            rules.as_ref().and_then(|rules| rules.masquerade_all) == Some(true)
        };
        Ok(Self {
            detect_local: detect_local(args, given, file, &wrong)?,
            node_port_addresses: match &*args.nodeport_addresses {
                [] => node_port_addresses(file.node_port_addresses.as_deref().unwrap_or_default())
                    .map_err(|reason| wrong("nodePortAddresses", reason))?,
                flags => node_port_addresses(flags)
                    .map_err(|reason| ConfigError::Flag { flag: "--nodeport-addresses", reason })?,
            },
            masquerade_all: args.masquerade_all
                || masquerades(&file.nftables)
                || (other_mode && masquerades(&file.iptables)),
            external_ips: file
                .feature_gates
                .as_ref()
                .and_then(|gates| gates.get("AllowServiceExternalIPs").copied())
                .unwrap_or(true),
            service_cidrs: Vec::new(),
            healthz: bind("healthzBindAddress", &file.healthz_bind_address, HEALTHZ_PORT)?,
            metrics: bind("metricsBindAddress", &file.metrics_bind_address, METRICS_PORT)?,
            conntrack: conntrack(file.conntrack.unwrap_or_default()),
        })
    }
}

/// In force, in the words of KubeProxyConfiguration: what `/configz` tells.
impl Serialize for Services {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seconds = |time: Option<Duration>| format!("{}s", time.unwrap_or_default().as_secs());
        let list = |ranges: &[IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (mode, bridge, prefix, cidrs) = match &self.detect_local {
            DetectLocal::Off => ("ClusterCIDR", "", "", String::new()),
            DetectLocal::ClusterCidr(ranges) => ("ClusterCIDR", "", "", list(ranges).join(",")),
            DetectLocal::NodeCidr => ("NodeCIDR", "", "", String::new()),
            DetectLocal::BridgeInterface(name) => ("BridgeInterface", &**name, "", String::new()),
            DetectLocal::InterfaceNamePrefix(name) => ("InterfaceNamePrefix", "", &**name, String::new()),
        };
        let node_ports = match &self.node_port_addresses {
            NodePortAddresses::Primary => vec![PRIMARY.to_owned()],
            NodePortAddresses::Ranges(ranges) => list(ranges),
        };
        let address = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        let conntrack = &self.conntrack;
        json!({
            "apiVersion": kube_proxy::FORM.api_version, "kind": kube_proxy::FORM.kind, "mode": "nftables",
            "detectLocalMode": mode, "clusterCIDR": cidrs,
            "detectLocal": { "bridgeInterface": bridge, "interfaceNamePrefix": prefix },
            "nodePortAddresses": node_ports,
            "nftables": { "masqueradeAll": self.masquerade_all },
            "featureGates": { "AllowServiceExternalIPs": self.external_ips },
            "healthzBindAddress": address(self.healthz), "metricsBindAddress": address(self.metrics),
            "conntrack": {
                "maxPerCore": conntrack.max_per_core, "min": conntrack.min, "tcpBeLiberal": conntrack.tcp_be_liberal,
                "tcpEstablishedTimeout": seconds(conntrack.tcp_established),
                "tcpCloseWaitTimeout": seconds(conntrack.tcp_close_wait),
                "udpTimeout": seconds(conntrack.udp), "udpStreamTimeout": seconds(conntrack.udp_stream),
            },
        })
        .serialize(serializer)
    }
}

fn detect_local(
    args: &ServiceArgs,
    given: Given<'_>,
    file: &KubeProxyConfiguration,
    wrong: &dyn Fn(&str, String) -> ConfigError,
) -> Result<DetectLocal, ConfigError> {
    let in_file = match file.detect_local_mode.as_deref() {
        None | Some("") => None,
        Some(text) => Some(DetectLocalMode::from_str(text, false).map_err(|_| {
            let reason =
                format!("`{text}` is not ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix");
            wrong("detectLocalMode", reason)
        })?),
    };
    let asked = args.detect_local_mode.or(in_file);
    let names = file.detect_local.clone().unwrap_or_default();
    match asked.unwrap_or(given.default_mode) {
        DetectLocalMode::ClusterCidr => {
            let ranges = match given.cluster_cidrs {
                [] => cluster_cidrs(file).map_err(|reason| wrong("clusterCIDR", reason))?,
                flags => flags.to_vec(),
            };
            match (ranges.is_empty(), asked) {
                (false, _) => Ok(DetectLocal::ClusterCidr(ranges)),
                // As kube-proxy starts where nobody said anything.
                (true, None) => Ok(DetectLocal::Off),
                (true, Some(_)) => Err(missing("--cluster-cidr", "ClusterCIDR")),
            }
        }
        DetectLocalMode::NodeCidr => Ok(DetectLocal::NodeCidr),
        DetectLocalMode::BridgeInterface => {
            let flag = "--pod-bridge-interface";
            interface(args.pod_bridge_interface.as_ref().or(names.bridge_interface.as_ref()), flag, asked)
                .map(DetectLocal::BridgeInterface)
        }
        DetectLocalMode::InterfaceNamePrefix => {
            let flag = "--pod-interface-name-prefix";
            let prefix = args.pod_interface_name_prefix.as_ref().or(names.interface_name_prefix.as_ref());
            interface(prefix, flag, asked).map(DetectLocal::InterfaceNamePrefix)
        }
    }
}

fn missing(flag: &'static str, mode: &str) -> ConfigError {
    ConfigError::Flag { flag, reason: format!("is needed where pods are told by {mode}") }
}

/// A name the kernel would take (the longest is 15 bytes), or the beginning of one.
fn interface(
    name: Option<&String>,
    flag: &'static str,
    mode: Option<DetectLocalMode>,
) -> Result<Box<str>, ConfigError> {
    let name = name.map(String::as_str).unwrap_or_default();
    if name.is_empty() {
        let mode = mode.and_then(|mode| mode.to_possible_value());
        return Err(missing(flag, mode.as_ref().map(|value| value.get_name()).unwrap_or_default()));
    }
    if name.len() > 15 || name.bytes().any(|b| b == b'/' || b.is_ascii_whitespace() || b.is_ascii_control()) {
        let reason = format!("`{name}` cannot be the name of an interface; it has at most 15 bytes");
        return Err(ConfigError::Flag { flag, reason });
    }
    Ok(name.into())
}

fn cluster_cidrs(file: &KubeProxyConfiguration) -> Result<Vec<IpNet>, String> {
    let text = file.cluster_cidr.as_deref().unwrap_or_default();
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(range).collect()
}

fn range(text: &str) -> Result<IpNet, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not a range such as 192.0.2.0/24"))
}

fn node_port_addresses(list: &[String]) -> Result<NodePortAddresses, String> {
    match list {
        [] => Ok(NodePortAddresses::Primary),
        [only] if only == PRIMARY => Ok(NodePortAddresses::Primary),
        list if list.iter().any(|one| one == PRIMARY) => {
            Err(format!("`{PRIMARY}` stands alone, or there are ranges"))
        }
        list => list.iter().map(|one| range(one)).collect::<Result<_, _>>().map(NodePortAddresses::Ranges),
    }
}

/// `address:port`, or an address alone; nothing for the default.
fn bind(text: &str, port: u16) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let with_port = || text.parse::<SocketAddr>().ok();
    let alone = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port));
    with_port()
        .or_else(alone)
        .map(Some)
        .ok_or_else(|| format!("`{text}` is not an address such as 0.0.0.0:{port}"))
}

fn conntrack(file: ConntrackFile) -> Conntrack {
    let default = Conntrack::default();
    let or = |given: Option<super::duration::GoDuration>, default: Option<Duration>| match given {
        Some(given) => Some(given.0).filter(|time| !time.is_zero()),
        None => default,
    };
    Conntrack {
        max_per_core: file.max_per_core.unwrap_or(default.max_per_core),
        min: file.min.unwrap_or(default.min),
        tcp_established: or(file.tcp_established_timeout, default.tcp_established),
        tcp_close_wait: or(file.tcp_close_wait_timeout, default.tcp_close_wait),
        tcp_be_liberal: file.tcp_be_liberal.unwrap_or(default.tcp_be_liberal),
        udp: or(file.udp_timeout, default.udp),
        udp_stream: or(file.udp_stream_timeout, default.udp_stream),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        services: ServiceArgs,
    }

    fn built(line: &str, file: &str, cluster_cidr: &str) -> Result<Services, String> {
        let words = std::iter::once("orlop").chain(line.split_whitespace());
        let args = Line::parse_from(words).services;
        let path = Path::new("p.yaml");
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let (file, _) =
            kube_proxy::parse(&format!("{head}{file}"), path).map_err(|error| error.to_string())?;
        let cluster_cidrs: Vec<IpNet> =
            cluster_cidr.split_whitespace().map(|one| one.parse().expect("a range")).collect();
        let given = Given {
            default_mode: DetectLocalMode::ClusterCidr,
            cluster_cidrs: &cluster_cidrs,
            file: Some((&file, path)),
        };
        Services::build(&args, given).map_err(|error| error.to_string())
    }

    fn ranges(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|one| one.parse().expect("a range")).collect()
    }

    #[test]
    fn without_a_word_kube_proxys_defaults_hold() {
        let services = built("", "", "").expect("valid");
        assert_eq!(services.detect_local, DetectLocal::Off);
        assert_eq!(services.node_port_addresses, NodePortAddresses::Primary);
        assert!(!services.masquerade_all && services.external_ips);
        assert_eq!((services.healthz, services.metrics), (None, None));
        assert_eq!((services.conntrack.max_per_core, services.conntrack.min), (32768, 131_072));
        assert_eq!(services.conntrack.tcp_established, Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn every_mode_has_what_it_needs_from_a_flag_or_the_file() {
        let table: [(&str, &str, &str, DetectLocal); 8] = [
            ("", "", "10.0.0.0/8", DetectLocal::ClusterCidr(ranges("10.0.0.0/8"))),
            (
                "",
                "clusterCIDR: 10.1.0.0/16,fd00::/48\n",
                "",
                DetectLocal::ClusterCidr(ranges("10.1.0.0/16 fd00::/48")),
            ),
            (
                "",
                "clusterCIDR: 10.1.0.0/16\n",
                "10.2.0.0/16",
                DetectLocal::ClusterCidr(ranges("10.2.0.0/16")),
            ),
            ("--detect-local-mode NodeCIDR", "detectLocalMode: ClusterCIDR\n", "", DetectLocal::NodeCidr),
            ("", "detectLocalMode: NodeCIDR\n", "", DetectLocal::NodeCidr),
            (
                "--detect-local-mode BridgeInterface --pod-bridge-interface br0",
                "",
                "",
                DetectLocal::BridgeInterface("br0".into()),
            ),
            (
                "",
                "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\n",
                "",
                DetectLocal::InterfaceNamePrefix("cali".into()),
            ),
            (
                "--pod-interface-name-prefix veth",
                "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\n",
                "",
                DetectLocal::InterfaceNamePrefix("veth".into()),
            ),
        ];
        for (line, file, cluster_cidr, wanted) in table {
            assert_eq!(
                built(line, file, cluster_cidr).map(|built| built.detect_local),
                Ok(wanted),
                "{line} {file}"
            );
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let table = [
            (
                "--detect-local-mode ClusterCIDR",
                "",
                "--cluster-cidr: is needed where pods are told by ClusterCIDR",
            ),
            ("--detect-local-mode BridgeInterface", "", "--pod-bridge-interface: is needed"),
            ("", "detectLocalMode: InterfaceNamePrefix\n", "--pod-interface-name-prefix: is needed"),
            (
                "--detect-local-mode BridgeInterface --pod-bridge-interface a-name-too-long-for-it",
                "",
                "--pod-bridge-interface: `a-name-too-long-for-it` cannot be",
            ),
            ("--nodeport-addresses all", "", "--nodeport-addresses: `all` is not a range"),
            ("--nodeport-addresses primary,10.0.0.0/8", "", "--nodeport-addresses: `primary` stands alone"),
            ("", "nodePortAddresses: [localhost]\n", "p.yaml: nodePortAddresses: `localhost` is not a range"),
            ("", "detectLocalMode: Guess\n", "p.yaml: detectLocalMode: `Guess` is not ClusterCIDR"),
            ("", "clusterCIDR: ten\n", "p.yaml: clusterCIDR: `ten` is not a range"),
            ("", "healthzBindAddress: here\n", "p.yaml: healthzBindAddress: `here` is not an address"),
        ];
        for (line, file, wanted) in table {
            let error = built(line, file, "").expect_err(wanted);
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn flags_win_and_the_file_fills_in() {
        let file = "nodePortAddresses: [10.0.0.0/8]\nnftables: {masqueradeAll: true}\nhealthzBindAddress: 127.0.0.1\n\
                    metricsBindAddress: \"[::]:0\"\nfeatureGates: {AllowServiceExternalIPs: false}\n\
                    conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, udpTimeout: 90s}\n";
        let services = built("", file, "").expect("valid");
        assert_eq!(services.node_port_addresses, NodePortAddresses::Ranges(ranges("10.0.0.0/8")));
        assert!(services.masquerade_all && !services.external_ips);
        assert_eq!(services.healthz.map(|a| a.to_string()).as_deref(), Some("127.0.0.1:10256"));
        assert_eq!(services.metrics.map(|a| a.port()), Some(0));
        let conntrack = services.conntrack;
        assert_eq!((conntrack.max_per_core, conntrack.tcp_established), (0, None));
        assert_eq!(conntrack.udp, Some(Duration::from_secs(90)));
        let services = built("--nodeport-addresses primary", file, "").expect("valid");
        assert_eq!(services.node_port_addresses, NodePortAddresses::Primary);
    }

    #[test]
    fn what_is_told_is_a_file_that_says_the_same() {
        let file = "nodePortAddresses: [10.0.0.0/8]\nnftables: {masqueradeAll: true}\nhealthzBindAddress: 127.0.0.1\n\
                    featureGates: {AllowServiceExternalIPs: false}\nclusterCIDR: 10.1.0.0/16,fd00::/48\n\
                    conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, udpTimeout: 90s}\n";
        for file in ["detectLocalMode: NodeCIDR\n", file] {
            let services = built("", file, "").expect("valid");
            let told = serde_json::to_value(&services).expect("JSON").to_string();
            let path = Path::new("p.yaml");
            let (again, ignored) = kube_proxy::parse(&told, path).expect("a file of the same kind");
            assert_eq!(ignored, Vec::<String>::new());
            let given = Given {
                default_mode: DetectLocalMode::NodeCidr,
                cluster_cidrs: &[],
                file: Some((&again, path)),
            };
            assert_eq!(Services::build(&ServiceArgs::default(), given).expect("valid"), services);
        }
    }

    #[test]
    fn masquerading_is_that_of_the_mode_in_force() {
        let all = |file: &str| built("", file, "").expect("valid").masquerade_all;
        assert!(all("iptables: {masqueradeAll: true}\n"), "what kube-proxy does today without a mode");
        assert!(!all("mode: nftables\niptables: {masqueradeAll: true}\n"));
        assert!(built("--masquerade-all", "", "").expect("valid").masquerade_all);
    }
}
