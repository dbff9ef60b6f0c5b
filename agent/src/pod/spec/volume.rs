//! Volumes of a pod: one enum of sources, and how the API spells them. Owns: decoding. Never: mounts anything.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::{is_default, seconds};
use crate::pod::quantity::Quantity;

/// A volume that containers mount by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "VolumeWire", into = "VolumeWire")]
pub struct Volume {
    /// What `volumeMounts` refer to.
    pub name: String,
    /// Where the content comes from.
    pub source: VolumeSource,
}

/// Where a volume's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// Empty at the pod's start, gone with the pod.
    EmptyDir(EmptyDir),
    /// A path of the node.
    HostPath(HostPath),
    /// Files from a ConfigMap.
    ConfigMap(ConfigMapVolume),
    /// Files from a Secret.
    Secret(SecretVolume),
    /// Files about the pod itself.
    DownwardApi(DownwardApiVolume),
    /// Several sources in one directory.
    Projected(ProjectedVolume),
    /// A kind that this node does not know how to set up.
    Unsupported {
        /// The field's name: `nfs`, `csi`, `persistentVolumeClaim`, ...
        kind: String,
    },
}

/// `emptyDir`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EmptyDir {
    /// What it is made of.
    #[serde(skip_serializing_if = "is_default")]
    pub medium: Medium,
    /// At most this many bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub size_limit: Option<Quantity>,
}

/// What an `emptyDir` is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Medium {
    /// The disk of the node.
    #[default]
    Disk,
    /// A tmpfs.
    Memory,
    /// Huge pages, of the size after `HugePages-` if one is given.
    HugePages(String),
    /// Something else, as it was written.
    Other(String),
}

impl From<String> for Medium {
    fn from(text: String) -> Self {
        match text.as_str() {
            "" => Medium::Disk,
            "Memory" => Medium::Memory,
            t if t.starts_with("HugePages") => Medium::HugePages(text),
            _ => Medium::Other(text),
        }
    }
}

impl From<Medium> for String {
    fn from(medium: Medium) -> Self {
        match medium {
            Medium::Disk => String::new(),
            Medium::Memory => "Memory".to_owned(),
            Medium::HugePages(text) | Medium::Other(text) => text,
        }
    }
}

/// `hostPath`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPath {
    /// Absolute, on the node.
    pub path: String,
    /// What must be there, or is made.
    #[serde(rename = "type", default, skip_serializing_if = "is_default")]
    pub kind: HostPathType,
}

/// What a `hostPath` must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HostPathType {
    /// Not checked.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// Made as a directory (0755) if there is nothing.
    DirectoryOrCreate,
    /// A directory.
    Directory,
    /// Made as an empty file (0644) if there is nothing.
    FileOrCreate,
    /// A regular file.
    File,
    /// A UNIX socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// `configMap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapVolume {
    /// The ConfigMap, in the pod's namespace.
    #[serde(default)]
    pub name: String,
    /// Only these keys, at these paths; empty for all keys.
    #[serde(default, skip_serializing_if = "is_default")]
    pub items: Vec<KeyToPath>,
    /// Mode of files without one of their own.
    #[serde(default = "mode_0644")]
    pub default_mode: u32,
    /// The pod starts without it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optional: bool,
}

/// `secret`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretVolume {
    /// The Secret, in the pod's namespace.
    #[serde(default)]
    pub secret_name: String,
    /// Only these keys, at these paths; empty for all keys.
    #[serde(default, skip_serializing_if = "is_default")]
    pub items: Vec<KeyToPath>,
    /// Mode of files without one of their own.
    #[serde(default = "mode_0644")]
    pub default_mode: u32,
    /// The pod starts without it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optional: bool,
}

/// One key of a ConfigMap or Secret as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyToPath {
    /// The key.
    pub key: String,
    /// Relative to the volume, without `..`.
    pub path: String,
    /// Instead of the volume's default mode.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Option<u32>,
}

/// `downwardAPI`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DownwardApiVolume {
    /// The files.
    #[serde(default)]
    pub items: Vec<DownwardApiFile>,
    /// Mode of files without one of their own.
    #[serde(default = "mode_0644")]
    pub default_mode: u32,
}

/// One file about the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DownwardApiFile {
    /// Relative to the volume, without `..`.
    pub path: String,
    /// A field of the pod.
    #[serde(default, skip_serializing_if = "is_default")]
    pub field_ref: Option<FieldRef>,
    /// A resource of a container.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resource_field_ref: Option<ResourceFieldRef>,
    /// Instead of the volume's default mode.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Option<u32>,
}

/// A field of the pod by its path, such as `metadata.labels['app']`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldRef {
    /// The path.
    pub field_path: String,
    /// Version of the path's schema: `v1`.
    #[serde(default = "v1")]
    pub api_version: String,
}

/// A resource of a container, such as `limits.cpu`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceFieldRef {
    /// The container; in `env` the container itself when empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub container_name: String,
    /// `limits.cpu`, `requests.memory`, ...
    pub resource: String,
    /// The unit of the result; 0 counts as 1.
    #[serde(default)]
    pub divisor: Quantity,
}

/// `projected`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectedVolume {
    /// Laid over each other in order.
    #[serde(default)]
    pub sources: Vec<ProjectedSource>,
    /// Mode of files without one of their own.
    #[serde(default = "mode_0644")]
    pub default_mode: u32,
}

/// One source of a projected volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ProjectedWire", into = "ProjectedWire")]
pub enum ProjectedSource {
    /// Keys of a ConfigMap.
    ConfigMap(ObjectProjection),
    /// Keys of a Secret.
    Secret(ObjectProjection),
    /// Fields of the pod.
    DownwardApi(Vec<DownwardApiFile>),
    /// A token of the pod's service account, bound to the pod.
    ServiceAccountToken(TokenProjection),
    /// A kind that this node does not know.
    Unsupported {
        /// The field's name.
        kind: String,
    },
}

/// Keys of a ConfigMap or Secret in a projected volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectProjection {
    /// The object, in the pod's namespace.
    pub name: String,
    /// Only these keys, at these paths; empty for all keys.
    #[serde(skip_serializing_if = "is_default")]
    pub items: Vec<KeyToPath>,
    /// The pod starts without it.
    #[serde(skip_serializing_if = "is_default")]
    pub optional: bool,
}

/// `serviceAccountToken` of a projected volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenProjection {
    /// Who accepts the token; the API server itself when empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub audience: String,
    /// How long it is good for.
    #[serde(rename = "expirationSeconds", default = "one_hour", with = "seconds")]
    pub expiration: Duration,
    /// Relative to the volume.
    pub path: String,
}

fn mode_0644() -> u32 {
    0o644
}

fn v1() -> String {
    "v1".to_owned()
}

fn one_hour() -> Duration {
    Duration::from_secs(3600)
}

/// A volume as the API spells it: a field for each kind, at most one of them set.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeWire {
    name: String,
    #[serde(default, skip_serializing_if = "is_default")]
    empty_dir: Option<EmptyDir>,
    #[serde(default, skip_serializing_if = "is_default")]
    host_path: Option<HostPath>,
    #[serde(default, skip_serializing_if = "is_default")]
    config_map: Option<ConfigMapVolume>,
    #[serde(default, skip_serializing_if = "is_default")]
    secret: Option<SecretVolume>,
    #[serde(rename = "downwardAPI", default, skip_serializing_if = "is_default")]
    downward_api: Option<DownwardApiVolume>,
    #[serde(default, skip_serializing_if = "is_default")]
    projected: Option<ProjectedVolume>,
    /// Only in our own snapshots.
    #[serde(rename = "orlopUnsupported", default, skip_serializing_if = "is_default")]
    unsupported: Option<String>,
}

impl From<VolumeWire> for Volume {
    fn from(wire: VolumeWire) -> Self {
        let source = if let Some(v) = wire.host_path {
            VolumeSource::HostPath(v)
        } else if let Some(v) = wire.config_map {
            VolumeSource::ConfigMap(v)
        } else if let Some(v) = wire.secret {
            VolumeSource::Secret(v)
        } else if let Some(v) = wire.downward_api {
            VolumeSource::DownwardApi(v)
        } else if let Some(v) = wire.projected {
            VolumeSource::Projected(v)
        } else if let Some(kind) = wire.unsupported {
            VolumeSource::Unsupported { kind }
        } else {
            // A volume without a source is an emptyDir: the API's default. A source this node does not know is found
            // by the decoder, which then puts `Unsupported` in its place.
            VolumeSource::EmptyDir(wire.empty_dir.unwrap_or_default())
        };
        Volume { name: wire.name, source }
    }
}

impl From<Volume> for VolumeWire {
    fn from(volume: Volume) -> Self {
        let mut wire = VolumeWire {
            name: volume.name,
            empty_dir: None,
            host_path: None,
            config_map: None,
            secret: None,
            downward_api: None,
            projected: None,
            unsupported: None,
        };
        match volume.source {
            VolumeSource::EmptyDir(v) => wire.empty_dir = Some(v),
            VolumeSource::HostPath(v) => wire.host_path = Some(v),
            VolumeSource::ConfigMap(v) => wire.config_map = Some(v),
            VolumeSource::Secret(v) => wire.secret = Some(v),
            VolumeSource::DownwardApi(v) => wire.downward_api = Some(v),
            VolumeSource::Projected(v) => wire.projected = Some(v),
            VolumeSource::Unsupported { kind } => wire.unsupported = Some(kind),
        }
        wire
    }
}

/// A projected source as the API spells it.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ProjectedWire {
    #[serde(skip_serializing_if = "is_default")]
    config_map: Option<ObjectProjection>,
    #[serde(skip_serializing_if = "is_default")]
    secret: Option<ObjectProjection>,
    #[serde(rename = "downwardAPI", skip_serializing_if = "is_default")]
    downward_api: Option<DownwardProjection>,
    #[serde(skip_serializing_if = "is_default")]
    service_account_token: Option<TokenProjection>,
    #[serde(rename = "orlopUnsupported", skip_serializing_if = "is_default")]
    unsupported: Option<String>,
}

#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct DownwardProjection {
    items: Vec<DownwardApiFile>,
}

impl From<ProjectedWire> for ProjectedSource {
    fn from(wire: ProjectedWire) -> Self {
        if let Some(v) = wire.config_map {
            ProjectedSource::ConfigMap(v)
        } else if let Some(v) = wire.secret {
            ProjectedSource::Secret(v)
        } else if let Some(v) = wire.downward_api {
            ProjectedSource::DownwardApi(v.items)
        } else if let Some(v) = wire.service_account_token {
            ProjectedSource::ServiceAccountToken(v)
        } else {
            ProjectedSource::Unsupported { kind: wire.unsupported.unwrap_or_default() }
        }
    }
}

impl From<ProjectedSource> for ProjectedWire {
    fn from(source: ProjectedSource) -> Self {
        let mut wire = ProjectedWire::default();
        match source {
            ProjectedSource::ConfigMap(v) => wire.config_map = Some(v),
            ProjectedSource::Secret(v) => wire.secret = Some(v),
            ProjectedSource::DownwardApi(items) => {
                wire.downward_api = Some(DownwardProjection { items });
            }
            ProjectedSource::ServiceAccountToken(v) => wire.service_account_token = Some(v),
            ProjectedSource::Unsupported { kind } => wire.unsupported = Some(kind),
        }
        wire
    }
}
