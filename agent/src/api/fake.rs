//! A server for unit tests: real HTTP on loopback, answers from a closure. Owns: what was asked. Never: shipped.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::watch;

use super::client::Client;
use super::kubeconfig::{Access, Trust};

/// One request, as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With its query.
    pub path: String,
    pub content_type: String,
    pub authorization: String,
    pub body: Bytes,
}

impl Seen {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

pub struct Fake {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    count: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn start<F, A>(answer: F) -> Fake
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        Self::on(listener, answer)
    }

    pub fn on<F, A>(listener: tokio::net::TcpListener, answer: F) -> Fake
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (counter, count) = watch::channel(0);
        let (answer, log) = (Arc::new(answer), Arc::clone(&seen));
        let app = axum::Router::new().fallback(move |request: Request| {
            let (answer, log, counter) = (Arc::clone(&answer), Arc::clone(&log), counter.clone());
            async move {
                let request = read(request).await;
                log.lock().expect("no panic while locked").push(request.clone());
                counter.send_modify(|n| *n += 1);
                answer(request).await
            }
        });
        let task = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("served");
        });
        Fake { address, seen, count, task }
    }

    pub fn access(&self) -> Access {
        Access {
            server: format!("http://{}", self.address),
            trust: Trust::System,
            tls_server_name: None,
            proxy_url: None,
            certificate: None,
            token: None,
            namespace: None,
        }
    }

    pub fn client(&self) -> Client {
        // Plain HTTP needs no roots, and a machine without any must pass the tests too.
        Client::new(&Access { trust: Trust::Anybody, ..self.access() }).expect("a client")
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic while locked").clone()
    }

    /// Method and path of every request.
    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }

    /// Until the requests so far, by method and path, are as wanted.
    pub async fn wait_until(&self, wanted: impl Fn(&[String]) -> bool) {
        self.count.clone().wait_for(|_| wanted(&self.lines())).await.expect("the fake lives");
    }

    /// Until so many requests have arrived.
    pub async fn wait_for(&self, requests: usize) {
        self.count.clone().wait_for(|n| *n >= requests).await.expect("the fake lives");
    }
}

async fn read(request: Request) -> Seen {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("a whole body");
    let header =
        |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    Seen {
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        content_type: header("content-type"),
        authorization: header("authorization"),
        body,
    }
}

pub fn json(code: u16, value: &Value) -> Response {
    let code = axum::http::StatusCode::from_u16(code).expect("a status");
    (code, [("content-type", "application/json")], value.to_string()).into_response()
}

pub fn status(code: u16, reason: &str, message: &str) -> Response {
    json(
        code,
        &serde_json::json!({"kind":"Status","status":"Failure","code":code,"reason":reason,"message":message}),
    )
}

/// A body whose pieces the test sends one by one; it ends when the sender is dropped.
pub fn streamed(pieces: tokio::sync::mpsc::Receiver<Bytes>) -> Response {
    let stream = futures_util::stream::unfold(pieces, |mut pieces| async move {
        pieces.recv().await.map(|piece| (Ok::<_, std::convert::Infallible>(piece), pieces))
    });
    Response::new(Body::from_stream(stream))
}
