//! What a machine that joins sees: `cluster-info` without trust, a bootstrap token, requests for certificates.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod client;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use client::{Client, admin};
use orlop_standalone::{Approval, Config, Server, Signing};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const KUBELET_CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubelet-config";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const TOKEN: &str = "abcdef.0123456789abcdef";

async fn start(dir: &tempfile::TempDir, signing: Signing) -> Server {
    let listen = "127.0.0.1:0".parse().unwrap();
    Server::start(Config { listen, signing, ..Config::new(dir.path()) }).await.unwrap()
}

fn kubeconfig(server: &Server) -> String {
    std::fs::read_to_string(server.admin_kubeconfig()).unwrap()
}

/// A token as `kubeadm token create` makes it.
fn token(expiration: &str) -> Value {
    let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true", "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"});
    if !expiration.is_empty() {
        data["expiration"] = expiration.into();
    }
    json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "stringData": data})
}

struct Asked {
    key: rcgen::KeyPair,
    body: Value,
}

/// A request of a node: for its client certificate, or for a serving one if there are names.
fn ask(node: &str, names: &[&str]) -> Asked {
    let key = rcgen::KeyPair::generate().unwrap();
    let subjects: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(subjects).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let (signer, purpose) = match names {
        [] => ("kubernetes.io/kube-apiserver-client-kubelet", "client auth"),
        _ => ("kubernetes.io/kubelet-serving", "server auth"),
    };
    let body = json!({"metadata": {"generateName": "csr-"}, "spec": {"request": STANDARD.encode(pem), "signerName": signer,
        "usages": ["digital signature", purpose], "username": "somebody", "groups": ["system:masters"]}});
    Asked { key, body }
}

async fn create(client: &Client, asked: &Asked) -> String {
    let (status, made) = client.post(REQUESTS, &asked.body).await;
    assert_eq!(status, 201, "{made}");
    made["metadata"]["name"].as_str().unwrap().to_owned()
}

/// The request once it fits.
async fn until(client: &Client, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let path = format!("{REQUESTS}?watch=1&fieldSelector=metadata.name={name}");
    let mut watch = client.watch(&path).await;
    let (_, now) = client.get(&format!("{REQUESTS}/{name}")).await;
    if fits(&now) {
        return now;
    }
    let line = tokio::time::timeout(Duration::from_secs(30), watch.until(|l| fits(&l["object"]))).await;
    line.unwrap_or_else(|_| panic!("{name} does not become what it should"))["object"].clone()
}

/// The certificate, PEM, once it is there.
async fn certificate(client: &Client, name: &str) -> String {
    let issued = until(client, name, |r| r["status"]["certificate"].is_string()).await;
    let pem = STANDARD.decode(issued["status"]["certificate"].as_str().unwrap()).unwrap();
    String::from_utf8(pem).unwrap()
}

fn has(kind: &str) -> impl Fn(&Value) -> bool {
    move |r| r["status"]["conditions"].as_array().is_some_and(|c| c.iter().any(|c| c["type"] == kind))
}

fn identity(server: &Server, pem: &str, key: &rcgen::KeyPair) -> Client {
    let text: String = kubeconfig(server)
        .lines()
        .map(|line| match line.split_once("-data:") {
            Some((before, _)) if before.ends_with("client-certificate") => {
                format!("{before}-data: {}\n", STANDARD.encode(pem))
            }
            Some((before, _)) if before.ends_with("client-key") => {
                format!("{before}-data: {}\n", STANDARD.encode(key.serialize_pem()))
            }
            _ => format!("{line}\n"),
        })
        .collect();
    Client::new(&text)
}

fn seconds_of_life(pem: &str) -> i64 {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp()
}

#[tokio::test]
async fn a_stranger_reads_only_cluster_info_and_can_check_it_with_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, Signing::default()).await;
    let admin = admin(&server);
    let anonymous = Client::with_token(&kubeconfig(&server), None);
    let mut watch = admin
        .watch("/api/v1/namespaces/kube-public/configmaps?watch=1&fieldSelector=metadata.name=cluster-info")
        .await;
    assert_eq!(admin.post(SECRETS, &token("")).await.0, 201);
    watch.until(|l| l["object"]["data"]["jws-kubeconfig-abcdef"].is_string()).await;

    let (status, info) = anonymous.get(CLUSTER_INFO).await;
    assert_eq!(status, 200, "{info}");
    let text = info["data"]["kubeconfig"].as_str().unwrap();
    assert!(text.contains(server.url()) && text.contains(&STANDARD.encode(server.ca_pem())), "{text}");
    let signature = info["data"]["jws-kubeconfig-abcdef"].as_str().unwrap();
    let (header, mac) = signature.split_once("..").unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"0123456789abcdef");
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(text));
    ring::hmac::verify(&key, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(mac).unwrap()).unwrap();

    for path in [KUBELET_CONFIG, "/api/v1/namespaces/kube-public/configmaps", SECRETS, REQUESTS] {
        assert_eq!(anonymous.get(path).await.0, 401, "{path}");
    }
    assert_eq!(anonymous.delete(CLUSTER_INFO, &json!({})).await.0, 401);

    assert_eq!(admin.delete(&format!("{SECRETS}/bootstrap-token-abcdef"), &json!({})).await.0, 200);
    watch.until(|l| l["object"]["data"]["jws-kubeconfig-abcdef"].is_null()).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_node_and_renews_its_certificate_itself() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, Signing::default()).await;
    let admin = admin(&server);
    assert_eq!(admin.post(SECRETS, &token("2999-01-01T00:00:00Z")).await.0, 201);
    let bootstrap = Client::with_token(&kubeconfig(&server), Some(TOKEN));
    let (status, config) = bootstrap.get(KUBELET_CONFIG).await;
    assert!(
        status == 200 && config["data"]["kubelet"].as_str().unwrap().contains("KubeletConfiguration"),
        "{config}"
    );
    assert_eq!(bootstrap.get("/api/v1/nodes/n1").await.0, 404);
    assert_eq!(bootstrap.get("/api/v1/pods").await.0, 403);
    assert_eq!(bootstrap.get(SECRETS).await.0, 403);

    let asked = ask("n1", &[]);
    let name = create(&bootstrap, &asked).await;
    let pem = certificate(&bootstrap, &name).await;
    let (_, seen) = bootstrap.get(&format!("{REQUESTS}/{name}")).await;
    assert_eq!(seen["spec"]["username"], "system:bootstrap:abcdef", "the server says who asks");
    assert_eq!(seen["spec"]["groups"][0], "system:bootstrappers");
    assert!((364 * 86400..=366 * 86400).contains(&seconds_of_life(&pem)));

    let node = identity(&server, &pem, &asked.key);
    assert_eq!(node.get(KUBELET_CONFIG).await.0, 200);
    let object = json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
    assert_eq!(node.post("/api/v1/nodes", &object).await.0, 201);
    let again = ask("n1", &[]);
    let name = create(&node, &again).await;
    let renewed = identity(&server, &certificate(&node, &name).await, &again.key);
    assert_eq!(renewed.get("/api/v1/nodes/n1").await.0, 200);
    server.shutdown().await;
}

#[tokio::test]
async fn a_node_gets_no_other_nodes_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, Signing::default()).await;
    let node = Client::new(&server.node_kubeconfig("n1").unwrap());
    let other = create(&node, &ask("n2", &[])).await;
    let own = create(&node, &ask("n1", &[])).await;
    certificate(&node, &own).await;
    // Work is done in order: the first was looked at before the second was signed.
    let (_, seen) = node.get(&format!("{REQUESTS}/{other}")).await;
    assert_eq!(seen["status"], json!({}));
    assert_eq!(node.patch(&format!("{REQUESTS}/{other}/approval"), &json!({})).await.0, 403);
    server.shutdown().await;
}

#[tokio::test]
async fn a_node_serves_under_the_addresses_it_reports() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, Signing::default()).await;
    let node = Client::new(&server.node_kubeconfig("n1").unwrap());
    let address =
        |a: &str| json!([{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": a}]);
    let object = json!({"metadata": {"name": "n1"}, "status": {"addresses": address("10.0.0.1")}});
    assert_eq!(node.post("/api/v1/nodes", &object).await.0, 201);
    let early = create(&node, &ask("n1", &["n1", "10.0.0.2"])).await;
    let fine = create(&node, &ask("n1", &["n1", "10.0.0.1"])).await;
    certificate(&node, &fine).await;
    let (_, seen) = node.get(&format!("{REQUESTS}/{early}")).await;
    assert_eq!(seen["status"], json!({}), "10.0.0.2 is not reported");
    let patch = json!({"status": {"addresses": address("10.0.0.2")}});
    assert_eq!(node.patch("/api/v1/nodes/n1/status", &patch).await.0, 200);
    certificate(&node, &early).await;
    server.shutdown().await;
}

#[tokio::test]
async fn an_expired_token_lets_nobody_in_and_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, Signing::default()).await;
    let admin = admin(&server);
    let mut watch =
        admin.watch(&format!("{SECRETS}?watch=1&fieldSelector=metadata.name=bootstrap-token-abcdef")).await;
    let bootstrap = Client::with_token(&kubeconfig(&server), Some(TOKEN));
    assert_eq!(bootstrap.get(KUBELET_CONFIG).await.0, 401);
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    assert_eq!(admin.post(SECRETS, &token(&soon.to_string())).await.0, 201);
    watch.until(|l| l["type"] == "DELETED").await;
    assert_eq!(bootstrap.get(KUBELET_CONFIG).await.0, 401);
    server.shutdown().await;
}

#[tokio::test]
async fn without_approval_an_administrator_decides() {
    let dir = tempfile::tempdir().unwrap();
    let short = Signing { approval: Approval::Never, duration: Duration::from_secs(40) };
    let server = start(&dir, short).await;
    let admin = admin(&server);
    let node = Client::new(&server.node_kubeconfig("n1").unwrap());
    let (yes, no) = (create(&node, &ask("n1", &[])).await, create(&node, &ask("n1", &[])).await);
    for (name, kind) in [(&yes, "Approved"), (&no, "Denied")] {
        let (_, mut request) = admin.get(&format!("{REQUESTS}/{name}")).await;
        assert_eq!(request["status"], json!({}));
        request["status"]["conditions"] =
            json!([{"type": kind, "status": "True", "reason": "Test", "message": ""}]);
        let (status, answer) = admin.put(&format!("{REQUESTS}/{name}/approval"), &request).await;
        assert_eq!(status, 200, "{answer}");
    }
    let pem = certificate(&node, &yes).await;
    assert_eq!(seconds_of_life(&pem), 42, "40 ahead and a twentieth behind");
    let (_, denied) = node.get(&format!("{REQUESTS}/{no}")).await;
    assert!(has("Denied")(&denied) && denied["status"]["certificate"].is_null(), "{denied}");
    server.shutdown().await;
}

#[tokio::test]
async fn a_server_can_deny_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, Signing { approval: Approval::Deny, ..Signing::default() }).await;
    let node = Client::new(&server.node_kubeconfig("n1").unwrap());
    let name = create(&node, &ask("n1", &[])).await;
    until(&node, &name, has("Denied")).await;
    let wrong = json!({"metadata": {"name": "x"}, "spec": {"request": "anVuaw==", "usages": ["client auth"], "signerName": "a.b/c"}});
    let (status, refused) = node.post(REQUESTS, &wrong).await;
    assert_eq!((status, &refused["details"]["causes"][0]["field"]), (422, &json!("spec.request")));
    server.shutdown().await;
}
