//! Renewal against the embedded API server, while everything else goes on.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use orlop_standalone::{Approval, Server, Signing};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::client::{ClientRotation, settle};
use super::file::{self, Said};
use super::lifetime::{Lifetime, Standing};
use super::serving::ServingRotation;
use crate::api::client::{Client, PatchKind};
use crate::api::csr::{self, CLIENT_SIGNER, Wanted};
use crate::api::kubeconfig::{self, Access, CertificateSource, PemSource};
use crate::api::list::Selection;
use crate::api::path::{CERTIFICATE_SIGNING_REQUESTS, NODES, SECRETS, SERVICES};
use crate::api::watch::{Change, watch as watch_objects};
use crate::node::NodeView;
use crate::server::serving::ServingIdentity;

/// Nothing here takes so long on the slowest machine.
const LONG: Duration = Duration::from_secs(120);

async fn server(dir: &Path, duration: Duration) -> Server {
    let listen = "127.0.0.1:0".parse().expect("an address");
    let signing = Signing { duration, ..Signing::default() };
    let config = orlop_standalone::Config { listen, signing, ..orlop_standalone::Config::new(dir) };
    Server::start(config).await.expect("a server")
}

fn node_access(server: &Server) -> Access {
    let text = server.node_kubeconfig("n1").expect("a kubeconfig");
    kubeconfig::parse(&text, Path::new("/nonexistent")).expect("valid")
}

fn admin(server: &Server) -> Client {
    Client::new(&kubeconfig::load(server.admin_kubeconfig()).expect("valid")).expect("a client")
}

/// A certificate of n1 in a file, as `orlop join` leaves one, and the access with it.
async fn joined(server: &Server, file: &Path) -> Access {
    let mut access = node_access(server);
    let client = Client::new(&access).expect("a client");
    let key = csr::new_key().expect("a key");
    let wanted = Wanted { signer: CLIENT_SIGNER, user: "system:node:n1", names: Vec::new() };
    let request = csr::request(&wanted, &key).expect("a request");
    let certificate = csr::obtain(&client, &request, |_| ()).await.expect("signed");
    file::store(file, &certificate, &key).expect("stored");
    let source = PemSource::File(file.to_owned());
    access.certificate = Some(CertificateSource { certificate: source.clone(), key: source });
    access
}

fn rotation(client: &Client, file: &Path) -> ClientRotation {
    ClientRotation {
        client: client.clone(),
        file: file.to_owned(),
        rotate: true,
        bootstrap: None,
        join: "orlop join".into(),
    }
}

async fn until(what: &str, mut fits: impl FnMut() -> bool) {
    let wait = async {
        while !fits() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what} within {LONG:?}"));
}

/// For everybody: who judges certificates counts whole seconds.
fn is_over(lifetime: Lifetime) -> bool {
    lifetime.standing(Timestamp::now() - jiff::SignedDuration::from_secs(2)) == Standing::Expired
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
}

fn name_of(json: &str) -> Result<String, String> {
    let object: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    Ok(object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}

/// The certificate really ends: with the first one nobody would be let in any longer.
#[tokio::test]
async fn a_certificate_is_renewed_while_a_watch_lives_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = server(&dir.path().join("server"), Duration::from_secs(12)).await;
    let file = dir.path().join("pki/client.pem");
    let access = joined(&server, &file).await;
    let first = file::load(&file).expect("a pair").said.lifetime;
    let copy = dir.path().join("first.pem");
    std::fs::copy(&file, &copy).expect("copied");
    let source = PemSource::File(copy);
    let old = CertificateSource { certificate: source.clone(), key: source };
    let stale = Access { certificate: Some(old), ..access.clone() };
    let (access, kept) = settle(access, dir.path());
    assert_eq!(kept.as_deref(), Some(file.as_path()));
    let client = Client::new(&access).expect("a client");

    let (out, mut changes) = mpsc::channel(16);
    let watching = tokio::spawn(watch_objects(client.clone(), Selection::all(SERVICES), name_of, out));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec!["kubernetes".to_owned()])));
    let rotating = tokio::spawn(rotation(&client, &file).run());

    until("the certificate is replaced", || {
        file::load(&file).is_ok_and(|pair| pair.said.lifetime.not_after > first.not_after)
    })
    .await;
    until("the first certificate ends", || is_over(first)).await;
    let _: Value = client.get(&NODES.collection(None)).await.expect("calls go on with the new certificate");
    let _: Value = admin(&server)
        .create(&SERVICES.collection(Some("default")), &service("late"))
        .await
        .expect("created");
    assert_eq!(
        changes.recv().await,
        Some(Change::Applied("late".to_owned())),
        "the watch was not begun again"
    );

    let nobody = Client::new(&stale).expect("a client");
    nobody.get::<Value>(&NODES.collection(None)).await.expect_err("the first certificate is nobody's by now");
    rotating.abort();
    watching.abort();
    server.shutdown().await;
}

/// A kubeconfig with a bootstrap token, which is made.
async fn bootstrap_kubeconfig(server: &Server) -> String {
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "stringData": {
        "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"}});
    let _: Value =
        admin(server).create(&SECRETS.collection(Some("kube-system")), &secret).await.expect("a token");
    let ca = base64::engine::general_purpose::STANDARD.encode(server.ca_pem());
    format!(
        "{{clusters: [{{name: c, cluster: {{server: '{}', certificate-authority-data: {ca}}}}}], users: [{{name: u, user: {{token: \
         abcdef.0123456789abcdef}}}}], contexts: [{{name: x, context: {{cluster: c, user: u}}}}], current-context: x}}",
        server.url()
    )
}

#[tokio::test]
async fn a_node_whose_certificate_expired_comes_back_with_its_bootstrap_credentials() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, file) = (dir.path().join("server"), dir.path().join("pki/client.pem"));
    let short = server(&data, Duration::from_secs(1)).await;
    joined(&short, &file).await;
    short.shutdown().await;
    let said = file::load(&file).expect("a pair").said;
    until("it expires", || is_over(said.lifetime)).await;

    let server = server(&data, Duration::from_secs(3600)).await;
    let mut access = node_access(&server);
    let source = PemSource::File(file.clone());
    access.certificate = Some(CertificateSource { certificate: source.clone(), key: source });
    let client = Client::new(&access).expect("a client");
    let nodes = NODES.collection(None);
    client.get::<Value>(&nodes).await.expect_err("an expired certificate is nobody's");

    let bootstrap = dir.path().join("bootstrap-kubeconfig");
    std::fs::write(&bootstrap, bootstrap_kubeconfig(&server).await).expect("written");
    let rotating =
        tokio::spawn(ClientRotation { bootstrap: Some(bootstrap), ..rotation(&client, &file) }.run());
    until("a new certificate", || {
        file::load(&file).is_ok_and(|p| p.said.lifetime.standing(Timestamp::now()) == Standing::Valid)
    })
    .await;
    let wait = async {
        while client.get::<Value>(&nodes).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("the same client is let in again");
    rotating.abort();
    server.shutdown().await;
}

/// The approver was away until the certificate ended.
#[tokio::test]
async fn a_request_that_nobody_decided_in_time_is_followed_by_one_with_the_bootstrap_credentials() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, file) = (dir.path().join("server"), dir.path().join("pki/client.pem"));
    let short = server(&data, Duration::from_secs(8)).await;
    let access = joined(&short, &file).await;
    short.shutdown().await;

    let listen = "127.0.0.1:0".parse().expect("an address");
    let signing = Signing { approval: Approval::Never, ..Signing::default() };
    let config = orlop_standalone::Config { listen, signing, ..orlop_standalone::Config::new(&data) };
    let server = Server::start(config).await.expect("a server");
    let access = Access { server: node_access(&server).server, ..access };
    let client = Client::new(&access).expect("a client");
    let bootstrap = dir.path().join("bootstrap-kubeconfig");
    std::fs::write(&bootstrap, bootstrap_kubeconfig(&server).await).expect("written");
    let rotating =
        tokio::spawn(ClientRotation { bootstrap: Some(bootstrap), ..rotation(&client, &file) }.run());

    let admin = admin(&server);
    let requests = CERTIFICATE_SIGNING_REQUESTS.collection(None);
    let wait = async {
        loop {
            let list: Value = admin.get(&requests).await.expect("listed");
            let pending = list["items"].as_array().into_iter().flatten();
            let pending = pending.filter(|r| r["status"]["conditions"].is_null());
            let askers: Vec<_> = pending.filter_map(|r| r["spec"]["username"].as_str()).collect();
            if askers.contains(&"system:bootstrap:abcdef") {
                return askers.iter().map(|&asker| asker.to_owned()).collect::<BTreeSet<_>>();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let askers = tokio::time::timeout(LONG, wait).await.expect("the second request");
    assert_eq!(askers, ["system:bootstrap:abcdef", "system:node:n1"].map(str::to_owned).into());
    rotating.abort();
    server.shutdown().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_preferred_to_the_kubeconfigs_own_if_the_cluster_is_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = server(&dir.path().join("server"), Duration::from_secs(3600)).await;
    let current = dir.path().join("pki/client-current.pem");
    let inline = node_access(&server);
    // Certificates are dated in whole seconds, and only a newer one is preferred.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    joined(&server, &current).await;
    let (settled, file) = settle(inline.clone(), dir.path());
    assert_eq!(file.as_deref(), Some(current.as_path()));
    assert_ne!(settled.certificate, inline.certificate);
    let other = tempfile::tempdir().expect("a folder");
    let foreign = self::server(other.path(), Duration::from_secs(3600)).await;
    let inline = node_access(&foreign);
    assert_eq!(settle(inline.clone(), dir.path()).0, inline, "another cluster's certificate is none here");
    foreign.shutdown().await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_serving_certificate_follows_the_addresses_of_the_node() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = server(&dir.path().join("server"), Duration::from_secs(3600)).await;
    let admin = admin(&server);
    let node = |address: &str| {
        json!({"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": address}]}})
    };
    let view = |address: &str| NodeView::decode(&node(address).to_string()).ok();
    let _: Value = admin.create(&NODES.collection(None), &node("10.0.0.1")).await.expect("a node");
    let identity = ServingIdentity::self_signed(dir.path(), &["n1".to_owned()], &[]).expect("made");
    let identity = Arc::new(identity);
    let (views, registered) = watch::channel(None);
    let rotation = ServingRotation {
        client: Client::new(&node_access(&server)).expect("a client"),
        identity: Arc::clone(&identity),
        registered,
        file: dir.path().join("pki/serving-current.pem"),
        user: "system:node:n1".into(),
    };
    let rotating = tokio::spawn(rotation.run());
    let shown = || {
        let key = identity.newest().expect("a certificate");
        key.cert.first().and_then(Said::of).expect("it can be read")
    };
    assert_ne!(shown().user, "system:node:n1", "self-signed until then");
    for address in ["10.0.0.1", "10.0.0.2"] {
        let patch = json!({"status": node(address)["status"]});
        let path = NODES.sub(None, "n1", "status");
        let _: Value = admin.patch(&path, PatchKind::Strategic, &patch).await.expect("patched");
        views.send_replace(view(address).map(Arc::new));
        until("a certificate for the addresses", || shown().names.contains(address)).await;
        assert_eq!(shown().user, "system:node:n1");
    }
    assert!(!shown().names.contains("10.0.0.1"));
    rotating.abort();
    server.shutdown().await;
}
