//! From flags and files to [`Config`].
//!
//! Owns: defaults (kubelet's, and this project's directories), and the checks that need more than one field. Never: reads a
//! file itself, but for asking that they be read in [`Config::load`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{Document, Notice};
use super::flags::{CloudProvider, RunArgs};
use super::kube_proxy::{self, KubeProxyConfiguration};
use super::kubelet::{AuthorizationMode, KubeletConfiguration};
use super::network::Network;
use super::services::{DetectLocalMode, Services};
use super::*;

/// Said of a field of KubeProxyConfiguration.
const NOT_OBEYED: &str = "The service proxy does not obey it.";

impl Config {
    /// Reads the files that the flags name and puts everything together. Beside it come the fields that are not obeyed,
    /// each worth one warning.
    pub fn load(args: &RunArgs) -> Result<(Config, Vec<Notice>), ConfigError> {
        let hostname =
            nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
        Self::of(args, &Document::read(args)?, &hostname)
    }

    /// Like [`Config::load`], of files already read.
    pub fn of(
        args: &RunArgs,
        document: &Document,
        hostname: &str,
    ) -> Result<(Config, Vec<Notice>), ConfigError> {
        let mut notices = document.judge()?;
        let proxy = match &args.proxy_config {
            None => None,
            Some(file) => {
                let (proxy, more) = kube_proxy::load(file)?;
                notices.extend(more.into_iter().map(|field| Notice { field, says: NOT_OBEYED }));
                Some((proxy, file.as_path()))
            }
        };
        let proxy = proxy.as_ref().map(|(proxy, file)| (proxy, *file));
        let config =
            Self::assemble(args, document.typed()?, proxy, hostname).map_err(|error| match error {
                // The file to look into is the one that said so last.
                ConfigError::Field { file, field, reason } if Some(&file) != args.proxy_config.as_ref() => {
                    let file = document.file_of(&field).map_or(file, Path::to_owned);
                    ConfigError::Field { file, field, reason }
                }
                other => other,
            })?;
        Ok((config, notices))
    }

    /// Like [`Config::load`], for a file already parsed. Pure.
    pub fn build(args: &RunArgs, file: KubeletConfiguration, hostname: &str) -> Result<Config, ConfigError> {
        Self::assemble(args, file, None, hostname)
    }

    fn assemble(
        args: &RunArgs,
        file: KubeletConfiguration,
        proxy: Option<(&KubeProxyConfiguration, &Path)>,
        hostname: &str,
    ) -> Result<Config, ConfigError> {
        let path = args.config.as_deref().unwrap_or(Path::new("(none)"));
        check(&file, path)?;
        let name = args.hostname_override.as_deref().unwrap_or(hostname).trim().to_lowercase();
        if !is_dns_name(&name) {
            let reason =
                format!("`{name}` cannot be the name of a Node; use lower case letters, digits, `-` and `.`");
            return Err(ConfigError::Flag { flag: "--hostname-override", reason });
        }
        let v4 = args.node_ip.iter().filter(|ip| ip.is_ipv4()).count();
        if v4 > 1 || args.node_ip.len() - v4 > 1 {
            let reason = "at most one address of each family".to_owned();
            return Err(ConfigError::Flag { flag: "--node-ip", reason });
        }
        Ok(Config {
            hostname: name.clone(),
            node_name: name,
            node_ips: args.node_ip.clone(),
            root_dir: args.root_dir.clone(),
            run_dir: args.run_dir.clone(),
            pod_logs_dir: set(&file.pod_logs_dir).unwrap_or_else(|| "/var/log/pods".into()),
            static_pod_path: set(&file.static_pod_path),
            server: server(&file),
            certificates: certificates(args, &file),
            dns: dns(&file),
            cgroups: cgroups(&file),
            pods: pods(&file, path)?,
            logs: logs(&file),
            node: node(args, &file)?,
            images: images(args, &file),
            reserved: reserved(&file),
            machine: Machine {
                fail_swap_on: file.fail_swap_on,
                fail_cgroup_v1: file.fail_cgroup_v1.unwrap_or(false),
                protect_kernel_defaults: file.protect_kernel_defaults.unwrap_or(false),
            },
            verbosity: if args.verbosity > 0 { args.verbosity } else { file.logging.verbosity },
            network: Network::build(&args.network, file.runtime_request_timeout),
            services: Services::build(
                &args.services,
                services::Given {
                    // Pods of this node have addresses of its podCIDRs; they need not be told apart by anything else.
                    default_mode: DetectLocalMode::NodeCidr,
                    cluster_cidrs: &args.network.cluster_cidr,
                    file: proxy,
                },
            )?,
            pod_cidrs: file.pod_cidr,
        })
    }
}

fn check(file: &KubeletConfiguration, path: &Path) -> Result<(), ConfigError> {
    let wrong = |field: &str, reason: &str| {
        Err(ConfigError::Field { file: path.to_owned(), field: field.to_owned(), reason: reason.to_owned() })
    };
    if file.container_log_max_files.is_some_and(|n| n < 2) {
        return wrong("containerLogMaxFiles", "must be at least 2");
    }
    if file.container_log_max_size.is_some_and(|size| size.units() < 4096) {
        return wrong("containerLogMaxSize", "must be at least 4Ki");
    }
    let restart = file.crash_loop_back_off.max_container_restart_period.0;
    if !restart.is_zero() && !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&restart) {
        return wrong("crashLoopBackOff.maxContainerRestartPeriod", "must be between 1s and 300s");
    }
    let (low, high) = (
        file.image_gc_low_threshold_percent.unwrap_or(80),
        file.image_gc_high_threshold_percent.unwrap_or(85),
    );
    if high > 100 || low >= high {
        return wrong(
            "imageGCHighThresholdPercent",
            "must be at most 100 and above imageGCLowThresholdPercent",
        );
    }
    if set(&file.tls_cert_file).is_some() != set(&file.tls_private_key_file).is_some() {
        return wrong("tlsCertFile", "goes together with tlsPrivateKeyFile");
    }
    if file.tls_min_version == "VersionTLS13" {
        return wrong("tlsMinVersion", "this node speaks TLS 1.2 to those who ask for it");
    }
    if !matches!(file.tls_min_version.as_str(), "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12") {
        return wrong("tlsMinVersion", "must be VersionTLS10, VersionTLS11, VersionTLS12 or VersionTLS13");
    }
    if let Some(suite) = missing_suite(&file.tls_cipher_suites) {
        return wrong("tlsCipherSuites", &format!("this node offers {suite} too, and cannot leave it out"));
    }
    if file.max_parallel_image_pulls == Some(0) {
        return wrong("maxParallelImagePulls", "must be at least 1");
    }
    if file.serialize_image_pulls == Some(true) && file.max_parallel_image_pulls.is_some_and(|n| n > 1) {
        return wrong("maxParallelImagePulls", "cannot be larger than 1 unless serializeImagePulls is false");
    }
    if file.cgroups_per_qos == Some(false) {
        return wrong("cgroupsPerQOS", "false is not supported");
    }
    if file.pod_cidr.iter().filter(|n| n.addr().is_ipv4()).count() > 1 || file.pod_cidr.len() > 2 {
        return wrong("podCIDR", "at most one network of each family");
    }
    Ok(())
}

/// The TLS 1.2 suites that the node's server offers, by the names of Go's constants.
const SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// A suite that is offered though the list, unless it is empty, does not have it. Those with ChaCha20 have two names.
fn missing_suite(list: &[String]) -> Option<&'static str> {
    let has = |suite: &&str| list.iter().any(|name| name == suite || format!("{name}_SHA256") == **suite);
    SUITES.into_iter().find(|suite| !list.is_empty() && !has(suite))
}

fn set(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

fn server(file: &KubeletConfiguration) -> Server {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let address = file.address.unwrap_or(any);
    let port = file.port.filter(|p| *p != 0).unwrap_or(10250);
    let healthz = file.healthz_port.unwrap_or(10248);
    let healthz_address = file.healthz_bind_address.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let (authentication, authorization) = (&file.authentication, &file.authorization);
    let token_review = authentication.webhook.enabled.unwrap_or(true);
    Server {
        address: file.enable_server.unwrap_or(true).then_some(SocketAddr::new(address, port)),
        read_only: file.read_only_port.filter(|p| *p != 0).map(|p| SocketAddr::new(address, p)),
        healthz: (healthz != 0).then_some(SocketAddr::new(healthz_address, healthz)),
        tls_files: set(&file.tls_cert_file).zip(set(&file.tls_private_key_file)),
        client_ca_file: set(&authentication.x509.client_ca_file),
        anonymous: authentication.anonymous.enabled.unwrap_or(false),
        token_review: token_review.then(|| authentication.webhook.cache_ttl.or(Duration::from_secs(120))),
        authorization: match authorization.mode {
            AuthorizationMode::AlwaysAllow => Authorization::AlwaysAllow,
            AuthorizationMode::Webhook => Authorization::Webhook {
                allowed_for: authorization.webhook.cache_authorized_ttl.or(Duration::from_secs(300)),
                denied_for: authorization.webhook.cache_unauthorized_ttl.or(Duration::from_secs(30)),
            },
        },
    }
}

fn certificates(args: &RunArgs, file: &KubeletConfiguration) -> Certificates {
    let beside = || args.kubeconfig.as_ref().map(|path| path.with_file_name("bootstrap-kubeconfig"));
    Certificates {
        rotate: file.rotate_certificates.unwrap_or(true),
        serving_from_cluster: file.server_tls_bootstrap && set(&file.tls_cert_file).is_none(),
        bootstrap_kubeconfig: args.bootstrap_kubeconfig.clone().or_else(beside),
    }
}

fn dns(file: &KubeletConfiguration) -> Dns {
    let default = || PathBuf::from("/etc/resolv.conf");
    Dns {
        servers: file.cluster_dns.clone(),
        domain: file.cluster_domain.trim_matches('.').to_owned(),
        resolv_conf: file.resolv_conf.as_deref().map_or_else(|| Some(default()), set),
    }
}

fn cgroups(file: &KubeletConfiguration) -> Cgroups {
    Cgroups { root: file.cgroup_root.trim_matches('/').to_owned(), driver: file.cgroup_driver }
}

fn pods(file: &KubeletConfiguration, path: &Path) -> Result<Pods, ConfigError> {
    let longest = Duration::from_secs(300);
    let sysctls = Sysctls::allow(&file.allowed_unsafe_sysctls).map_err(|error| ConfigError::Field {
        file: path.to_owned(),
        field: "allowedUnsafeSysctls".to_owned(),
        reason: error.to_string(),
    })?;
    Ok(Pods {
        max: file.max_pods.filter(|n| *n != 0).unwrap_or(110),
        per_core: file.pods_per_core.unwrap_or(0),
        pids_limit: file.pod_pids_limit.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
        max_restart_backoff: file.crash_loop_back_off.max_container_restart_period.or(longest),
        sysctls,
        seccomp_default: file.seccomp_default.unwrap_or(false),
    })
}

fn logs(file: &KubeletConfiguration) -> Logs {
    Logs {
        max_bytes: file.container_log_max_size.map_or(10 << 20, |size| size.units()),
        max_files: file.container_log_max_files.unwrap_or(5),
    }
}

fn node(args: &RunArgs, file: &KubeletConfiguration) -> Result<Node, ConfigError> {
    let labels: BTreeMap<String, String> = args.node_labels.iter().cloned().collect();
    let forbidden = labels::forbidden(&labels);
    if !forbidden.is_empty() {
        let reason = format!(
            "a node may not give itself {}; within kubernetes.io and k8s.io only kubelet.kubernetes.io/..., \
             node.kubernetes.io/... and the topology labels are allowed",
            forbidden.join(", ")
        );
        return Err(ConfigError::Flag { flag: "--node-labels", reason });
    }
    let taints = if args.register_with_taints.is_empty() {
        &file.register_with_taints
    } else {
        &args.register_with_taints
    };
    let mut taints = taints.clone();
    let external_cloud = args.cloud_provider == CloudProvider::External;
    let uninitialized = labels::uninitialized();
    if external_cloud && !taints.iter().any(|taint| taint.key == uninitialized.key) {
        taints.push(uninitialized);
    }
    let provider_id = args.provider_id.clone().unwrap_or_else(|| file.provider_id.clone());
    let lease = file.node_lease_duration_seconds.filter(|n| *n != 0).unwrap_or(40);
    Ok(Node {
        register: file.register_node.unwrap_or(true),
        labels,
        taints,
        provider_id: Some(provider_id).filter(|id| !id.is_empty()),
        external_cloud,
        report_every: file.node_status_report_frequency.or(Duration::from_secs(300)),
        lease_duration: Duration::from_secs(lease.into()),
        max_images: usize::try_from(file.node_status_max_images.unwrap_or(50)).ok(),
    })
}

fn reserved(file: &KubeletConfiguration) -> Reserved {
    let defaults = [
        ("memory.available", Threshold::Amount(100 << 20)),
        ("nodefs.available", Threshold::Share(0.1)),
        ("nodefs.inodesFree", Threshold::Share(0.05)),
        ("imagefs.available", Threshold::Share(0.15)),
        ("imagefs.inodesFree", Threshold::Share(0.05)),
    ];
    let defaults = defaults.map(|(signal, threshold)| (signal.to_owned(), threshold)).into();
    // As in kubelet, a file that sets one threshold unsets the defaults of the others, unless it says to merge.
    let eviction_hard = match &file.eviction_hard {
        None => defaults,
        Some(given) if file.merge_default_eviction_settings == Some(true) => {
            let mut merged: BTreeMap<String, Threshold> = defaults;
            merged.extend(given.clone());
            merged
        }
        Some(given) => given.clone(),
    };
    Reserved { kube: file.kube_reserved.clone(), system: file.system_reserved.clone(), eviction_hard }
}

fn images(args: &RunArgs, file: &KubeletConfiguration) -> Images {
    let limit = file.max_parallel_image_pulls;
    let serialize = file.serialize_image_pulls.unwrap_or(limit.is_some_and(|n| n < 2));
    Images {
        // Kubelet pulls one image at a time unless told otherwise, for the sake of a runtime this node does not have.
        parallel_pulls: if serialize { Some(1) } else { limit },
        minimum_age: file.image_minimum_gc_age.or(Duration::from_secs(120)),
        maximum_age: Some(file.image_maximum_gc_age.0).filter(|age| !age.is_zero()),
        high_percent: file.image_gc_high_threshold_percent.unwrap_or(85),
        low_percent: file.image_gc_low_threshold_percent.unwrap_or(80),
        plain_http: args.plain_http.clone(),
    }
}

/// RFC 1123 subdomain.
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    name.len() <= 253 && name.split('.').all(label)
}
