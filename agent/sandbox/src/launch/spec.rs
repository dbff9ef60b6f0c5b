//! Filling in the daemon's OCI spec. Pure.
//!
//! | in `config.json` | what `libcontainer` gets |
//! |---|---|
//! | `root.path` | the overlay that the supervisor mounted |
//! | namespaces `mount`, `pid`, `cgroup` (no path) | as they are; with a shared pid namespace `pid` gets its path |
//! | namespaces `network`, `ipc`, `uts`, `hostname`, `linux.sysctl` | nothing: the helper is in the sandbox's already |
//! | `process.capabilities`, `noNewPrivileges`, `rlimits`, `oomScoreAdj`, `linux.seccomp` | nothing: the executor's |
//! | `process.cwd` | `/`: the executor changes to the real one, and makes it if it is missing |
//! | `process.terminal` | what the request says |
//! | no `linux.resources.devices` | one rule that denies everything (`device` says what is allowed all the same) |
//! | `process.env` | with `HOME`, so that `libcontainer` does not ask the image's name service for it |

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::device::DeviceRule;

/// What the executor needs of `process`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Process {
    /// Program and arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory.
    #[serde(default)]
    pub cwd: PathBuf,
    /// Who runs it.
    #[serde(default)]
    pub user: User,
    /// Resource limits.
    #[serde(default)]
    pub rlimits: Option<Vec<Rlimit>>,
}

/// `process.user`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode mask; `None` is 0022.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additional_gids: Option<Vec<u32>>,
}

/// One of `process.rlimits`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and the like.
    #[serde(rename = "type")]
    pub kind: String,
    /// Greatest value of the soft limit.
    pub hard: u64,
    /// Limit in force.
    pub soft: u64,
}

/// What the supervisor fills in.
#[derive(Debug, Clone)]
pub struct Filling<'a> {
    /// The mounted root.
    pub rootfs: &'a Path,
    /// The shared pid namespace, as a path to join.
    pub pid_namespace: Option<PathBuf>,
    /// Give the process a terminal.
    pub terminal: bool,
}

/// Why a spec is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not of the form of the OCI specification.
    #[error("config.json: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Something without which no container can be made.
    #[error("config.json: {0} is missing or of the wrong kind")]
    Missing(&'static str),
    /// No program to run.
    #[error("config.json: process.args is empty")]
    NoProgram,
    /// A path that could reach out of the pod's cgroup.
    #[error("config.json: linux.cgroupsPath {0:?} is not an absolute path of plain names")]
    CgroupsPath(PathBuf),
}

/// Reads `process`.
pub fn process(spec: &Value) -> Result<Process, SpecError> {
    let process = Process::deserialize(spec.get("process").ok_or(SpecError::Missing("process"))?)?;
    if process.args.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoProgram);
    }
    Ok(process)
}

/// Reads `linux.cgroupsPath`.
pub fn cgroups_path(spec: &Value) -> Result<PathBuf, SpecError> {
    let path = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str);
    let path = PathBuf::from(path.ok_or(SpecError::Missing("linux.cgroupsPath"))?);
    if crate::cgroup::is_valid(&path) { Ok(path) } else { Err(SpecError::CgroupsPath(path)) }
}

/// Reads `linux.resources.devices`.
pub fn device_rules(spec: &Value) -> Result<Vec<DeviceRule>, SpecError> {
    match spec.pointer("/linux/resources/devices") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(rules) => Ok(Vec::deserialize(rules)?),
    }
}

/// Adds `HOME` if the environment has none that says something.
pub fn with_home(env: &mut Vec<String>, home: impl FnOnce() -> Option<String>) {
    if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|value| !value.is_empty())) {
        env.retain(|entry| entry != "HOME=");
        env.push(format!("HOME={}", home().unwrap_or_else(|| "/".to_owned())));
    }
}

/// The environment of an exec'd process: the container's, changed and added to.
pub fn merged(base: &[String], added: &[String]) -> Vec<String> {
    let name = |entry: &String| entry.split('=').next().unwrap_or_default().to_owned();
    let replaced: Vec<String> = added.iter().map(name).collect();
    base.iter().filter(|entry| !replaced.contains(&name(entry))).chain(added).cloned().collect()
}

/// Fills in the spec.
pub fn fill(spec: &mut Value, process: &Process, filling: &Filling<'_>) -> Result<(), SpecError> {
    let root = object(spec, "")?;
    root.remove("hostname");
    root.remove("domainname");
    let readonly =
        root.get("root").and_then(|root| root.get("readonly")).cloned().unwrap_or(Value::Bool(false));
    root.insert("root".to_owned(), json!({"path": filling.rootfs, "readonly": readonly}));

    let to = object(spec.pointer_mut("/process").ok_or(SpecError::Missing("process"))?, "process")?;
    for key in ["capabilities", "noNewPrivileges", "rlimits", "oomScoreAdj", "consoleSize"] {
        to.remove(key);
    }
    to.insert("terminal".to_owned(), Value::Bool(filling.terminal));
    to.insert("cwd".to_owned(), json!("/"));
    to.insert("env".to_owned(), json!(process.env));

    let linux = object(spec.pointer_mut("/linux").ok_or(SpecError::Missing("linux"))?, "linux")?;
    linux.remove("seccomp");
    linux.remove("sysctl");
    let listed = linux.remove("namespaces").unwrap_or_default();
    linux.insert("namespaces".to_owned(), namespaces(&listed, filling));
    let resources = linux.entry("resources").or_insert_with(|| json!({}));
    let resources = object(resources, "linux.resources")?;
    if resources.get("devices").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        // Said by nobody, a version 1 cgroup would inherit its parent's, which allow everything.
        resources.insert("devices".to_owned(), json!([{"allow": false, "access": "rwm"}]));
    }
    Ok(())
}

fn namespaces(listed: &Value, filling: &Filling<'_>) -> Value {
    let has = |kind: &str| listed.as_array().into_iter().flatten().any(|one| one["type"] == kind);
    let mut namespaces = Vec::new();
    if let Some(path) = &filling.pid_namespace {
        namespaces.push(json!({"type": "pid", "path": path}));
    } else if has("pid") {
        namespaces.push(json!({"type": "pid"}));
    }
    // A container always has a mount namespace: without one it would be given the sandbox's, and change it.
    namespaces.push(json!({"type": "mount"}));
    if has("cgroup") {
        namespaces.push(json!({"type": "cgroup"}));
    }
    Value::Array(namespaces)
}

fn object<'a>(value: &'a mut Value, name: &'static str) -> Result<&'a mut Map<String, Value>, SpecError> {
    value.as_object_mut().ok_or(SpecError::Missing(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({
            "ociVersion": "1.0.2", "hostname": "h",
            "root": {"path": "elsewhere", "readonly": true},
            "process": {"args": ["sh"], "env": ["A=1"], "cwd": "/srv", "user": {"uid": 5, "gid": 6},
                "capabilities": {}, "noNewPrivileges": false, "oomScoreAdj": 3,
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2, "soft": 1}]},
            "linux": {"cgroupsPath": "/a/b", "seccomp": {}, "sysctl": {"net.x": "1"},
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/x"}, {"type": "mount", "path": "/y"},
                               {"type": "uts"}, {"type": "cgroup"}]},
        })
    }

    fn filled(pid_namespace: Option<PathBuf>) -> Value {
        let mut spec = spec();
        let process = process(&spec).unwrap();
        let filling = Filling { rootfs: Path::new("/r"), pid_namespace, terminal: true };
        fill(&mut spec, &process, &filling).unwrap();
        spec
    }

    #[test]
    fn what_the_executor_does_is_left_out_and_the_rest_filled_in() {
        assert_eq!(
            filled(None),
            json!({
                "ociVersion": "1.0.2",
                "root": {"path": "/r", "readonly": true},
                "process": {"args": ["sh"], "env": ["A=1"], "cwd": "/", "user": {"uid": 5, "gid": 6}, "terminal": true},
                "linux": {"cgroupsPath": "/a/b",
                    "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                    "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]},
            })
        );
    }

    #[test]
    fn a_shared_pid_namespace_is_joined() {
        let path = PathBuf::from("/proc/9/ns/pid");
        assert_eq!(
            filled(Some(path))["linux"]["namespaces"][0],
            json!({"type": "pid", "path": "/proc/9/ns/pid"})
        );
    }

    #[test]
    fn host_pid_stays_host_pid() {
        let mut spec = spec();
        spec["linux"]["namespaces"] = json!([{"type": "cgroup"}]);
        let process = process(&spec).unwrap();
        let filling = Filling { rootfs: Path::new("/r"), pid_namespace: None, terminal: false };
        fill(&mut spec, &process, &filling).unwrap();
        assert_eq!(spec["linux"]["namespaces"], json!([{"type": "mount"}, {"type": "cgroup"}]));
    }

    #[test]
    fn specs_without_what_is_needed_are_named() {
        assert!(matches!(process(&json!({})), Err(SpecError::Missing("process"))));
        assert!(matches!(process(&json!({"process": {"args": []}})), Err(SpecError::NoProgram)));
        assert!(matches!(process(&json!({"process": {"args": 3}})), Err(SpecError::Malformed(_))));
        let escaping = json!({"linux": {"cgroupsPath": "/a/../../b"}});
        assert!(matches!(cgroups_path(&escaping), Err(SpecError::CgroupsPath(_))));
    }

    #[test]
    fn environment_of_exec_overrides_by_name() {
        let text = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
        assert_eq!(merged(&text(&["A=1", "B=2"]), &text(&["A=3", "C"])), text(&["B=2", "A=3", "C"]));
        let mut env = text(&["HOME="]);
        with_home(&mut env, || Some("/home/u".to_owned()));
        assert_eq!(env, ["HOME=/home/u"]);
        with_home(&mut env, || panic!("known already"));
    }
}
