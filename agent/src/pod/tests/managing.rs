//! The manager: sources in, workers out.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::node::{FakeNode, deleted, named};
use crate::pod::admission::Allocatable;
use crate::pod::manager::{Manager, NodeWatch, Pods, Source, SourceEvent, SourceUpdate};
use crate::pod::names::PodUid;
use crate::pod::spec::Pod;
use crate::pod::status::Phase;
use crate::pod::wanted::NodeFacts;

struct Managing {
    node: Arc<FakeNode>,
    pods: Pods,
    updates: mpsc::Sender<SourceUpdate>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _node: (watch::Sender<NodeFacts>, watch::Sender<Allocatable>),
}

fn manage(node: &Arc<FakeNode>, sources: &[Source]) -> Managing {
    let room = Allocatable { cpu_millis: 1000, memory_bytes: 1 << 30, pods: 3, ..Allocatable::default() };
    let (facts, facts_rx) = watch::channel(NodeFacts::default());
    let (allocatable, allocatable_rx) = watch::channel(room);
    let watch = NodeWatch { facts: facts_rx, allocatable: allocatable_rx };
    let shutdown = CancellationToken::new();
    let (manager, pods) = Manager::new(node.context(), watch, sources.iter().copied(), shutdown.clone());
    let (updates, receiver) = mpsc::channel(8);
    let task = tokio::spawn(manager.run(receiver));
    Managing { node: Arc::clone(node), pods, updates, shutdown, task, _node: (facts, allocatable) }
}

impl Managing {
    async fn send(&self, source: Source, event: SourceEvent) {
        self.updates.send(SourceUpdate { source, event }).await.unwrap();
    }

    async fn apply(&self, pod: &Arc<Pod>) {
        self.send(Source::Api, SourceEvent::Applied(Arc::clone(pod))).await;
    }

    async fn up(&self, uid: &str) {
        self.node.until("it runs", |n| n.running(uid) == ["a"]).await;
    }

    async fn gone(&mut self, uid: &str) {
        let uid = PodUid::from(uid);
        while self.pods.by_uid(&uid).is_some() {
            assert!(self.pods.changed().await);
        }
    }
}

/// A moment in which everything that can happen does.
async fn rest() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_lives_from_its_first_mention_to_its_deletion() {
    let node = FakeNode::new();
    let mut managing = manage(&node, &[Source::Api]);
    let pod = named("web", "u", &json!({}));
    managing.send(Source::Api, SourceEvent::Synced(vec![Arc::clone(&pod)])).await;
    managing.up("u").await;
    let handle = managing.pods.by_name("shop", "web").unwrap();
    handle.watch_status().wait_for(|s| s.phase == Phase::Running).await.unwrap();
    assert_eq!(handle.pod().uid().as_str(), "u");
    let ending = deleted(&pod, node.now(), 30);
    managing.apply(&ending).await;
    managing.gone("u").await;
    assert!(node.is_deleted("u") && node.is_empty("u"));
    // The source mentions it once more before it says that the object is gone.
    let done = node.done("u");
    managing.apply(&ending).await;
    managing.send(Source::Api, SourceEvent::Deleted { uid: PodUid::from("u") }).await;
    rest().await;
    assert_eq!(node.done("u"), done);
    assert!(managing.pods.all().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_before_every_source_has_been_heard() {
    let node = FakeNode::new();
    node.residents.lock().unwrap().push(named("old", "u", &json!({})));
    let mut managing = manage(&node, &[Source::Api, Source::Manifests]);
    managing.up("u").await;
    managing.send(Source::Api, SourceEvent::Synced(vec![])).await;
    rest().await;
    assert_eq!(node.running("u"), ["a"], "the manifests may know it");
    managing.send(Source::Manifests, SourceEvent::Synced(vec![])).await;
    managing.gone("u").await;
    assert!(node.is_empty("u"));
    assert!(node.done("u").contains(&"StopContainer a/0".to_owned()), "gracefully");
    assert!(!node.is_deleted("u"), "there was no object to delete");
}

#[tokio::test(start_paused = true)]
async fn a_resident_that_a_source_knows_goes_on_untouched() {
    let node = FakeNode::new();
    let pod = named("web", "u", &json!({}));
    node.residents.lock().unwrap().push(Arc::clone(&pod));
    let managing = manage(&node, &[Source::Api]);
    managing.up("u").await;
    let done = node.done("u");
    managing.send(Source::Api, SourceEvent::Synced(vec![pod])).await;
    rest().await;
    assert_eq!(node.done("u"), done);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_stays_so_when_no_source_answers_after_the_next_start() {
    let node = FakeNode::new();
    let spec = json!({"activeDeadlineSeconds": 100});
    let first = manage(&node, &[Source::Api]);
    first.send(Source::Api, SourceEvent::Synced(vec![named("web", "u", &spec)])).await;
    first.up("u").await;
    let failed = |n: &FakeNode| n.status("u").is_some_and(|s| s.phase == Phase::Failed);
    node.until("the deadline", failed).await;
    rest().await;
    first.shutdown.cancel();
    first.task.await.unwrap();
    let done = node.done("u").len();
    let second = manage(&node, &[Source::Api]);
    rest().await;
    let after = node.done("u").split_off(done);
    assert_eq!(after, ["RemoveVolumes"], "of which nobody can be sure");
    assert_eq!(node.status("u").unwrap().reason, "DeadlineExceeded");
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn the_picture_of_a_manifest_is_not_run() {
    let node = FakeNode::new();
    let managing = manage(&node, &[Source::Api]);
    let mut mirror = Pod::clone(&named("web", "u", &json!({})));
    mirror.metadata.annotations.insert("kubernetes.io/config.mirror".into(), "h".into());
    managing.send(Source::Api, SourceEvent::Synced(vec![Arc::new(mirror)])).await;
    rest().await;
    assert_eq!(node.done("u"), [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_a_later_list_no_longer_names_is_ended() {
    let node = FakeNode::new();
    let mut managing = manage(&node, &[Source::Api]);
    let (a, b) = (named("a", "u1", &json!({})), named("b", "u2", &json!({})));
    managing.send(Source::Api, SourceEvent::Synced(vec![a, Arc::clone(&b)])).await;
    managing.up("u1").await;
    managing.up("u2").await;
    managing.send(Source::Api, SourceEvent::Synced(vec![b])).await;
    managing.gone("u1").await;
    assert_eq!(node.running("u2"), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn the_next_bearer_of_a_name_waits_for_the_last_one_to_end() {
    let node = FakeNode::new();
    let mut managing = manage(&node, &[Source::Api]);
    let old = named("web", "u1", &json!({}));
    managing.send(Source::Api, SourceEvent::Synced(vec![Arc::clone(&old)])).await;
    managing.up("u1").await;
    node.happen("u1", |world, _| {
        world.stubborn.insert("a".into());
    });
    managing.send(Source::Api, SourceEvent::Deleted { uid: PodUid::from("u1") }).await;
    managing.apply(&named("web", "u2", &json!({}))).await;
    rest().await;
    assert_eq!(node.done("u2"), [] as [&str; 0]);
    managing.gone("u1").await;
    managing.up("u2").await;
    assert!(node.is_empty("u1"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_fails_and_ended_pods_make_room() {
    let node = FakeNode::new();
    let managing = manage(&node, &[Source::Api]);
    let half = |name: &str, uid: &str| {
        let container = json!({"name": "a", "image": "a:1", "resources": {"requests": {"cpu": "600m"}}});
        named(name, uid, &json!({"restartPolicy": "Never", "containers": [container]}))
    };
    managing.send(Source::Api, SourceEvent::Synced(vec![half("a", "u1")])).await;
    managing.up("u1").await;
    managing.apply(&half("b", "u2")).await;
    let failed = |n: &FakeNode| n.status("u2").is_some_and(|s| s.phase == Phase::Failed);
    node.until("u2 is rejected", failed).await;
    assert_eq!(node.status("u2").unwrap().reason, "OutOfcpu");
    assert_eq!(node.done("u2"), [] as [&str; 0]);
    node.happen("u1", |world, now| world.exit("a", 0, now));
    let over = |n: &FakeNode| n.status("u1").is_some_and(|s| s.phase == Phase::Succeeded);
    node.until("u1 has ended", over).await;
    managing.apply(&half("c", "u3")).await;
    managing.up("u3").await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_manager_and_leaves_the_pods_alone() {
    let node = FakeNode::new();
    let managing = manage(&node, &[Source::Api]);
    managing.send(Source::Api, SourceEvent::Synced(vec![named("web", "u", &json!({}))])).await;
    managing.up("u").await;
    managing.shutdown.cancel();
    managing.task.await.unwrap();
    assert_eq!(node.running("u"), ["a"]);
}
