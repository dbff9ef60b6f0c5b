//! The one HTTP client of this process: requests out, streaming responses back.
//!
//! Owns: connection pools and the rule where plain HTTP is allowed. The TLS settings are in [`tls`].
//! Never: follows redirects, retries, reads a proxy from the environment, or decides what a status code means. Callers do.
//!
//! The client library's types do not leave this file.

mod error;
mod tls;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
pub use error::HttpError;
use futures_util::{Stream, stream};
pub use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
pub use tls::{Identity, Trust};

/// Where `http://` may be spoken. Everywhere else a request fails with [`HttpError::PlainRefused`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// Nowhere.
    Never,
    /// To `localhost` and loopback addresses.
    #[default]
    Loopback,
    /// To loopback and to these hosts, each with or without a port (`registry.lan`, `10.0.0.5:5000`).
    LoopbackAnd(Vec<String>),
}

impl PlainHttp {
    /// Whether `authority` (`host` or `host:port`, IPv6 in brackets) may be spoken to in plain text.
    #[must_use]
    pub fn allows(&self, authority: &str) -> bool {
        let host = host_of(authority);
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match self {
            Self::Never => false,
            Self::Loopback => loopback,
            Self::LoopbackAnd(hosts) => loopback || hosts.iter().any(|h| h == authority || h == host),
        }
    }
}

fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    authority.split(':').next().unwrap_or(authority)
}

/// How a client connects.
#[derive(Clone)]
pub struct HttpOptions {
    /// Sent as `User-Agent`.
    pub user_agent: String,
    /// Trusted authorities.
    pub trust: Trust,
    /// Client certificate.
    pub identity: Option<Identity>,
    /// Name expected in the server's certificate instead of the URL's host (`tls-server-name` of a kubeconfig).
    pub server_name: Option<String>,
    /// Where plain HTTP is allowed.
    pub plain: PlainHttp,
    /// Longest wait for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Whether HTTP/2 may be negotiated over TLS.
    pub http2: bool,
    /// HTTP/2 pings after this much silence, so that a dead peer is noticed under a quiet watch.
    pub http2_ping: Option<Duration>,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            user_agent: concat!("orlop/", env!("CARGO_PKG_VERSION")).to_owned(),
            trust: Trust::default(),
            identity: None,
            server_name: None,
            plain: PlainHttp::Loopback,
            connect_timeout: Duration::from_secs(15),
            http2: true,
            http2_ping: None,
            idle_timeout: Duration::from_secs(90),
        }
    }
}

/// One request, complete.
#[derive(Debug, Clone)]
pub struct Request {
    /// Verb.
    pub method: Method,
    /// Absolute URL.
    pub url: String,
    /// All headers but `Host`, `User-Agent` and `Content-Length`.
    pub headers: HeaderMap,
    /// The body; empty for none.
    pub body: Bytes,
    /// Longest silence, both before the answer begins and between two pieces of its body. `None` waits for ever.
    pub patience: Option<Duration>,
}

impl Request {
    /// A request without headers or body that gives up after 60 s of silence.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self {
            method,
            url: url.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            patience: Some(Duration::from_secs(60)),
        }
    }

    /// `GET url`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds `Authorization: Bearer`. A token that cannot stand in a header is left out; the server then answers 401.
    #[must_use]
    pub fn bearer(mut self, token: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}")) {
            value.set_sensitive(true);
            self.headers.insert(header::AUTHORIZATION, value);
        }
        self
    }

    /// Sets the body and its media type.
    #[must_use]
    pub fn body(mut self, media_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        self.body = body.into();
        self
    }

    /// Sets the longest silence.
    #[must_use]
    pub fn patience(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self
    }
}

/// An answer whose body has not been read yet.
pub struct Response {
    url: String,
    patience: Option<Duration>,
    inner: reqwest::Response,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("url", &self.url)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Response {
    /// Status code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.inner.status()
    }

    /// Headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// The URL that was asked.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next piece of the body, `None` at its end.
    ///
    /// # Errors
    /// A stalled or broken connection. A body shorter than its `Content-Length` is a broken connection.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        within(self.patience, &self.url, self.inner.chunk())
            .await?
            .map_err(|e| error::classify(&self.url, &e))
    }

    /// The whole body, if it is at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Response::chunk`], and a body that is too long.
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes, HttpError> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if whole.len() + chunk.len() > limit {
                return Err(HttpError::TooLong { url: self.url, limit });
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// The body as a stream that ends after its first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, HttpError>> + Send {
        stream::unfold(Some(self), |state| async move {
            let mut response = state?;
            match response.chunk().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(response))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

/// A client with a connection pool of its own. Clones share it.
#[derive(Clone)]
pub struct Http {
    shared: Arc<Shared>,
}

struct Shared {
    options: HttpOptions,
    plain: OnceLock<reqwest::Client>,
    tls: OnceLock<reqwest::Client>,
}

impl Http {
    /// A client that has neither connected nor read a certificate store yet.
    #[must_use]
    pub fn new(options: HttpOptions) -> Self {
        Self { shared: Arc::new(Shared { options, plain: OnceLock::new(), tls: OnceLock::new() }) }
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// Everything that kept an answer from arriving; see [`HttpError`].
    pub async fn send(&self, request: Request) -> Result<Response, HttpError> {
        let Request { method, url, headers, body, patience } = request;
        let parsed = reqwest::Url::parse(&url)
            .map_err(|e| HttpError::Url { url: url.clone(), reason: e.to_string() })?;
        let client = match parsed.scheme() {
            "https" => self.tls_client()?,
            "http" if self.shared.options.plain.allows(&authority(&parsed)) => self.plain_client()?,
            "http" => return Err(HttpError::PlainRefused { url }),
            other => {
                return Err(HttpError::Url { reason: format!("scheme {other:?} is not http or https"), url });
            }
        };
        let mut outgoing = reqwest::Request::new(method, parsed);
        *outgoing.headers_mut() = headers;
        if !body.is_empty() {
            *outgoing.body_mut() = Some(body.into());
        }
        match within(patience, &url, client.execute(outgoing)).await? {
            Ok(inner) => Ok(Response { url, patience, inner }),
            Err(error) => Err(error::classify(&url, &error)),
        }
    }

    fn plain_client(&self) -> Result<reqwest::Client, HttpError> {
        if let Some(client) = self.shared.plain.get() {
            return Ok(client.clone());
        }
        let client = self.build(tls::nobody())?;
        Ok(self.shared.plain.get_or_init(|| client).clone())
    }

    fn tls_client(&self) -> Result<reqwest::Client, HttpError> {
        if let Some(client) = self.shared.tls.get() {
            return Ok(client.clone());
        }
        let options = &self.shared.options;
        let mut config =
            tls::client_config(&options.trust, options.identity.as_ref(), options.server_name.as_deref())
                .map_err(HttpError::Settings)?;
        config.alpn_protocols = if options.http2 {
            vec![b"h2".to_vec(), b"http/1.1".to_vec()]
        } else {
            vec![b"http/1.1".to_vec()]
        };
        let client = self.build(config)?;
        Ok(self.shared.tls.get_or_init(|| client).clone())
    }

    fn build(&self, config: rustls::ClientConfig) -> Result<reqwest::Client, HttpError> {
        let options = &self.shared.options;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .user_agent(&options.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(options.connect_timeout)
            .pool_idle_timeout(options.idle_timeout)
            .tcp_keepalive(Duration::from_secs(30));
        if let Some(ping) = options.http2_ping {
            builder = builder
                .http2_keep_alive_interval(ping)
                .http2_keep_alive_timeout(ping)
                .http2_keep_alive_while_idle(true);
        }
        builder.build().map_err(|e| HttpError::Settings(error::innermost(&e)))
    }
}

fn authority(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

async fn within<F: Future>(patience: Option<Duration>, url: &str, work: F) -> Result<F::Output, HttpError> {
    match patience {
        None => Ok(work.await),
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .map_err(|_| HttpError::Stalled { url: url.to_owned(), seconds: limit.as_secs() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_only_to_loopback_and_named_hosts() {
        let named = PlainHttp::LoopbackAnd(vec!["reg.lan".into(), "10.0.0.5:5000".into()]);
        for (rule, authority, allowed) in [
            (&PlainHttp::Loopback, "localhost", true),
            (&PlainHttp::Loopback, "localhost:5000", true),
            (&PlainHttp::Loopback, "127.0.0.1:5000", true),
            (&PlainHttp::Loopback, "127.9.9.9", true),
            (&PlainHttp::Loopback, "[::1]:5000", true),
            (&PlainHttp::Loopback, "localhost.evil.example", false),
            (&PlainHttp::Loopback, "10.0.0.5:5000", false),
            (&PlainHttp::Never, "localhost", false),
            (&named, "reg.lan:5000", true),
            (&named, "10.0.0.5:5000", true),
            (&named, "10.0.0.5", false),
            (&named, "other.lan", false),
        ] {
            assert_eq!(rule.allows(authority), allowed, "{rule:?} {authority}");
        }
    }

    #[tokio::test]
    async fn plain_http_elsewhere_is_refused_before_connecting() {
        let error =
            Http::new(HttpOptions::default()).send(Request::get("http://192.0.2.1/v2/")).await.unwrap_err();
        assert!(matches!(error, HttpError::PlainRefused { .. }), "{error}");
    }

    #[tokio::test]
    async fn silence_ends_when_patience_does() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let http = Http::new(HttpOptions::default());
        let request = || Request::get(&url).patience(Some(Duration::from_millis(300)));
        let error = http.send(request()).await.unwrap_err();
        assert!(matches!(error, HttpError::Stalled { .. }) && error.is_transient(), "{error}");
        drop(listener.accept().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // An answer that comes before its question is an error of its own.
            std::io::Read::read(&mut stream, &mut [0; 512]).unwrap();
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
                .unwrap();
            stream
        });
        let mut response = http.send(request()).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().as_deref(), Some(&b"ab"[..]));
        let error = response.chunk().await.unwrap_err();
        assert!(matches!(error, HttpError::Stalled { .. }), "{error}");
        drop(server.join().unwrap());
    }

    #[tokio::test]
    async fn refused_connection_says_so_and_is_transient() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let error = Http::new(HttpOptions::default()).send(Request::get(&url)).await.unwrap_err();
        assert!(error.is_transient());
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(error.to_string().contains(&url), "{error}");
    }
}
