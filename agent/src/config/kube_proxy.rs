//! The file that kube-proxy calls KubeProxyConfiguration, by its own field names.
//!
//! Owns: the fields that are obeyed here, and the names of those that are not but should say so. Never: applies defaults (that
//! is `services`), reads other files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;
use super::duration::GoDuration;
use super::yaml::{self, Form};

pub(super) const FORM: Form = Form {
    api_version: "kubeproxy.config.k8s.io/v1alpha1",
    kind: "KubeProxyConfiguration",
    // Nothing here is done by the clock, marks packets, or runs a program; the other modes' settings are theirs.
    pointless: &[
        "clientConnection.acceptContentTypes",
        "clientConnection.burst",
        "clientConnection.contentType",
        "clientConnection.qps",
        "configSyncPeriod",
        "iptables",
        "ipvs",
        "logging",
        "nftables.masqueradeBit",
        "nftables.minSyncPeriod",
        "nftables.syncPeriod",
        "oomScoreAdj",
        "showHiddenMetricsForVersion",
        "windowsRunAsService",
        "winkernel",
    ],
};

/// The fields that are obeyed.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    pub feature_gates: Option<BTreeMap<String, bool>>,
    pub client_connection: Option<ClientConnection>,
    pub hostname_override: Option<String>,
    pub bind_address: Option<String>,
    pub healthz_bind_address: Option<String>,
    pub metrics_bind_address: Option<String>,
    pub mode: Option<String>,
    pub iptables: Option<Rules>,
    pub nftables: Option<Rules>,
    pub detect_local_mode: Option<String>,
    pub detect_local: Option<DetectLocalNames>,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Option<String>,
    pub node_port_addresses: Option<Vec<String>>,
    pub conntrack: Option<Conntrack>,
}

/// `clientConnection`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct ClientConnection {
    pub kubeconfig: Option<PathBuf>,
}

/// `nftables`, and `iptables` where that is the mode.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct Rules {
    pub masquerade_all: Option<bool>,
}

/// `detectLocal`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct DetectLocalNames {
    pub bridge_interface: Option<String>,
    pub interface_name_prefix: Option<String>,
}

/// `conntrack`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct Conntrack {
    pub max_per_core: Option<u32>,
    pub min: Option<u32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: Option<bool>,
    pub udp_timeout: Option<GoDuration>,
    pub udp_stream_timeout: Option<GoDuration>,
}

/// Reads a file. Beside the fields comes the list of those that it sets and that are not obeyed.
///
/// # Errors
/// Names file, line and field.
pub fn load(file: &Path) -> Result<(KubeProxyConfiguration, Vec<String>), ConfigError> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    parse(&text, file)
}

/// Reads the text of a file, like [`load`].
///
/// # Errors
/// Names file, line and field.
pub fn parse(text: &str, file: &Path) -> Result<(KubeProxyConfiguration, Vec<String>), ConfigError> {
    let (config, mut ignored) = yaml::parse::<KubeProxyConfiguration>(text, file, &FORM)?;
    match config.mode.as_deref() {
        None | Some("" | "nftables") => {}
        // Somebody's present configuration: services work all the same.
        Some("iptables" | "ipvs") => ignored.push("mode".to_owned()),
        Some(other) => {
            let reason = format!("`{other}` is not a mode; services are programmed with nftables");
            return Err(ConfigError::Field { file: file.to_owned(), field: "mode".to_owned(), reason });
        }
    }
    Ok((config, ignored))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn parsed(body: &str) -> Result<(KubeProxyConfiguration, Vec<String>), String> {
        parse(&format!("{HEAD}{body}"), Path::new("p.yaml")).map_err(|error| error.to_string())
    }

    /// What kubeadm puts into the ConfigMap `kube-proxy`, empty values and all.
    const KUBEADM: &str = "
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 0
  contentType: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  scheduler: \"\"
  strictARP: false
logging:
  flushFrequency: 0
  options: {json: {infoBufferSize: \"0\"}}
  verbosity: 0
metricsBindAddress: \"\"
mode: \"\"
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel: {enableDSR: false, networkName: \"\"}
";

    #[test]
    fn kubeadms_file_is_read_without_a_warning() {
        let (config, ignored) = parsed(KUBEADM).expect("valid");
        assert_eq!(ignored, Vec::<String>::new());
        assert_eq!(config.cluster_cidr.as_deref(), Some("10.244.0.0/16"));
        let kubeconfig = config.client_connection.and_then(|connection| connection.kubeconfig);
        assert_eq!(kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
        assert_eq!(config.node_port_addresses, None);
    }

    #[test]
    fn what_is_not_obeyed_is_named() {
        let (_, ignored) =
            parsed("mode: ipvs\nenableProfiling: true\nipvs: {scheduler: rr}\n").expect("valid");
        assert_eq!(ignored, ["enableProfiling", "mode"]);
        let (_, ignored) = parsed("nftables: {syncPeriod: 5s, tables: 7}\n").expect("valid");
        assert_eq!(ignored, ["nftables.tables"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let error = parsed("mode: ebpf\n").expect_err("no such mode");
        assert!(error.starts_with("configuration p.yaml: mode: `ebpf` is not a mode"), "{error}");
        let error = parsed("conntrack:\n  min: many\n").expect_err("no number");
        assert!(error.starts_with("configuration p.yaml, line 4: min:"), "{error}");
        let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let error = parse(kubelet, Path::new("p.yaml")).expect_err("another kind").to_string();
        assert!(error.contains("this file must say `kind: KubeProxyConfiguration`"), "{error}");
    }
}
