//! One worker and its pod.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::node::{FakeNode, deleted, named};
use crate::pod::spec::Pod;
use crate::pod::status::{Phase, PodStatus};
use crate::pod::wanted::{NodeFacts, Wanted};
use crate::pod::worker::{Channels, Ended, run};

struct Working {
    node: Arc<FakeNode>,
    pod: Arc<Pod>,
    wanted: watch::Sender<Wanted>,
    _facts: watch::Sender<NodeFacts>,
    status: watch::Receiver<PodStatus>,
    shutdown: CancellationToken,
    task: JoinHandle<Ended>,
}

fn work(node: &Arc<FakeNode>, pod: Arc<Pod>) -> Working {
    let (wanted, wanted_rx) = watch::channel(Wanted::present(Arc::clone(&pod)));
    let (facts, facts_rx) = watch::channel(NodeFacts::default());
    let (status_tx, status) = watch::channel(PodStatus::default());
    let shutdown = CancellationToken::new();
    let channels =
        Channels { wanted: wanted_rx, node: facts_rx, status: status_tx, shutdown: shutdown.clone() };
    let task = tokio::spawn(run(node.context(), channels));
    Working { node: Arc::clone(node), pod, wanted, _facts: facts, status, shutdown, task }
}

impl Working {
    fn delete(&self, grace: u64) {
        self.wanted.send_modify(|w| w.pod = deleted(&self.pod, self.node.now(), grace));
    }

    async fn up(&self) {
        self.node.until("it runs", |n| n.running("u") == ["a"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_comes_up_and_its_status_is_reported() {
    let node = FakeNode::new();
    let work = work(&node, named("web", "u", &json!({})));
    let phase = |n: &FakeNode| n.status("u").map(|s| s.phase);
    node.until("Running is reported", |n| phase(n) == Some(Phase::Running)).await;
    assert_eq!(work.status.borrow().phase, Phase::Running);
    assert_eq!(*node.done("u").last().unwrap(), "StartContainer a/0");
}

#[tokio::test(start_paused = true)]
async fn an_exit_is_noticed_at_once_and_the_back_off_is_slept_through() {
    let node = FakeNode::new();
    let work = work(&node, named("web", "u", &json!({})));
    work.up().await;
    let begin = Instant::now();
    node.happen("u", |world, now| world.exit("a", 1, now));
    node.until("attempt 1", |n| n.done("u").contains(&"StartContainer a/1".into())).await;
    assert_eq!(begin.elapsed(), Duration::ZERO, "the first restart is immediate");
    node.happen("u", |world, now| world.exit("a", 1, now));
    node.until("attempt 2", |n| n.done("u").contains(&"StartContainer a/2".into())).await;
    let waited = begin.elapsed();
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(11), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stubborn_container_is_killed_by_the_clock_and_the_worker_ends() {
    let node = FakeNode::new();
    let work = work(&node, named("web", "u", &json!({})));
    work.up().await;
    node.happen("u", |world, _| {
        world.stubborn.insert("a".into());
    });
    let begin = Instant::now();
    work.delete(30);
    assert_eq!(work.task.await.unwrap(), Ended::Done);
    assert_eq!(begin.elapsed().as_secs(), 30);
    assert!(node.is_deleted("u") && node.is_empty("u"));
}

#[tokio::test(start_paused = true)]
async fn a_pull_is_dropped_when_the_pod_is_deleted_while_the_rest_takes_its_time() {
    let node = FakeNode::new();
    node.slow_pulls.lock().unwrap().insert("b:1".into(), Duration::from_secs(3000));
    let two = json!({"containers": [super::sim::container("a"), super::sim::container("b")]});
    let work = work(&node, named("web", "u", &two));
    work.up().await;
    node.happen("u", |world, _| {
        world.stubborn.insert("a".into());
    });
    let begin = Instant::now();
    work.delete(30);
    node.until("the stop signal", |n| n.done("u").contains(&"StopContainer a/0".into())).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.dropped_pulls.load(Ordering::SeqCst), 1, "long before the pod has ended");
    assert_eq!(work.task.await.unwrap(), Ended::Done);
    assert_eq!(begin.elapsed().as_secs(), 30);
    assert!(node.is_empty("u"));
}

#[tokio::test(start_paused = true)]
async fn shutdown_leaves_the_pod_alone_and_the_next_worker_goes_on() {
    let node = FakeNode::new();
    let first = work(&node, named("web", "u", &json!({})));
    first.up().await;
    let done = node.done("u");
    first.shutdown.cancel();
    assert_eq!(first.task.await.unwrap(), Ended::Shutdown);
    let second = work(&node, named("web", "u", &json!({})));
    node.happen("u", |_, _| {});
    let mut status = second.status.clone();
    status.wait_for(|s| s.phase == Phase::Running).await.unwrap();
    assert_eq!(node.done("u"), done, "nothing was touched");
}

#[tokio::test(start_paused = true)]
async fn every_restart_is_remembered_for_the_next_boot() {
    let node = FakeNode::new();
    let work = work(&node, named("web", "u", &json!({})));
    work.up().await;
    let remembered = |n: &FakeNode| {
        let residents = n.residents.lock().unwrap();
        residents.first().map(|pod| pod.status.container_statuses[0].restart_count)
    };
    node.until("the pod is remembered", |n| remembered(n) == Some(0)).await;
    for count in 1..3 {
        node.happen("u", |world, now| world.exit("a", 1, now));
        node.until("the restart is remembered", |n| remembered(n) == Some(count)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_node_is_reported() {
    let node = FakeNode::new();
    let work = work(&node, named("web", "u", &json!({"hostNetwork": true})));
    work.up().await;
    let ip = super::world::NODE_IP;
    work._facts.send_modify(|f| f.host_ips = vec![ip]);
    node.until("the address", |n| n.status("u").and_then(|s| s.host_ip) == Some(ip)).await;
}
