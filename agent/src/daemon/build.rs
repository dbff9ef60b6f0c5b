//! From the configuration to the parts of a node: what each of them needs to know, in its own words.
//!
//! Owns: the translation. Never: keeps anything running.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;

use crate::api::client::Client;
use crate::api::objects::Objects;
use crate::config::Config;
use crate::host::Parts;
use crate::host::cgroup::Cgroups;
use crate::host::container::env::Facts as PodFacts;
use crate::host::settings::Settings;
use crate::image::puller::{Puller, RegistryConfig};
use crate::image::store::Store;
use crate::network::dns::ClusterDns;
use crate::network::nodes::NodesTask;
use crate::network::service_env::ServiceVariables;
use crate::network::{Network, NetworkSettings};
use crate::node::facts::Facts;
use crate::node::resources;
use crate::pod::admission::Allocatable;
use crate::pod::wanted::NodeFacts;
use crate::services;

/// Mirrors and authorities of registries, as in containerd's `certs.d`. Read at each pull; it need not be there.
const REGISTRY_HOSTS: &str = "/etc/orlop/certs.d";

/// The service proxy's configuration.
pub fn proxy(config: &Config, addresses: &[IpAddr]) -> orlop_netproxy::Config {
    services::proxy_config(&config.services, config.node_name.clone(), addresses.to_vec())
}

/// What the host is put together from.
///
/// # Errors
/// Where the image store cannot be opened or no cgroup file system is mounted.
pub fn parts(
    config: &Config,
    addresses: &[IpAddr],
    client: &Client,
    services: Arc<ServiceVariables>,
) -> anyhow::Result<Parts> {
    let images = Arc::new(Store::open(&config.root_dir.join("images")).context("open the image store")?);
    verify_images(&images, config);
    let network = Network::open(NetworkSettings {
        config: config.network.clone(),
        addresses: addresses.to_vec(),
        state_dir: config.run_dir.join("cni"),
        cidrs_file: config.root_dir.join("pod-cidrs.json"),
    });
    Ok(Parts {
        settings: settings(config, addresses),
        cgroups: Cgroups::open(&config.cgroups)?,
        network: Arc::new(network),
        puller: Arc::new(Puller::new(Arc::clone(&images), registries(config))),
        images,
        objects: Arc::new(Objects::new(client.clone())),
        services,
    })
}

fn registries(config: &Config) -> RegistryConfig {
    RegistryConfig {
        plain_http: config.images.plain_http.clone(),
        hosts_folder: Some(REGISTRY_HOSTS.into()),
        ..RegistryConfig::default()
    }
}

/// The first start after a boot looks whether the disk has kept the layers. The run directory is empty then: where it is
/// not, containers run from these layers, and dropping one would take it from under them.
fn verify_images(images: &Store, config: &Config) {
    let pods = fs::read_dir(config.run_dir.join("pods")).into_iter().flatten();
    if pods.count() > 0 {
        return;
    }
    let verified = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|error| error.to_string())
        .and_then(|boot| images.verify_after_boot(boot.trim()).map_err(|error| error.to_string()));
    if let Err(error) = verified {
        tracing::warn!(%error, "the image layers could not be checked after the boot");
    }
}

fn settings(config: &Config, addresses: &[IpAddr]) -> Settings {
    let machine = Facts::read(&config.root_dir);
    let allocatable = allocatable(config);
    // Collectors follow the links beside the pods' directories: /var/log/pods and /var/log/containers.
    let container_logs_dir = config
        .pod_logs_dir
        .parent()
        .map_or_else(|| config.pod_logs_dir.clone(), |dir| dir.join("containers"));
    Settings {
        facts: PodFacts {
            node_name: config.node_name.clone(),
            host_ips: addresses.to_vec(),
            pod_ips: vec![],
            allocatable_cpu_millis: allocatable.cpu_millis,
            allocatable_memory: allocatable.memory_bytes,
            allocatable_storage: machine.ephemeral_storage,
        },
        memory_capacity: machine.memory,
        run_dir: config.run_dir.clone(),
        root_dir: config.root_dir.clone(),
        pod_logs_dir: config.pod_logs_dir.clone(),
        container_logs_dir,
        dns: ClusterDns { servers: config.dns.servers.clone(), domain: config.dns.domain.clone() },
        resolv_conf: config.dns.resolv_conf.clone(),
        seccomp_default: config.pods.seccomp_default,
        pids_limit: config.pods.pids_limit,
        log_max_bytes: config.logs.max_bytes,
        log_max_files: config.logs.max_files,
    }
}

/// What the node offers before its Node object tells more (its labels).
pub fn allocatable(config: &Config) -> Allocatable {
    let machine = Facts::read(&config.root_dir);
    let capacity = resources::capacity(&machine, &config.pods);
    let amounts = resources::allocatable(&capacity, &machine, &config.reserved);
    let amount = |name: &str| amounts.get(name).copied().unwrap_or_default();
    Allocatable {
        cpu_millis: amount("cpu").millis(),
        memory_bytes: amount("memory").units(),
        pods: amount("pods").units(),
        labels: config.node.labels.clone(),
        sysctls: config.pods.sysctls.clone(),
    }
}

/// The task that keeps the ways to other nodes.
pub fn nodes(config: &Config, addresses: &[IpAddr], network: &Arc<Network>) -> NodesTask {
    NodesTask {
        node_name: config.node_name.clone(),
        addresses: addresses.to_vec(),
        pod_cidrs: config.pod_cidrs.clone(),
        routes: config.network.pod_routes,
        network: Arc::clone(network),
    }
}

/// What planning needs to know of the node.
pub fn node_facts(config: &Config, addresses: &[IpAddr]) -> NodeFacts {
    NodeFacts { host_ips: addresses.to_vec(), max_restart_period: config.pods.max_restart_backoff }
}
