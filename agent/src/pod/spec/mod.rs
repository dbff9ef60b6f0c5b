//! A pod as the node wants it: compact, decoded once at the door from the API's JSON or a manifest.
//!
//! Owns: the types, the API's defaults, and the list of what this node cannot do for the pod. The serialized form is
//! the API's own spelling of the same fields, so that a snapshot on disk or an answer on `/pods` needs nothing else.
//! Never: keeps fields that nobody on a node reads (`managedFields`, affinity, ...), never asks a server.

mod container;
mod decode;
mod probe;
mod resources;
mod security;
mod unsupported;
mod volume;
pub(in crate::pod) mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use container::{
    Container, ContainerPort, EnvFrom, EnvValue, EnvVar, ExitCodes, ExitCodesOperator, KeyRef,
    MountPropagation, ObjectRef, Protocol, PullPolicy, RecursiveReadOnly, Resources, RestartPolicy,
    RestartRule, RestartRuleAction, TerminationMessagePolicy, VolumeMount,
};
pub use decode::SpecError;
pub use probe::{Grpc, Handler, Hook, HttpGet, HttpHeader, Lifecycle, PortRef, Probe, Scheme, TcpSocket};
pub use resources::{PodResources, QosClass};
pub use security::{
    Capabilities, EffectiveSecurity, FsGroupChangePolicy, PodSecurityContext, ProcMount, SeLinuxOptions,
    SecurityContext, SecurityProfile, SupplementalGroupsPolicy, Sysctl,
};
pub use unsupported::{Effect, Unsupported};
pub use volume::{
    ConfigMapVolume, DownwardApiFile, DownwardApiVolume, EmptyDir, FieldRef, HostPath, HostPathType,
    KeyToPath, Medium, ObjectProjection, ProjectedSource, ProjectedVolume, ResourceFieldRef, SecretVolume,
    TokenProjection, Volume, VolumeSource,
};

use super::names::{ContainerName, PodUid};
use super::status::PodStatus;
use wire::{is_default, is_true, seconds, seconds_option, yes};

/// A pod.
///
/// [`Pod::from_json`] decodes what an API server or a manifest says. The derived `Deserialize` reads back what
/// `Serialize` wrote, `unsupported` included, and looks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Who it is.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: PodSpec,
    /// The status as it was read with the object.
    pub status: PodStatus,
    /// What this node cannot do for it.
    #[serde(rename = "orlopUnsupported", skip_serializing_if = "is_default")]
    pub unsupported: Vec<Unsupported>,
}

/// `metadata`, as far as a node reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// UID: unique over all time, the key of everything on the node.
    pub uid: PodUid,
    /// Labels.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "is_default")]
    pub annotations: BTreeMap<String, String>,
    /// When the API server created it.
    #[serde(skip_serializing_if = "is_default")]
    pub creation_timestamp: Option<Timestamp>,
    /// When it is to be gone: the moment of the delete request plus the grace period.
    #[serde(skip_serializing_if = "is_default")]
    pub deletion_timestamp: Option<Timestamp>,
    /// The grace period of the delete request.
    #[serde(
        rename = "deletionGracePeriodSeconds",
        with = "seconds_option",
        skip_serializing_if = "is_default"
    )]
    pub deletion_grace_period: Option<Duration>,
    /// Version of the spec.
    #[serde(skip_serializing_if = "is_default")]
    pub generation: Option<i64>,
    /// Version of the object.
    #[serde(skip_serializing_if = "is_default")]
    pub resource_version: String,
    /// Who created it.
    #[serde(skip_serializing_if = "is_default")]
    pub owner_references: Vec<OwnerReference>,
}

/// One owner.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OwnerReference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// The one that manages it.
    #[serde(skip_serializing_if = "is_default")]
    pub controller: bool,
}

/// `spec`, as far as a node reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// The node that the pod is bound to.
    #[serde(skip_serializing_if = "is_default")]
    pub node_name: String,
    /// Run beside each other.
    pub containers: Vec<Container>,
    /// Run before them, one after the other; those with `restartPolicy: Always` go on beside them.
    #[serde(skip_serializing_if = "is_default")]
    pub init_containers: Vec<Container>,
    /// Added later for debugging.
    #[serde(skip_serializing_if = "is_default")]
    pub ephemeral_containers: Vec<Container>,
    /// What containers mount.
    #[serde(skip_serializing_if = "is_default")]
    pub volumes: Vec<Volume>,
    /// For containers without a policy of their own.
    pub restart_policy: RestartPolicy,
    /// From the stop signal to SIGKILL.
    #[serde(rename = "terminationGracePeriodSeconds", with = "seconds")]
    pub termination_grace_period: Duration,
    /// From `status.startTime` to the pod's end.
    #[serde(rename = "activeDeadlineSeconds", with = "seconds_option", skip_serializing_if = "is_default")]
    pub active_deadline: Option<Duration>,
    /// What goes into `resolv.conf`.
    pub dns_policy: DnsPolicy,
    /// What goes there too.
    #[serde(skip_serializing_if = "is_default")]
    pub dns_config: DnsConfig,
    /// Further lines of `/etc/hosts`.
    #[serde(skip_serializing_if = "is_default")]
    pub host_aliases: Vec<HostAlias>,
    /// Instead of the pod's name.
    #[serde(skip_serializing_if = "is_default")]
    pub hostname: Option<String>,
    /// Makes the FQDN `<hostname>.<subdomain>.<namespace>.svc.<cluster domain>`.
    #[serde(skip_serializing_if = "is_default")]
    pub subdomain: Option<String>,
    /// Use the FQDN as the hostname.
    #[serde(rename = "setHostnameAsFQDN", skip_serializing_if = "is_default")]
    pub set_hostname_as_fqdn: bool,
    /// Overrides hostname, subdomain and FQDN alike (KEP-4762).
    #[serde(skip_serializing_if = "is_default")]
    pub hostname_override: Option<String>,
    /// The node's network namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub host_network: bool,
    /// The node's pid namespace.
    #[serde(rename = "hostPID", skip_serializing_if = "is_default")]
    pub host_pid: bool,
    /// The node's ipc namespace.
    #[serde(rename = "hostIPC", skip_serializing_if = "is_default")]
    pub host_ipc: bool,
    /// The node's user namespace; `false` asks for one of the pod's own.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub host_users: bool,
    /// One pid namespace for all containers.
    #[serde(skip_serializing_if = "is_default")]
    pub share_process_namespace: bool,
    /// See [`SecurityContext::within`].
    #[serde(skip_serializing_if = "is_default")]
    pub security_context: PodSecurityContext,
    /// Secrets with registry credentials.
    #[serde(skip_serializing_if = "is_default")]
    pub image_pull_secrets: Vec<LocalName>,
    /// Service variables for every service of the namespace.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enable_service_links: bool,
    /// Conditions set by others that the pod's readiness waits for.
    #[serde(skip_serializing_if = "is_default")]
    pub readiness_gates: Vec<ReadinessGate>,
    /// Who the pod is for the API server.
    #[serde(skip_serializing_if = "is_default")]
    pub service_account_name: String,
    /// Whether the API server put a token volume into the pod.
    #[serde(skip_serializing_if = "is_default")]
    pub automount_service_account_token: Option<bool>,
    /// For eviction and preemption.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: Option<i32>,
    /// Where the priority came from.
    #[serde(skip_serializing_if = "is_default")]
    pub priority_class_name: String,
    /// A runtime class.
    #[serde(skip_serializing_if = "is_default")]
    pub runtime_class_name: Option<String>,
    /// Checked again at admission.
    #[serde(skip_serializing_if = "is_default")]
    pub node_selector: BTreeMap<String, String>,
    /// Checked again at admission, for `NoExecute` taints.
    #[serde(skip_serializing_if = "is_default")]
    pub tolerations: Vec<Toleration>,
    /// Requests and limits of the pod as a whole (KEP-2837).
    #[serde(skip_serializing_if = "is_default")]
    pub resources: Resources,
}

impl Default for PodSpec {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            containers: Vec::new(),
            init_containers: Vec::new(),
            ephemeral_containers: Vec::new(),
            volumes: Vec::new(),
            restart_policy: RestartPolicy::default(),
            termination_grace_period: Duration::from_secs(30),
            active_deadline: None,
            dns_policy: DnsPolicy::default(),
            dns_config: DnsConfig::default(),
            host_aliases: Vec::new(),
            hostname: None,
            subdomain: None,
            set_hostname_as_fqdn: false,
            hostname_override: None,
            host_network: false,
            host_pid: false,
            host_ipc: false,
            host_users: true,
            share_process_namespace: false,
            security_context: PodSecurityContext::default(),
            image_pull_secrets: Vec::new(),
            enable_service_links: true,
            readiness_gates: Vec::new(),
            service_account_name: String::new(),
            automount_service_account_token: None,
            priority: None,
            priority_class_name: String::new(),
            runtime_class_name: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            resources: Resources::default(),
        }
    }
}

/// `dnsPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DnsPolicy {
    /// The cluster's DNS, unless the pod is on the node's network.
    #[default]
    ClusterFirst,
    /// The cluster's DNS also then.
    ClusterFirstWithHostNet,
    /// What the node uses.
    Default,
    /// Only `dnsConfig`.
    None,
}

/// `dnsConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Further name servers.
    #[serde(skip_serializing_if = "is_default")]
    pub nameservers: Vec<IpAddr>,
    /// Further search domains.
    #[serde(skip_serializing_if = "is_default")]
    pub searches: Vec<String>,
    /// Options, which replace those of the same name.
    #[serde(skip_serializing_if = "is_default")]
    pub options: Vec<DnsOption>,
}

/// One resolver option.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsOption {
    /// Such as `ndots`.
    pub name: String,
    /// Such as `5`.
    #[serde(skip_serializing_if = "is_default")]
    pub value: Option<String>,
}

/// One line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    /// The address.
    pub ip: IpAddr,
    /// Its names.
    #[serde(default)]
    pub hostnames: Vec<String>,
}

/// An object of the pod's namespace by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalName {
    /// Its name.
    pub name: String,
}

/// One of `readinessGates`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReadinessGate {
    /// The condition's type.
    pub condition_type: String,
}

/// One toleration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Toleration {
    /// Taint key; every key when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub key: String,
    /// `Exists` or `Equal`.
    #[serde(skip_serializing_if = "is_default")]
    pub operator: String,
    /// Taint value.
    #[serde(skip_serializing_if = "is_default")]
    pub value: String,
    /// Taint effect; every effect when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub effect: String,
    /// For how long.
    #[serde(skip_serializing_if = "is_default")]
    pub toleration_seconds: Option<i64>,
}

/// Which list of the PodSpec a container stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerKind {
    /// `spec.initContainers`.
    Init,
    /// `spec.containers`.
    Regular,
    /// `spec.ephemeralContainers`.
    Ephemeral,
}

impl Pod {
    /// Its UID.
    pub fn uid(&self) -> &PodUid {
        &self.metadata.uid
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    /// Every container with the list it stands in: init, regular, ephemeral ones.
    pub fn containers(&self) -> impl Iterator<Item = (ContainerKind, &Container)> {
        let tag = |kind| move |container| (kind, container);
        let spec = &self.spec;
        (spec.init_containers.iter().map(tag(ContainerKind::Init)))
            .chain(spec.containers.iter().map(tag(ContainerKind::Regular)))
            .chain(spec.ephemeral_containers.iter().map(tag(ContainerKind::Ephemeral)))
    }

    /// Ports of the node that the pod asks for: those of regular containers and of sidecars, whose processes stay.
    pub fn host_ports(&self) -> impl Iterator<Item = &ContainerPort> {
        let sidecars = self.spec.init_containers.iter().filter(|c| c.is_sidecar());
        self.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports).filter(|p| p.host_port != 0)
    }

    /// One container by its name.
    pub fn container(&self, name: &ContainerName) -> Option<(ContainerKind, &Container)> {
        self.containers().find(|(_, c)| c.name == *name)
    }

    /// The features that forbid the start of this pod on this node.
    pub fn refused(&self) -> impl Iterator<Item = &Unsupported> {
        self.unsupported.iter().filter(|u| u.effect == Effect::Refuse)
    }
}

/// `name_namespace(uid)`, as kubelet's messages name a pod.
impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}({})", self.name(), self.namespace(), self.uid())
    }
}

#[cfg(test)]
mod tests;
