//! The file that kubelet calls KubeletConfiguration, by its own field names.
//!
//! Owns: the types of the fields this node obeys, and errors that name the line. Never: applies defaults (that is `Config`),
//! says what is not obeyed (that is `fields` and `document`), reads other files.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::ConfigError;
use super::document::notices;
use super::duration::GoDuration;
use super::labels::Taint;
use super::threshold::Threshold;
use super::yaml::{self, Form};
use crate::pod::quantity::Quantity;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// `kind` of the file.
pub const KIND: &str = "KubeletConfiguration";
/// What is not obeyed is told by `document`.
const FORM: Form = Form { api_version: API_VERSION, kind: KIND, pointless: &[] };

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
    #[serde(deserialize_with = "driver")]
    pub cgroup_driver: Option<CgroupDriver>,
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
    pub protect_kernel_defaults: Option<bool>,
    pub tls_cipher_suites: Vec<String>,
    pub tls_min_version: String,
    pub logging: Logging,
}

/// `logging`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own and documented there")]
pub struct Logging {
    pub verbosity: u8,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Directories under the root.
    Cgroupfs,
    /// Below the unit that systemd has delegated for pods.
    Systemd,
}

/// Reads the text of a file. Beside the fields comes the list of those that the file sets and this node does not obey.
pub fn parse(text: &str, file: &Path) -> Result<(KubeletConfiguration, Vec<String>), ConfigError> {
    let whole = untyped(text, file)?;
    let config = yaml::typed(text, file)?;
    Ok((config, notices(&whole).into_iter().map(|notice| notice.field).collect()))
}

/// Reads the text of a file without asking what its fields are.
pub fn untyped(text: &str, file: &Path) -> Result<Value, ConfigError> {
    yaml::untyped(text, file, &FORM)
}

/// `cgroupDriver`: empty is "not set".
fn driver<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CgroupDriver>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some("cgroupfs") => Ok(Some(CgroupDriver::Cgroupfs)),
        Some("systemd") => Ok(Some(CgroupDriver::Systemd)),
        Some(other) => Err(serde::de::Error::custom(format!("`{other}` is neither systemd nor cgroupfs"))),
    }
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
