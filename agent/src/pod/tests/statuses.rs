//! What the status says.

use std::sync::Arc;

use serde_json::json;

use super::sim::{Sim, container, one, start_of_test};
use crate::pod::observed::AttemptState;
use crate::pod::spec::{Pod, QosClass};
use crate::pod::status::{Condition, ConditionStatus, Phase};

fn edit(sim: &mut Sim, change: impl FnOnce(&mut Pod)) {
    let mut pod = Pod::clone(&sim.wanted.pod);
    change(&mut pod);
    sim.wanted.pod = Arc::new(pod);
}

fn foreign(kind: &str, status: ConditionStatus) -> Condition {
    Condition { kind: kind.into(), status, ..Condition::default() }
}

#[test]
fn a_running_pod_has_every_field_of_its_status() {
    let sim = Sim::up(&one("Always"));
    let status = serde_json::to_value(sim.status()).unwrap();
    let at = "2027-01-15T08:00:00Z";
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": at, "observedGeneration": 3});
    assert_eq!(
        status,
        json!({
            "observedGeneration": 3, "phase": "Running", "qosClass": "BestEffort", "startTime": at,
            "hostIP": "192.168.7.1", "hostIPs": [{"ip": "192.168.7.1"}],
            "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}],
            "conditions": [
                condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
                condition("ContainersReady"), condition("PodScheduled"),
            ],
            "containerStatuses": [{
                "name": "a", "ready": true, "started": true, "restartCount": 0, "image": "a:1",
                "imageID": "a:1@sha256:00", "containerID": "orlop://a-0",
                "state": {"running": {"startedAt": at}}, "lastState": {},
            }],
        })
    );
}

#[test]
fn the_transition_time_moves_only_when_the_status_does() {
    let mut sim = Sim::up(&one("Always"));
    sim.seconds(50);
    assert_eq!(sim.condition("Ready").last_transition_time, Some(start_of_test()));
    sim.world.newest("a").unwrap().vitals.ready = false;
    sim.settle();
    let ready = sim.condition("Ready");
    assert_eq!(ready.status, ConditionStatus::False);
    assert_eq!(ready.message, "containers with unready status: [a]");
    assert_eq!(ready.reason, "ContainersNotReady");
    assert_eq!(ready.last_transition_time, Some(sim.now));
    assert_eq!(sim.condition("Initialized").last_transition_time, Some(start_of_test()));
    // Neither does it move when the daemon starts again.
    let before = sim.now;
    sim.seconds(50);
    sim.restart_daemon();
    sim.settle();
    assert_eq!(sim.condition("Ready").last_transition_time, Some(before));
}

#[test]
fn the_conditions_of_others_survive_and_gate_readiness() {
    let mut sim = Sim::up(&json!({
        "containers": [container("a")], "readinessGates": [{"conditionType": "example.com/lb"}],
    }));
    assert_eq!(sim.condition("ContainersReady").status, ConditionStatus::True);
    let ready = sim.condition("Ready");
    assert_eq!(ready.reason, "ReadinessGatesNotReady");
    assert_eq!(
        ready.message,
        "corresponding condition of pod readiness gate \"example.com/lb\" does not exist."
    );
    edit(&mut sim, |pod| {
        pod.status.conditions.push(foreign("example.com/lb", ConditionStatus::True));
        pod.status.conditions.push(foreign("DisruptionTarget", ConditionStatus::True));
    });
    sim.settle();
    assert_eq!(sim.condition("Ready").status, ConditionStatus::True);
    assert_eq!(sim.condition("DisruptionTarget").status, ConditionStatus::True);
    edit(&mut sim, |pod| pod.status.conditions[0].status = ConditionStatus::False);
    sim.settle();
    assert_eq!(
        sim.condition("Ready").message,
        "the status of pod readiness gate \"example.com/lb\" is not \"True\", but False"
    );
}

#[test]
fn a_completed_pod_says_so_in_its_conditions() {
    let mut sim = Sim::up(&one("Never"));
    sim.exit("a", 0);
    for kind in ["Ready", "ContainersReady"] {
        let condition = sim.condition(kind);
        assert_eq!((condition.status, condition.reason.as_str()), (ConditionStatus::False, "PodCompleted"));
    }
    assert_eq!(sim.condition("Initialized").reason, "PodCompleted");
    assert_eq!(sim.condition("PodReadyToStartContainers").status, ConditionStatus::False);
}

#[test]
fn an_oom_kill_has_its_own_reason() {
    let mut sim = Sim::up(&one("Never"));
    sim.world.newest("a").unwrap().state = AttemptState::Exited {
        started_at: sim.now,
        finished_at: sim.now,
        exit_code: 137,
        signal: Some(9),
        oom_killed: true,
        message: Some("last words".into()),
    };
    sim.settle();
    assert_eq!(sim.state("a"), "terminated OOMKilled 137");
    assert_eq!(sim.status().phase, Phase::Failed);
}

#[test]
fn a_container_that_vanished_while_the_daemon_was_down_ended_in_an_unknown_way() {
    for (policy, phase, count) in [("Always", Phase::Running, 1), ("Never", Phase::Failed, 0)] {
        let mut sim = Sim::up(&one(policy));
        sim.restart_daemon();
        sim.world.observed.attempts.clear();
        sim.settle();
        assert_eq!(sim.status().phase, phase);
        let status = sim.container("a");
        assert_eq!(status.restart_count, count);
        let unknown = "ContainerStatusUnknown";
        match count {
            0 => assert_eq!(sim.state("a"), "terminated ContainerStatusUnknown 137"),
            _ => assert_eq!(status.last_state.as_ref().unwrap().reason, unknown),
        }
    }
}

#[test]
fn times_have_no_fractions_so_that_a_status_read_back_is_equal() {
    let mut sim = Sim::new(&one("Never"));
    sim.now = sim.now.checked_add(std::time::Duration::from_millis(789)).unwrap();
    sim.settle();
    sim.exit("a", 0);
    let text = serde_json::to_string(sim.status()).unwrap();
    let read: crate::pod::status::PodStatus = serde_json::from_str(&text).unwrap();
    assert_eq!(read, *sim.status());
    assert!(!text.contains(".789"), "{text}");
}

#[test]
fn the_class_of_service_follows_requests_and_limits() {
    let of = |resources: serde_json::Value| {
        let container = json!({"name": "a", "image": "a:1", "resources": resources});
        super::sim::pod(&json!({"containers": [container]})).qos_class()
    };
    let full = json!({"cpu": "1", "memory": "1Gi"});
    assert_eq!(of(json!({})), QosClass::BestEffort);
    assert_eq!(of(json!({"limits": full})), QosClass::Guaranteed);
    assert_eq!(of(json!({"limits": full, "requests": {"cpu": "0.5"}})), QosClass::Burstable);
    assert_eq!(of(json!({"requests": {"cpu": "0"}})), QosClass::BestEffort);
    assert_eq!(of(json!({"limits": {"cpu": "1"}})), QosClass::Burstable);
}
