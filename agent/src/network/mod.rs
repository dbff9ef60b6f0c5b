//! A pod's network as the agent sees it: attachment through `cni`, and the files that tell a pod its names.
//!
//! Owns: which network configuration is in force, `network.json` and `etc/hosts` of each sandbox. Never: speaks netlink or
//! CNI itself (the crate `orlop-cni` does), or blocks the runtime's threads (its calls run on threads of their own).

pub mod bandwidth;
pub mod dns;
pub mod hosts;
pub mod nodes;
pub mod service_env;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use orlop_cni::plugin::KIND;
use orlop_cni::runtime::{
    Attachment, ConfWatch, DefaultNetwork, DnsServers, PortMapping, Runtime, RuntimeConfig,
};
use orlop_sandbox::protocol::SandboxDir;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::config::network::{self as config, NetworkPlugin};
use crate::host::files;
use crate::pod::names::PodUid;
use crate::pod::spec::{Pod, Protocol};

/// When the configurations cannot be watched, they are read this often.
const UNWATCHED: Duration = Duration::from_secs(10);

/// Where things of the network are.
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// What flags and file say.
    pub config: config::Network,
    /// This node's addresses; the MTU of their link is that of pods.
    pub addresses: Vec<IpAddr>,
    /// `<run-dir>/cni`: leases and results; they die with the pods at a reboot.
    pub state_dir: PathBuf,
    /// Where the node's podCIDRs are remembered for a start without an API server.
    pub cidrs_file: PathBuf,
}

/// Connects pods.
#[derive(Debug)]
pub struct Network {
    settings: NetworkSettings,
    runtime: Arc<Runtime>,
    /// Rises by one when the configuration in force may have changed.
    reloads: watch::Sender<u64>,
}

/// Where a pod lives on this node, as far as its network asks.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its run directory.
    pub dir: &'a SandboxDir,
    /// The process that holds its network namespace.
    pub supervisor: i32,
    /// Its cgroup, below the mount of the hierarchy.
    pub cgroup: &'a Path,
}

/// What the network gave a pod; `network.json` in its run directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedNetwork {
    /// The primary address first.
    pub addresses: Vec<IpAddr>,
}

impl AttachedNetwork {
    /// Reads what an earlier attachment gave.
    pub fn read(dir: &SandboxDir) -> Option<Self> {
        files::read_json(&path(dir)).ok()
    }
}

fn path(dir: &SandboxDir) -> PathBuf {
    dir.0.join("network.json")
}

impl Network {
    /// With the podCIDRs of an earlier life, if any.
    pub fn open(settings: NetworkSettings) -> Self {
        let cidrs: Vec<IpNet> = files::read_json(&settings.cidrs_file).unwrap_or_default();
        let runtime = Arc::new(runtime(&settings, &cidrs));
        Self { settings, runtime, reloads: watch::Sender::new(0) }
    }

    /// Takes the node's podCIDRs; the newest win, pods that are attached keep their addresses.
    ///
    /// # Errors
    /// Where they cannot be remembered; they are in force nevertheless.
    pub fn set_pod_cidrs(&self, cidrs: &[IpNet]) -> io::Result<()> {
        let known: Vec<IpNet> = files::read_json(&self.settings.cidrs_file).unwrap_or_default();
        if known == cidrs {
            return Ok(());
        }
        if let Err(error) = self.runtime.set_fallback(network(&self.settings, cidrs).to_list()) {
            tracing::warn!(%error, "the network configuration is not usable");
        }
        self.reloads.send_modify(|count| *count += 1);
        files::write_json(&self.settings.cidrs_file, &cidrs)
    }

    /// Tells when the configuration in force may have changed.
    pub fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.subscribe()
    }

    /// Whether the configuration in force calls our own plugin, or there is none.
    pub fn is_own(&self) -> bool {
        self.runtime.network().map_or(true, |network| network.plugins.iter().any(|p| p.kind == KIND))
    }

    /// Follows the directory of configurations until it is dropped. Pods that are attached stay as they are.
    pub async fn follow_configurations(&self) {
        let mut complained = false;
        loop {
            if let Err(error) = self.follow_directory().await {
                if !complained {
                    let dir = self.settings.config.conf_dir.display();
                    tracing::warn!(%error, %dir, "cannot be told of changed network configurations; looking now and then");
                }
                complained = true;
                tokio::time::sleep(UNWATCHED).await;
            }
        }
    }

    /// Until the directory itself is gone.
    async fn follow_directory(&self) -> io::Result<()> {
        let dir = &self.settings.config.conf_dir;
        let watch = ConfWatch::new(dir);
        // What changed before it was watched.
        self.reload();
        // An inotify descriptor is read as a pipe is; tokio has no other safe type for descriptors of its owner.
        let changes = pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(watch?))?;
        let mut events = [0u8; 4096];
        while dir.exists() {
            changes.readable().await?;
            match changes.try_read(&mut events) {
                Ok(_) => self.reload(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn reload(&self) {
        let before = self.runtime.network();
        let now = self.runtime.load();
        if before == now {
            return;
        }
        match &now {
            Ok(network) => tracing::info!(network = network.name, "the network configuration is loaded"),
            Err(error) => tracing::warn!(%error, "there is no usable network configuration"),
        }
        self.reloads.send_modify(|count| *count += 1);
    }

    /// Whether a pod can be attached now; the sentence is for the node's Ready condition.
    pub async fn status(&self) -> Result<(), String> {
        self.call(|runtime| runtime.status()).await
    }

    /// Attaches a pod; a pod that is attached already gets the same answer.
    pub async fn attach(
        &self,
        pod: &Pod,
        place: Place<'_>,
        cluster_domain: &str,
    ) -> Result<Vec<IpAddr>, String> {
        let dir = place.dir;
        let addresses = match AttachedNetwork::read(dir) {
            Some(network) => network.addresses,
            None => {
                let mut attachment = attachment(pod, Some(place.supervisor));
                let capabilities = &mut attachment.capabilities;
                capabilities.bandwidth = bandwidth::of(&pod.metadata.annotations)?;
                capabilities.dns = resolver_of(dir);
                capabilities.cgroup_path = place.cgroup.display().to_string();
                let attached = self.call(move |runtime| runtime.add(&attachment)).await?;
                if attached.ips.is_empty() {
                    return Err(format!("network {:?} gave the pod no address", attached.network));
                }
                attached.ips
            }
        };
        let names = dns::names(pod, cluster_domain)?;
        let text = hosts::managed(&addresses, &names, &pod.spec.host_aliases);
        let written = files::write_atomic(&dir.0.join("etc/hosts"), text.as_bytes(), 0o644)
            .and_then(|()| files::write_json(&path(dir), &AttachedNetwork { addresses: addresses.clone() }));
        written.map_err(|error| error.to_string())?;
        Ok(addresses)
    }

    /// Detaches a pod; gone already is success.
    pub async fn detach(&self, pod: &Pod, dir: &SandboxDir, supervisor: Option<i32>) -> Result<(), String> {
        let attachment = attachment(pod, supervisor);
        self.call(move |runtime| runtime.del(&attachment)).await?;
        files::remove_file(&path(dir)).map_err(|error| error.to_string())
    }

    /// Frees whatever belongs to none of these pods: leases and links of pods that vanished while no daemon ran.
    pub async fn collect_garbage(&self, living: &[PodUid]) -> Result<(), String> {
        let valid: Vec<Attachment> = living
            .iter()
            .map(|uid| Attachment::of_pod(uid.as_str(), PathBuf::new(), "", "", uid.as_str()))
            .collect();
        self.call(move |runtime| runtime.gc(&valid)).await
    }

    /// Every call blocks its thread, and enters network namespaces on threads of its own.
    async fn call<T, E>(
        &self,
        call: impl FnOnce(&Runtime) -> Result<T, E> + Send + 'static,
    ) -> Result<T, String>
    where
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let runtime = Arc::clone(&self.runtime);
        match tokio::task::spawn_blocking(move || call(&runtime)).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("the network call was lost: {error}")),
        }
    }
}

/// The node's own network; without ranges there is none.
fn network(settings: &NetworkSettings, cidrs: &[IpNet]) -> DefaultNetwork {
    let cidrs = match settings.config.plugin {
        NetworkPlugin::Orlop => cidrs,
        NetworkPlugin::None => &[],
    };
    DefaultNetwork {
        pod_cidrs: cidrs.to_vec(),
        cluster_cidrs: settings.config.cluster_cidrs.clone(),
        mtu: nodes::pod_mtu(settings.config.pod_routes, &settings.addresses),
        state_dir: Some(settings.state_dir.clone()),
        ..DefaultNetwork::default()
    }
}

fn runtime(settings: &NetworkSettings, cidrs: &[IpNet]) -> Runtime {
    let runtime = Runtime::new(RuntimeConfig {
        conf_dir: settings.config.conf_dir.clone(),
        bin_dirs: vec![settings.config.bin_dir.clone()],
        cache_dir: settings.state_dir.join("results"),
        state_dir: settings.state_dir.clone(),
        fallback: network(settings, cidrs).to_list(),
        timeout: settings.config.plugin_timeout,
    });
    // A configuration that does not load is told by every status and every attachment.
    if let Err(error) = runtime.load() {
        tracing::debug!(%error, "no network configuration yet");
    }
    runtime
}

/// What the pod's `resolv.conf` says, for plugins that ask.
fn resolver_of(dir: &SandboxDir) -> Option<DnsServers> {
    let text = std::fs::read_to_string(dir.0.join("etc/resolv.conf")).ok()?;
    let dns::Resolver { nameservers, searches, options } = dns::Resolver::parse(&text);
    Some(DnsServers { servers: nameservers, searches, options })
}

/// The pod's UID is the container id: one attachment for each pod, whatever the number of its sandboxes.
fn attachment(pod: &Pod, supervisor: Option<i32>) -> Attachment {
    let netns =
        supervisor.map(|pid| Path::new("/proc").join(pid.to_string()).join("ns/net")).unwrap_or_default();
    let uid = pod.uid().as_str();
    let mut attachment = Attachment::of_pod(uid, netns, pod.namespace(), pod.name(), uid);
    attachment.capabilities.port_mappings = pod
        .host_ports()
        .map(|port| PortMapping {
            host_port: port.host_port,
            container_port: port.container_port,
            protocol: match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            }
            .to_owned(),
            host_ip: port.host_ip,
        })
        .collect();
    attachment
}
