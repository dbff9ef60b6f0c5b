//! Bringing pods up.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::sim::{Sim, container, container_with, one};
use super::world::{NODE_IP, attempt};
use crate::pod::action::Action;
use crate::pod::observed::Sandbox;
use crate::pod::spec::Pod;
use crate::pod::status::{ConditionStatus, Phase};

#[test]
fn volumes_images_and_sandbox_are_prepared_side_by_side() {
    let mut sim = Sim::new(&one("Always"));
    let rounds: Vec<Vec<Action>> = (0..4).map(|_| sim.step()).collect();
    let start = Action::StartContainer { id: attempt("a", 0), backoff: Duration::ZERO };
    assert_eq!(
        rounds,
        [
            vec![
                Action::CreateSandbox { attempt: 0 },
                Action::PrepareVolumes,
                Action::PullImage { image: "a:1".into() }
            ],
            vec![Action::AttachNetwork],
            vec![start],
            vec![],
        ]
    );
    assert_eq!(sim.status().phase, Phase::Running);
    assert_eq!(sim.state("a"), "running");
    assert_eq!(
        sim.events,
        [
            "Pulling: Pulling image \"a:1\"",
            "Pulled: Successfully pulled image \"a:1\"",
            "Created: Container created",
            "Started: Container started",
        ]
    );
    assert!(sim.plan.unwrap().wake_at.is_none(), "nothing but a change is waited for");
}

#[test]
fn what_is_in_flight_is_not_planned_again_and_the_rest_goes_on() {
    let mut sim = Sim::new(&one("Always"));
    let begun = sim.begin();
    assert_eq!(sim.begin(), []);
    sim.end(&begun[0]);
    assert_eq!(sim.begin(), [Action::AttachNetwork], "the network does not wait for the image");
    assert_eq!(sim.state("a"), "waiting ContainerCreating");
    assert_eq!(sim.status().phase, Phase::Pending);
}

#[test]
fn a_pod_on_the_nodes_network_gets_no_network_of_its_own() {
    let mut sim = Sim::new(&json!({"hostNetwork": true, "containers": [container("a")]}));
    let done = sim.settle();
    assert_eq!(done, ["CreateSandbox 0", "PrepareVolumes", "PullImage a:1", "StartContainer a/0"]);
    assert_eq!(sim.status().pod_ip, Some(NODE_IP));
    sim.delete(1);
    assert_eq!(
        sim.settle(),
        [
            "StopContainer a/0",
            "RemoveSandbox",
            "RemoveVolumes",
            "RemoveContainer a/0",
            "RemoveRemains",
            "DeleteObject"
        ]
    );
}

#[test]
fn a_pod_on_the_nodes_network_does_not_wait_for_the_node_to_have_an_address() {
    let mut sim = Sim::new(&json!({"hostNetwork": true, "containers": [container("a")]}));
    sim.step();
    if let Sandbox::Ready { addresses, .. } = &mut sim.world.observed.sandbox {
        *addresses = None;
    }
    sim.world.lenient = true;
    assert_eq!(sim.settle(), ["StartContainer a/0"]);
    assert_eq!(sim.condition("PodReadyToStartContainers").status, ConditionStatus::True);
}

#[test]
fn init_containers_run_one_after_the_other_before_the_regular_ones() {
    let mut sim = Sim::up(&json!({
        "initContainers": [container("i1"), container("i2")], "containers": [container("a"), container("b")],
    }));
    assert_eq!(sim.world.running(), ["i1"]);
    assert_eq!(sim.state("i2"), "waiting PodInitializing");
    assert_eq!(sim.state("a"), "waiting PodInitializing");
    let initialized = sim.condition("Initialized");
    assert_eq!(initialized.message, "containers with incomplete status: [i1 i2]");
    assert_eq!(sim.exit("i1", 0), ["StartContainer i2/0"]);
    assert_eq!(sim.condition("Initialized").message, "containers with incomplete status: [i2]");
    assert_eq!(sim.exit("i2", 0), ["StartContainer a/0", "StartContainer b/0"]);
    assert_eq!(sim.condition("Initialized").status, ConditionStatus::True);
    assert_eq!(sim.state("i1"), "terminated Completed 0");
    assert!(sim.container("i1").ready);
    assert_eq!(sim.status().phase, Phase::Running);
}

#[test]
fn a_failing_init_container_ends_a_pod_that_never_restarts() {
    let mut sim = Sim::up(&json!({
        "restartPolicy": "Never", "initContainers": [container("i")], "containers": [container("a")],
    }));
    let done = sim.exit("i", 7);
    assert_eq!(done, ["DetachNetwork", "RemoveSandbox", "RemoveVolumes"]);
    assert_eq!(sim.status().phase, Phase::Failed);
    assert_eq!(sim.state("i"), "terminated Error 7");
    assert_eq!(sim.state("a"), "waiting PodInitializing");
}

#[test]
fn a_failing_init_container_is_tried_again_with_back_off() {
    let mut sim = Sim::up(&json!({
        "initContainers": [container("i")], "containers": [container("a")],
    }));
    assert_eq!(sim.exit("i", 1), ["StartContainer i/1"]);
    assert_eq!(sim.exit("i", 1), [] as [&str; 0]);
    assert_eq!(sim.state("i"), "waiting CrashLoopBackOff");
    assert_eq!(sim.status().phase, Phase::Pending);
    assert_eq!(sim.seconds(10), ["StartContainer i/2", "RemoveContainer i/0"]);
    assert_eq!(sim.exit("i", 0), ["StartContainer a/0"]);
}

#[test]
fn the_next_container_waits_for_a_sidecar_to_have_started() {
    let sidecar = container_with("s", &json!({"restartPolicy": "Always"}));
    let mut sim = Sim::new(&json!({
        "restartPolicy": "Never", "initContainers": [sidecar, container("i")], "containers": [container("a")],
    }));
    sim.step();
    sim.step();
    sim.step();
    sim.world.newest("s").unwrap().vitals.started = false;
    assert_eq!(sim.settle(), [] as [&str; 0]);
    assert!(!sim.container("s").ready);
    sim.world.newest("s").unwrap().vitals.started = true;
    assert_eq!(sim.settle(), ["StartContainer i/0"]);
    // It is restarted in a pod that restarts nothing, and holds nobody up when others have begun.
    assert_eq!(sim.exit("s", 3), ["StartContainer s/1"]);
    assert_eq!(sim.exit("i", 0), ["StartContainer a/0"]);
    // Its exit code does not count.
    sim.exit("s", 9);
    assert_eq!(sim.exit("a", 0), ["DetachNetwork", "RemoveSandbox", "RemoveVolumes"]);
    assert_eq!(sim.status().phase, Phase::Succeeded);
}

#[test]
fn a_lost_sandbox_is_cleared_away_and_made_anew_with_its_init_containers() {
    let mut sim = Sim::up(&json!({"initContainers": [container("i")], "containers": [container("a")]}));
    sim.exit("i", 0);
    let old_ip = sim.status().pod_ip;
    sim.world.lose_sandbox();
    sim.events.clear();
    assert_eq!(
        sim.settle(),
        ["DetachNetwork", "RemoveSandbox", "CreateSandbox 1", "AttachNetwork", "StartContainer i/1"]
    );
    assert_eq!(sim.events[0], "SandboxChanged: Pod sandbox changed, it will be killed and re-created.");
    assert_ne!(sim.status().pod_ip, old_ip);
    assert_eq!(sim.status().phase, Phase::Running, "it does not go back to Pending");
    assert_eq!(sim.container("a").last_state.as_ref().unwrap().reason, "ContainerStatusUnknown");
    assert_eq!(sim.exit("i", 0), ["StartContainer a/1"]);
    assert_eq!(sim.container("a").restart_count, 1);
}

#[test]
fn a_start_begun_in_a_lost_sandbox_must_not_end_in_the_next() {
    let mut sim = Sim::new(&one("Always"));
    sim.step();
    sim.step();
    let start = sim.begin();
    sim.world.lose_sandbox();
    sim.world.racy = true;
    assert_eq!(sim.begin(), [], "the start is waited for");
    sim.end(&start[0]);
    assert_eq!(
        sim.settle(),
        ["DetachNetwork", "RemoveSandbox", "CreateSandbox 1", "AttachNetwork"],
        "and tried again after its back-off"
    );
}

#[test]
fn an_attempt_that_claims_to_run_in_an_earlier_sandbox_does_not() {
    let mut sim = Sim::up(&one("Always"));
    sim.world.newest("a").unwrap().sandbox = 7;
    assert_eq!(sim.settle(), ["StartContainer a/1"]);
    assert_eq!(sim.container("a").last_state.as_ref().unwrap().reason, "ContainerStatusUnknown");
}

#[test]
fn a_lost_sandbox_ends_a_pod_that_never_restarts() {
    let mut sim = Sim::up(&one("Never"));
    sim.world.lose_sandbox();
    assert_eq!(sim.settle(), ["DetachNetwork", "RemoveSandbox", "RemoveVolumes"]);
    assert_eq!(sim.status().phase, Phase::Failed);
    assert_eq!(sim.state("a"), "terminated ContainerStatusUnknown 137");
}

#[test]
fn a_failed_set_up_is_tried_again_after_a_growing_wait() {
    let cases = [
        ("CreateSandbox", "FailedCreatePodSandBox"),
        ("AttachNetwork", "FailedCreatePodSandBox"),
        ("PrepareVolumes", "FailedMount"),
    ];
    for (kind, reason) in cases {
        let event = &format!("{reason}: {kind} failed");
        let mut sim = Sim::new(&one("Always"));
        sim.world.failing.insert(kind, reason);
        sim.settle();
        assert_eq!(sim.events.iter().filter(|e| *e == event).count(), 1, "{kind}: {:?}", sim.events);
        assert_eq!(sim.state("a"), "waiting ContainerCreating");
        sim.pass(Duration::from_millis(499));
        assert_eq!(sim.events.iter().filter(|e| *e == event).count(), 1);
        sim.pass(Duration::from_millis(1));
        assert_eq!(sim.events.iter().filter(|e| *e == event).count(), 2);
        sim.world.failing.clear();
        sim.seconds(1);
        assert_eq!(sim.state("a"), "running", "{kind}");
        assert!(matches!(sim.world.observed.sandbox, Sandbox::Ready { attempt: 0, .. }));
    }
}

#[test]
fn a_container_that_cannot_be_configured_waits_with_the_reason() {
    let mut sim = Sim::new(&one("Always"));
    sim.world.failing.insert("StartContainer", "CreateContainerConfigError");
    sim.settle();
    assert_eq!(sim.state("a"), "waiting CreateContainerConfigError");
    assert_eq!(sim.message("a"), "StartContainer failed");
    assert_eq!(sim.container("a").restart_count, 0);
    assert_eq!(sim.status().phase, Phase::Pending);
    sim.world.failing.clear();
    sim.seconds(1);
    assert_eq!(sim.state("a"), "running");
    assert_eq!(sim.container("a").restart_count, 0, "what was never created does not count");
}

#[test]
fn a_container_whose_image_is_changed_is_replaced_whatever_the_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let mut sim = Sim::up(&json!({
            "restartPolicy": policy, "terminationGracePeriodSeconds": 20,
            "containers": [container("a"), container("b")],
        }));
        sim.world.stubborn.insert("a".into());
        let mut changed = Pod::clone(&sim.wanted.pod);
        changed.spec.containers[0].image = "a:2".into();
        sim.wanted.pod = Arc::new(changed);
        sim.events.clear();
        assert_eq!(sim.seconds(19), ["StopContainer a/0"], "{policy}");
        let done = sim.seconds(1);
        assert_eq!(done, ["KillContainer a/0", "PullImage a:2", "StartContainer a/1"], "{policy}");
        assert_eq!(sim.events[0], "Killing: Container a definition changed, will be restarted");
        assert_eq!(sim.container("a").image, "a:2");
        assert_eq!(sim.container("b").restart_count, 0);
        assert_eq!(sim.status().phase, Phase::Running);
    }
}

#[test]
fn an_ephemeral_container_starts_at_once_and_never_again() {
    let mut sim = Sim::up(&json!({
        "initContainers": [container("i")], "containers": [container("a")], "ephemeralContainers": [container("e")],
    }));
    assert_eq!(sim.world.running(), ["i", "e"]);
    assert_eq!(sim.exit("e", 1), [] as [&str; 0]);
    assert_eq!(sim.state("e"), "terminated Error 1");
    assert_eq!(sim.exit("i", 0), ["StartContainer a/0"]);
    assert_eq!(sim.status().phase, Phase::Running);
}

#[test]
fn a_pod_with_a_field_that_must_not_be_ignored_is_not_started() {
    let mut sim = Sim::new(&json!({"hostUsers": false, "containers": [container("a")]}));
    assert_eq!(sim.settle(), [] as [&str; 0]);
    let message = "not supported by this node, and not safe to ignore: spec.hostUsers";
    assert_eq!(sim.state("a"), "waiting CreateContainerConfigError");
    assert_eq!(sim.message("a"), message);
    assert_eq!(sim.events, [format!("Failed: Error: {message}")]);
    assert_eq!(sim.condition("UnsupportedFields").message, "spec.hostUsers");
    sim.delete(30);
    assert_eq!(sim.settle(), ["DeleteObject"]);
}

#[test]
fn a_field_without_effect_is_said_once() {
    let mut sim = Sim::new(&json!({"newField": 1, "containers": [container("a")]}));
    sim.settle();
    sim.seconds(100);
    let event = "FailedValidation: Not supported by this node and without effect: spec.newField";
    assert_eq!(sim.events.iter().filter(|e| *e == event).count(), 1);
    assert_eq!(sim.state("a"), "running");
    assert_eq!(sim.condition("UnsupportedFields").status, ConditionStatus::True);
}
