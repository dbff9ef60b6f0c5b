//! What this node is to be: flags and KubeletConfiguration in, one validated [`Config`] out.
//!
//! - `flags`, `kubelet`, `kube_proxy`: what is written, by their own names; `yaml` reads files of that form
//! - `document`, `fields`: KubeletConfiguration while it is merged, and what becomes of each field
//! - `assemble`: the result, with defaults and checks
//!
//! Owns: [`Config`] and its parts. Never: holds a text where a number, an address or an enum will do.

mod assemble;
pub mod document;
#[cfg(test)]
mod document_tests;
pub mod duration;
pub mod fields;
pub mod flags;
pub mod kube_proxy;
pub mod kubelet;
pub mod labels;
pub mod network;
pub mod services;
#[cfg(test)]
mod tests;
pub mod threshold;
mod yaml;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use flags::RunArgs;
pub use kubelet::CgroupDriver;
use labels::Taint;
use network::Network;
use services::Services;
use threshold::Threshold;

use crate::pod::quantity::Quantity;
use crate::pod::sysctls::Sysctls;

/// Where everything that outlives a reboot is, if nobody says otherwise.
pub const ROOT_DIR: &str = "/var/lib/orlop";
/// Where everything is that a reboot empties, if nobody says otherwise.
pub const RUN_DIR: &str = "/run/orlop";

/// What is wrong with the configuration. Names file and field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {file}: {source}")]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value is not what its field takes, or the file is not YAML.
    #[error("configuration {file}, line {line}: {field}: {reason}")]
    Malformed {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// The field on that line.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A field does not go with what else is known.
    #[error("configuration {file}: {field}: {reason}")]
    Field {
        /// Which file.
        file: PathBuf,
        /// Which field.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A flag.
    #[error("{flag}: {reason}")]
    Flag {
        /// Which flag.
        flag: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// The whole configuration of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name of the Node.
    pub node_name: String,
    /// The machine's hostname (or its override): the `kubernetes.io/hostname` label.
    pub hostname: String,
    /// Addresses given by flag; empty means to look.
    pub node_ips: Vec<IpAddr>,
    /// Images, volumes, certificates.
    pub root_dir: PathBuf,
    /// Sockets and records of live pods.
    pub run_dir: PathBuf,
    /// `podLogsDir`.
    pub pod_logs_dir: PathBuf,
    /// Manifests of static pods.
    pub static_pod_path: Option<PathBuf>,
    /// Addresses for pods where the API server gives none.
    pub pod_cidrs: Vec<IpNet>,
    /// Port 10250 and its friends.
    pub server: Server,
    /// How the node comes to its certificates.
    pub certificates: Certificates,
    /// What goes into pods' `resolv.conf`.
    pub dns: Dns,
    /// Where and how cgroups are made.
    pub cgroups: Cgroups,
    /// How many pods, and what they may.
    pub pods: Pods,
    /// Container log files.
    pub logs: Logs,
    /// How the Node registers and reports.
    pub node: Node,
    /// What is kept from pods.
    pub reserved: Reserved,
    /// What the machine must be like.
    pub machine: Machine,
    /// `--v`, or `logging.verbosity`.
    pub verbosity: u8,
    /// Pulls and garbage collection.
    pub images: Images,
    /// Where pods' network comes from.
    pub network: Network,
    /// How services are programmed.
    pub services: Services,
}

/// The node's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Port 10250; `None` when `enableServer` is false.
    pub address: Option<SocketAddr>,
    /// The port without authentication; `None` unless asked for.
    pub read_only: Option<SocketAddr>,
    /// `/healthz` in plain HTTP; `None` when `healthzPort` is 0.
    pub healthz: Option<SocketAddr>,
    /// Certificate and key; `None` makes a self-signed pair.
    pub tls_files: Option<(PathBuf, PathBuf)>,
    /// Whose client certificates are believed.
    pub client_ca_file: Option<PathBuf>,
    /// Whether requests without credentials are those of `system:anonymous` instead of an error.
    pub anonymous: bool,
    /// Whether bearer tokens are asked about at the API server, and for how long an answer is believed.
    pub token_review: Option<Duration>,
    /// Who may do what.
    pub authorization: Authorization,
}

/// How the node comes to its certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates {
    /// `rotateCertificates`: the client certificate is renewed before it ends. Where nobody says, it is: kubelet's own
    /// default is not to, and every installer changes that.
    pub rotate: bool,
    /// `serverTLSBootstrap`: the serving certificate comes from the cluster. Files that are configured come first.
    pub serving_from_cluster: bool,
    /// Credentials for a new client certificate when the present one expired.
    pub bootstrap_kubeconfig: Option<PathBuf>,
}

/// Who may do what on the node's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization {
    /// Whoever is authenticated may do everything.
    AlwaysAllow,
    /// Ask the API server.
    Webhook {
        /// How long a yes is believed.
        allowed_for: Duration,
        /// How long a no is believed.
        denied_for: Duration,
    },
}

/// What goes into pods' `resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// `clusterDNS`.
    pub servers: Vec<IpAddr>,
    /// `clusterDomain`, without dots around it.
    pub domain: String,
    /// The node's own file; `None` when set to nothing.
    pub resolv_conf: Option<PathBuf>,
}

/// Where and how cgroups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// Below which cgroup, relative to the hierarchy's root, without slashes around it; empty is the root.
    pub root: String,
    /// Whose cgroups; `None` for systemd's where they are delegated.
    pub driver: Option<CgroupDriver>,
}

/// How many pods, and what they may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pods {
    /// `maxPods`.
    pub max: u32,
    /// `podsPerCore`, 0 for no such limit.
    pub per_core: u32,
    /// `podPidsLimit`.
    pub pids_limit: Option<u64>,
    /// `crashLoopBackOff.maxContainerRestartPeriod`.
    pub max_restart_backoff: Duration,
    /// What they may set; `allowedUnsafeSysctls` included.
    pub sysctls: Sysctls,
    /// Whether RuntimeDefault is the seccomp profile of pods that name none.
    pub seccomp_default: bool,
}

/// Container log files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logs {
    /// Rotate at this size in bytes.
    pub max_bytes: u64,
    /// Keep so many files, the current one included.
    pub max_files: u32,
}

/// How the Node registers and reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Whether to create the Node.
    pub register: bool,
    /// Labels to create it with.
    pub labels: BTreeMap<String, String>,
    /// Taints to create it with.
    pub taints: Vec<Taint>,
    /// `spec.providerID` to create it with.
    pub provider_id: Option<String>,
    /// Whether a cloud controller manager finishes the Node.
    pub external_cloud: bool,
    /// Post the status at least so often.
    pub report_every: Duration,
    /// How long a Lease holds; it is renewed four times as often.
    pub lease_duration: Duration,
    /// How many images the status lists.
    pub max_images: Option<usize>,
}

/// What is kept from pods.
#[derive(Debug, Clone, PartialEq)]
pub struct Reserved {
    /// `kubeReserved` by resource.
    pub kube: BTreeMap<String, Quantity>,
    /// `systemReserved` by resource.
    pub system: BTreeMap<String, Quantity>,
    /// `evictionHard` by signal.
    pub eviction_hard: BTreeMap<String, Threshold>,
}

/// What the machine must be like for the node to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Whether swap is an error; `None` for a warning.
    pub fail_swap_on: Option<bool>,
    /// Whether cgroup version 1 is an error.
    pub fail_cgroup_v1: bool,
    /// Whether kernel settings that differ are an error.
    pub protect_kernel_defaults: bool,
}

/// Pulls and garbage collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Pulls side by side; `None` for any number.
    pub parallel_pulls: Option<u32>,
    /// Younger images are never collected.
    pub minimum_age: Duration,
    /// Unused older ones always are.
    pub maximum_age: Option<Duration>,
    /// Collect from this share of the disk, in percent.
    pub high_percent: u8,
    /// Collect down to this share.
    pub low_percent: u8,
    /// Registries besides loopback that may be spoken to in plain HTTP.
    pub plain_http: Vec<String>,
}
