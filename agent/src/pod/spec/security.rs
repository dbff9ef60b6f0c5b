//! Security contexts of pods and containers, and what the two mean together. Owns: decoding and merging.
//! Never: applies them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::wire::is_default;

/// `securityContext` of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSecurityContext {
    /// UID of the containers' first process.
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_user: Option<u32>,
    /// Its primary GID.
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_group: Option<u32>,
    /// Refuse to start a container as UID 0.
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_non_root: Option<bool>,
    /// Further GIDs.
    #[serde(skip_serializing_if = "is_default")]
    pub supplemental_groups: Vec<u32>,
    /// Whether the image's `/etc/group` counts.
    #[serde(skip_serializing_if = "is_default")]
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Owning GID of volumes that support it, and a further GID of the processes.
    #[serde(skip_serializing_if = "is_default")]
    pub fs_group: Option<u32>,
    /// When the ownership of a volume's files is changed.
    #[serde(skip_serializing_if = "is_default")]
    pub fs_group_change_policy: FsGroupChangePolicy,
    /// Seccomp profile of containers without one of their own.
    #[serde(skip_serializing_if = "is_default")]
    pub seccomp_profile: Option<SecurityProfile>,
    /// AppArmor profile of containers without one of their own.
    #[serde(skip_serializing_if = "is_default")]
    pub app_armor_profile: Option<SecurityProfile>,
    /// SELinux label of containers without one of their own.
    #[serde(skip_serializing_if = "is_default")]
    pub se_linux_options: Option<SeLinuxOptions>,
    /// Namespaced kernel parameters.
    #[serde(skip_serializing_if = "is_default")]
    pub sysctls: Vec<Sysctl>,
}

/// `supplementalGroupsPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SupplementalGroupsPolicy {
    /// Groups of the user in the image count too.
    #[default]
    Merge,
    /// Only the PodSpec's groups.
    Strict,
}

/// `fsGroupChangePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum FsGroupChangePolicy {
    /// At every mount.
    #[default]
    Always,
    /// Only if the volume's root does not match.
    OnRootMismatch,
}

/// One kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// With dots: `net.ipv4.ip_forward`.
    pub name: String,
    /// As it is written into the file.
    pub value: String,
}

/// A SELinux label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SeLinuxOptions {
    /// User part.
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
    /// Role part.
    #[serde(skip_serializing_if = "is_default")]
    pub role: String,
    /// Type part.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// Level part.
    #[serde(skip_serializing_if = "is_default")]
    pub level: String,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ProfileWire", into = "ProfileWire")]
pub enum SecurityProfile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// The one with this name (AppArmor) or path below the node's profile directory (seccomp).
    Localhost(String),
}

#[derive(Serialize, Deserialize)]
enum ProfileType {
    RuntimeDefault,
    Unconfined,
    Localhost,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileWire {
    #[serde(rename = "type")]
    kind: ProfileType,
    #[serde(default, skip_serializing_if = "is_default")]
    localhost_profile: Option<String>,
}

impl From<ProfileWire> for SecurityProfile {
    fn from(wire: ProfileWire) -> Self {
        match wire.kind {
            ProfileType::RuntimeDefault => SecurityProfile::RuntimeDefault,
            ProfileType::Unconfined => SecurityProfile::Unconfined,
            ProfileType::Localhost => SecurityProfile::Localhost(wire.localhost_profile.unwrap_or_default()),
        }
    }
}

impl From<SecurityProfile> for ProfileWire {
    fn from(profile: SecurityProfile) -> Self {
        let (kind, localhost_profile) = match profile {
            SecurityProfile::RuntimeDefault => (ProfileType::RuntimeDefault, None),
            SecurityProfile::Unconfined => (ProfileType::Unconfined, None),
            SecurityProfile::Localhost(path) => (ProfileType::Localhost, Some(path)),
        };
        ProfileWire { kind, localhost_profile }
    }
}

/// `securityContext` of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecurityContext {
    /// UID of the first process.
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_user: Option<u32>,
    /// Its primary GID.
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_group: Option<u32>,
    /// Refuse to start as UID 0.
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_non_root: Option<bool>,
    /// Every capability, every device, no confinement.
    #[serde(skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// Added to and dropped from the default set.
    #[serde(skip_serializing_if = "is_default")]
    pub capabilities: Capabilities,
    /// Mount the root read-only.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only_root_filesystem: bool,
    /// `false` sets `no_new_privs`.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_privilege_escalation: Option<bool>,
    /// Seccomp profile.
    #[serde(skip_serializing_if = "is_default")]
    pub seccomp_profile: Option<SecurityProfile>,
    /// AppArmor profile.
    #[serde(skip_serializing_if = "is_default")]
    pub app_armor_profile: Option<SecurityProfile>,
    /// SELinux label.
    #[serde(skip_serializing_if = "is_default")]
    pub se_linux_options: Option<SeLinuxOptions>,
    /// How much of `/proc` is masked.
    #[serde(skip_serializing_if = "is_default")]
    pub proc_mount: ProcMount,
}

/// `procMount`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ProcMount {
    /// The runtime's masked and read-only paths.
    #[default]
    Default,
    /// None of them.
    Unmasked,
}

/// Capabilities by their names without `CAP_`, or `ALL`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Given beyond the default set.
    #[serde(skip_serializing_if = "is_default")]
    pub add: BTreeSet<String>,
    /// Taken from it.
    #[serde(skip_serializing_if = "is_default")]
    pub drop: BTreeSet<String>,
}

/// A container's security context with the pod's filled in where the container is silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveSecurity<'a> {
    /// UID; the image's user when `None`.
    pub run_as_user: Option<u32>,
    /// GID; the image's group when `None`.
    pub run_as_group: Option<u32>,
    /// Refuse UID 0.
    pub run_as_non_root: bool,
    /// Seccomp profile; unconfined when `None`, unless the node's configuration says otherwise.
    pub seccomp_profile: Option<&'a SecurityProfile>,
    /// AppArmor profile.
    pub app_armor_profile: Option<&'a SecurityProfile>,
    /// SELinux label.
    pub se_linux_options: Option<&'a SeLinuxOptions>,
    /// `no_new_privs` is set: asked for, and not overruled by `privileged` or `CAP_SYS_ADMIN`.
    pub no_new_privs: bool,
}

impl SecurityContext {
    /// What holds for this container in this pod.
    pub fn within<'a>(&'a self, pod: &'a PodSecurityContext) -> EffectiveSecurity<'a> {
        let run_as_user = self.run_as_user.or(pod.run_as_user);
        EffectiveSecurity {
            run_as_user,
            run_as_group: self.run_as_group.or(pod.run_as_group),
            run_as_non_root: self.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false),
            seccomp_profile: self.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()),
            app_armor_profile: self.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref()),
            se_linux_options: self.se_linux_options.as_ref().or(pod.se_linux_options.as_ref()),
            no_new_privs: self.allow_privilege_escalation == Some(false),
        }
    }
}
