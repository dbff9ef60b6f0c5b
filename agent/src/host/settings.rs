//! What the host needs to know of the configuration. Owns: the struct. Never: reads a file.

use std::path::PathBuf;

use crate::host::container::env::Facts;
use crate::network::dns::ClusterDns;
use crate::pod::names::PodUid;
use crate::pod::spec::Pod;

/// Settings of the node that stay the same while the daemon runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node's name, addresses and allocatable resources (`pod_ips` is empty here).
    pub facts: Facts,
    /// Memory of the machine in bytes, for OOM scores.
    pub memory_capacity: u64,
    /// `--run-dir`.
    pub run_dir: PathBuf,
    /// `--root-dir`.
    pub root_dir: PathBuf,
    /// `podLogsDir`.
    pub pod_logs_dir: PathBuf,
    /// Where the links `<pod>_<namespace>_<container>-<id>.log` go, for log collectors.
    pub container_logs_dir: PathBuf,
    /// Name servers and domain of the cluster.
    pub dns: ClusterDns,
    /// `resolvConf`: the node's own, which pods may inherit.
    pub resolv_conf: Option<PathBuf>,
    /// `seccompDefault`.
    pub seccomp_default: bool,
    /// `podPidsLimit`.
    pub pids_limit: Option<u64>,
    /// `containerLogMaxSize`, in bytes.
    pub log_max_bytes: u64,
    /// `containerLogMaxFiles`.
    pub log_max_files: u32,
}

impl Settings {
    /// `<run-dir>/pods/<uid>`.
    pub fn run_pod(&self, uid: &PodUid) -> PathBuf {
        self.run_dir.join("pods").join(uid.as_str())
    }

    /// `<root-dir>/pods/<uid>`.
    pub fn root_pod(&self, uid: &PodUid) -> PathBuf {
        self.root_dir.join("pods").join(uid.as_str())
    }

    /// The pod as it was last wanted, for a daemon that starts while the pod's object is gone or out of reach.
    pub fn snapshot(&self, uid: &PodUid) -> PathBuf {
        self.root_pod(uid).join("pod.json")
    }

    /// `<podLogsDir>/<namespace>_<name>_<uid>`.
    pub fn pod_logs(&self, pod: &Pod) -> PathBuf {
        self.pod_logs_dir.join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid()))
    }
}
