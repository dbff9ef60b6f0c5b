//! Pull policies, failed pulls, and images that may not run.

use serde_json::json;

use super::sim::{Sim, container, container_with, one};
use super::world::World;
use crate::pod::action::{Action, ActionKey};
use crate::pod::observed::Image;
use crate::pod::status::Phase;

fn with_policy(policy: &str) -> serde_json::Value {
    json!({"containers": [container_with("a", &json!({"imagePullPolicy": policy}))]})
}

fn store(world: &mut World, image: &str, user: &str) {
    let image_id = format!("{image}@sha256:00");
    world.observed.images.insert(image.to_owned(), Image { image_id, user: user.to_owned() });
}

#[test]
fn the_policy_says_whether_the_registry_is_asked() {
    let cases = [
        ("Always", true, true, "running"),
        ("Always", false, true, "running"),
        ("IfNotPresent", true, false, "running"),
        ("IfNotPresent", false, true, "running"),
        ("Never", true, false, "running"),
        ("Never", false, false, "waiting ErrImageNeverPull"),
    ];
    for (policy, present, pulled, state) in cases {
        let mut sim = Sim::new(&with_policy(policy));
        if present {
            store(&mut sim.world, "a:1", "1");
        }
        let done = sim.settle();
        let case = format!("{policy}, present: {present}");
        assert_eq!(done.contains(&"PullImage a:1".to_owned()), pulled, "{case}");
        assert_eq!(sim.state("a"), state, "{case}");
        let already =
            "Pulled: Container image \"a:1\" already present on machine and can be accessed by the pod";
        let said = sim.events.iter().any(|e| e == already);
        assert_eq!(said, !pulled && state == "running", "{case}");
    }
}

#[test]
fn an_image_that_may_not_be_pulled_is_looked_for_again() {
    let mut sim = Sim::up(&with_policy("Never"));
    sim.seconds(60);
    assert_eq!(sim.state("a"), "waiting ErrImageNeverPull");
    let said = sim.events.iter().filter(|e| e.starts_with("ErrImageNeverPull")).count();
    assert_eq!(said, 1, "looking again is no news");

    // Somebody imports it, which the worker is not told.
    let wake = sim.plan.as_ref().unwrap().wake_at.expect("a look is due");
    store(&mut sim.world, "a:1", "1");
    sim.now = wake;
    sim.settle();
    assert_eq!(sim.state("a"), "running");
    assert_eq!(sim.plan.unwrap().wake_at, None);
}

#[test]
fn always_means_before_every_start() {
    let mut sim = Sim::up(&with_policy("Always"));
    assert_eq!(sim.exit("a", 1), ["PullImage a:1", "StartContainer a/1"]);
    sim.exit("a", 1);
    assert_eq!(
        sim.seconds(10),
        ["PullImage a:1", "StartContainer a/2", "RemoveContainer a/0"],
        "not before the back-off is over"
    );
}

#[test]
fn a_reference_that_two_containers_share_is_pulled_once() {
    let shared = json!({"image": "x:1"});
    let mut sim = Sim::new(&json!({
        "containers": [container_with("a", &shared), container_with("b", &shared)],
    }));
    let done = sim.settle();
    assert_eq!(done.iter().filter(|d| d.starts_with("PullImage")).count(), 1);
    assert_eq!(sim.world.running(), ["a", "b"]);
}

#[test]
fn a_failed_pull_shows_as_error_then_as_back_off_and_is_tried_again() {
    let mut sim = Sim::new(&one("Always"));
    sim.world.failing.insert("PullImage", "ErrImagePull");
    sim.settle();
    assert_eq!(sim.state("a"), "waiting ErrImagePull");
    assert_eq!(sim.message("a"), "PullImage failed");
    assert_eq!(sim.status().phase, Phase::Pending);
    let mut tries = Vec::new();
    let begin = sim.now;
    for second in 1..=150 {
        if sim.seconds(1).iter().any(|d| d.starts_with("PullImage")) {
            tries.push(second);
        }
        let since = tries.last().copied().unwrap_or(0);
        let wanted = if second - since < 5 { "waiting ErrImagePull" } else { "waiting ImagePullBackOff" };
        assert_eq!(sim.state("a"), wanted, "after {second} s");
    }
    assert!(sim.now > begin);
    assert_eq!(tries, [10, 30, 70, 150]);
    for said in ["BackOff: Back-off pulling image \"a:1\"", "Failed: Error: ImagePullBackOff"] {
        let times = sim.events.iter().filter(|e| *e == said).count();
        assert_eq!(times, 4, "{said}: once after each failure but the last");
    }
    assert!(sim.events.contains(&"Failed: Failed to pull image \"a:1\": PullImage failed".to_owned()));
    assert!(sim.events.contains(&"Failed: Error: ErrImagePull".to_owned()));
}

#[test]
fn an_image_name_that_is_none_stays_so() {
    let mut sim = Sim::new(&one("Always"));
    sim.world.failing.insert("PullImage", "InvalidImageName");
    sim.settle();
    sim.seconds(9);
    assert_eq!(sim.state("a"), "waiting InvalidImageName");
}

#[test]
fn a_pull_whose_image_is_seen_before_it_ends_is_let_to_end() {
    let mut sim = Sim::new(&with_policy("IfNotPresent"));
    let begun = sim.begin();
    let (pulls, others): (Vec<_>, Vec<_>) = begun.iter().partition(|a| matches!(a, Action::PullImage { .. }));
    for action in others {
        sim.end(action);
    }
    store(&mut sim.world, "a:1", "1");
    for _ in 0..2 {
        for action in sim.begin() {
            sim.end(&action);
        }
        assert_eq!(sim.plan.as_ref().unwrap().cancel, []);
    }
    sim.end(pulls[0]);
    sim.settle();
    assert_eq!(sim.state("a"), "running");
    let pulled: Vec<_> = sim.events.iter().filter(|e| e.starts_with("Pulled: ")).collect();
    assert_eq!(pulled, ["Pulled: Successfully pulled image \"a:1\""]);
}

#[test]
fn a_pull_is_dropped_when_the_pod_is_deleted_meanwhile() {
    let mut sim = Sim::new(&one("Always"));
    let begun = sim.begin();
    for action in begun.iter().filter(|a| !matches!(a, Action::PullImage { .. })) {
        sim.end(action);
    }
    sim.delete(30);
    assert_eq!(sim.begin(), [Action::DetachNetwork], "the pull is not waited for");
    assert_eq!(sim.plan.unwrap().cancel, [ActionKey::PullImage("a:1".into())]);
}

#[test]
fn a_root_image_does_not_run_where_it_must_not() {
    let place = "(pod: \"web_shop(u-1)\", container: a)";
    let cases = [
        ("", json!({}), format!("container has runAsNonRoot and image will run as root {place}")),
        ("0:0", json!({}), format!("container has runAsNonRoot and image will run as root {place}")),
        (
            "www",
            json!({}),
            format!(
                "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root {place}"
            ),
        ),
        ("7", json!({"runAsUser": 0}), format!("container's runAsUser breaks non-root policy {place}")),
        ("", json!({"runAsUser": 7}), String::new()),
        ("7:0", json!({}), String::new()),
    ];
    for (user, context, wanted) in cases {
        let mut sim = Sim::new(&json!({
            "securityContext": {"runAsNonRoot": true},
            "containers": [container_with("a", &json!({"securityContext": context}))],
        }));
        store(&mut sim.world, "a:1", user);
        sim.settle();
        if wanted.is_empty() {
            assert_eq!(sim.state("a"), "running", "{user} {context}");
        } else {
            assert_eq!(sim.state("a"), "waiting CreateContainerConfigError");
            assert_eq!(sim.message("a"), wanted);
            assert_eq!(sim.events, [format!("Failed: Error: {wanted}")]);
        }
    }
}

#[test]
fn an_image_for_later_is_pulled_while_the_init_container_runs() {
    let mut sim = Sim::new(&json!({"initContainers": [container("i")], "containers": [container("a")]}));
    let first = sim.step();
    assert!(first.contains(&Action::PullImage { image: "a:1".into() }), "{first:?}");
}
