//! What can keep an HTTP answer from arriving, each told apart by what its reader can do about it.

use super::tls;

/// Why a request got no answer, or only a part of one. Status codes are answers, not errors.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL cannot be parsed.
    #[error("{url}: not a usable URL: {reason}")]
    Url {
        /// As given.
        url: String,
        /// The parser's words.
        reason: String,
    },
    /// `http://` to a host where it is not allowed.
    #[error("{url}: plain HTTP is allowed only to loopback and to hosts the configuration names")]
    PlainRefused {
        /// The URL.
        url: String,
    },
    /// Certificates, keys or the trust store cannot be used.
    #[error("TLS settings: {0}")]
    Settings(String),
    /// Name resolution or the TCP connection failed.
    #[error("{url}: cannot connect: {reason}")]
    Connect {
        /// The URL.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// The TLS handshake failed: unknown authority, wrong name, expired, or not TLS at all.
    #[error("{url}: TLS: {reason}")]
    Tls {
        /// The URL.
        url: String,
        /// rustls' words.
        reason: String,
    },
    /// Nothing arrived for too long.
    #[error("{url}: nothing received for {seconds} s")]
    Stalled {
        /// The URL.
        url: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The connection broke in the middle.
    #[error("{url}: the connection broke: {reason}")]
    Broken {
        /// The URL.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// The answer is longer than its reader accepts.
    #[error("{url}: the answer is longer than {limit} bytes")]
    TooLong {
        /// The URL.
        url: String,
        /// The limit in bytes.
        limit: usize,
    },
}

impl HttpError {
    /// Whether the same request may well succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Stalled { .. } | Self::Broken { .. } => true,
            Self::Url { .. }
            | Self::PlainRefused { .. }
            | Self::Settings(_)
            | Self::Tls { .. }
            | Self::TooLong { .. } => false,
        }
    }
}

/// Sorts an error of the client library.
pub(super) fn classify(url: &str, error: &reqwest::Error) -> HttpError {
    let (url, reason) = (url.to_owned(), innermost(error));
    if tls::is_tls_failure(error) {
        HttpError::Tls { url, reason }
    } else if error.is_connect() {
        HttpError::Connect { url, reason }
    } else {
        HttpError::Broken { url, reason }
    }
}

/// The last error of a chain of causes: "connection refused" rather than "error sending request".
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if error.is_timeout() && cause.to_string().is_empty() {
        "timed out".to_owned()
    } else {
        cause.to_string()
    }
}
