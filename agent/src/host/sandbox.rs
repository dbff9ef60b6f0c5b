//! A pod's sandbox: directories, cgroup, supervisor; and all of it away again.
//!
//! Owns: `sandbox.json`, the snapshot of the pod, the files under `etc`. Never: attaches the network or sets up volumes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use orlop_sandbox::protocol::{Call, SandboxConfig};

use super::NodeHost;
use super::cgroup::resources::PodLimits;
use super::files;
use super::supervisor::connection::CallError;
use crate::network::dns::{self, NodeDns, Resolver};
use crate::network::hosts;
use crate::pod::action::{ActionError, Done, Warning};
use crate::pod::names::PodUid;
use crate::pod::spec::Pod;

/// The size of `/dev/shm`: the default of every runtime.
const SHM_BYTES: u64 = 64 << 20;
/// A supervisor that was told to end kills, reaps and unmounts; longer than this it is stuck.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

impl NodeHost {
    pub(super) async fn create_sandbox(&self, pod: &Pod, attempt: u32) -> Result<Done, ActionError> {
        if self.supervisors.live(pod.uid()).is_some() {
            return Ok(Done::default());
        }
        let (config, warnings) = self.prepare_sandbox(pod, attempt).map_err(failed)?;
        self.supervisors.start(pod.uid(), &config).await.map_err(failed)?;
        Ok(Done { warnings, ..Done::default() })
    }

    /// Everything that has to be there before the supervisor starts.
    fn prepare_sandbox(&self, pod: &Pod, attempt: u32) -> Result<(SandboxConfig, Vec<Warning>), String> {
        let settings = &self.settings;
        let uid = pod.uid();
        let names = dns::names(pod, &settings.dns.domain)?;
        let run = settings.run_pod(uid);
        for dir in [run.join("containers"), run.join("etc"), settings.root_pod(uid), settings.pod_logs(pod)] {
            make_dir(&dir).map_err(|error| error.to_string())?;
        }
        files::write_json(&settings.snapshot(uid), pod).map_err(|error| error.to_string())?;
        let warnings = self.write_etc(pod, &names).map_err(|error| error.to_string())?;
        let cgroup = self.cgroups.pod_path(pod.qos_class(), uid.as_str());
        self.cgroups.create_pod(&cgroup, &self.limits(pod)).map_err(|error| error.to_string())?;
        let cgroup_procs = self.cgroups.supervisor_procs(&cgroup).map_err(|error| error.to_string())?;
        let tmpfs =
            self.volumes.tmpfs(pod, settings.facts.allocatable_memory).map_err(|error| error.to_string())?;
        let config = SandboxConfig {
            uid: uid.to_string(),
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            attempt,
            hostname: names.hostname,
            host_network: pod.spec.host_network,
            host_ipc: pod.spec.host_ipc,
            shared_pid: pod.spec.share_process_namespace,
            shm_bytes: SHM_BYTES,
            sysctls: sysctls(pod),
            tmpfs,
            cgroup_procs,
            state_dir: run.join("libcontainer"),
            log_max_bytes: settings.log_max_bytes,
            log_max_files: settings.log_max_files,
        };
        Ok((config, warnings))
    }

    fn limits(&self, pod: &Pod) -> PodLimits {
        let total = pod.total_resources();
        PodLimits {
            cpu_request: total.cpu_request_millis,
            cpu_limit: total.cpu_limit_millis,
            memory_limit: total.memory_limit_bytes,
            pids: self.settings.pids_limit,
        }
    }

    /// `hostname` and `resolv.conf`; `hosts` too for a pod on the node's network, others get it with their address.
    fn write_etc(&self, pod: &Pod, names: &dns::PodNames) -> io::Result<Vec<Warning>> {
        let etc = self.settings.run_pod(pod.uid()).join("etc");
        let hostname = hostname(pod, names.clone())?;
        files::write_atomic(&etc.join("hostname"), format!("{hostname}\n").as_bytes(), 0o644)?;
        let (node, unreadable) = self.node_dns();
        let (resolver, mut warnings) = dns::resolver(pod, &node);
        warnings.extend(unreadable);
        files::write_atomic(&etc.join("resolv.conf"), resolver.render().as_bytes(), 0o644)?;
        if pod.spec.host_network {
            let node = fs::read_to_string("/etc/hosts").unwrap_or_default();
            let text = hosts::of_node(&node, &pod.spec.host_aliases);
            files::write_atomic(&etc.join("hosts"), text.as_bytes(), 0o644)?;
        }
        Ok(warnings)
    }

    /// With the node's `resolv.conf` as it is now: it changes with the networks the machine is on.
    fn node_dns(&self) -> (NodeDns, Option<Warning>) {
        let (node, unreadable) = match &self.settings.resolv_conf {
            None => (Resolver::default(), None),
            Some(file) => match fs::read_to_string(file) {
                Ok(text) => (Resolver::parse(&text), None),
                Err(error) => {
                    let message = format!("the pod gets nothing of the node's {}: {error}", file.display());
                    (Resolver::default(), Some(Warning { reason: dns::FORMING, message }))
                }
            },
        };
        (NodeDns { cluster: self.settings.dns.clone(), node }, unreadable)
    }

    pub(super) async fn remove_sandbox(&self, pod: &Pod) -> Result<(), ActionError> {
        let uid = pod.uid();
        if let Some(live) = self.supervisors.live(uid) {
            let mut changes = self.supervisors.changes(uid);
            match live.connection.call(Call::Shutdown).await {
                Ok(_) | Err(CallError::Lost) => {}
                Err(error) => {
                    tracing::warn!(%uid, %error, "the supervisor refuses to end; killing its cgroup")
                }
            }
            let gone =
                async { while self.supervisors.live(uid).is_some() && changes.changed().await.is_ok() {} };
            if tokio::time::timeout(SHUTDOWN_PATIENCE, gone).await.is_err() {
                tracing::warn!(%uid, "the supervisor does not end; killing its cgroup");
            }
        }
        self.kill_cgroup(pod).await?;
        let dir = self.supervisors.dir(uid);
        for file in [dir.socket(), dir.supervisor(), dir.config()] {
            files::remove_file(&file).map_err(unkillable)?;
        }
        files::remove_tree(&dir.0.join("libcontainer")).map_err(unkillable)
    }

    async fn kill_cgroup(&self, pod: &Pod) -> Result<(), ActionError> {
        let path = self.cgroups.pod_path(pod.qos_class(), pod.uid().as_str());
        let cgroups = self.cgroups.clone();
        let killed = tokio::task::spawn_blocking(move || cgroups.kill_and_remove(&path)).await;
        match killed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(unkillable(error)),
            Err(error) => Err(unkillable(error)),
        }
    }

    /// The last of a pod: after this nothing of it is on the node.
    pub(super) async fn remove_remains(&self, pod: &Pod) -> Result<(), ActionError> {
        let uid = pod.uid();
        self.kill_cgroup(pod).await?;
        self.remove_log_links(pod);
        let settings = &self.settings;
        // The snapshot goes last: while it is there, a daemon that starts again knows of the pod.
        for dir in [settings.run_pod(uid), settings.pod_logs(pod), settings.root_pod(uid)] {
            files::remove_tree(&dir).map_err(unkillable)?;
        }
        self.release_images(uid).await;
        self.supervisors.forget(uid);
        Ok(())
    }

    fn remove_log_links(&self, pod: &Pod) {
        let prefix = format!("{}_{}_", pod.name(), pod.namespace());
        let logs = self.settings.pod_logs(pod);
        for entry in fs::read_dir(&self.settings.container_logs_dir).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_string_lossy().starts_with(&prefix)
                && fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&logs));
            if ours {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Whether anything of the pod is on the node beside its sandbox and volumes.
    pub(super) fn has_remains(&self, pod: &Pod) -> bool {
        let uid: &PodUid = pod.uid();
        let settings = &self.settings;
        settings.run_pod(uid).exists()
            || settings.root_pod(uid).exists()
            || settings.pod_logs(pod).exists()
            || self.cgroups.exists(&self.cgroups.pod_path(pod.qos_class(), uid.as_str()))
    }
}

/// What `hostname` prints in the pod: on the node's network it is the node's.
pub(super) fn hostname(pod: &Pod, names: dns::PodNames) -> io::Result<String> {
    if pod.spec.host_network {
        Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
    } else {
        Ok(names.hostname)
    }
}

fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let list = &pod.spec.security_context.sysctls;
    list.iter().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect()
}

fn make_dir(dir: &Path) -> io::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(|error| io::Error::new(error.kind(), format!("create {}: {error}", dir.display())))
}

fn failed(message: impl std::fmt::Display) -> ActionError {
    ActionError {
        reason: "FailedCreatePodSandBox",
        message: format!("Failed to create pod sandbox: {message}"),
    }
}

fn unkillable(message: impl std::fmt::Display) -> ActionError {
    ActionError { reason: "FailedKillPod", message: format!("error killing pod: {message}") }
}
