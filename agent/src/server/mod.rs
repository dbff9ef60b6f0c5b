//! The node's server: port 10250 for the API server and those it lets in, and `/healthz` for the machine itself.
//!
//! - `serving`, `peer`: our certificate, and theirs
//! - `access`: who asks, and may they
//! - `lookup`: what the server needs to know of the node
//! - `container_logs`: `kubectl logs`
//! - `port`: ports that a killed predecessor's child still holds
//!
//! Owns: listeners, connections, routes. Never: touches a pod.

pub mod access;
mod container_logs;
pub mod lookup;
pub mod peer;
pub mod port;
pub mod serving;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::service::Service as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::api::client::Client;
use crate::config::Config;
use crate::tls::{self, AskForCertificate};

use access::{Access, Attempt, Decision};
use lookup::PodLookup;
use peer::{ClientCa, User};
use port::when_free;
use serving::ServingIdentity;

/// How long a client may take for the TLS handshake, and then for the head of a request.
const PATIENCE: Duration = Duration::from_secs(15);

/// The listeners, bound and not yet served.
pub struct NodeServer<L> {
    main: Option<(TcpListener, TlsAcceptor)>,
    identity: Option<Arc<ServingIdentity>>,
    read_only: Option<TcpListener>,
    healthz: Option<TcpListener>,
    access: Arc<Access>,
    client_ca: Option<Arc<ClientCa>>,
    lookup: Arc<L>,
}

impl<L: PodLookup> NodeServer<L> {
    /// Binds what the configuration asks for.
    ///
    /// # Errors
    /// A port that is taken, a certificate that cannot be read: by name.
    pub async fn bind(
        config: &Config,
        addresses: &[IpAddr],
        client: Client,
        lookup: Arc<L>,
    ) -> anyhow::Result<Self> {
        let server = &config.server;
        let client_ca = server.client_ca_file.clone().map(ClientCa::new).transpose()?.map(Arc::new);
        let (main, identity) = match server.address {
            None => (None, None),
            Some(address) => {
                let identity = Arc::new(identity(config, addresses)?);
                (Some((listen(address).await?, acceptor(&identity)?)), Some(identity))
            }
        };
        Ok(Self {
            main,
            identity,
            read_only: listen_some(server.read_only).await?,
            healthz: listen_some(server.healthz).await?,
            access: Arc::new(Access::new(client, config.node_name.clone(), server)),
            client_ca,
            lookup,
        })
    }

    /// The certificate that port 10250 shows; none without that port.
    pub fn identity(&self) -> Option<&Arc<ServingIdentity>> {
        self.identity.as_ref()
    }

    /// Serves until dropped; open connections end with it.
    pub async fn run(self) {
        let mut listeners = JoinSet::new();
        if let Some((listener, acceptor)) = self.main {
            let routes = guarded(routes(Arc::clone(&self.lookup)), Arc::clone(&self.access));
            listeners.spawn(serve_tls(listener, acceptor, routes, self.client_ca));
        }
        if let Some(listener) = self.read_only {
            listeners.spawn(serve_plain(listener, routes(self.lookup)));
        }
        if let Some(listener) = self.healthz {
            listeners.spawn(serve_plain(listener, health()));
        }
        while listeners.join_next().await.is_some() {}
    }
}

#[cfg(test)]
impl<L> NodeServer<L> {
    fn address(&self) -> SocketAddr {
        self.main.as_ref().and_then(|(l, _)| l.local_addr().ok()).expect("bound")
    }
}

async fn listen_some(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    match address {
        None => Ok(None),
        Some(address) => listen(address).await.map(Some),
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    when_free(|| TcpListener::bind(address), |error| error.kind() == ErrorKind::AddrInUse)
        .await
        .with_context(|| format!("listen on {address}"))
}

fn identity(config: &Config, addresses: &[IpAddr]) -> anyhow::Result<ServingIdentity> {
    match &config.server.tls_files {
        Some((certificate, key)) => ServingIdentity::from_files(certificate, key),
        None => {
            let names = [config.hostname.clone(), "localhost".to_owned()];
            ServingIdentity::self_signed(&config.root_dir, &names, addresses)
        }
    }
}

fn acceptor(identity: &Arc<ServingIdentity>) -> anyhow::Result<TlsAcceptor> {
    let mut tls = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_client_cert_verifier(Arc::new(AskForCertificate::default()))
        .with_cert_resolver(Arc::clone(identity) as Arc<dyn rustls::server::ResolvesServerCert>);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

fn health() -> Router {
    let ok = || async { "ok" };
    Router::new()
        .route("/healthz", get(ok))
        .route("/healthz/ping", get(ok))
        .route("/healthz/syncloop", get(ok))
}

fn routes<L: PodLookup>(lookup: Arc<L>) -> Router {
    Router::new()
        .route("/pods", get(pods::<L>))
        .route("/pods/", get(pods::<L>))
        .route("/runningpods/", get(running_pods::<L>))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs::get::<L>))
        .with_state(lookup)
        .merge(health())
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") })
}

/// Every request, also one for a path that does not exist, is judged first.
fn guarded(routes: Router, access: Arc<Access>) -> Router {
    routes.layer(middleware::from_fn_with_state(access, guard))
}

async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let decision = {
        let token =
            request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
            });
        let attempt = Attempt {
            method: request.method().as_str(),
            path: request.uri().path(),
            certificate: request.extensions().get::<User>().cloned(),
            token,
        };
        access.judge(&attempt).await
    };
    match decision {
        Decision::Allowed => next.run(request).await,
        Decision::Unauthenticated => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        Decision::Forbidden(text) => (StatusCode::FORBIDDEN, text).into_response(),
        Decision::Unknown(text) => (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
    }
}

async fn pods<L: PodLookup>(State(lookup): State<Arc<L>>) -> Response {
    list(&lookup.pods())
}

async fn running_pods<L: PodLookup>(State(lookup): State<Arc<L>>) -> Response {
    list(&lookup.running_pods())
}

fn list(items: &[Value]) -> Response {
    axum::Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
        .into_response()
}

async fn serve_tls(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    routes: Router,
    client_ca: Option<Arc<ClientCa>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = accept(&listener, &mut connections).await;
        let (acceptor, routes, client_ca) = (acceptor.clone(), routes.clone(), client_ca.clone());
        connections.spawn(async move {
            let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else {
                return;
            };
            let chain = stream.get_ref().1.peer_certificates();
            let user = client_ca.zip(chain).and_then(|(ca, chain)| ca.user(chain));
            serve_connection(TokioIo::new(stream), routes, user).await;
        });
    }
}

/// Serves one listener in plain HTTP until dropped; open connections end with it.
pub async fn serve_plain(listener: TcpListener, routes: Router) {
    let mut connections = JoinSet::new();
    loop {
        let stream = accept(&listener, &mut connections).await;
        connections.spawn(serve_connection(TokioIo::new(stream), routes.clone(), None));
    }
}

/// The next connection. Clears away those that ended meanwhile.
async fn accept(listener: &TcpListener, connections: &mut JoinSet<()>) -> TcpStream {
    loop {
        // Both arms are cancel-safe by tokio's word: a connection not taken now is taken next time.
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _best_effort = stream.set_nodelay(true);
                    return stream;
                }
                Err(error) => {
                    // Out of descriptors, most likely: a moment later some are free again.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve_connection<S>(stream: TokioIo<S>, routes: Router, user: Option<User>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(routes);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        if let Some(user) = &user {
            request.extensions_mut().insert(user.clone());
        }
        routes.call(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(60)));
    if let Err(error) = builder.serve_connection_with_upgrades(stream, service).await {
        tracing::debug!(%error, "a connection to the node's server ended badly");
    }
}
