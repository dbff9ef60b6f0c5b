//! What this node cannot do for a pod, and whether the pod may start without it.
//!
//! Owns: the table. A field that is not supported is never ignored silently: it is reported, and where ignoring it
//! would weaken isolation, or leave the pod without data it was promised, the pod does not start.
//! Never: reports fields that only a scheduler or a controller reads.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::container::{Container, Resources, RestartRule, RestartRuleAction};
use super::probe::{Handler, Hook};
use super::security::SecurityProfile;
use super::volume::{Medium, VolumeSource};
use super::{ContainerKind, Pod};

/// A field of the PodSpec that this node does not support.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// Path of the field: `spec.containers.0.securityContext.foo`.
    pub path: String,
    /// What follows.
    pub effect: Effect,
}

/// What follows from a field that is not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// The pod runs without it; an event says so.
    Warn,
    /// The pod does not start; status and event say so.
    Refuse,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// Unknown fields that a node has nothing to do with, or that say nothing beyond fields it knows.
const SILENT: &[&str] = &[
    "spec.affinity",
    "spec.nodeSelectorTerms",
    "spec.os",
    "spec.overhead",
    "spec.preemptionPolicy",
    "spec.resourceClaims",
    "spec.schedulerName",
    "spec.schedulingGates",
    "spec.schedulingGroup",
    "spec.serviceAccount",
    "spec.topologySpreadConstraints",
    "spec.workloadRef",
    "spec.*.*.resizePolicy",
    "spec.*.*.securityContext.windowsOptions",
    "spec.securityContext.windowsOptions",
    "spec.securityContext.seLinuxChangePolicy",
];

/// Unknown fields without which a pod must not start.
const REFUSED: &[&str] = &[
    "spec.securityContext.*",
    "spec.*.*.securityContext.*",
    "spec.*.*.securityContext.capabilities.*",
    "spec.*.*.env.*.valueFrom.*",
    "spec.*.*.envFrom.*.*",
    "spec.*.*.resources.claims",
    "spec.*.*.volumeDevices",
    "spec.*.*.restartPolicyRules.*.*",
    "spec.volumes.*.*",
    "spec.volumes.*.projected.sources.*.*",
];

/// `None` if it need not be reported.
pub(super) fn unknown_field(path: String) -> Option<Unsupported> {
    if SILENT.iter().any(|pattern| matches(pattern, &path)) {
        return None;
    }
    let refused = REFUSED.iter().any(|pattern| matches(pattern, &path));
    Some(Unsupported::new(path, if refused { Effect::Refuse } else { Effect::Warn }))
}

/// Segment by segment; `*` stands for one segment.
fn matches(pattern: &str, path: &str) -> bool {
    let mut path = path.split('.');
    pattern.split('.').all(|want| path.next().is_some_and(|have| want == "*" || want == have))
        && path.next().is_none()
}

/// Fields that are decoded, with values that this node cannot act on.
pub(super) fn known_but_unsupported(pod: &Pod) -> Vec<Unsupported> {
    let mut found = Vec::new();
    let mut report = |path: String, effect| found.push(Unsupported::new(path, effect));
    let spec = &pod.spec;
    if spec.runtime_class_name.is_some() {
        report("spec.runtimeClassName".to_owned(), Effect::Refuse);
    }
    if !spec.host_users {
        report("spec.hostUsers".to_owned(), Effect::Refuse);
    }
    let context = &spec.security_context;
    let labels = (context.app_armor_profile.as_ref(), context.se_linux_options.is_some());
    labelling("spec.securityContext", labels, &mut report);
    limits("spec.resources", &spec.resources, &mut report);
    for (i, volume) in spec.volumes.iter().enumerate() {
        if let VolumeSource::EmptyDir(dir) = &volume.source
            && matches!(dir.medium, Medium::HugePages(_) | Medium::Other(_))
        {
            report(format!("spec.volumes.{i}.emptyDir.medium"), Effect::Refuse);
        }
    }
    let lists = [&spec.init_containers, &spec.containers, &spec.ephemeral_containers];
    let kinds = [ContainerKind::Init, ContainerKind::Regular, ContainerKind::Ephemeral];
    for (kind, containers) in kinds.into_iter().zip(lists) {
        for (i, container) in containers.iter().enumerate() {
            in_container(&format!("spec.{}.{i}", kind.field()), container, &mut report);
        }
    }
    found
}

fn in_container(at: &str, container: &Container, report: &mut impl FnMut(String, Effect)) {
    let context = &container.security_context;
    let labels = (context.app_armor_profile.as_ref(), context.se_linux_options.is_some());
    labelling(&format!("{at}.securityContext"), labels, report);
    limits(&format!("{at}.resources"), &container.resources, report);
    // An unknown kind of hook has been reported as an unknown field already.
    let hook = |hook: &Option<Hook>| hook.as_ref().is_some_and(|h| h.0 != Handler::Unknown);
    let without_effect = [
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("lifecycle.postStart", hook(&container.lifecycle.post_start)),
        ("lifecycle.preStop", hook(&container.lifecycle.pre_stop)),
        ("stdinOnce", container.stdin_once),
        ("targetContainerName", container.target_container_name.is_some()),
    ];
    for (field, _) in without_effect.iter().filter(|(_, present)| *present) {
        report(format!("{at}.{field}"), Effect::Warn);
    }
    let all = |r: &RestartRule| r.action == RestartRuleAction::RestartAllContainers;
    if container.restart_policy_rules.iter().any(all) {
        report(format!("{at}.restartPolicyRules"), Effect::Refuse);
    }
}

/// An AppArmor profile is a promise that cannot be kept here. SELinux labels are different: on a node without SELinux,
/// kubelet runs the pod without them, and so do we.
fn labelling(
    at: &str,
    (app_armor, se_linux): (Option<&SecurityProfile>, bool),
    report: &mut impl FnMut(String, Effect),
) {
    if matches!(app_armor, Some(SecurityProfile::Localhost(_) | SecurityProfile::RuntimeDefault)) {
        report(format!("{at}.appArmorProfile"), Effect::Refuse);
    }
    if se_linux {
        report(format!("{at}.seLinuxOptions"), Effect::Warn);
    }
}

/// Limits that nobody enforces. Huge pages are memory: taken without a limit they are taken from others.
fn limits(at: &str, resources: &Resources, report: &mut impl FnMut(String, Effect)) {
    for name in resources.limits.keys().filter(|n| !["cpu", "memory"].contains(&n.as_str())) {
        let effect = if name.starts_with("hugepages-") { Effect::Refuse } else { Effect::Warn };
        report(format!("{at}.limits.{name}"), effect);
    }
}
