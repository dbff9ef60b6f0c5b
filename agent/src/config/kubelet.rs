//! The file that kubelet calls KubeletConfiguration, by its own field names.
//!
//! Owns: the fields this node obeys, and the names of those it does not obey but should say so. Never: applies
//! defaults (that is `Config`), reads other files.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::ConfigError;
use super::duration::GoDuration;
use super::labels::Taint;
use super::threshold::Threshold;
use super::yaml::{self, Form};
use crate::pod::quantity::Quantity;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// Fields that steer what this node does in another way or not at all, by design: nothing is lost by not obeying them.
const POINTLESS: &[&str] = &[
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "containerRuntimeEndpoint",
    "contentType",
    "cpuManagerReconcilePeriod",
    "enableControllerAttachDetach",
    "enableDebuggingHandlers",
    "eventBurst",
    "eventRecordQPS",
    "fileCheckFrequency",
    "hairpinMode",
    "httpCheckFrequency",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeletCgroups",
    "makeIPTablesUtilChains",
    "nodeStatusUpdateFrequency",
    "oomScoreAdj",
    "registryBurst",
    "registryPullQPS",
    "syncFrequency",
    "volumePluginDir",
    "volumeStatsAggPeriod",
];

/// The fields this node obeys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct KubeletConfiguration {
    pub api_version: String,
    pub kind: String,
    pub enable_server: Option<bool>,
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub read_only_port: Option<u16>,
    pub healthz_bind_address: Option<IpAddr>,
    pub healthz_port: Option<u16>,
    pub tls_cert_file: PathBuf,
    pub tls_private_key_file: PathBuf,
    pub rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    pub authentication: Authentication,
    pub authorization: Authorization,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: Option<PathBuf>,
    pub static_pod_path: PathBuf,
    #[serde(rename = "podCIDR", deserialize_with = "networks")]
    pub pod_cidr: Vec<IpNet>,
    pub max_pods: Option<u32>,
    pub pods_per_core: Option<u32>,
    pub pod_pids_limit: Option<i64>,
    pub cgroup_root: String,
    pub cgroup_driver: CgroupDriver,
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: Option<bool>,
    pub fail_cgroup_v1: Option<bool>,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: Option<bool>,
    #[serde(rename = "cpuCFSQuotaPeriod")]
    pub cpu_cfs_quota_period: GoDuration,
    pub fail_swap_on: Option<bool>,
    pub container_log_max_size: Option<Quantity>,
    pub container_log_max_files: Option<u32>,
    pub pod_logs_dir: PathBuf,
    pub crash_loop_back_off: CrashLoopBackOff,
    pub register_node: Option<bool>,
    pub register_with_taints: Vec<Taint>,
    #[serde(rename = "providerID")]
    pub provider_id: String,
    pub node_status_report_frequency: GoDuration,
    pub node_status_max_images: Option<i32>,
    pub node_lease_duration_seconds: Option<u32>,
    pub kube_reserved: BTreeMap<String, Quantity>,
    pub system_reserved: BTreeMap<String, Quantity>,
    pub eviction_hard: Option<BTreeMap<String, Threshold>>,
    pub merge_default_eviction_settings: Option<bool>,
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: Option<u8>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: Option<u8>,
    pub serialize_image_pulls: Option<bool>,
    pub max_parallel_image_pulls: Option<u32>,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub seccomp_default: Option<bool>,
    pub runtime_request_timeout: GoDuration,
}

/// `authentication`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct Authentication {
    pub x509: X509,
    pub webhook: WebhookAuthentication,
    pub anonymous: Enabled,
}

/// `authentication.x509`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: PathBuf,
}

/// `authentication.webhook`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct WebhookAuthentication {
    pub enabled: Option<bool>,
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

/// `authentication.anonymous`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct Enabled {
    pub enabled: Option<bool>,
}

/// `authorization`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct Authorization {
    pub mode: AuthorizationMode,
    pub webhook: WebhookAuthorization,
}

/// `authorization.mode`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AuthorizationMode {
    /// Ask the API server.
    #[default]
    #[serde(alias = "")]
    Webhook,
    /// Whoever is authenticated may do everything.
    AlwaysAllow,
}

/// `authorization.webhook`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct WebhookAuthorization {
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

/// `crashLoopBackOff`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct CrashLoopBackOff {
    pub max_container_restart_period: GoDuration,
}

/// `cgroupDriver`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// Directories under the root.
    #[default]
    #[serde(alias = "")]
    Cgroupfs,
    /// Slices and scopes named as systemd names them.
    Systemd,
}

/// Reads the text of a file. Beside the fields comes the list of those that the file sets and this node does not obey.
pub fn parse(text: &str, file: &Path) -> Result<(KubeletConfiguration, Vec<String>), ConfigError> {
    yaml::parse(text, file, &Form { api_version: API_VERSION, kind: KIND, pointless: POINTLESS })
}

/// `podCIDR`: one network, or one of each family separated by a comma.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    text.split(',')
        .map(str::trim)
        .filter(|t| !t.is_empty())
        .map(|t| {
            t.parse()
                .map_err(|_| serde::de::Error::custom(format!("`{t}` is not a network such as 10.1.0.0/24")))
        })
        .collect()
}
