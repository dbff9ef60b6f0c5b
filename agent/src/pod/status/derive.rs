//! From facts to the pod's status. Owns: phase, addresses, start time. Never: reports it.

use std::net::IpAddr;

use jiff::Timestamp;

use super::super::facts::{ContainerFacts, Facts, whole_seconds};
use super::super::plan::{Course, REJECTED, outcome_of_regular};
use super::super::spec::ContainerKind;
use super::{IpEntry, Phase, PodStatus, conditions, containers};

/// The status that goes with these facts, and when it may read differently by itself.
pub(in crate::pod) fn status(facts: &Facts<'_>, course: &Course) -> (PodStatus, Option<Timestamp>) {
    let (mut all, wake) = containers::statuses(facts, course);
    let ephemeral = all.split_off(facts.pod().spec.init_containers.len() + facts.pod().spec.containers.len());
    let regular = all.split_off(facts.pod().spec.init_containers.len());
    let phase = phase(facts, course);
    let (reason, message) = match course {
        Course::End(ending) if phase.is_terminal() => (ending.reason.clone(), ending.message.clone()),
        Course::Delete => match facts.terminal_status() {
            Some(status) => (status.reason.clone(), status.message.clone()),
            None => Default::default(),
        },
        Course::Run | Course::Refuse(_) | Course::End(_) => Default::default(),
    };
    let prior = facts.prior_status();
    let pod_ips = pod_ips(facts, prior);
    let host_ips = entries(&facts.node.host_ips);
    let mut status = PodStatus {
        observed_generation: facts.pod().metadata.generation,
        phase,
        conditions: Vec::new(),
        message,
        reason,
        host_ip: host_ips.first().map(|e| e.ip),
        host_ips,
        pod_ip: pod_ips.first().map(|e| e.ip),
        pod_ips,
        start_time: Some(whole_seconds(facts.start_time())),
        init_container_statuses: all,
        container_statuses: regular,
        ephemeral_container_statuses: ephemeral,
        qos_class: Some(facts.pod().qos_class()),
    };
    if was_never_taken(facts) {
        // As kubelet has it: with statuses of containers, `kubectl get` would show their reason in place of the pod's.
        status.conditions = conditions::of_others(facts);
        status.init_container_statuses.clear();
        status.container_statuses.clear();
        status.ephemeral_container_statuses.clear();
        return (PodStatus { host_ip: None, host_ips: Vec::new(), ..status }, None);
    }
    status.conditions = conditions::conditions(facts, &status);
    (status, wake)
}

/// A pod that was rejected, by this daemon or by one before it.
fn was_never_taken(facts: &Facts<'_>) -> bool {
    let begun = facts.containers.iter().any(|container| container.newest.is_some());
    let rejected_before =
        |status: &PodStatus| status.container_statuses.is_empty() && status.message.starts_with(REJECTED);
    !begun && (facts.wanted.rejected.is_some() || facts.terminal_status().is_some_and(rejected_before))
}

/// A terminal phase is final, and is reached only when nothing runs any more.
fn phase(facts: &Facts<'_>, course: &Course) -> Phase {
    if let Some(status) = facts.terminal_status() {
        return status.phase;
    }
    if !facts.any_live() {
        match course {
            Course::End(ending) => return ending.phase,
            Course::Delete => return outcome_of_regular(facts),
            Course::Run | Course::Refuse(_) => {}
        }
    }
    if facts.of(ContainerKind::Regular).all(ContainerFacts::has_run) {
        Phase::Running
    } else {
        Phase::Pending
    }
}

/// The addresses stay in the status when the sandbox is gone: users ask a finished pod for its address.
fn pod_ips(facts: &Facts<'_>, prior: &PodStatus) -> Vec<IpEntry> {
    match facts.addresses() {
        Some(_) | None if facts.pod().spec.host_network => entries(&facts.node.host_ips),
        Some(addresses) => entries(addresses),
        None => prior.pod_ips.clone(),
    }
}

fn entries(addresses: &[IpAddr]) -> Vec<IpEntry> {
    addresses.iter().map(|ip| IpEntry { ip: *ip }).collect()
}
