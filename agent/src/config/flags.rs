//! The flags of `orlop run`. Owns: their names and help. Never: understands them (that is `Config::build`).

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::duration;
use super::labels::{Taint, parse_label};
use super::network::NetworkArgs;
use super::services::ServiceArgs;

/// Run the node: pods, their network, and services.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Kubeconfig that says which API server to obey, and as whom
    #[arg(long, value_name = "FILE", required_unless_present = "standalone")]
    pub kubeconfig: Option<PathBuf>,

    /// Kubeconfig to ask for a new certificate with when the node's own expired; the node's goes on being --kubeconfig
    /// [default: bootstrap-kubeconfig beside it, if it is there]
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,

    /// KubeletConfiguration file (kubelet.config.k8s.io/v1beta1); without it, kubelet's defaults hold
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Run the embedded API server too: one machine, no cluster. Without --kubeconfig, the node obeys that server
    #[arg(long)]
    pub standalone: bool,

    /// How long the certificates of nodes live that the embedded API server issues, as 24h
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = parse_duration, requires = "standalone")]
    pub cluster_signing_duration: Duration,

    /// Images, volumes, certificates and everything else that outlives a reboot
    #[arg(long, value_name = "DIR", default_value = super::ROOT_DIR)]
    pub root_dir: PathBuf,

    /// Sockets and records of live pods; on a tmpfs, so that a reboot empties it
    #[arg(long, value_name = "DIR", default_value = super::RUN_DIR)]
    pub run_dir: PathBuf,

    /// Address of this node, or one of each family separated by a comma [default: the one towards the default route]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,

    /// Name of this node, instead of the machine's hostname
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// Labels to register with: key=value, separated by commas. An existing Node keeps the labels it has
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = parse_label)]
    pub node_labels: Vec<(String, String)>,

    /// Taints to register with: key=value:effect, separated by commas. An existing Node keeps the taints it has
    #[arg(long, value_name = "TAINTS", value_delimiter = ',')]
    pub register_with_taints: Vec<Taint>,

    /// Registry that images may be pulled from in plain HTTP, besides loopback: host or host:port; can be repeated. Mirrors
    /// and authorities are read from /etc/orlop/certs.d/<registry>/hosts.toml
    #[arg(long, value_name = "HOST")]
    pub plain_http: Vec<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would become the help of the whole command")]
    pub network: NetworkArgs,

    /// KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1): how services are programmed. The flags win over it
    #[arg(long, value_name = "FILE")]
    pub proxy_config: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would become the help of the whole command")]
    pub services: ServiceArgs,

    /// How much to log: 0 one line for each transition, 4 for finding faults, 6 everything
    #[arg(long = "v", short = 'v', value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .filter(|d| !d.is_zero())
        .ok_or_else(|| format!("`{text}` is not a duration such as 30m or 24h"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::labels::TaintEffect;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &str) -> Result<RunArgs, String> {
        let words = std::iter::once("orlop").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|l| l.run).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_are_spelled_as_kubelet_spells_them() {
        let run = parse(
            "--kubeconfig k --config c --node-ip 10.0.0.1,fd00::1 --hostname-override n1 --node-labels a=b,c=d \
             --register-with-taints x=y:NoSchedule,z:NoExecute --v 4",
        )
        .expect("valid");
        assert_eq!(run.node_ip.len(), 2);
        assert_eq!(run.node_labels, [("a".into(), "b".into()), ("c".into(), "d".into())]);
        assert_eq!(run.register_with_taints[1].effect, TaintEffect::NoExecute);
        assert_eq!((run.verbosity, run.root_dir), (4, PathBuf::from("/var/lib/orlop")));
    }

    #[test]
    fn a_server_is_needed_from_somewhere() {
        assert!(parse("").expect_err("no server").contains("--kubeconfig"));
        assert!(parse("--standalone").is_ok());
        assert!(
            parse("--kubeconfig k --node-labels oops")
                .expect_err("bad label")
                .contains("`oops` is not a label")
        );
    }
}
