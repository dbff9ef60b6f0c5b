//! What the server carries on to a node's port: logs and upgraded connections.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod client;

use std::sync::Arc;

use bytes::Bytes;
use client::{Client, admin, start};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use orlop_standalone::Server;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A node's server with a certificate that it signed itself, answering one line per request; `Upgrade` makes it an echo.
async fn fake_node() -> u16 {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["node".into()]).unwrap().self_signed(&key).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(cert.der().to_vec())], key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let service = service_fn(answer);
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service);
                let _ = connection.with_upgrades().await;
            });
        }
    });
    port
}

async fn answer(request: hyper::Request<Incoming>) -> Result<hyper::Response<Full<Bytes>>, hyper::Error> {
    let uri = request.uri().to_string();
    if request.headers().contains_key("upgrade") {
        let protocol = request.headers()["upgrade"].clone();
        tokio::spawn(async move {
            let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            stream.write_all(uri.as_bytes()).await.unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                stream.write_all(&byte).await.unwrap();
            }
        });
        let response = hyper::Response::builder()
            .status(101)
            .header("connection", "Upgrade")
            .header("upgrade", protocol);
        return Ok(response.body(Full::default()).unwrap());
    }
    if uri.contains("/missing?") {
        let response = hyper::Response::builder().status(400);
        return Ok(response
            .body(Full::from("container \"missing\" in pod \"p\" is waiting to start"))
            .unwrap());
    }
    Ok(hyper::Response::new(Full::from(format!("{uri}\n"))))
}

async fn with_pod(server: &Server, port: u16) -> Client {
    let admin = admin(server);
    let node = json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    assert_eq!(admin.post("/api/v1/nodes", &node).await.0, 201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [
        {"name": "a", "image": "i:1"}, {"name": "missing", "image": "i:1"}]}});
    assert_eq!(admin.post("/api/v1/namespaces/default/pods", &pod).await.0, 201);
    admin
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = with_pod(&server, fake_node().await).await;
    let log = |query: &str| format!("/api/v1/namespaces/default/pods/p/log?{query}");
    let text = |(status, bytes): (u16, Bytes)| (status, String::from_utf8(bytes.to_vec()).unwrap());
    let get = async |path: String| text(client.raw("GET", &path, "application/json", String::new()).await);
    assert_eq!(
        get(log("container=a&follow=true&tailLines=5&sinceTime=2026-01-01T00%3A00%3A00Z")).await,
        (
            200,
            "/containerLogs/default/p/a?follow=true&sinceTime=2026-01-01T00%3A00%3A00Z&tailLines=5\n".into()
        )
    );
    let (status, refused) = client.get(&log("")).await;
    let message = "a container name must be specified for pod p, choose one of: [a missing]";
    assert_eq!((status, refused["message"].as_str().unwrap()), (400, message));
    let (status, refused) = client.get(&log("container=x")).await;
    assert_eq!((status, refused["message"].as_str().unwrap()), (400, "container x is not valid for pod p"));
    let (status, refused) = client.get(&log("container=missing")).await;
    assert_eq!((status, &refused["reason"]), (400, &json!("BadRequest")));
    assert_eq!(refused["message"], "container \"missing\" in pod \"p\" is waiting to start");
    assert_eq!(get("/api/v1/nodes/n1/proxy/pods?x=1".into()).await, (200, "/pods?x=1\n".into()));
    server.shutdown().await;
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let client = with_pod(&server, port).await;
    let (status, error) = client.get("/api/v1/namespaces/default/pods/p/log?container=a").await;
    let message = error["message"].as_str().unwrap();
    assert_eq!(status, 500);
    assert!(message.contains(&format!("dial tcp 127.0.0.1:{port}")), "{message}");
    server.shutdown().await;
}

#[tokio::test]
async fn exec_hands_the_connection_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = with_pod(&server, fake_node().await).await;
    let path = "/api/v1/namespaces/default/pods/p/exec?container=a&command=sh&command=-c&command=a%20b&stdin=true&stdout=true";
    let mut request = client.request("POST", path, "application/json", Bytes::new());
    request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "SPDY/3.1".parse().unwrap());
    let response = client.send_upgrade(request).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut seen = vec![0; "/exec/default/p/a?command=sh&command=-c&command=a%20b&input=1&output=1".len()];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(
        String::from_utf8(seen).unwrap(),
        "/exec/default/p/a?command=sh&command=-c&command=a%20b&input=1&output=1"
    );
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
    server.shutdown().await;
}
