//! Calls to one API server.
//!
//! Owns: the connection pool, credentials on every call, how answers become values or [`ApiError`]s, and whether the
//! server is reachable: one line is logged when it goes away and one when it is back, whoever calls. Never: retries,
//! caches objects, or decides what to send.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::clock::Clock;
use super::error::ApiError;
use super::kubeconfig::Access;
use super::outage::Outage;
use super::tls::{self, ClientIdentity};
use super::token::BearerToken;
use crate::tls::TlsError;

/// How long an ordinary call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("orlop/", env!("CARGO_PKG_VERSION"));
/// Answers larger than this are not read (a page of 100 pods is about one mebibyte).
const MAX_ANSWER: usize = 64 << 20;

/// What keeps a client from being made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The rest.
    #[error("HTTP client for {server}: {reason}")]
    Http {
        /// Which server.
        server: String,
        /// Why.
        reason: String,
    },
}

/// How a patch is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// Lists of objects are merged by their merge key.
    Strategic,
    /// RFC 7386.
    Merge,
}

/// What a delete asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions<'a> {
    /// `gracePeriodSeconds`.
    pub grace_seconds: Option<u64>,
    /// `preconditions.uid`.
    pub uid: Option<&'a str>,
}

/// A handle; clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    access: Access,
    identity: Arc<ClientIdentity>,
    token: Option<BearerToken>,
    http: RwLock<reqwest::Client>,
    outage: Outage,
    clock: Clock,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("server", &self.inner.access.server).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for this server and user. Certificates are read; nothing is sent.
    pub fn new(access: &Access) -> Result<Self, ClientError> {
        let identity = Arc::new(ClientIdentity::new(access.certificate.clone())?);
        let http = build(access, Arc::clone(&identity))?;
        let token = access.token.clone().map(BearerToken::new);
        let outage = Outage::new(access.server.clone());
        let access = access.clone();
        let (http, clock) = (RwLock::new(http), Clock::default());
        Ok(Self { inner: Arc::new(Inner { access, identity, token, http, outage, clock }) })
    }

    /// The server's address, as in the kubeconfig.
    pub fn server(&self) -> &str {
        &self.inner.access.server
    }

    /// How far the server's clock is ahead of this machine's, once it answered.
    pub fn skew(&self) -> Option<jiff::SignedDuration> {
        self.inner.clock.ahead()
    }

    /// The certificate this client shows; rotation replaces it and then calls [`Client::reconnect`].
    pub fn identity(&self) -> &Arc<ClientIdentity> {
        &self.inner.identity
    }

    /// Leaves the present connections to those who use them and opens new ones for later calls: after a change of
    /// certificate, or when heartbeats fail on a connection that looks alive.
    pub fn reconnect(&self) {
        match build(&self.inner.access, Arc::clone(&self.inner.identity)) {
            Ok(fresh) => *self.inner.http.write().unwrap_or_else(|e| e.into_inner()) = fresh,
            Err(error) => tracing::warn!(%error, "cannot renew connections; keeping the old ones"),
        }
    }

    /// GET, decoded.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let bytes = self.get_bytes(path, CALL_TIMEOUT).await?;
        decode(path, &bytes)
    }

    /// GET, undecoded.
    pub async fn get_bytes(&self, path: &str, timeout: Duration) -> Result<Bytes, ApiError> {
        self.call(Call { timeout, ..Call::new(Method::GET, path) }).await
    }

    /// POST.
    pub async fn create<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ApiError> {
        let body = Some((JSON, encode(path, body)?));
        let bytes = self.call(Call { body, ..Call::new(Method::POST, path) }).await?;
        decode(path, &bytes)
    }

    /// PUT.
    pub async fn replace<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        timeout: Duration,
    ) -> Result<T, ApiError> {
        let body = Some((JSON, encode(path, body)?));
        let bytes = self.call(Call { body, timeout, ..Call::new(Method::PUT, path) }).await?;
        decode(path, &bytes)
    }

    /// PATCH.
    pub async fn patch<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        kind: PatchKind,
        body: &B,
    ) -> Result<T, ApiError> {
        let content_type = match kind {
            PatchKind::Strategic => "application/strategic-merge-patch+json",
            PatchKind::Merge => "application/merge-patch+json",
        };
        let body = Some((content_type, encode(path, body)?));
        let bytes = self.call(Call { body, ..Call::new(Method::PATCH, path) }).await?;
        decode(path, &bytes)
    }

    /// DELETE.
    pub async fn delete(&self, path: &str, options: &DeleteOptions<'_>) -> Result<(), ApiError> {
        let mut body = serde_json::json!({ "apiVersion": "v1", "kind": "DeleteOptions" });
        if let Some(grace) = options.grace_seconds {
            body["gracePeriodSeconds"] = grace.into();
        }
        if let Some(uid) = options.uid {
            body["preconditions"] = serde_json::json!({ "uid": uid });
        }
        let body = Some((JSON, encode(path, &body)?));
        self.call(Call { body, ..Call::new(Method::DELETE, path) }).await?;
        Ok(())
    }

    /// GET whose answer arrives in pieces. `timeout` is for the whole of it.
    pub async fn stream(&self, path: &str, timeout: Duration) -> Result<Pieces, ApiError> {
        let response = self.send(Call { timeout, ..Call::new(Method::GET, path) }).await?;
        Ok(Pieces { response })
    }

    async fn call(&self, call: Call<'_>) -> Result<Bytes, ApiError> {
        let path = call.path;
        let mut response = self.send(call).await?;
        let mut body = Vec::with_capacity(response.content_length().unwrap_or(0).min(1 << 20) as usize);
        while let Some(piece) = response.chunk().await.map_err(|e| transport(&e))? {
            if body.len() + piece.len() > MAX_ANSWER {
                let reason = format!("more than {MAX_ANSWER} bytes");
                return Err(ApiError::Decode { path: path.to_owned(), reason });
            }
            body.extend_from_slice(&piece);
        }
        Ok(Bytes::from(body))
    }

    /// Sends, and turns every answer but success into an error.
    async fn send(&self, call: Call<'_>) -> Result<reqwest::Response, ApiError> {
        let inner = &*self.inner;
        let http = inner.http.read().unwrap_or_else(|e| e.into_inner()).clone();
        let url = format!("{}{}", inner.access.server, call.path);
        let mut request = http.request(call.method, url).timeout(call.timeout).header(ACCEPT, JSON);
        if let Some((content_type, body)) = call.body {
            request = request.header(CONTENT_TYPE, content_type).body(body);
        }
        if let Some(token) = &inner.token {
            let token = token.get(Instant::now()).map_err(ApiError::Unauthorized)?;
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                ApiError::Unauthorized("the bearer token holds characters no header may hold".into())
            })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                let error = transport(&error);
                inner.outage.failed(&error);
                return Err(error);
            }
        };
        inner.outage.answered();
        if let Some(date) = response.headers().get(DATE).and_then(|v| v.to_str().ok()) {
            inner.clock.heard(date, jiff::Timestamp::now());
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status.as_u16() == 401
            && let Some(token) = &inner.token
        {
            token.refused();
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
        let retry_after = retry_after.and_then(|v| v.parse().ok()).map(Duration::from_secs);
        let body = response.bytes().await.unwrap_or_default();
        Err(ApiError::from_answer(status.as_u16(), &body, retry_after))
    }
}

const JSON: &str = "application/json";

/// One call.
struct Call<'a> {
    method: Method,
    path: &'a str,
    body: Option<(&'static str, Vec<u8>)>,
    timeout: Duration,
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, body: None, timeout: CALL_TIMEOUT }
    }
}

/// An answer that arrives in pieces.
pub struct Pieces {
    response: reqwest::Response,
}

impl Pieces {
    /// The next piece, `None` at the end. Cancel-safe: a piece not returned is not lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            // HTTP/2 ends a stream with an empty piece, which says nothing.
            match self.response.chunk().await.map_err(|e| transport(&e))? {
                Some(piece) if piece.is_empty() => {}
                other => return Ok(other),
            }
        }
    }
}

fn build(access: &Access, identity: Arc<ClientIdentity>) -> Result<reqwest::Client, ClientError> {
    let http_error =
        |e: reqwest::Error| ClientError::Http { server: access.server.clone(), reason: cause(&e) };
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        .tls_backend_preconfigured(tls::client_config(access, identity)?)
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(2)
        .pool_idle_timeout(Duration::from_secs(90))
        // A peer that vanished without a word is noticed within a minute, as with kubelet's HTTP/2 health checks.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(15))
        .http2_keep_alive_while_idle(true)
        .tcp_keepalive(Duration::from_secs(30));
    if let Some(proxy) = &access.proxy_url {
        builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(http_error)?);
    }
    builder.build().map_err(http_error)
}

fn encode<B: Serialize>(path: &str, body: &B) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(body).map_err(|e| ApiError::Invalid(format!("body for {path}: {e}")))
}

fn decode<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|e| ApiError::Decode { path: path.to_owned(), reason: e.to_string() })
}

fn transport(error: &reqwest::Error) -> ApiError {
    ApiError::Transport(cause(error))
}

/// reqwest's own words name the URL and not the reason; the reason is at the end of the chain.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    if error.is_timeout() && !error.is_connect() {
        return "timed out".to_owned();
    }
    let text = innermost.to_string();
    // The server's certificate is judged by this machine's clock.
    if text.contains("certificate")
        && ["expired", "Expired", "not valid yet", "NotValidYet"].iter().any(|w| text.contains(w))
    {
        let now = jiff::Timestamp::now();
        return format!("{text} (the clock of this machine says {now:.0}: is it right?)");
    }
    text
}
