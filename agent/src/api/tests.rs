//! Client and watch against a server on loopback.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::client::{Client, DeleteOptions, PatchKind};
use super::error::ApiError;
use super::fake::{self, Fake, Seen};
use super::kubeconfig::{TokenSource, Trust};
use super::list::{ObjectKey, Selection};
use super::path::PODS;
use super::watch::{Change, watch_with};

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Named {
    metadata: Meta,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Meta {
    name: String,
}

fn name_of(json: &str) -> Result<String, String> {
    serde_json::from_str::<Named>(json).map(|n| n.metadata.name).map_err(|e| e.to_string())
}

fn object(name: &str, version: u64) -> Value {
    json!({"metadata":{"name":name,"namespace":"d","uid":format!("u-{name}"),"resourceVersion":version.to_string(),
        "managedFields":[{"manager":"m"}]}})
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type":kind,"object":object})))
}

fn page(items: &[Value], version: &str, next: &str) -> Response {
    fake::json(200, &json!({"metadata":{"resourceVersion":version,"continue":next},"items":items}))
}

fn quick() -> Backoff {
    Backoff::new(Duration::from_millis(1), Duration::from_millis(2), Duration::from_secs(1))
}

fn start(fake: &Fake, selection: Selection) -> mpsc::Receiver<Change<String>> {
    let (out, changes) = mpsc::channel(8);
    tokio::spawn(watch_with(fake.client(), selection, name_of, out, quick()));
    changes
}

/// Answers from a script, in order; beyond its end a watch that stays silent.
fn scripted(answers: Vec<Response>) -> impl Fn(Seen) -> std::future::Ready<Response> {
    let answers = Mutex::new(answers.into_iter());
    let silent = Mutex::new(Vec::new());
    move |_| {
        let next = answers.lock().expect("unpoisoned").next();
        std::future::ready(next.unwrap_or_else(|| {
            let (keep, pieces) = mpsc::channel(1);
            silent.lock().expect("unpoisoned").push(keep);
            fake::streamed(pieces)
        }))
    }
}

fn events(lines: &[Bytes]) -> Response {
    Response::new(axum::body::Body::from(lines.concat()))
}

#[tokio::test]
async fn lists_in_pages_then_watches_from_the_lists_version() {
    let fake = Fake::start(scripted(vec![
        page(&[object("a", 1), object("b", 2)], "7", "more/1"),
        page(&[object("c", 3)], "7", ""),
        events(&[line("ADDED", &object("d", 8)), line("DELETED", &object("a", 9))]),
    ]))
    .await;
    let mut changes = start(&fake, Selection { page: 2, ..Selection::all(PODS).fields("spec.nodeName=n1") });
    let all = ["a", "b", "c"].map(String::from).to_vec();
    assert_eq!(changes.recv().await, Some(Change::Synced(all)));
    assert_eq!(changes.recv().await, Some(Change::Applied("d".into())));
    let key = ObjectKey { namespace: "d".into(), name: "a".into(), uid: "u-a".into() };
    assert_eq!(changes.recv().await, Some(Change::Deleted(key)));
    fake.wait_for(4).await;
    let lines = fake.lines();
    assert_eq!(lines[0], "GET /api/v1/pods?limit=2&fieldSelector=spec.nodeName%3Dn1");
    assert_eq!(lines[1], "GET /api/v1/pods?limit=2&continue=more%2F1&fieldSelector=spec.nodeName%3Dn1");
    assert!(lines[2].contains("watch=true&allowWatchBookmarks=true&timeoutSeconds="), "{}", lines[2]);
    assert!(lines[2].contains("&resourceVersion=7&"), "{}", lines[2]);
    assert!(lines[3].contains("&resourceVersion=9&"), "resumed behind the last event: {}", lines[3]);
}

#[tokio::test]
async fn a_bookmark_moves_the_version_and_says_nothing() {
    let fake = Fake::start(scripted(vec![
        page(&[], "7", ""),
        events(&[line("BOOKMARK", &json!({"metadata":{"resourceVersion":"50"}}))]),
    ]))
    .await;
    let mut changes = start(&fake, Selection::all(PODS));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec![])));
    fake.wait_for(3).await;
    assert!(fake.lines()[2].contains("resourceVersion=50"));
    assert!(changes.try_recv().is_err());
}

#[tokio::test]
async fn gone_inside_the_stream_or_as_an_answer_lists_again() {
    let expired = json!({"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"});
    let fake = Fake::start(scripted(vec![
        page(&[object("a", 1)], "7", ""),
        events(&[line("ERROR", &expired)]),
        page(&[object("b", 9)], "9", ""),
        fake::status(410, "Expired", "too old"),
        page(&[object("c", 11)], "11", ""),
    ]))
    .await;
    let mut changes = start(&fake, Selection::all(PODS));
    for wanted in ["a", "b", "c"] {
        assert_eq!(changes.recv().await, Some(Change::Synced(vec![wanted.to_owned()])));
    }
}

#[tokio::test]
async fn an_expired_continue_token_lists_everything_in_one_page() {
    let fake = Fake::start(scripted(vec![
        page(&[object("a", 1)], "7", "old"),
        fake::status(410, "Expired", "the provided continue parameter is too old"),
        page(&[object("a", 1), object("b", 1)], "8", ""),
    ]))
    .await;
    let mut changes = start(&fake, Selection::all(PODS));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec!["a".into(), "b".into()])));
    assert_eq!(fake.lines()[2], "GET /api/v1/pods");
}

#[tokio::test]
async fn errors_of_the_server_are_outlived() {
    let fake = Fake::start(scripted(vec![
        fake::status(403, "Forbidden", "pods is forbidden"),
        fake::status(500, "InternalError", "etcd is away"),
        page(&[], "7", ""),
        fake::status(429, "TooManyRequests", "slow down"),
        events(&[line("MODIFIED", &object("a", 8))]),
    ]))
    .await;
    let mut changes = start(&fake, Selection::all(PODS));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec![])));
    assert_eq!(changes.recv().await, Some(Change::Applied("a".into())));
    assert!(fake.lines()[4].contains("resourceVersion=7"), "resumed, not listed again");
}

#[tokio::test]
async fn an_object_that_is_not_understood_hides_no_other() {
    let fake = Fake::start(scripted(vec![
        page(&[json!({"metadata":{"name":5}}), object("b", 2)], "7", ""),
        events(&[
            line("ADDED", &json!({"metadata":{"resourceVersion":"8"}})),
            line("ADDED", &object("c", 9)),
        ]),
    ]))
    .await;
    let mut changes = start(&fake, Selection::all(PODS));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec!["b".into()])));
    assert_eq!(changes.recv().await, Some(Change::Applied("c".into())));
}

#[tokio::test]
async fn a_broken_event_lists_again() {
    let fake = Fake::start(scripted(vec![
        page(&[object("a", 1)], "7", ""),
        events(&[Bytes::from_static(b"{\"type\":\"ADD\n")]),
        page(&[object("b", 9)], "9", ""),
    ]))
    .await;
    let mut changes = start(&fake, Selection::all(PODS));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec!["a".into()])));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec!["b".into()])));
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = reserved.local_addr().expect("an address");
    drop(reserved);
    let access = super::kubeconfig::Access {
        server: format!("http://{address}"),
        trust: Trust::Anybody,
        tls_server_name: None,
        proxy_url: None,
        certificate: None,
        token: None,
        namespace: None,
    };
    let client = Client::new(&access).expect("a client");
    let error = client.get::<Value>("/api/v1/pods").await.expect_err("nobody there");
    assert!(matches!(&error, ApiError::Transport(text) if text.contains("refused")), "{error}");
    let (out, mut changes) = mpsc::channel(8);
    tokio::spawn(watch_with(client, Selection::all(PODS), name_of, out, quick()));
    let listener = tokio::net::TcpListener::bind(address).await.expect("bound");
    let _fake = Fake::on(listener, scripted(vec![page(&[object("a", 1)], "1", "")]));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec!["a".into()])));
}

#[tokio::test]
async fn a_watch_ends_when_nobody_listens() {
    let fake = Fake::start(scripted(vec![page(&[], "1", "")])).await;
    let (out, mut changes) = mpsc::channel::<Change<String>>(1);
    let task = tokio::spawn(watch_with(fake.client(), Selection::all(PODS), name_of, out, quick()));
    assert_eq!(changes.recv().await, Some(Change::Synced(vec![])));
    drop(changes);
    task.await.expect("ended by itself");
}

#[tokio::test]
async fn calls_carry_method_type_token_and_body() {
    let fake = Fake::start(|_| std::future::ready(fake::json(200, &json!({"ok":true})))).await;
    let mut access = fake.access();
    access.trust = Trust::Anybody;
    access.token = Some(TokenSource::Inline("secret".into()));
    let client = Client::new(&access).expect("a client");
    let _: Value = client.create("/api/v1/nodes", &json!({"kind":"Node"})).await.expect("created");
    let body = json!({"status":{}});
    let _: Value =
        client.patch("/api/v1/nodes/n/status", PatchKind::Strategic, &body).await.expect("patched");
    let options = DeleteOptions { grace_seconds: Some(0), uid: Some("u1") };
    client.delete("/api/v1/namespaces/d/pods/p", &options).await.expect("deleted");
    let seen = fake.seen();
    assert!(seen.iter().all(|s| s.authorization == "Bearer secret"));
    assert_eq!(
        (seen[0].line(), seen[0].content_type.as_str()),
        ("POST /api/v1/nodes".into(), "application/json")
    );
    assert_eq!(seen[1].content_type, "application/strategic-merge-patch+json");
    assert_eq!(
        seen[2].json(),
        json!({"apiVersion":"v1","kind":"DeleteOptions","gracePeriodSeconds":0,"preconditions":{"uid":"u1"}})
    );
}

#[tokio::test]
async fn an_answer_that_is_not_json_names_the_path() {
    let fake = Fake::start(|_| std::future::ready(Response::new("<html>".into()))).await;
    let error = fake.client().get::<Value>("/api/v1/nodes/n").await.expect_err("not JSON");
    assert!(error.to_string().starts_with("answer of /api/v1/nodes/n is not understood: "), "{error}");
}

#[tokio::test]
async fn tls_and_http2_are_used_where_the_server_offers_them() {
    let (address, authority, version) = tls_server().await;
    let access = super::kubeconfig::Access {
        server: format!("https://{address}"),
        trust: Trust::Bundle(authority.clone().into_bytes()),
        tls_server_name: Some("kubernetes.default".into()),
        proxy_url: None,
        certificate: None,
        token: None,
        namespace: None,
    };
    let client = Client::new(&access).expect("a client");
    let _: Value = client.get("/version").await.expect("an answer");
    assert_eq!(*version.lock().expect("unpoisoned"), Some(http::Version::HTTP_2));
    let wrong_name = super::kubeconfig::Access { tls_server_name: None, ..access };
    let client = Client::new(&wrong_name).expect("a client");
    let error = client.get::<Value>("/version").await.expect_err("another name");
    assert!(matches!(&error, ApiError::Transport(text) if text.contains("certificate")), "{error}");
}

type SeenVersion = Arc<Mutex<Option<http::Version>>>;

/// A TLS server whose certificate is for `kubernetes.default` and not for its address.
async fn tls_server() -> (std::net::SocketAddr, String, SeenVersion) {
    let made = rcgen::generate_simple_self_signed(["kubernetes.default".to_owned()]).expect("a certificate");
    let key = crate::tls::certified_key(
        made.cert.pem().as_bytes(),
        made.signing_key.serialize_pem().as_bytes(),
        "test",
    );
    let resolver = rustls::sign::SingleCertAndKey::from(key.expect("a key"));
    let mut config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let version = SeenVersion::default();
    let seen = Arc::clone(&version);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let seen = Arc::clone(&seen);
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                *seen.lock().expect("unpoisoned") = Some(request.version());
                let body = http_body_util::Full::new(Bytes::from_static(b"{}"));
                std::future::ready(Ok::<_, std::convert::Infallible>(http::Response::new(body)))
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(
                async move { builder.serve_connection(io, service).await.map_err(|e| e.to_string()) },
            );
        }
    });
    (address, made.cert.pem(), version)
}
