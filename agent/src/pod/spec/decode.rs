//! From the API's JSON to a [`Pod`]: nulls dropped, defaults filled in, unknown fields collected.
//!
//! Owns: the order of these steps. Never: decides what an unknown field means (that is `unsupported`).

use serde::Deserialize;
use serde_json::Value;

use super::container::{Container, PullPolicy};
use super::volume::VolumeSource;
use super::{ContainerKind, Effect, Metadata, Pod, PodSpec, PodStatus, Unsupported, unsupported};

/// Why an object is not a pod that this node can read.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not JSON, or not the shape of a pod.
    #[error("pod: {0}")]
    Json(#[from] serde_json::Error),
    /// Something else.
    #[error("a {kind} is not a Pod")]
    Kind {
        /// The object's `kind`.
        kind: String,
    },
    /// Nothing to name it by.
    #[error("pod without `{field}`")]
    Missing {
        /// The field that is missing.
        field: &'static str,
    },
}

/// What of the object is decoded; everything else at this level is not the node's business.
#[derive(Deserialize)]
struct Wire {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

impl Pod {
    /// Decodes an object as an API server sends it.
    pub fn from_json(json: &[u8]) -> Result<Pod, SpecError> {
        Self::from_value(serde_json::from_slice(json)?)
    }

    /// The same from a parsed document, such as a manifest. `metadata.uid` may be absent.
    pub fn from_value(mut value: Value) -> Result<Pod, SpecError> {
        if let Some(kind) = value.get("kind").and_then(Value::as_str).filter(|k| *k != "Pod") {
            return Err(SpecError::Kind { kind: kind.to_owned() });
        }
        drop_nulls(&mut value);
        let mut unknown = Vec::new();
        let wire: Wire = serde_ignored::deserialize(value, |path| {
            let path = path.to_string().replace(".?", "");
            if path.starts_with("spec.") {
                unknown.push(path);
            }
        })?;
        let mut pod =
            Pod { metadata: wire.metadata, spec: wire.spec, status: wire.status, unsupported: Vec::new() };
        if pod.metadata.name.is_empty() {
            return Err(SpecError::Missing { field: "metadata.name" });
        }
        if pod.spec.containers.is_empty() {
            return Err(SpecError::Missing { field: "spec.containers" });
        }
        default_fields(&mut pod);
        mark_unknown_volumes(&mut pod, &unknown);
        pod.unsupported = unknown.into_iter().filter_map(unsupported::unknown_field).collect();
        pod.unsupported.extend(unsupported::known_but_unsupported(&pod));
        Ok(pod)
    }
}

/// The API reads `null` as "absent" everywhere.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The defaults that depend on other fields; a manifest has not been through a server.
fn default_fields(pod: &mut Pod) {
    if pod.metadata.namespace.is_empty() {
        pod.metadata.namespace = "default".into();
    }
    let host_network = pod.spec.host_network;
    let spec = &mut pod.spec;
    spec.resources.fill_requests();
    let all = spec.init_containers.iter_mut().chain(&mut spec.containers);
    for container in all.chain(&mut spec.ephemeral_containers) {
        default_container(container, host_network);
    }
}

fn default_container(container: &mut Container, host_network: bool) {
    container.resources.fill_requests();
    if container.image_pull_policy == PullPolicy::Unset {
        container.image_pull_policy = default_pull_policy(&container.image);
    }
    if container.termination_message_path.is_empty() {
        container.termination_message_path = "/dev/termination-log".to_owned();
    }
    if host_network {
        for port in container.ports.iter_mut().filter(|p| p.host_port == 0) {
            port.host_port = port.container_port;
        }
    }
}

/// `Always` for `:latest` and for a reference with neither tag nor digest.
fn default_pull_policy(image: &str) -> PullPolicy {
    if image.contains('@') {
        return PullPolicy::IfNotPresent;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => PullPolicy::Always,
        Some(_) => PullPolicy::IfNotPresent,
    }
}

/// A volume whose only source is a field this node does not know would otherwise pass for an empty directory.
fn mark_unknown_volumes(pod: &mut Pod, unknown: &[String]) {
    for path in unknown {
        let parts: Vec<&str> = path.split('.').collect();
        match parts[..] {
            ["spec", "volumes", index, kind] => {
                let volume = index.parse().ok().and_then(|i: usize| pod.spec.volumes.get_mut(i));
                if let Some(volume) = volume {
                    volume.source = VolumeSource::Unsupported { kind: kind.to_owned() };
                }
            }
            ["spec", "volumes", index, "projected", "sources", source, kind] => {
                mark_projected(pod, index, source, kind);
            }
            _ => {}
        }
    }
}

fn mark_projected(pod: &mut Pod, volume: &str, source: &str, name: &str) {
    let volume = volume.parse().ok().and_then(|i: usize| pod.spec.volumes.get_mut(i));
    if let Some(VolumeSource::Projected(projected)) = volume.map(|v| &mut v.source)
        && let Some(super::ProjectedSource::Unsupported { kind }) =
            source.parse().ok().and_then(|i: usize| projected.sources.get_mut(i))
    {
        name.clone_into(kind);
    }
}

impl Unsupported {
    /// A field by its path, for the container it stands in.
    pub(super) fn new(path: impl Into<String>, effect: Effect) -> Self {
        Unsupported { path: path.into(), effect }
    }
}

impl ContainerKind {
    /// The field of the PodSpec that lists such containers.
    pub fn field(self) -> &'static str {
        match self {
            ContainerKind::Init => "initContainers",
            ContainerKind::Regular => "containers",
            ContainerKind::Ephemeral => "ephemeralContainers",
        }
    }
}
