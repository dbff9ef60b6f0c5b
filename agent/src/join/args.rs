//! The flags of `orlop join` and `orlop reset`, spelled as kubeadm spells them. Owns: their names and help. Never:
//! understands them (that is `settings`).

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::duration;
use crate::config::{ROOT_DIR, RUN_DIR};

/// Where the node's configuration is, if nobody says otherwise; the unit reads it there.
pub const ETC_DIR: &str = "/etc/orlop";

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Places {
    /// Kubeconfig and configuration of the node
    #[arg(long, value_name = "DIR", default_value = ETC_DIR, env = "ORLOP_ETC_DIR")]
    pub etc_dir: PathBuf,
    /// Images, volumes, certificates
    #[arg(long, value_name = "DIR", default_value = ROOT_DIR, env = "ORLOP_ROOT_DIR")]
    pub root_dir: PathBuf,
    /// Sockets and records of live pods
    #[arg(long, value_name = "DIR", default_value = RUN_DIR, env = "ORLOP_RUN_DIR")]
    pub run_dir: PathBuf,
}

/// Join this machine to a cluster as a node.
#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// The API server: host or host:port (default port 6443)
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Option<String>,

    /// Bootstrap token for both purposes: to check what the cluster says of itself, and to ask for a certificate
    #[arg(long, value_name = "TOKEN", env = "ORLOP_JOIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// Token with which cluster-info is signed [default: --token]
    #[arg(long, value_name = "TOKEN")]
    pub discovery_token: Option<String>,

    /// Hash of the cluster's CA: sha256:<hex>; can be repeated, one of them must fit
    #[arg(long, value_name = "HASH", value_delimiter = ',')]
    pub discovery_token_ca_cert_hash: Vec<String>,

    /// Join without a CA hash: whoever knows the token can then pretend to be the cluster
    #[arg(long)]
    pub discovery_token_unsafe_skip_ca_verification: bool,

    /// Kubeconfig (a file or an https URL) that says where the cluster is and whom to trust, instead of a token
    #[arg(long, value_name = "FILE-OR-URL")]
    pub discovery_file: Option<String>,

    /// Token with which the certificate is asked for [default: --token]
    #[arg(long, value_name = "TOKEN")]
    pub tls_bootstrap_token: Option<String>,

    /// Name of this node [default: the machine's hostname]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,

    /// JoinConfiguration (kubeadm.k8s.io/v1beta3 or v1beta4); a flag wins over what the file says
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Preflight checks whose errors are shown as warnings, by name (Swap, Port-10250, ...), or `all`
    #[arg(long, value_name = "CHECKS", value_delimiter = ',')]
    pub ignore_preflight_errors: Vec<String>,

    /// Check and discover, and say what would be done, but change nothing here and ask for no certificate
    #[arg(long)]
    pub dry_run: bool,

    /// Leave the service alone: say what to run, then wait for it
    #[arg(long)]
    pub skip_service: bool,

    /// Keep the token as <etc-dir>/bootstrap-kubeconfig, readable by root alone, so that a node which was off until its
    /// certificate expired can join again by itself, as long as the token holds
    #[arg(long)]
    pub keep_bootstrap_kubeconfig: bool,

    /// How long to wait for the node to be Ready; 0 does not wait [default: timeouts.kubeletHealthCheck, or 4m]
    #[arg(long, value_name = "DURATION", value_parser = span)]
    pub ready_timeout: Option<Duration>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would become the help of the whole command")]
    pub places: Places,
}

/// Undo what `orlop join` did: end the service and the pods, remove everything of orlop's.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,

    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,

    /// Where container logs are
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods", env = "ORLOP_POD_LOGS_DIR")]
    pub pod_logs_dir: PathBuf,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would become the help of the whole command")]
    pub places: Places,
}

fn span(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("`{text}` is not a duration such as 30s or 4m"))
}
