//! The Node object as a whole, and the tasks against a server on loopback.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::response::Response;
use clap::Parser;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::conditions::conditions;
use super::facts::Facts;
use super::object::{KUBELET_VERSION, Material, status_patch};
use super::*;
use crate::api::events::Events;
use crate::api::fake::{self, Fake, Seen};
use crate::config::kubelet::KubeletConfiguration;
use crate::config::{Config, RunArgs};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    run: RunArgs,
}

fn config(line: &str) -> Config {
    let words = ["orlop", "--kubeconfig", "k", "--hostname-override", "n1"]
        .into_iter()
        .chain(line.split_whitespace());
    Config::build(&Line::parse_from(words).run, KubeletConfiguration::default(), "host").expect("valid")
}

fn healthy() -> NodeConditions {
    NodeConditions { runtime: Health::Ready, network: Health::Ready, ..NodeConditions::default() }
}

fn facts() -> Facts {
    Facts {
        cpus: 2,
        memory: 4 << 30,
        ephemeral_storage: 10 << 30,
        machine_id: "m".into(),
        system_uuid: "s".into(),
        boot_id: "b".into(),
        kernel: "6.1.0".into(),
        os_image: "Debian".into(),
        architecture: "amd64",
        ..Facts::default()
    }
}

fn node(config: &Config, images: &[NodeImage]) -> Value {
    let now = Timestamp::from_second(1_700_000_000).expect("in range");
    let (conditions, _) = conditions(&healthy(), &[], now);
    let addresses = ["10.0.0.1".parse().expect("v4"), "fd00::1".parse().expect("v6")];
    let material =
        Material { config, facts: &facts(), addresses: &addresses, conditions: &conditions, images };
    serde_json::to_value(material.node(now)).expect("JSON")
}

#[test]
fn a_node_says_what_kubelet_would() {
    let node = node(&config("--node-labels rack=r1 --register-with-taints a=b:NoSchedule"), &[]);
    assert_eq!(
        node["metadata"]["labels"],
        json!({"kubernetes.io/hostname":"n1","kubernetes.io/os":"linux","kubernetes.io/arch":"amd64",
            "beta.kubernetes.io/os":"linux","beta.kubernetes.io/arch":"amd64","rack":"r1"})
    );
    assert_eq!(node["spec"]["taints"], json!([{"key":"a","value":"b","effect":"NoSchedule"}]));
    let status = &node["status"];
    assert_eq!(
        status["addresses"],
        json!([{"type":"InternalIP","address":"10.0.0.1"},{"type":"InternalIP","address":"fd00::1"},
            {"type":"Hostname","address":"n1"}])
    );
    assert_eq!(status["capacity"], json!({"cpu":"2","memory":"4Gi","ephemeral-storage":"10Gi","pods":"110"}));
    assert_eq!(status["allocatable"]["memory"], "3996Mi");
    assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    assert_eq!(status["nodeInfo"]["kubeletVersion"], KUBELET_VERSION);
    assert_eq!(status["nodeInfo"]["containerRuntimeVersion"], "orlop://0.1.0");
    assert_eq!(status["conditions"][3]["type"], "Ready", "Ready stands last");
}

#[test]
fn a_node_of_a_cloud_waits_for_its_controller_manager() {
    let taint = json!([{"key":"node.cloudprovider.kubernetes.io/uninitialized","value":"true","effect":"NoSchedule"}]);
    let waiting = node(&config("--cloud-provider external"), &[]);
    assert_eq!(waiting["spec"]["taints"], taint);
    assert_eq!(waiting["spec"].get("providerID"), None, "the controller manager's to set");
    assert_eq!(waiting["status"].get("addresses"), None, "and so are the addresses");
    let told = node(&config("--cloud-provider external --provider-id x://1 --node-ip 10.0.0.1,fd00::1"), &[]);
    assert_eq!((&told["spec"]["taints"], &told["spec"]["providerID"]), (&taint, &json!("x://1")));
    let annotation = &told["metadata"]["annotations"]["alpha.kubernetes.io/provided-node-ip"];
    assert_eq!(annotation, "10.0.0.1,fd00::1");
    assert_eq!(told["status"]["addresses"][1]["address"], "fd00::1");
    let alone = node(&config("--node-ip 10.0.0.1"), &[]);
    assert_eq!(alone["metadata"]["annotations"].get("alpha.kubernetes.io/provided-node-ip"), None);
}

#[test]
fn a_status_of_a_cloud_node_leaves_the_addresses_alone() {
    let config = config("--cloud-provider external --node-ip 10.0.0.1");
    let addresses = ["10.0.0.1".parse().expect("v4")];
    let material =
        Material { config: &config, facts: &facts(), addresses: &addresses, conditions: &[], images: &[] };
    let patch = status_patch(&material.status(None)).expect("JSON");
    assert_eq!(patch["status"].get("addresses"), None);
}

#[test]
fn the_version_is_a_semantic_one_that_the_api_machinery_takes() {
    let (core, build) =
        KUBELET_VERSION.strip_prefix('v').and_then(|v| v.split_once('+')).expect("v<core>+<build>");
    assert_eq!(core.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3);
    assert!(build.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-')));
}

#[test]
fn images_are_listed_largest_first_and_cut() {
    let image = |name: &str, size_bytes| NodeImage { names: vec![name.into(); 7], size_bytes };
    let mut images: Vec<NodeImage> = (0..60).map(|n| image(&format!("i{n}"), n)).collect();
    images.push(image("large", 1000));
    let node = node(&config(""), &images);
    let listed = node["status"]["images"].as_array().expect("a list");
    assert_eq!((listed.len(), &listed[0]["sizeBytes"]), (50, &json!(1000)));
    assert_eq!(listed[0]["names"].as_array().map(Vec::len), Some(5));
}

#[test]
fn a_status_patch_replaces_addresses() {
    let config = config("");
    let material =
        Material { config: &config, facts: &facts(), addresses: &[], conditions: &[], images: &[] };
    let patch = status_patch(&material.status(None)).expect("JSON");
    assert_eq!(
        patch["status"]["addresses"],
        json!([{"$patch":"replace"},{"type":"Hostname","address":"n1"}])
    );
}

/// A server that holds one Node and one Lease.
#[derive(Default)]
struct Cluster {
    node: Option<Value>,
    lease: Option<Value>,
    version: u64,
    watchers: Vec<mpsc::Sender<Bytes>>,
}

type Shared = Arc<Mutex<Cluster>>;

impl Cluster {
    fn stamp(&mut self, mut object: Value, uid: &str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = uid.into();
        }
        object
    }

    fn tell(&mut self, kind: &str) {
        let line = Bytes::from(format!("{}\n", json!({"type":kind,"object":self.node})));
        self.watchers.retain(|w| w.try_send(line.clone()).is_ok());
    }

    fn answer(&mut self, seen: &Seen) -> Response {
        let path = seen.path.split('?').next().unwrap_or_default();
        match (seen.method.as_str(), path) {
            ("POST", "/api/v1/nodes") if self.node.is_some() => fake::status(409, "AlreadyExists", "there"),
            ("POST", "/api/v1/nodes") => {
                let uid = format!("node-{}", self.version);
                self.node = Some(self.stamp(seen.json(), &uid));
                self.tell("ADDED");
                fake::json(201, &self.node.clone().unwrap_or_default())
            }
            ("GET", "/api/v1/nodes") if seen.path.contains("watch=") => {
                let (watcher, pieces) = mpsc::channel(16);
                self.watchers.push(watcher);
                fake::streamed(pieces)
            }
            ("GET", "/api/v1/nodes") => {
                let items: Vec<_> = self.node.iter().cloned().collect();
                fake::json(
                    200,
                    &json!({"metadata":{"resourceVersion":self.version.to_string()},"items":items}),
                )
            }
            ("GET", _) if path.contains("leases") => match &self.lease {
                Some(lease) => fake::json(200, lease),
                None => fake::status(404, "NotFound", "no lease"),
            },
            ("POST" | "PUT", _) if path.contains("leases") => {
                if seen.method == "PUT" && self.lease.is_none() {
                    // As a real server says it, since a PUT may create a Lease.
                    return fake::status(
                        400,
                        "BadRequest",
                        "resourceVersion should not be set on objects to be created",
                    );
                }
                self.lease = Some(self.stamp(seen.json(), "lease"));
                fake::json(200, &self.lease.clone().unwrap_or_default())
            }
            ("GET", _) => match &self.node {
                Some(node) => fake::json(200, node),
                None => fake::status(404, "NotFound", "no node"),
            },
            ("PATCH", _) => match self.node.take() {
                None => fake::status(404, "NotFound", "no node"),
                Some(mut node) => {
                    for (field, value) in seen.json()["status"].as_object().into_iter().flatten() {
                        node["status"][field] = value.clone();
                    }
                    for (label, value) in seen.json()["metadata"]["labels"].as_object().into_iter().flatten()
                    {
                        node["metadata"]["labels"][label] = value.clone();
                    }
                    // The directive of a strategic merge is not data.
                    if let Some(list) = node.pointer_mut("/status/addresses").and_then(Value::as_array_mut) {
                        list.retain(|a| a.get("$patch").is_none());
                    }
                    self.node = Some(self.stamp(node, "node"));
                    self.tell("MODIFIED");
                    fake::json(200, &self.node.clone().unwrap_or_default())
                }
            },
            _ => fake::json(201, &json!({})),
        }
    }
}

async fn serve() -> (Fake, Shared) {
    let cluster = Shared::default();
    let shared = Arc::clone(&cluster);
    let fake = Fake::start(move |seen| {
        let answer = shared.lock().expect("unpoisoned").answer(&seen);
        std::future::ready(answer)
    })
    .await;
    (fake, cluster)
}

fn start(fake: &Fake, config: Config) -> (watch::Sender<NodeConditions>, Registered) {
    start_with(fake, config, healthy())
}

fn start_with(
    fake: &Fake,
    config: Config,
    known: NodeConditions,
) -> (watch::Sender<NodeConditions>, Registered) {
    let (inputs, receiver) = watch::channel(known);
    let (events, send) = Events::new(fake.client(), "n1".into());
    tokio::spawn(send);
    let (task, registered) = NodeTask::new(fake.client(), Arc::new(config), receiver, events);
    tokio::spawn(task.run());
    (inputs, registered)
}

async fn ready(registered: &mut Registered, status: &str) -> Arc<NodeView> {
    let is =
        |node: &Option<Arc<NodeView>>| node.as_ref().is_some_and(|n| n.condition("Ready") == Some(status));
    let node = registered.wait_for(is).await.expect("the task lives").clone();
    node.expect("waited for")
}

/// Changes the cluster once somebody watches, else the change would be found by the first list.
async fn once_watched(cluster: &Shared, change: impl Fn(&mut Cluster)) {
    let try_once = || {
        let mut cluster = cluster.lock().expect("unpoisoned");
        let watched = !cluster.watchers.is_empty();
        if watched {
            change(&mut cluster);
        }
        watched
    };
    while !try_once() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_node_registers_and_follows_its_conditions() {
    let (fake, _cluster) = serve().await;
    let (inputs, mut registered) = start(&fake, config(""));
    let node = ready(&mut registered, "True").await;
    assert_eq!((node.name.as_str(), node.uid.as_str()), ("n1", "node-0"));
    inputs.send_modify(|i| i.network = Health::NotReady { message: "cni plugin not initialized".into() });
    let node = ready(&mut registered, "False").await;
    assert!(node.conditions[3].message.contains("cni plugin not initialized"));
}

#[tokio::test]
async fn a_node_that_was_ready_stays_so_while_its_parts_are_not_looked_at_yet() {
    let (fake, cluster) = serve().await;
    let conditions = json!([{"type": "Ready", "status": "True"}]);
    cluster.lock().expect("unpoisoned").node =
        Some(json!({"metadata": {"name": "n1", "uid": "old"}, "status": {"conditions": conditions}}));
    let (inputs, mut registered) = start_with(&fake, config(""), NodeConditions::default());
    ready(&mut registered, "True").await;
    let statuses = || {
        let patches = fake.seen().into_iter().filter(|seen| seen.path.ends_with("/status"));
        patches.map(|seen| seen.json()["status"]["conditions"][3]["status"].clone()).collect::<Vec<_>>()
    };
    // Time enough to say something rash.
    let said = async {
        while statuses().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(100), said).await.is_err(), "{:?}", statuses());
    inputs.send_replace(healthy());
    while statuses().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(statuses(), ["True"]);
}

#[tokio::test]
async fn an_existing_node_keeps_its_taints_and_gets_the_default_labels() {
    let (fake, cluster) = serve().await;
    cluster.lock().expect("unpoisoned").node = Some(json!({
        "metadata": {"name":"n1","uid":"old","labels":{"kubernetes.io/hostname":"wrong","mine":"kept"}},
        "spec": {"podCIDR":"10.1.0.0/24"},
    }));
    let (_inputs, mut registered) =
        start(&fake, config("--register-with-taints a=b:NoSchedule --node-labels new=x"));
    let node = ready(&mut registered, "True").await;
    assert_eq!(node.uid, "old");
    assert_eq!(
        (node.labels["kubernetes.io/hostname"].as_str(), node.labels["mine"].as_str()),
        ("n1", "kept")
    );
    assert!(node.taints.is_empty() && !node.labels.contains_key("new"));
    assert_eq!(node.pod_cidrs.len(), 1);
}

#[tokio::test]
async fn a_deleted_node_registers_again() {
    let (fake, cluster) = serve().await;
    let (_inputs, mut registered) = start(&fake, config(""));
    let first = ready(&mut registered, "True").await;
    once_watched(&cluster, |cluster| {
        cluster.tell("DELETED");
        cluster.node = None;
    })
    .await;
    let is_new = |node: &Option<Arc<NodeView>>| node.as_ref().is_some_and(|n| n.uid != first.uid);
    registered.wait_for(is_new).await.expect("the task lives");
}

#[tokio::test]
async fn what_the_node_controller_wrote_is_taken_back_at_once() {
    let (fake, cluster) = serve().await;
    let (_inputs, mut registered) = start(&fake, config(""));
    ready(&mut registered, "True").await;
    once_watched(&cluster, |cluster| {
        let node = cluster.node.as_mut().expect("registered");
        node["status"]["conditions"][3]["status"] = "Unknown".into();
        cluster.tell("MODIFIED");
    })
    .await;
    ready(&mut registered, "Unknown").await;
    ready(&mut registered, "True").await;
}

#[tokio::test]
async fn a_lease_is_made_renewed_and_made_again() {
    let (fake, cluster) = serve().await;
    let node = NodeView { name: "n1".into(), uid: "u1".into(), ..NodeView::default() };
    let (_view, registered) = watch::channel(Some(Arc::new(node)));
    let task = LeaseTask::new(fake.client(), "n1".into(), Duration::from_secs(2), registered);
    let renewing = tokio::spawn(task.run());
    // A request that a busy machine delays is made again: what counts is the order of the kinds.
    let kinds = ["GET", "POST", "PUT"];
    let in_order = |lines: &[String]| {
        let mut kinds = kinds.iter().peekable();
        for line in lines {
            kinds.next_if(|kind| line.starts_with(**kind));
        }
        kinds.peek().is_none()
    };
    fake.wait_until(|lines| in_order(lines)).await;
    let lease = cluster.lock().expect("unpoisoned").lease.take().expect("a lease");
    assert_eq!(lease["spec"]["holderIdentity"], "n1");
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "u1");
    let renewed = lease["spec"]["renewTime"].as_str().expect("a time");
    assert_eq!((renewed.len(), renewed.as_bytes()[19]), (27, b'.'), "a MicroTime: {renewed}");
    let before = fake.seen().len();
    fake.wait_until(|lines| in_order(&lines[before..])).await;
    assert!(cluster.lock().expect("unpoisoned").lease.is_some(), "made again after somebody deleted it");
    renewing.abort();
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let expected = [format!("GET {leases}/n1"), format!("POST {leases}"), format!("PUT {leases}/n1")];
    let lines = fake.lines();
    assert!(lines.iter().all(|line| expected.contains(line)), "{lines:?}");
}

#[test]
fn the_root_directory_need_not_exist() {
    assert!(Facts::read(Path::new("/nonexistent")).ephemeral_storage > 0);
}
