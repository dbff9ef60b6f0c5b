//! Restart policies and CrashLoopBackOff.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::sim::{Sim, container_with, one};
use crate::pod::action::Action;
use crate::pod::spec::Pod;
use crate::pod::status::Phase;

#[test]
fn the_policy_and_the_exit_code_decide() {
    let cases = [
        ("Always", 0, true, Phase::Running),
        ("Always", 1, true, Phase::Running),
        ("OnFailure", 0, false, Phase::Succeeded),
        ("OnFailure", 1, true, Phase::Running),
        ("Never", 0, false, Phase::Succeeded),
        ("Never", 1, false, Phase::Failed),
    ];
    for (policy, code, again, phase) in cases {
        let mut sim = Sim::up(&one(policy));
        let done = sim.exit("a", code);
        let case = format!("{policy}, exit code {code}");
        assert_eq!(done.contains(&"StartContainer a/1".to_owned()), again, "{case}");
        assert_eq!(sim.status().phase, phase, "{case}");
        assert_eq!(sim.container("a").restart_count, u32::from(again), "{case}");
        if again {
            assert_eq!(sim.container("a").last_state.as_ref().unwrap().exit_code, code, "{case}");
        }
    }
}

#[test]
fn rules_on_the_exit_code_come_before_the_policies() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let cases = [
        (json!({"restartPolicyRules": rules, "restartPolicy": "Never"}), "Never", 42, true),
        (json!({"restartPolicyRules": rules, "restartPolicy": "Never"}), "Always", 41, false),
        (json!({"restartPolicy": "Always"}), "Never", 0, true),
        (json!({"restartPolicy": "OnFailure"}), "Always", 0, false),
    ];
    for (fields, pod_policy, code, again) in cases {
        let mut sim = Sim::up(&json!({
            "restartPolicy": pod_policy, "containers": [container_with("a", &fields)],
        }));
        let done = sim.exit("a", code);
        assert_eq!(done.contains(&"StartContainer a/1".to_owned()), again, "{fields} {code}");
    }
}

/// Crashes the container as soon as it runs, and collects the waits in seconds.
fn waits(sim: &mut Sim, crashes: usize) -> Vec<u64> {
    let mut waits = Vec::new();
    for _ in 0..crashes {
        sim.world.exit("a", 1, sim.now);
        let crashed = sim.now;
        while sim.settle().is_empty() || sim.world.running().is_empty() {
            sim.now = sim.plan.as_ref().unwrap().wake_at.expect("a restart is due");
        }
        waits.push(sim.now.duration_since(crashed).unsigned_abs().as_secs());
    }
    waits
}

#[test]
fn the_first_restart_is_immediate_and_the_waits_then_double_up_to_five_minutes() {
    let mut sim = Sim::up(&one("Always"));
    assert_eq!(waits(&mut sim, 9), [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    assert_eq!(sim.container("a").restart_count, 9);
}

#[test]
fn the_longest_wait_can_be_configured() {
    for (max, wanted) in [(25, [0, 10, 20, 25, 25]), (3, [0, 3, 3, 3, 3])] {
        let mut sim = Sim::up(&one("Always"));
        sim.node.max_restart_period = Duration::from_secs(max);
        assert_eq!(waits(&mut sim, 5), wanted);
    }
}

#[test]
fn status_and_event_say_what_is_waited_for() {
    let mut sim = Sim::up(&one("Always"));
    sim.exit("a", 1);
    sim.exit("a", 2);
    assert_eq!(sim.state("a"), "waiting CrashLoopBackOff");
    assert_eq!(sim.message("a"), "back-off 10s restarting failed container=a pod=web_shop(u-1)");
    let status = sim.container("a");
    assert_eq!((status.restart_count, status.ready, status.started), (1, false, Some(false)));
    assert_eq!(status.last_state.as_ref().unwrap().exit_code, 2);
    assert_eq!(sim.status().phase, Phase::Running);
    let event = "BackOff: Back-off restarting failed container a in pod web_shop(u-1)";
    assert_eq!(sim.events.last().unwrap(), event);
    sim.seconds(5);
    assert_eq!(sim.events.iter().filter(|e| *e == event).count(), 1, "said once");
    sim.seconds(5);
    assert_eq!(sim.state("a"), "running");
}

#[test]
fn minutes_are_written_as_kubelet_writes_them() {
    let mut sim = Sim::up(&one("Always"));
    waits(&mut sim, 4);
    sim.exit("a", 1);
    assert!(sim.message("a").starts_with("back-off 1m20s restarting"), "{}", sim.message("a"));
    sim.seconds(80);
    waits(&mut sim, 1);
    sim.exit("a", 1);
    assert!(sim.message("a").starts_with("back-off 5m0s restarting"), "{}", sim.message("a"));
}

#[test]
fn ten_minutes_of_running_are_forgiving() {
    let mut sim = Sim::up(&one("Always"));
    waits(&mut sim, 4);
    sim.seconds(599);
    assert_eq!(waits(&mut sim, 1), [80], "not quite ten minutes");
    sim.seconds(600);
    assert_eq!(waits(&mut sim, 3), [0, 10, 20]);
}

#[test]
fn the_back_off_outlives_the_daemon() {
    let mut sim = Sim::up(&one("Always"));
    waits(&mut sim, 3);
    sim.exit("a", 1);
    sim.seconds(15);
    sim.restart_daemon();
    assert_eq!(sim.settle(), [] as [&str; 0]);
    assert!(sim.message("a").starts_with("back-off 40s"), "{}", sim.message("a"));
    assert_eq!(sim.seconds(24), [] as [&str; 0]);
    assert_eq!(sim.seconds(1), ["StartContainer a/4", "RemoveContainer a/2"]);
    assert_eq!(sim.container("a").restart_count, 4);
}

#[test]
fn a_program_that_cannot_be_started_crash_loops_too() {
    let mut sim = Sim::new(&one("Always"));
    sim.world.broken.insert("a".into());
    sim.settle();
    assert_eq!(sim.state("a"), "waiting CrashLoopBackOff");
    let status = sim.container("a");
    let last = status.last_state.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_str()), (128, "StartError"));
    assert_eq!(status.restart_count, 1, "the first restart was immediate");

    let mut never = Sim::new(&one("Never"));
    never.world.broken.insert("a".into());
    never.settle();
    assert_eq!(never.state("a"), "terminated StartError 128");
    assert_eq!(never.status().phase, Phase::Failed);
}

#[test]
fn the_restart_count_goes_on_after_a_reboot_that_forgot_the_attempts() {
    let mut sim = Sim::up(&one("Always"));
    waits(&mut sim, 2);
    assert_eq!(sim.container("a").restart_count, 2);
    sim.step();
    sim.restart_daemon();
    let images = sim.world.observed.images.clone();
    sim.world = super::world::World::default();
    sim.world.observed.images = images;
    let done = sim.settle();
    assert_eq!(done, ["CreateSandbox 0", "PrepareVolumes", "AttachNetwork", "StartContainer a/3"]);
    let status = sim.container("a");
    assert_eq!(status.restart_count, 3);
    assert_eq!(status.last_state.as_ref().unwrap().reason, "ContainerStatusUnknown");
}

#[test]
fn another_image_gets_its_chance_at_once() {
    let mut sim = Sim::up(&one("Always"));
    waits(&mut sim, 5);
    sim.exit("a", 1);
    assert_eq!(sim.state("a"), "waiting CrashLoopBackOff");
    let mut changed = Pod::clone(&sim.wanted.pod);
    changed.spec.containers[0].image = "a:2".into();
    sim.wanted.pod = Arc::new(changed);
    assert_eq!(sim.settle(), ["PullImage a:2", "StartContainer a/6", "RemoveContainer a/4"]);
    assert_eq!(waits(&mut sim, 3), [0, 10, 20]);
}

#[test]
fn two_attempts_are_kept() {
    let mut sim = Sim::up(&one("Always"));
    waits(&mut sim, 6);
    let kept: Vec<u32> = sim.world.observed.attempts.iter().map(|a| a.id.attempt).collect();
    assert_eq!(kept, [5, 6]);
    let remember =
        Action::StartContainer { id: super::world::attempt("a", 7), backoff: Duration::from_secs(300) };
    sim.seconds(5);
    sim.world.exit("a", 1, sim.now);
    sim.settle();
    sim.now = sim.plan.as_ref().unwrap().wake_at.unwrap();
    assert!(sim.begin().contains(&remember));
}
