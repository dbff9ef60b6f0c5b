//! A small client of the API for tests: TLS with the certificates of a kubeconfig, JSON in and out.

#![allow(dead_code)]

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use orlop_standalone::{Config, Server};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A server in a directory of its own, on any port of loopback.
pub async fn start(dir: &tempfile::TempDir) -> Server {
    let listen = "127.0.0.1:0".parse().unwrap();
    Server::start(Config { listen, ..Config::new(dir.path()) }).await.unwrap()
}

/// A client of the administrator.
pub fn admin(server: &Server) -> Client {
    Client::new(&std::fs::read_to_string(server.admin_kubeconfig()).unwrap())
}

pub struct Client {
    address: String,
    tls: TlsConnector,
    token: Option<String>,
}

fn field(kubeconfig: &str, key: &str) -> Option<String> {
    let line = kubeconfig.lines().find(|l| l.trim().starts_with(&format!("{key}:")))?;
    Some(line.split_once(": ")?.1.trim().to_owned())
}

fn decoded(kubeconfig: &str, key: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(field(kubeconfig, key)?).ok()
}

impl Client {
    pub fn new(kubeconfig: &str) -> Self {
        Self::build(kubeconfig, true, None)
    }

    /// The same server without a certificate, with a bearer token if there is one.
    pub fn with_token(kubeconfig: &str, token: Option<&str>) -> Self {
        Self::build(kubeconfig, false, token.map(str::to_owned))
    }

    fn build(kubeconfig: &str, certificate: bool, token: Option<String>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        let ca = decoded(kubeconfig, "certificate-authority-data").unwrap();
        roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = if certificate {
            let cert =
                CertificateDer::from_pem_slice(&decoded(kubeconfig, "client-certificate-data").unwrap())
                    .unwrap();
            let key =
                PrivateKeyDer::from_pem_slice(&decoded(kubeconfig, "client-key-data").unwrap()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        let address = field(kubeconfig, "server").unwrap().trim_start_matches("https://").to_owned();
        Self { address, tls: TlsConnector::from(Arc::new(config)), token }
    }

    pub async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let tcp = TcpStream::connect(&self.address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let host = self.address.rsplit_once(':').unwrap().0.to_owned();
        let tls = self.tls.connect(ServerName::try_from(host).unwrap(), tcp).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Sends a request on a connection that can be taken over after the answer.
    pub async fn send_upgrade(&self, request: http::Request<Full<Bytes>>) -> http::Response<Incoming> {
        let tcp = TcpStream::connect(&self.address).await.unwrap();
        let host = self.address.rsplit_once(':').unwrap().0.to_owned();
        let tls = self.tls.connect(ServerName::try_from(host).unwrap(), tcp).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.unwrap()
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        media_type: &str,
        body: impl Into<Bytes>,
    ) -> http::Request<Full<Bytes>> {
        let mut request = http::Request::builder().method(method).uri(path).header("host", &self.address);
        request = request.header("content-type", media_type).header("accept", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Full::new(body.into())).unwrap()
    }

    pub async fn raw(&self, method: &str, path: &str, media_type: &str, body: String) -> (u16, Bytes) {
        let request = self.request(method, path, media_type, body);
        let response = self.connect().await.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    async fn json(&self, method: &str, path: &str, media_type: &str, body: String) -> (u16, Value) {
        let (status, bytes) = self.raw(method, path, media_type, body).await;
        (
            status,
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into()),
        )
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.json("GET", path, "application/json", String::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.json("POST", path, "application/json", body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.json("PUT", path, "application/json", body.to_string()).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        self.json("PATCH", path, "application/strategic-merge-patch+json", body.to_string()).await
    }

    pub async fn delete(&self, path: &str, options: &Value) -> (u16, Value) {
        self.json("DELETE", path, "application/json", options.to_string()).await
    }

    pub async fn watch(&self, path: &str) -> Lines {
        let request = self.request("GET", path, "application/json", Bytes::new());
        let response = self.connect().await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Lines { body: response.into_body(), buffer: Vec::new() }
    }
}

/// The lines of a streamed answer.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line, or none at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.ok()?;
            self.buffer.extend_from_slice(frame.data_ref()?);
        }
    }

    /// Type and name of the next line.
    pub async fn change(&mut self) -> (String, String) {
        let line = self.next().await.unwrap();
        let name = line["object"]["metadata"]["name"].as_str().unwrap_or_default();
        (line["type"].as_str().unwrap().to_owned(), name.to_owned())
    }

    /// Reads until a line fits.
    pub async fn until(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.next().await.expect("the watch goes on until the line comes");
            if fits(&line) {
                return line;
            }
        }
    }
}
