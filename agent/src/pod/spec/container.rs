//! Containers of a pod: init, regular and ephemeral ones share one type. Owns: decoding. Never: starts anything.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::probe::{Lifecycle, Probe};
use super::security::SecurityContext;
use super::volume::{FieldRef, ResourceFieldRef};
use super::wire::{empty_is_none, is_default};
use crate::pod::names::ContainerName;
use crate::pod::quantity::Quantity;

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Unique in the pod.
    pub name: ContainerName,
    /// The image reference as written.
    pub image: String,
    /// When the registry is asked.
    pub image_pull_policy: PullPolicy,
    /// Instead of the image's entrypoint.
    #[serde(skip_serializing_if = "is_default")]
    pub command: Vec<String>,
    /// Instead of the image's `CMD`.
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    /// Instead of the image's.
    #[serde(deserialize_with = "empty_is_none", skip_serializing_if = "is_default")]
    pub working_dir: Option<String>,
    /// Variables, in order.
    #[serde(skip_serializing_if = "is_default")]
    pub env: Vec<EnvVar>,
    /// Whole objects as variables, in order, before `env`.
    #[serde(skip_serializing_if = "is_default")]
    pub env_from: Vec<EnvFrom>,
    /// Limits and requests; requests are filled in from limits.
    #[serde(skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// Where volumes appear.
    #[serde(skip_serializing_if = "is_default")]
    pub volume_mounts: Vec<VolumeMount>,
    /// Ports, of which those with a `hostPort` matter to the node.
    #[serde(skip_serializing_if = "is_default")]
    pub ports: Vec<ContainerPort>,
    /// See [`SecurityContext::within`].
    #[serde(skip_serializing_if = "is_default")]
    pub security_context: SecurityContext,
    /// Keep stdin open.
    #[serde(skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// Close it after the first attach.
    #[serde(skip_serializing_if = "is_default")]
    pub stdin_once: bool,
    /// Allocate a terminal.
    #[serde(skip_serializing_if = "is_default")]
    pub tty: bool,
    /// Where the container writes its last words.
    pub termination_message_path: String,
    /// Whether its log may speak for it.
    pub termination_message_policy: TerminationMessagePolicy,
    /// Restart it when this fails.
    #[serde(skip_serializing_if = "is_default")]
    pub liveness_probe: Option<Probe>,
    /// Ready when this succeeds.
    #[serde(skip_serializing_if = "is_default")]
    pub readiness_probe: Option<Probe>,
    /// Started when this succeeds.
    #[serde(skip_serializing_if = "is_default")]
    pub startup_probe: Option<Probe>,
    /// Hooks, and the stop signal.
    #[serde(skip_serializing_if = "is_default")]
    pub lifecycle: Lifecycle,
    /// The container's own policy; `Always` on an init container makes it a sidecar.
    #[serde(skip_serializing_if = "is_default")]
    pub restart_policy: Option<RestartPolicy>,
    /// Rules on the exit code, before `restart_policy`.
    #[serde(skip_serializing_if = "is_default")]
    pub restart_policy_rules: Vec<RestartRule>,
    /// Ephemeral containers: whose pid namespace to share.
    #[serde(skip_serializing_if = "is_default")]
    pub target_container_name: Option<ContainerName>,
}

impl Default for Container {
    fn default() -> Self {
        Self {
            name: ContainerName::default(),
            image: String::new(),
            image_pull_policy: PullPolicy::default(),
            command: Vec::new(),
            args: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            env_from: Vec::new(),
            resources: Resources::default(),
            volume_mounts: Vec::new(),
            ports: Vec::new(),
            security_context: SecurityContext::default(),
            stdin: false,
            stdin_once: false,
            tty: false,
            termination_message_path: "/dev/termination-log".to_owned(),
            termination_message_policy: TerminationMessagePolicy::default(),
            liveness_probe: None,
            readiness_probe: None,
            startup_probe: None,
            lifecycle: Lifecycle::default(),
            restart_policy: None,
            restart_policy_rules: Vec::new(),
            target_container_name: None,
        }
    }
}

impl Container {
    /// An init container that keeps running beside the regular ones.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == Some(RestartPolicy::Always)
    }
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Ask the registry before every start.
    Always,
    /// Only when the image is not in the store.
    IfNotPresent,
    /// Never ask the registry.
    Never,
    /// Not said. Only within the decoder: a decoded container has one of the others.
    #[default]
    #[serde(rename = "")]
    Unset,
}

/// `restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    #[default]
    Always,
    /// On an exit code other than 0.
    OnFailure,
    /// Never.
    Never,
}

/// One of `restartPolicyRules` (KEP-5307).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestartRule {
    /// What to do on a match.
    pub action: RestartRuleAction,
    /// The match.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exit_codes: Option<ExitCodes>,
}

/// What a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartRuleAction {
    /// Restart this container.
    Restart,
    /// Restart every container of the pod (KEP-5532).
    RestartAllContainers,
}

/// A set of exit codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCodes {
    /// In or not in the set.
    pub operator: ExitCodesOperator,
    /// The set.
    #[serde(default)]
    pub values: Vec<i32>,
}

/// `In` or `NotIn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCodesOperator {
    /// One of the values.
    In,
    /// None of them.
    NotIn,
}

/// `terminationMessagePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TerminationMessagePolicy {
    /// Only the file.
    #[default]
    File,
    /// The end of the log if the file is empty and the exit code is not 0.
    FallbackToLogsOnError,
}

/// One variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "EnvWire", into = "EnvWire")]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: EnvValue,
}

/// Where a variable's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// As written, with `$(VAR)` to be expanded.
    Literal(String),
    /// A field of the pod.
    Field(FieldRef),
    /// A resource of a container.
    Resource(ResourceFieldRef),
    /// One key of a ConfigMap.
    ConfigMapKey(KeyRef),
    /// One key of a Secret.
    SecretKey(KeyRef),
}

/// One key of an object in the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRef {
    /// The object.
    #[serde(default)]
    pub name: String,
    /// The key.
    pub key: String,
    /// No variable if object or key are missing, instead of an error.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optional: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EnvWire {
    name: String,
    #[serde(default, skip_serializing_if = "is_default")]
    value: String,
    #[serde(default, skip_serializing_if = "is_default")]
    value_from: Option<ValueFrom>,
}

#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ValueFrom {
    #[serde(skip_serializing_if = "is_default")]
    field_ref: Option<FieldRef>,
    #[serde(skip_serializing_if = "is_default")]
    resource_field_ref: Option<ResourceFieldRef>,
    #[serde(skip_serializing_if = "is_default")]
    config_map_key_ref: Option<KeyRef>,
    #[serde(skip_serializing_if = "is_default")]
    secret_key_ref: Option<KeyRef>,
}

impl From<EnvWire> for EnvVar {
    fn from(wire: EnvWire) -> Self {
        let from = wire.value_from.unwrap_or_default();
        let value = if let Some(v) = from.field_ref {
            EnvValue::Field(v)
        } else if let Some(v) = from.resource_field_ref {
            EnvValue::Resource(v)
        } else if let Some(v) = from.config_map_key_ref {
            EnvValue::ConfigMapKey(v)
        } else if let Some(v) = from.secret_key_ref {
            EnvValue::SecretKey(v)
        } else {
            EnvValue::Literal(wire.value)
        };
        EnvVar { name: wire.name, value }
    }
}

impl From<EnvVar> for EnvWire {
    fn from(var: EnvVar) -> Self {
        let mut from = ValueFrom::default();
        let mut value = String::new();
        match var.value {
            EnvValue::Literal(text) => value = text,
            EnvValue::Field(v) => from.field_ref = Some(v),
            EnvValue::Resource(v) => from.resource_field_ref = Some(v),
            EnvValue::ConfigMapKey(v) => from.config_map_key_ref = Some(v),
            EnvValue::SecretKey(v) => from.secret_key_ref = Some(v),
        }
        let value_from = (from != ValueFrom::default()).then_some(from);
        EnvWire { name: var.name, value, value_from }
    }
}

/// All keys of an object as variables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvFrom {
    /// Put before each name.
    #[serde(skip_serializing_if = "is_default")]
    pub prefix: String,
    /// A ConfigMap.
    #[serde(skip_serializing_if = "is_default")]
    pub config_map_ref: Option<ObjectRef>,
    /// A Secret.
    #[serde(skip_serializing_if = "is_default")]
    pub secret_ref: Option<ObjectRef>,
}

/// An object in the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectRef {
    /// Its name.
    pub name: String,
    /// Nothing if it is missing, instead of an error.
    #[serde(skip_serializing_if = "is_default")]
    pub optional: bool,
}

/// Limits and requests by resource name (`cpu`, `memory`, `ephemeral-storage`, `hugepages-2Mi`, ...).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Not more than this.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: BTreeMap<String, Quantity>,
    /// At least this.
    #[serde(skip_serializing_if = "is_default")]
    pub requests: BTreeMap<String, Quantity>,
}

impl Resources {
    /// `limits.cpu` in millicores.
    pub fn cpu_limit_millis(&self) -> Option<u64> {
        self.limits.get("cpu").map(Quantity::millis).filter(|m| *m > 0)
    }

    /// `requests.cpu` in millicores, 0 if absent.
    pub fn cpu_request_millis(&self) -> u64 {
        self.requests.get("cpu").map_or(0, Quantity::millis)
    }

    /// `limits.memory` in bytes.
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        self.limits.get("memory").map(Quantity::units).filter(|m| *m > 0)
    }

    /// `requests.memory` in bytes, 0 if absent.
    pub fn memory_request_bytes(&self) -> u64 {
        self.requests.get("memory").map_or(0, Quantity::units)
    }

    /// Requests that are absent equal the limits: the API's default.
    pub(super) fn fill_requests(&mut self) {
        for (name, limit) in &self.limits {
            self.requests.entry(name.clone()).or_insert(*limit);
        }
    }
}

/// Where a volume appears in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeMount {
    /// The volume.
    pub name: String,
    /// In the container.
    pub mount_path: String,
    /// Without write access.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Read-only for mounts below it too.
    #[serde(skip_serializing_if = "is_default")]
    pub recursive_read_only: RecursiveReadOnly,
    /// Only this part of the volume.
    #[serde(skip_serializing_if = "is_default")]
    pub sub_path: String,
    /// The same with `$(VAR)` expanded.
    #[serde(skip_serializing_if = "is_default")]
    pub sub_path_expr: String,
    /// Whether mounts made later are seen on the other side.
    #[serde(skip_serializing_if = "is_default")]
    pub mount_propagation: MountPropagation,
}

/// `recursiveReadOnly`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RecursiveReadOnly {
    /// No.
    #[default]
    Disabled,
    /// If the kernel can.
    IfPossible,
    /// Or the container does not start.
    Enabled,
}

/// `mountPropagation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Neither way (`rprivate`).
    #[default]
    None,
    /// From the host into the container (`rslave`).
    HostToContainer,
    /// Both ways (`rshared`).
    Bidirectional,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// What probes and hooks may call it.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// In the pod.
    pub container_port: u16,
    /// On the node; 0 for none.
    #[serde(skip_serializing_if = "is_default")]
    pub host_port: u16,
    /// On this address of the node; all when `None`.
    #[serde(rename = "hostIP", deserialize_with = "empty_is_none", skip_serializing_if = "is_default")]
    pub host_ip: Option<IpAddr>,
    /// Of the port.
    pub protocol: Protocol,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}
