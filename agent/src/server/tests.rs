//! The server as a whole: real TLS on loopback, a fake node behind it and a fake API server beside it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Parser;
use tokio::sync::oneshot;

use super::lookup::{FoundLog, LogTarget, LookupError};
use super::*;
use crate::api::error::ApiError;
use crate::api::fake::{self, Fake};
use crate::api::kubeconfig::{Access as Kubeconfig, CertificateSource, PemSource, TokenSource, Trust};
use crate::config::RunArgs;
use crate::logs::follow::Ended;

/// A certificate authority and what it signs.
struct Authority {
    certificate: rcgen::CertificateParams,
    key: rcgen::KeyPair,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut certificate = rcgen::CertificateParams::default();
        certificate.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = certificate.self_signed(&key).expect("signed").pem();
        Self { certificate, key, pem }
    }

    fn client(&self, name: &str, group: &str) -> CertificateSource {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let key = rcgen::KeyPair::generate().expect("a key");
        let issuer = rcgen::Issuer::from_params(&self.certificate, &self.key);
        let certificate = params.signed_by(&key, &issuer).expect("signed").pem();
        CertificateSource {
            certificate: PemSource::Inline(certificate.into_bytes()),
            key: PemSource::Inline(key.serialize_pem().into_bytes()),
        }
    }
}

/// A node with one pod `d/web` that has one container `c`.
struct OnePod {
    log: PathBuf,
    running: Mutex<Option<oneshot::Receiver<()>>>,
}

impl PodLookup for OnePod {
    fn log(&self, target: &LogTarget) -> Result<FoundLog, LookupError> {
        if target.pod != "web" {
            return Err(LookupError::NoPod(target.pod.clone()));
        }
        if target.previous {
            return Err(LookupError::NoLog(
                "previous terminated container \"c\" in pod \"web\" not found".into(),
            ));
        }
        let running = self.running.lock().expect("unpoisoned").take();
        let ended = running.map(|end| -> Ended {
            Box::pin(async move {
                let _either_way = end.await;
            })
        });
        Ok(FoundLog { path: self.log.clone(), ended })
    }

    fn pods(&self) -> Vec<Value> {
        vec![json!({"metadata": {"name": "web"}})]
    }

    fn running_pods(&self) -> Vec<Value> {
        vec![]
    }
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    run: RunArgs,
}

struct Node {
    address: SocketAddr,
    folder: tempfile::TempDir,
    authority: Authority,
    end: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
    _api: Fake,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The API server believes the token `good`, allows group `admins` everything and nobody else anything.
async fn api() -> Fake {
    Fake::start(|seen| async move {
        let spec = seen.json()["spec"].clone();
        let status = if seen.path.contains("tokenreviews") {
            json!({"authenticated": spec["token"] == "good", "user": {"username": "joe", "groups": ["admins"]}})
        } else {
            let groups = spec["groups"].as_array().cloned().unwrap_or_default();
            json!({"allowed": groups.contains(&json!("admins"))})
        };
        fake::json(201, &json!({"status": status}))
    })
    .await
}

async fn start() -> Node {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).expect("written");
    let words = ["orlop", "--kubeconfig", "k", "--hostname-override", "n1", "--root-dir"];
    let words = words.into_iter().map(String::from).chain([folder.path().display().to_string()]);
    let mut config =
        Config::build(&Line::parse_from(words).run, Default::default(), "n1").expect("a configuration");
    config.server.address = Some("127.0.0.1:0".parse().expect("an address"));
    config.server.healthz = None;
    config.server.client_ca_file = Some(ca);
    let api = api().await;
    let (end, ended) = oneshot::channel();
    let log = folder.path().join("0.log");
    write(&log, &["one", "two", "three"]);
    let lookup = Arc::new(OnePod { log, running: Mutex::new(Some(ended)) });
    let addresses = ["127.0.0.1".parse().expect("an address")];
    let server = NodeServer::bind(&config, &addresses, api.client(), lookup).await.expect("bound");
    let address = server.address();
    let task = tokio::spawn(server.run());
    Node { address, folder, authority, end, task, _api: api }
}

fn write(log: &Path, lines: &[&str]) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(log).expect("open");
    for line in lines {
        writeln!(file, "2026-01-01T00:00:00.000000000Z stdout F {line}").expect("written");
    }
}

impl Node {
    /// A client that trusts the certificate this node made for itself.
    fn client(&self, certificate: Option<CertificateSource>, token: Option<&str>) -> Client {
        let own = std::fs::read(self.folder.path().join("pki/kubelet.crt")).expect("made");
        Client::new(&Kubeconfig {
            server: format!("https://{}", self.address),
            trust: Trust::Bundle(own),
            tls_server_name: None,
            proxy_url: None,
            certificate,
            token: token.map(|t| TokenSource::Inline(t.into())),
            namespace: None,
        })
        .expect("a client")
    }

    fn admin(&self) -> Client {
        self.client(Some(self.authority.client("root", "admins")), None)
    }
}

async fn text(client: &Client, path: &str) -> Result<String, ApiError> {
    let bytes = client.get_bytes(path, PATIENCE).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn certificates_and_tokens_open_the_door_and_nothing_else_does() {
    let node = start().await;
    assert_eq!(text(&node.admin(), "/healthz").await.as_deref(), Ok("ok"));
    assert_eq!(text(&node.client(None, Some("good")), "/healthz").await.as_deref(), Ok("ok"));
    let unauthorized = Err(ApiError::Unauthorized("Unauthorized".into()));
    assert_eq!(text(&node.client(None, None), "/healthz").await, unauthorized);
    assert_eq!(text(&node.client(None, Some("bad")), "/healthz").await, unauthorized);
    let stranger = Authority::new().client("root", "admins");
    assert_eq!(text(&node.client(Some(stranger), None), "/healthz").await, unauthorized);
    let nobody = node.client(Some(node.authority.client("joe", "users")), None);
    let forbidden = "Forbidden (user=joe, verb=get, resource=nodes, subresource(s)=[pods proxy])";
    assert_eq!(text(&nobody, "/pods").await, Err(ApiError::Forbidden(forbidden.into())));
}

#[tokio::test]
async fn pods_are_listed_and_unknown_paths_are_not_found() {
    let node = start().await;
    let list: Value = node.admin().get("/pods").await.expect("a list");
    assert_eq!((&list["kind"], &list["items"][0]["metadata"]["name"]), (&json!("PodList"), &json!("web")));
    assert_eq!(text(&node.admin(), "/nowhere").await, Err(ApiError::NotFound("404 page not found".into())));
}

#[tokio::test]
async fn logs_are_served_with_their_options() {
    let node = start().await;
    let admin = node.admin();
    let get = async |query: &str| text(&admin, &format!("/containerLogs/d/web/c?{query}")).await;
    assert_eq!(get("").await.as_deref(), Ok("one\ntwo\nthree\n"));
    assert_eq!(
        get("tailLines=1&timestamps=true").await.as_deref(),
        Ok("2026-01-01T00:00:00.000000000Z three\n")
    );
    assert_eq!(get("limitBytes=5").await.as_deref(), Ok("one\nt"));
    assert_eq!(get("sinceTime=2026-02-01T00:00:00Z").await.as_deref(), Ok(""));
    let invalid = |text: &str| Err(ApiError::Invalid(text.into()));
    assert_eq!(get("tailLines=-1").await, invalid("Invalid request."));
    assert_eq!(
        get("previous=true").await,
        invalid("previous terminated container \"c\" in pod \"web\" not found")
    );
    let missing = text(&admin, "/containerLogs/d/none/c").await;
    assert_eq!(missing, Err(ApiError::NotFound("pod \"none\" does not exist".into())));
}

#[tokio::test]
async fn a_followed_log_arrives_as_it_is_written_and_ends_with_the_container() {
    let mut node = start().await;
    let admin = node.admin();
    let mut pieces =
        admin.stream("/containerLogs/d/web/c?follow=true&tailLines=1", PATIENCE).await.expect("a stream");
    let mut next =
        async || pieces.next().await.expect("no error").map(|b| String::from_utf8_lossy(&b).into_owned());
    assert_eq!(next().await.as_deref(), Some("three\n"));
    write(&node.folder.path().join("0.log"), &["four"]);
    assert_eq!(next().await.as_deref(), Some("four\n"));
    write(&node.folder.path().join("0.log"), &["last"]);
    let (unused, _) = oneshot::channel();
    std::mem::replace(&mut node.end, unused).send(()).expect("followed");
    assert_eq!(next().await.as_deref(), Some("last\n"));
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = taken.local_addr().expect("an address");
    let error = format!("{:#}", listen(address).await.expect_err("taken"));
    assert!(error.starts_with(&format!("listen on {address}: Address already in use")), "{error}");
}

#[tokio::test]
async fn the_machine_itself_may_ask_for_health_without_credentials() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let server = format!("http://{}", listener.local_addr().expect("an address"));
    let task = tokio::spawn(serve_plain(listener, health()));
    let client = Client::new(&Kubeconfig {
        server,
        trust: Trust::Anybody,
        tls_server_name: None,
        proxy_url: None,
        certificate: None,
        token: None,
        namespace: None,
    });
    let client = client.expect("a client");
    assert_eq!(text(&client, "/healthz").await.as_deref(), Ok("ok"));
    assert!(matches!(text(&client, "/pods").await, Err(ApiError::NotFound(_))));
    task.abort();
}
