//! The pods that are still on this machine, ended without the daemon.
//!
//! Owns: finding them by what supervisors keep, asking them to end, and killing what does not. Never: touches a cgroup that no
//! sandbox of ours names: another kubelet's pods may be beside them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_sandbox::protocol::{Call, SandboxConfig, SandboxDir};
use serde_json::Value;

use crate::host::cgroup;
use crate::host::files::{read_json, remove_tree};
use crate::host::supervisor::Supervisors;
use crate::join::args::Places;
use crate::pod::names::PodUid;

/// How long containers may take to end by themselves.
const GRACE: Duration = Duration::from_secs(10);
/// How long a supervisor may take after that.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    uid: String,
    namespace: String,
    name: String,
    /// Its cgroup in every hierarchy.
    cgroups: Vec<PathBuf>,
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.namespace, self.name, self.uid)
    }
}

/// Every pod that has a directory of ours.
pub fn look(places: &Places, _logs: &Path) -> Vec<Remains> {
    let mut found = BTreeMap::new();
    for dir in children(&places.root_dir.join("pods")) {
        let pod: Value = read_json(&dir.join("pod.json")).unwrap_or_default();
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or("unknown").to_owned();
        let uid = file_name(&dir);
        let remains = Remains {
            uid: uid.clone(),
            namespace: text("namespace"),
            name: text("name"),
            cgroups: Vec::new(),
        };
        found.insert(uid, remains);
    }
    for dir in children(&places.run_dir.join("pods")) {
        let uid = file_name(&dir);
        let Ok(config) = read_json::<SandboxConfig>(&SandboxDir(dir).config()) else { continue };
        // `.../pod<uid>/supervisor/cgroup.procs`
        let cgroups = config.cgroup_procs.iter().filter_map(|procs| procs.ancestors().nth(2));
        let cgroups =
            cgroups.filter(|dir| file_name(dir) == format!("pod{uid}")).map(Path::to_owned).collect();
        let remains = Remains { uid: uid.clone(), namespace: config.namespace, name: config.name, cgroups };
        found.insert(uid, remains);
    }
    found.into_values().collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Ends a pod: its containers get SIGTERM and a while, then whatever is in its cgroup is killed.
///
/// # Errors
/// When its cgroup stays.
pub fn end(pod: &Remains, places: &Places) -> Result<(), String> {
    if places.run_dir.join("pods").join(&pod.uid).exists() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(ask(pod, places));
    }
    cgroup::kill_and_remove(&pod.cgroups).map_err(|error| error.to_string())?;
    // `burstable`, `besteffort` and `kubepods`, where they were made for this pod and nobody else's is left.
    for dir in &pod.cgroups {
        for parent in dir.ancestors().skip(1).take_while(|dir| is_shared(dir)) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn is_shared(dir: &Path) -> bool {
    matches!(file_name(dir).as_str(), "burstable" | "besteffort" | "kubepods")
}

/// Whatever goes wrong here, the cgroup is killed afterwards.
async fn ask(pod: &Remains, places: &Places) {
    let Ok(supervisors) = Supervisors::new(places.run_dir.join("pods")) else { return };
    let uid = PodUid::from(pod.uid.clone());
    let Some(live) = supervisors.adopt(&uid).await else { return };
    let mut changes = supervisors.changes(&uid);
    let running = || supervisors.records(&uid).into_iter().filter(|record| !record.state.is_over());
    for record in running() {
        let _ = live.connection.call(Call::Signal { id: record.id, signal: libc::SIGTERM, all: false }).await;
    }
    let ended = async { while running().next().is_some() && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(GRACE, ended).await;
    let _ = live.connection.call(Call::Shutdown).await;
    let gone = async { while supervisors.live(&uid).is_some() && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(SHUTDOWN, gone).await;
}

/// Removes the pod's logs and the links to them.
///
/// # Errors
/// When they stay.
pub fn remove_logs(pod: &Remains, logs: &Path) -> Result<(), String> {
    let dir = logs.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid));
    let links = logs.parent().unwrap_or(logs).join("containers");
    for link in children(&links) {
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(&dir)) {
            let _ = fs::remove_file(link);
        }
    }
    remove_tree(&dir).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_with_and_without_a_supervisor() {
        let dir = tempfile::tempdir().expect("a directory");
        let places = Places {
            etc_dir: dir.path().join("etc"),
            root_dir: dir.path().join("root"),
            run_dir: dir.path().join("run"),
        };
        for name in ["root/pods/u1", "root/pods/u2", "run/pods/u2", "run/pods/broken"] {
            fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        let metadata = r#"{"metadata":{"namespace":"default","name":"one"}}"#;
        fs::write(dir.path().join("root/pods/u1/pod.json"), metadata).expect("written");
        let sandbox = r#"{"uid":"u2","namespace":"apps","name":"two","attempt":0,"hostname":"two","shm_bytes":0,
            "cgroup_procs":["/sys/fs/cgroup/kubepods/podu2/supervisor/cgroup.procs","/sys/fs/cgroup/other/x/cgroup.procs"],
            "state_dir":"/x","log_max_bytes":1,"log_max_files":2}"#;
        fs::write(dir.path().join("run/pods/u2/sandbox.json"), sandbox).expect("written");
        let found = look(&places, Path::new("/logs"));
        let texts: Vec<String> = found.iter().map(Remains::to_string).collect();
        assert_eq!(texts, ["default/one (u1)", "apps/two (u2)"]);
        // A directory that is not the pod's own is never killed.
        assert_eq!(found[1].cgroups, [PathBuf::from("/sys/fs/cgroup/kubepods/podu2")]);
    }
}
