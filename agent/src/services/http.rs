//! What the service proxy tells over HTTP, at kube-proxy's addresses and in its words.
//!
//! Owns: the routes `/healthz`, `/livez`, `/metrics`, `/proxyMode`, `/configz`. Never: judges (the crate `orlop-netproxy` says who is
//! healthy and how an answer looks).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use orlop_netproxy::{Answer, Health, Metrics};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::driver::{Handle, Question};
use crate::server::serve_plain;

/// A port that is taken is tried again after this long: kube-proxy's pause too.
const REBIND: Duration = Duration::from_secs(5);
/// Metrics do not wait longer than this for a proxy that is busy; the counts of its last answer are told then.
const PATIENCE: Duration = Duration::from_secs(2);
/// The text format of OpenMetrics.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the answers are made from.
#[derive(Clone)]
pub struct Seen {
    /// The proxy.
    pub handle: Handle,
    /// Its health, readable while it is busy.
    pub health: watch::Receiver<Health>,
    /// Counters.
    pub metrics: Metrics,
    /// All metrics.
    pub registry: Arc<Registry>,
    /// The settings in force.
    pub configz: Arc<Value>,
}

/// Serves until dropped. The node goes on without where the port is taken; it is tried again.
pub async fn serve(address: SocketAddr, routes: Router) {
    let mut complained = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !complained {
                    tracing::warn!(%address, %error, "cannot listen; trying again");
                }
                complained = true;
                tokio::time::sleep(REBIND).await;
            }
        }
    };
    serve_plain(listener, routes).await;
}

/// `/healthz` and `/livez`.
pub fn health(seen: Seen) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/livez", get(livez)).with_state(seen)
}

/// `/metrics`, `/proxyMode` and `/configz`.
pub fn metrics(seen: Seen) -> Router {
    let configz = Arc::clone(&seen.configz);
    Router::new()
        .route("/configz", get(move || async move { Json(configz) }))
        .route("/metrics", get(all_metrics))
        .route("/proxyMode", get(|| async { "nftables" }))
        .with_state(seen)
}

async fn healthz(State(seen): State<Seen>) -> Response {
    let answer = seen.health.borrow().healthz(SystemTime::now());
    seen.metrics.record_healthz(answer.status);
    respond(answer)
}

async fn livez(State(seen): State<Seen>) -> Response {
    let answer = seen.health.borrow().livez(SystemTime::now());
    seen.metrics.record_livez(answer.status);
    respond(answer)
}

async fn all_metrics(State(seen): State<Seen>) -> Response {
    if let Ok(Some((status, changes))) =
        tokio::time::timeout(PATIENCE, seen.handle.ask(Question::Status)).await
    {
        seen.metrics.record_status(&status, changes);
    }
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &seen.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// An answer of the proxy as one of HTTP.
pub fn respond(answer: Answer) -> Response {
    let mut response =
        Response::builder().status(answer.status).header(header::CONTENT_TYPE, "application/json");
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response
        .body(Body::from(answer.body))
        .unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_its_status_and_headers() {
        let answer = Answer {
            status: 503,
            headers: vec![("X-Load-Balancing-Endpoint-Weight", "0".to_owned())],
            body: "{}".to_owned(),
        };
        let response = respond(answer);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "0");
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}
