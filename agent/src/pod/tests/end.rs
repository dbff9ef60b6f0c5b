//! The end of pods: deletion, deadlines, completion.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::sim::{Sim, container, container_with, one, pod};
use crate::pod::spec::Pod;
use crate::pod::status::Phase;
use crate::pod::wanted::{Object, Rejection};

const NOTHING: [&str; 0] = [];
const REMOVAL: [&str; 6] = [
    "DetachNetwork",
    "RemoveSandbox",
    "RemoveVolumes",
    "RemoveContainer a/0",
    "RemoveRemains",
    "DeleteObject",
];

#[test]
fn a_deleted_pod_is_stopped_and_taken_down_in_the_reverse_order_of_its_set_up() {
    let mut sim = Sim::up(&one("Always"));
    sim.delete(30);
    let done = sim.settle();
    assert_eq!(done[0], "StopContainer a/0");
    assert_eq!(done[1..], REMOVAL);
    assert!(sim.is_done() && sim.world.is_empty());
    assert_eq!(sim.status().phase, Phase::Failed);
    assert_eq!(sim.state("a"), "terminated Error 143", "the record is gone, the status still tells");
    assert!(sim.events.contains(&"Killing: Stopping container a".to_owned()));
}

#[test]
fn who_ends_well_on_the_stop_signal_has_succeeded() {
    let mut sim = Sim::up(&one("Always"));
    sim.world.stubborn.insert("a".into());
    sim.delete(30);
    sim.settle();
    sim.exit("a", 0);
    assert_eq!(sim.status().phase, Phase::Succeeded);
}

#[test]
fn who_ignores_the_stop_signal_is_killed_when_the_grace_period_is_over() {
    let mut sim = Sim::up(&one("Always"));
    sim.world.stubborn.insert("a".into());
    sim.delete(30);
    assert_eq!(sim.settle(), ["StopContainer a/0"]);
    assert_eq!(sim.status().phase, Phase::Running);
    assert_eq!(sim.pass(Duration::from_millis(29_999)), NOTHING);
    let done = sim.pass(Duration::from_millis(1));
    assert_eq!(done[0], "KillContainer a/0");
    assert_eq!(done[1..], REMOVAL);
    assert_eq!(sim.state("a"), "terminated Error 137");
}

#[test]
fn the_grace_period_can_only_shrink() {
    // (first grace, second grace after 10 s, killed after how many seconds in all)
    for (first, second, killed) in [(60, 5, 15), (60, 300, 60), (20, 60, 20), (60, 0, 11)] {
        let mut sim = Sim::up(&one("Always"));
        sim.world.stubborn.insert("a".into());
        sim.delete(first);
        sim.seconds(10);
        sim.delete(second);
        assert_eq!(sim.seconds(killed - 11), NOTHING, "{first} then {second}");
        assert_eq!(sim.seconds(1)[0], "KillContainer a/0", "{first} then {second}");
    }
}

#[test]
fn even_no_grace_leaves_two_seconds_between_signal_and_force() {
    let mut sim = Sim::up(&one("Always"));
    sim.world.stubborn.insert("a".into());
    sim.delete(0);
    assert_eq!(sim.settle(), ["StopContainer a/0"]);
    assert_eq!(sim.seconds(1), NOTHING);
    assert_eq!(sim.seconds(1)[0], "KillContainer a/0");
}

#[test]
fn sidecars_stop_after_the_regular_containers_in_reverse_order() {
    let sidecar = |name| container_with(name, &json!({"restartPolicy": "Always"}));
    let spec = json!({
        "initContainers": [sidecar("s1"), sidecar("s2")], "containers": [container("a"), container("b")],
    });
    let mut sim = Sim::up(&spec);
    assert_eq!(sim.world.running(), ["s1", "s2", "a", "b"]);
    sim.delete(30);
    let stops: Vec<String> = sim.settle().into_iter().take(4).collect();
    assert_eq!(stops, ["StopContainer a/0", "StopContainer b/0", "StopContainer s2/0", "StopContainer s1/0"]);

    // One grace period for all: when the regular ones use it up, the sidecars get two seconds.
    let mut sim = Sim::up(&spec);
    sim.world.stubborn.extend(["a".into(), "s1".into()]);
    sim.delete(30);
    assert_eq!(sim.seconds(29), ["StopContainer a/0", "StopContainer b/0"]);
    let overtime = ["StopContainer s1/0", "StopContainer s2/0", "KillContainer a/0"];
    let mut done = sim.seconds(1);
    done.sort_by_key(|d| !d.starts_with("Stop"));
    assert_eq!(done, overtime);
    assert_eq!(sim.seconds(1), NOTHING);
    assert_eq!(sim.seconds(1)[0], "KillContainer s1/0");
}

#[test]
fn a_force_deleted_pod_still_gets_its_grace_period() {
    let mut sim = Sim::up(&one("Always"));
    sim.world.stubborn.insert("a".into());
    sim.wanted.object = Object::Gone;
    assert_eq!(sim.seconds(29), ["StopContainer a/0"]);
    let done = sim.seconds(1);
    assert_eq!(done[0], "KillContainer a/0");
    assert_eq!(done[1..], REMOVAL[..5], "there is no object to delete");
    assert!(sim.is_done());
}

#[test]
fn a_pod_deleted_while_the_daemon_was_down_is_stopped_at_start() {
    let mut sim = Sim::up(&one("Always"));
    sim.delete(30);
    sim.now = sim.now.checked_add(Duration::from_secs(3600)).unwrap();
    sim.restart_daemon();
    let done = sim.settle();
    assert_eq!(done[0], "StopContainer a/0");
    assert_eq!(done[1..], REMOVAL);
}

#[test]
fn a_stop_signal_that_an_earlier_daemon_sent_counts() {
    let mut sim = Sim::up(&one("Always"));
    sim.world.stubborn.insert("a".into());
    sim.delete(30);
    sim.seconds(20);
    sim.world.newest("a").unwrap().vitals.stop_sent_at =
        Some(sim.now.checked_sub(Duration::from_secs(20)).unwrap());
    sim.restart_daemon();
    assert_eq!(sim.seconds(9), NOTHING, "it is not sent twice");
    assert_eq!(sim.seconds(1)[0], "KillContainer a/0");
}

#[test]
fn a_pod_deleted_before_anything_was_done_leaves_at_once() {
    let mut sim = Sim::new(&one("Always"));
    sim.delete(30);
    assert_eq!(sim.settle(), ["DeleteObject"]);
    assert_eq!(sim.status().phase, Phase::Failed);
}

#[test]
fn a_deletion_waits_for_what_is_being_set_up() {
    let mut sim = Sim::new(&one("Always"));
    let begun = sim.begin();
    sim.delete(30);
    assert_eq!(sim.begin(), []);
    for action in &begun {
        sim.end(action);
    }
    let done = sim.settle();
    assert_eq!(done, ["DetachNetwork", "RemoveSandbox", "RemoveVolumes", "RemoveRemains", "DeleteObject"]);
}

#[test]
fn a_container_that_is_being_started_when_the_pod_is_deleted_is_stopped_after_its_start() {
    let mut sim = Sim::new(&one("Always"));
    sim.step();
    sim.step();
    let start = sim.begin();
    sim.delete(30);
    assert_eq!(sim.begin(), []);
    assert_eq!(sim.status().phase, Phase::Pending, "no final word while something may yet run");
    sim.end(&start[0]);
    assert_eq!(sim.settle()[0], "StopContainer a/0");
}

#[test]
fn what_fails_in_the_teardown_is_tried_until_it_works() {
    for kind in ["DetachNetwork", "RemoveSandbox", "RemoveVolumes", "RemoveContainer", "RemoveRemains"] {
        let mut sim = Sim::up(&one("Always"));
        sim.world.failing.insert(kind, "FailedKillPod");
        sim.delete(5);
        sim.seconds(600);
        assert!(!sim.is_done());
        assert!(sim.events.contains(&format!("FailedKillPod: {kind} failed")));
        sim.world.failing.clear();
        sim.seconds(15);
        assert!(sim.is_done() && sim.world.is_empty(), "{kind}");
    }
}

#[test]
fn a_stop_signal_that_cannot_be_sent_does_not_keep_force_away() {
    let mut sim = Sim::up(&one("Always"));
    sim.world.failing.insert("StopContainer", "FailedKillPod");
    sim.delete(5);
    sim.seconds(4);
    assert_eq!(sim.world.running(), ["a"]);
    sim.seconds(1);
    assert!(sim.is_done());
}

#[test]
fn an_object_that_cannot_be_deleted_yet_is_tried_again() {
    let mut sim = Sim::up(&one("Always"));
    sim.world.failing.insert("DeleteObject", "FailedDelete");
    sim.delete(5);
    sim.seconds(60);
    assert!(!sim.is_done());
    // The API server forgot it by itself.
    sim.wanted.object = Object::Gone;
    sim.settle();
    assert!(sim.is_done());
}

#[test]
fn a_pod_that_has_ended_releases_what_it_used_and_keeps_its_records() {
    let mut sim = Sim::up(&one("Never"));
    let ip = sim.status().pod_ip;
    assert_eq!(sim.exit("a", 0), ["DetachNetwork", "RemoveSandbox", "RemoveVolumes"]);
    assert_eq!(sim.status().phase, Phase::Succeeded);
    assert_eq!(sim.status().pod_ip, ip, "the address stays in the status");
    assert_eq!(sim.world.observed.attempts.len(), 1);
    assert!(!sim.is_done());
    sim.delete(30);
    assert_eq!(sim.settle(), ["RemoveContainer a/0", "RemoveRemains", "DeleteObject"]);
    assert_eq!(sim.status().phase, Phase::Succeeded);
}

#[test]
fn the_active_deadline_counts_from_the_start_time_and_outlives_the_daemon() {
    let mut sim = Sim::up(&json!({
        "activeDeadlineSeconds": 100, "terminationGracePeriodSeconds": 10, "containers": [container("a")],
    }));
    sim.world.stubborn.insert("a".into());
    sim.seconds(60);
    sim.restart_daemon();
    assert_eq!(sim.seconds(39), NOTHING);
    assert_eq!(sim.seconds(1), ["StopContainer a/0"]);
    assert_eq!(sim.status().phase, Phase::Running, "not before its containers have ended");
    sim.seconds(10);
    let status = sim.status();
    assert_eq!((status.phase, status.reason.as_str()), (Phase::Failed, "DeadlineExceeded"));
    assert_eq!(status.message, "Pod was active on the node longer than the specified deadline");
    assert_eq!(sim.events.iter().filter(|e| e.starts_with("DeadlineExceeded")).count(), 1);
}

#[test]
fn a_rejected_pod_fails_without_anything_being_done() {
    let mut sim = Sim::new(&one("Always"));
    sim.wanted.rejected =
        Some(Rejection { reason: "OutOfcpu", message: "Node didn't have enough resource: cpu".into() });
    assert_eq!(sim.settle(), NOTHING);
    let status = sim.status();
    assert_eq!((status.phase, status.reason.as_str()), (Phase::Failed, "OutOfcpu"));
    assert_eq!(status.message, "Pod was rejected: Node didn't have enough resource: cpu");
    let conditions: Vec<&str> = status.conditions.iter().map(|c| c.kind.as_str()).collect();
    assert_eq!((status.container_statuses.len(), conditions), (0, vec!["PodScheduled"]));
    assert_eq!(sim.events, ["OutOfcpu: Node didn't have enough resource: cpu"]);
    // The next daemon does not ask again: the status is final.
    sim.restart_daemon();
    sim.wanted.rejected = None;
    assert_eq!(sim.settle(), NOTHING);
    let status = sim.status();
    assert_eq!((status.reason.as_str(), status.container_statuses.len()), ("OutOfcpu", 0));
}

#[test]
fn a_pod_that_the_api_server_calls_failed_is_ended() {
    let mut sim = Sim::up(&one("Always"));
    let mut failed = Pod::clone(&sim.wanted.pod);
    failed.status = sim.status().clone();
    failed.status.phase = Phase::Failed;
    failed.status.reason = "Evicted".into();
    sim.wanted.pod = Arc::new(failed);
    let done = sim.settle();
    assert_eq!(done, ["StopContainer a/0", "DetachNetwork", "RemoveSandbox", "RemoveVolumes"]);
    assert_eq!((sim.status().phase, sim.status().reason.as_str()), (Phase::Failed, "Evicted"));
}

#[test]
fn a_final_phase_never_goes_back() {
    let mut sim = Sim::up(&one("Never"));
    sim.exit("a", 0);
    // An old object is read again, from before the end.
    sim.wanted.pod = Arc::new(pod(&one("Never")));
    sim.settle();
    assert_eq!(sim.status().phase, Phase::Succeeded);
    sim.world.observed.attempts.clear();
    sim.settle();
    assert_eq!(sim.status().phase, Phase::Succeeded);
    assert_eq!(sim.state("a"), "terminated Completed 0");
}

#[test]
fn half_prepared_volumes_of_a_crash_are_removed_too() {
    let mut sim = Sim::new(&one("Always"));
    sim.world.observed.remains = true;
    sim.delete(30);
    assert_eq!(sim.settle(), ["RemoveVolumes", "RemoveRemains", "DeleteObject"]);
}
