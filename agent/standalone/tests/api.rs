//! The server from the outside: what nodes and clients see over TLS.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod client;

use client::{Client, admin, start};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {
        "capacity": {"cpu": "2", "memory": "4Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i:1", "ports": [{"name": "http", "containerPort": 80}]}]}})
}

/// A server with one node whose own client is the second.
macro_rules! cluster {
    ($dir:ident, $server:ident, $admin:ident, $node:ident) => {
        let $dir = tempfile::tempdir().unwrap();
        let $server = start(&$dir).await;
        let $admin = admin(&$server);
        let $node = Client::new(&$server.node_kubeconfig("n1").unwrap());
        let (status, answer) = $node.post("/api/v1/nodes", &node("n1")).await;
        assert_eq!(status, 201, "{answer}");
    };
}

async fn bound_pod(admin: &Client, name: &str) -> Value {
    let mut watch = admin.watch(&format!("{PODS}?watch=1&fieldSelector=metadata.name={name}")).await;
    let (status, answer) = admin.post(PODS, &pod(name)).await;
    assert_eq!(status, 201, "{answer}");
    watch.until(|l| l["object"]["spec"]["nodeName"] == "n1").await["object"].clone()
}

#[tokio::test]
async fn objects_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let map = json!({"metadata": {"name": "m"}, "data": {"k": "v"}});
    let (status, made) = admin(&server).post("/api/v1/namespaces/default/configmaps", &map).await;
    assert_eq!(status, 201);
    server.shutdown().await;

    let server = start(&dir).await;
    let (status, found) = admin(&server).get("/api/v1/namespaces/default/configmaps/m").await;
    assert_eq!((status, &found), (200, &made));
    let offline = orlop_standalone::node_kubeconfig(dir.path(), "n9").unwrap();
    let (status, made) = Client::new(&offline).post("/api/v1/nodes", &node("n9")).await;
    assert_eq!(status, 201, "{made}");
    server.shutdown().await;
}

#[tokio::test]
async fn other_networks_move_the_service_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    server.shutdown().await;
    let config = orlop_standalone::Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: Some("::1".parse().unwrap()),
        service_cidrs: vec!["10.7.0.0/16".parse().unwrap()],
        ..orlop_standalone::Config::new(dir.path())
    };
    let server = orlop_standalone::Server::start(config).await.unwrap();
    let kubeconfig = std::fs::read_to_string(server.admin_kubeconfig()).unwrap();
    let local = kubeconfig.replace("[::1]", "127.0.0.1");
    let client = Client::new(&local);
    let (_, service) = client.get("/api/v1/namespaces/default/services/kubernetes").await;
    assert_eq!(service["spec"]["clusterIPs"], json!(["10.7.0.1"]));
    let (_, slice) =
        client.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await;
    assert_eq!(
        (&slice["addressType"], &slice["endpoints"][0]["addresses"]),
        (&json!("IPv6"), &json!(["::1"]))
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_pod_is_bound_watched_by_its_node_and_deleted_gracefully() {
    cluster!(dir, server, admin, node);
    let mut watch =
        node.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName=n1&allowWatchBookmarks=true").await;
    let (status, made) = admin.post(PODS, &pod("p")).await;
    assert_eq!(
        (status, &made["status"]["phase"], &made["spec"]["nodeName"]),
        (201, &json!("Pending"), &Value::Null)
    );
    let seen = watch.next().await.unwrap();
    assert_eq!((&seen["type"], &seen["object"]["spec"]["nodeName"]), (&json!("ADDED"), &json!("n1")));

    let status_patch = json!({"status": {"phase": "Running", "podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    let (status, patched) = node.patch(&format!("{PODS}/p/status"), &status_patch).await;
    assert_eq!(status, 200, "{patched}");
    assert_eq!(patched["status"]["qosClass"], "BestEffort");
    assert_eq!(patched["status"]["conditions"].as_array().unwrap().len(), 2, "PodScheduled stays");
    assert_eq!(watch.change().await, ("MODIFIED".into(), "p".into()));

    let (status, deleted) = admin.delete(&format!("{PODS}/p"), &json!({})).await;
    assert_eq!((status, &deleted["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(30)));
    assert_eq!(watch.change().await, ("MODIFIED".into(), "p".into()));
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    let (status, refused) = node.delete(&format!("{PODS}/p"), &wrong).await;
    assert_eq!((status, &refused["reason"]), (409, &json!("Conflict")));
    let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": made["metadata"]["uid"]}});
    assert_eq!(node.delete(&format!("{PODS}/p"), &last).await.0, 200);
    assert_eq!(watch.change().await, ("DELETED".into(), "p".into()));
    let (status, gone) = admin.get(&format!("{PODS}/p")).await;
    assert_eq!((status, gone["message"].as_str().unwrap()), (404, "pods \"p\" not found"));
    server.shutdown().await;
}

#[tokio::test]
async fn strangers_are_nobody_and_nodes_stay_in_their_bounds() {
    cluster!(dir, server, admin, node);
    let config = std::fs::read_to_string(server.admin_kubeconfig()).unwrap();
    let anonymous = Client::with_token(&config, None);
    assert_eq!(anonymous.get("/api/v1/pods").await.0, 401);
    assert_eq!(anonymous.get("/healthz").await.0, 200);
    assert_eq!(Client::with_token(&config, Some("a.b.c")).get("/api").await.0, 401);
    let elsewhere = tempfile::tempdir().unwrap();
    let other = start(&elsewhere).await;
    let foreign = other.node_kubeconfig("n1").unwrap();
    let mixed: String = foreign
        .lines()
        .map(|l| {
            match l.trim_start().split(':').next() {
                Some(key @ ("server" | "certificate-authority-data")) => {
                    config.lines().find(|c| c.contains(key)).unwrap()
                }
                _ => l,
            }
            .to_owned()
                + "\n"
        })
        .collect();
    assert_eq!(Client::new(&mixed).get("/api/v1/nodes/n1").await.0, 401, "a certificate of another CA");
    other.shutdown().await;

    admin.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}})).await;
    let (status, refused) = node.get("/api/v1/namespaces/default/secrets/s").await;
    assert_eq!(status, 403);
    assert_eq!(
        refused["message"],
        "secrets \"s\" is forbidden: User \"system:node:n1\" cannot get resource \"secrets\" in API group \"\" in the namespace \
         \"default\": no relationship found between node 'n1' and this object"
    );
    for (path, want) in [
        ("/api/v1/pods", 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName=n2", 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName=n1", 200),
        ("/api/v1/nodes/n2", 403),
        ("/api/v1/services", 200),
        ("/apis/discovery.k8s.io/v1/endpointslices", 200),
        ("/api/v1/secrets", 403),
    ] {
        assert_eq!(node.get(path).await.0, want, "{path}");
    }
    assert_eq!(node.post(PODS, &pod("p")).await.0, 403, "only mirror pods");
    assert_eq!(node.patch("/api/v1/nodes/n2/status", &json!({})).await.0, 403);
    let mut with_secret = pod("q");
    with_secret["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
    let mut watch = admin.watch(&format!("{PODS}?watch=1")).await;
    admin.post(PODS, &with_secret).await;
    watch.until(|l| l["object"]["spec"]["nodeName"] == "n1").await;
    assert_eq!(
        node.get("/api/v1/namespaces/default/secrets/s").await.0,
        200,
        "now a pod of the node refers to it"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_token_lives_as_long_as_its_pod() {
    cluster!(dir, server, admin, node);
    let bound = bound_pod(&admin, "p").await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let reference = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": bound["metadata"]["uid"]});
    let wanted = json!({"spec": {"audiences": [], "expirationSeconds": 3607, "boundObjectRef": reference}});
    assert_eq!(node.post(path, &json!({"spec": {}})).await.0, 403, "a node asks for bound tokens only");
    let (status, answer) = node.post(path, &wanted).await;
    assert_eq!(status, 201, "{answer}");
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let config = std::fs::read_to_string(server.admin_kubeconfig()).unwrap();
    let account = Client::with_token(&config, Some(&token));
    let (status, me) = account.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await;
    assert_eq!(
        (status, &me["status"]["userInfo"]["username"]),
        (201, &json!("system:serviceaccount:default:default"))
    );
    let (status, refused) = account.get(PODS).await;
    assert_eq!((status, &refused["reason"]), (403, &json!("Forbidden")));
    let review = json!({"spec": {"token": token}});
    let (_, reviewed) = node.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert_eq!(reviewed["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    admin.delete(&format!("{PODS}/p"), &json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(account.get("/api").await.0, 401, "the pod is gone");
    server.shutdown().await;
}

#[tokio::test]
async fn slices_follow_pods_and_services() {
    cluster!(dir, server, admin, node);
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?watch=1&labelSelector=kubernetes.io/service-name=s";
    let mut watch = admin.watch(slices).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"selector": {"app": "p"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    let (status, made) = admin.post("/api/v1/namespaces/default/services", &service).await;
    assert_eq!(status, 201, "{made}");
    assert!(made["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96.0."), "{made}");
    assert_eq!(watch.next().await.unwrap()["object"]["endpoints"], json!([]));
    let bound = bound_pod(&admin, "p").await;
    let ready = |on: &str| json!({"status": {"podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}], "conditions": [{"type": "Ready", "status": on}]}});
    node.patch(&format!("{PODS}/p/status"), &ready("True")).await;
    let slice = watch.until(|l| l["object"]["endpoints"][0]["conditions"]["ready"] == true).await;
    let endpoint = &slice["object"]["endpoints"][0];
    assert_eq!(slice["object"]["ports"], json!([{"name": "", "port": 80, "protocol": "TCP"}]));
    assert_eq!((&endpoint["addresses"], &endpoint["nodeName"]), (&json!(["10.0.0.9"]), &json!("n1")));
    assert_eq!(endpoint["targetRef"]["uid"], bound["metadata"]["uid"]);
    admin.delete(&format!("{PODS}/p"), &json!({})).await;
    let leaving = watch.until(|l| l["object"]["endpoints"][0]["conditions"]["terminating"] == true).await;
    assert_eq!(
        leaving["object"]["endpoints"][0]["conditions"],
        json!({"ready": false, "serving": true, "terminating": true})
    );
    admin.delete("/api/v1/namespaces/default/services/s", &json!({})).await;
    assert_eq!(watch.until(|l| l["type"] == "DELETED").await["object"]["addressType"], "IPv4");
    server.shutdown().await;
}

#[tokio::test]
async fn watches_resume_or_say_that_they_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = admin(&server);
    let maps = "/api/v1/namespaces/default/configmaps";
    let (_, list) = client.get(maps).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    client.post(maps, &json!({"metadata": {"name": "a", "labels": {"x": "1"}}})).await;
    client.patch(&format!("{maps}/a"), &json!({"metadata": {"labels": {"x": "2"}}})).await;
    let mut all = client.watch(&format!("{maps}?watch=1&resourceVersion={version}")).await;
    assert_eq!(all.change().await, ("ADDED".into(), "a".into()));
    assert_eq!(all.change().await, ("MODIFIED".into(), "a".into()));
    let mut selected =
        client.watch(&format!("{maps}?watch=1&resourceVersion={version}&labelSelector=x%3D1")).await;
    assert_eq!(selected.change().await, ("ADDED".into(), "a".into()));
    assert_eq!(selected.change().await, ("DELETED".into(), "a".into()));
    let path = format!(
        "{maps}?watch=1&allowWatchBookmarks=1&sendInitialEvents=1&resourceVersionMatch=NotOlderThan&labelSelector=x"
    );
    let mut initial = client.watch(&path).await;
    assert_eq!(initial.change().await, ("ADDED".into(), "a".into()));
    let end = initial.next().await.unwrap();
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let mut short = client.watch(&format!("{maps}?watch=1&resourceVersion={version}&labelSelector=none&timeoutSeconds=1&allowWatchBookmarks=1")).await;
    assert_eq!(short.next().await.unwrap()["type"], "BOOKMARK");
    assert_eq!(short.next().await, None);
    server.shutdown().await;

    let server = start(&dir).await;
    let mut old = admin(&server).watch(&format!("{maps}?watch=1&resourceVersion={version}")).await;
    let gone = old.next().await.unwrap();
    assert_eq!(
        (&gone["type"], &gone["object"]["code"], &gone["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(old.next().await, None);
    server.shutdown().await;
}

#[tokio::test]
async fn what_a_node_owns_goes_with_it() {
    cluster!(dir, server, admin, node);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let (_, me) = node.get("/api/v1/nodes/n1").await;
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": me["metadata"]["uid"]});
    let lease = json!({"metadata": {"name": "n1", "ownerReferences": [owner]},
        "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000001Z"}});
    let mut watch = admin.watch(&format!("{leases}?watch=1")).await;
    assert_eq!(node.put(&format!("{leases}/n1"), &lease).await.0, 201, "a lease may be made by PUT");
    assert_eq!(watch.change().await, ("ADDED".into(), "n1".into()));
    assert_eq!(admin.delete("/api/v1/nodes/n1", &json!({})).await.1["status"], "Success");
    assert_eq!(watch.change().await, ("DELETED".into(), "n1".into()));
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_orphaned_on_purpose_stays() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = admin(&server);
    let maps = "/api/v1/namespaces/default/configmaps";
    let (_, owner) = client.post(maps, &json!({"metadata": {"name": "owner"}})).await;
    let reference =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]});
    client.post(maps, &json!({"metadata": {"name": "owned", "ownerReferences": [reference]}})).await;
    client.delete(&format!("{maps}/owner"), &json!({"propagationPolicy": "Orphan"})).await;
    let (status, owned) = client.get(&format!("{maps}/owned")).await;
    assert_eq!((status, &owned["metadata"]["ownerReferences"]), (200, &json!([])));
    server.shutdown().await;
}

#[tokio::test]
async fn a_namespace_goes_when_its_content_is_gone() {
    cluster!(dir, server, admin, node);
    admin.post("/api/v1/namespaces", &json!({"metadata": {"name": "t"}})).await;
    let mut watch = admin.watch("/api/v1/namespaces?watch=1&fieldSelector=metadata.name=t").await;
    let mut pods = admin.watch("/api/v1/namespaces/t/pods?watch=1").await;
    assert_eq!(admin.post("/api/v1/namespaces/t/pods", &pod("p")).await.0, 201);
    pods.until(|l| l["object"]["spec"]["nodeName"] == "n1").await;
    assert_eq!(admin.delete("/api/v1/namespaces/t", &json!({})).await.1["status"]["phase"], "Terminating");
    pods.until(|l| !l["object"]["metadata"]["deletionTimestamp"].is_null()).await;
    let (status, refused) =
        admin.post("/api/v1/namespaces/t/configmaps", &json!({"metadata": {"name": "late"}})).await;
    assert_eq!((status, &refused["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    node.delete("/api/v1/namespaces/t/pods/p", &json!({"gracePeriodSeconds": 0})).await;
    watch.until(|l| l["type"] == "DELETED").await;
    assert_eq!(admin.get("/api/v1/namespaces/t/serviceaccounts/default").await.0, 404);
    server.shutdown().await;
}

#[tokio::test]
async fn conflicts_and_bad_objects_are_refused_in_the_words_of_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = admin(&server);
    let maps = "/api/v1/namespaces/default/configmaps";
    let (_, made) = client.post(maps, &json!({"metadata": {"name": "a"}})).await;
    let (status, again) = client.post(maps, &json!({"metadata": {"name": "a"}})).await;
    assert_eq!(
        (status, &again["reason"], &again["message"]),
        (409, &json!("AlreadyExists"), &json!("configmaps \"a\" already exists"))
    );
    client.patch(&format!("{maps}/a"), &json!({"data": {"k": "v"}})).await;
    let (status, stale) = client.put(&format!("{maps}/a"), &made).await;
    assert_eq!((status, &stale["reason"]), (409, &json!("Conflict")));
    assert!(
        stale["message"]
            .as_str()
            .unwrap()
            .starts_with("Operation cannot be fulfilled on configmaps \"a\": the object has been modified")
    );
    let bad = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
    let (status, invalid) = client.post(PODS, &bad).await;
    assert_eq!(
        (status, &invalid["details"]["causes"][0]["field"]),
        (422, &json!("spec.containers[0].image"))
    );
    let typo = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "imag": "x"}]}});
    let (status, strict) = client.post(&format!("{PODS}?fieldValidation=Strict"), &typo).await;
    assert_eq!(
        (status, &strict["message"]),
        (400, &json!("strict decoding error: unknown field \"spec.containers[0].imag\""))
    );
    assert_eq!(client.get("/apis/apps/v1/deployments").await.0, 404);
    assert_eq!(client.raw("PATCH", &format!("{maps}/a"), "text/plain", "{}".into()).await.0, 415);
    assert_eq!(client.raw("POST", maps, "application/json", "{".into()).await.0, 400);
    assert_eq!(client.raw("POST", maps, "application/json", " ".repeat(4 << 20)).await.0, 413);
    assert_eq!(client.get("/api/v1/pods?fieldSelector=a=b").await.0, 400);
    server.shutdown().await;
}
