//! The pod's conditions. Owns: ours, in kubelet's words, with a transition time that moves only when the status does.
//! Never: touches the conditions of others (readiness gates, `DisruptionTarget`, ...).

use super::super::facts::{Facts, whole_seconds};
use super::super::plan::sequence;
use super::super::spec::{ContainerKind, Unsupported};
use super::{Condition, ConditionStatus, ContainerState, ContainerStatus, Phase, PodStatus};

const OURS: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", UNSUPPORTED];
/// Says which fields of the PodSpec this node does not support; absent if there are none.
const UNSUPPORTED: &str = "UnsupportedFields";
const SCHEDULED: &str = "PodScheduled";

/// What a condition says, without its times.
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: "", message: String::new() }
    }

    fn yes_because(reason: &'static str) -> Self {
        Self { holds: true, reason, message: String::new() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { holds: false, reason, message }
    }
}

/// The conditions that go with the rest of `status`.
pub(super) fn conditions(facts: &Facts<'_>, status: &PodStatus) -> Vec<Condition> {
    let containers_ready = containers_ready(facts, status);
    let mut all = vec![
        condition(facts, OURS[0], sandbox_ready(facts)),
        condition(facts, OURS[1], initialized(facts, status)),
        condition(facts, OURS[2], ready(facts, &containers_ready)),
        condition(facts, OURS[3], containers_ready),
    ];
    let unsupported = &facts.pod().unsupported;
    if !unsupported.is_empty() {
        let fields: Vec<String> = unsupported.iter().map(Unsupported::to_string).collect();
        let verdict = Verdict { holds: true, reason: "NotSupportedByNode", message: fields.join(", ") };
        all.push(condition(facts, UNSUPPORTED, verdict));
    }
    all.extend(of_others(facts));
    all
}

/// Those that this node only passes on; but it is scheduled, whoever did it.
pub(super) fn of_others(facts: &Facts<'_>) -> Vec<Condition> {
    let read = &facts.pod().status.conditions;
    let scheduled = !read.iter().any(|c| c.kind == SCHEDULED);
    let scheduled = scheduled.then(|| condition(facts, SCHEDULED, Verdict::yes()));
    scheduled.into_iter().chain(read.iter().filter(|c| !OURS.contains(&c.kind.as_str())).cloned()).collect()
}

fn condition(facts: &Facts<'_>, kind: &str, verdict: Verdict) -> Condition {
    let status = if verdict.holds { ConditionStatus::True } else { ConditionStatus::False };
    // Both count: the one reported may not have been read back yet, the one read may be older than this daemon.
    let known = [facts.prior_status(), &facts.pod().status];
    let since = known
        .iter()
        .filter_map(|s| s.conditions.iter().find(|c| c.kind == kind && c.status == status))
        .filter_map(|c| c.last_transition_time)
        .min();
    Condition {
        kind: kind.to_owned(),
        status,
        last_transition_time: Some(since.unwrap_or(whole_seconds(facts.now))),
        last_probe_time: None,
        reason: verdict.reason.to_owned(),
        message: verdict.message,
        observed_generation: facts.pod().metadata.generation,
    }
}

/// KEP-3085: sandbox and network are there.
fn sandbox_ready(facts: &Facts<'_>) -> Verdict {
    if facts.network_ready() {
        Verdict::yes()
    } else {
        Verdict { holds: false, reason: "", message: String::new() }
    }
}

fn initialized(facts: &Facts<'_>, status: &PodStatus) -> Verdict {
    if status.phase == Phase::Succeeded {
        return Verdict::yes_because("PodCompleted");
    }
    let begun = facts.of(ContainerKind::Regular).any(super::super::facts::ContainerFacts::has_run);
    let open: Vec<&ContainerStatus> = status
        .init_container_statuses
        .iter()
        .zip(facts.of(ContainerKind::Init))
        .filter(|(s, c)| if c.is_sidecar() { s.started != Some(true) } else { !s.ready })
        .map(|(s, _)| s)
        .collect();
    if begun || open.is_empty() || sequence::initialized(facts) {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotInitialized", format!("containers with incomplete status: {}", names(&open)))
}

fn containers_ready(facts: &Facts<'_>, status: &PodStatus) -> Verdict {
    match status.phase {
        Phase::Succeeded => return Verdict::no("PodCompleted", String::new()),
        Phase::Failed => return Verdict::no("PodFailed", String::new()),
        Phase::Pending | Phase::Running | Phase::Unknown => {}
    }
    let sidecars = status
        .init_container_statuses
        .iter()
        .zip(facts.of(ContainerKind::Init))
        .filter(|(_, c)| c.is_sidecar())
        .map(|(s, _)| s);
    let unready: Vec<&ContainerStatus> =
        sidecars.chain(&status.container_statuses).filter(|s| !s.ready).collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", format!("containers with unready status: {}", names(&unready)))
}

/// Ready: its containers are, and so say the readiness gates.
fn ready(facts: &Facts<'_>, containers_ready: &Verdict) -> Verdict {
    if !containers_ready.holds {
        return Verdict::no(containers_ready.reason, containers_ready.message.clone());
    }
    let mut messages = Vec::new();
    for gate in &facts.pod().spec.readiness_gates {
        let kind = &gate.condition_type;
        match facts.pod().status.conditions.iter().find(|c| c.kind == *kind) {
            None => messages
                .push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(c) if c.status != ConditionStatus::True => messages.push(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {:?}",
                c.status
            )),
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ReadinessGatesNotReady", messages.join(", "))
}

/// `[a b]`, as Go prints a list.
fn names(statuses: &[&ContainerStatus]) -> String {
    let names: Vec<&str> = statuses.iter().map(|s| s.name.as_str()).collect();
    format!("[{}]", names.join(" "))
}

impl ContainerStatus {
    /// Whether it ended.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, ContainerState::Terminated(_))
    }
}
