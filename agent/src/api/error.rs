//! What can go wrong between this node and an API server.
//!
//! Owns: [`ApiError`] and how a `Status` answer becomes one. Never: retries or logs; callers branch on the variant.

use std::time::Duration;

use serde::Deserialize;

/// A failed call. The text is the server's own message where it gave one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// 404: the object, or the whole resource, is not there.
    #[error("{0}")]
    NotFound(String),
    /// 409 with reason `AlreadyExists`: a create met an object of that name.
    #[error("{0}")]
    AlreadyExists(String),
    /// 409: somebody else changed the object, or a precondition (the UID) does not hold.
    #[error("{0}")]
    Conflict(String),
    /// 403: the credentials are known and may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// 401: the credentials are not accepted.
    #[error("{0}")]
    Unauthorized(String),
    /// 410: the resource version or continue token is too old; list again.
    #[error("{0}")]
    Gone(String),
    /// 400, 415 or 422: the server understood the call and refuses its content.
    #[error("{0}")]
    Invalid(String),
    /// 429, or 503 with a time to wait: ask again later.
    #[error("{message}")]
    TooMany {
        /// The server's message.
        message: String,
        /// `Retry-After`, if the server gave one.
        retry_after: Option<Duration>,
    },
    /// Any other status, 500 and 504 among them.
    #[error("{message} (HTTP {code})")]
    Server {
        /// The HTTP status.
        code: u16,
        /// The server's message.
        message: String,
    },
    /// No answer: connection, TLS, time-out, or a stream that broke.
    #[error("{0}")]
    Transport(String),
    /// The answer is not what the API says it is.
    #[error("answer of {path} is not understood: {reason}")]
    Decode {
        /// Which call.
        path: String,
        /// What the decoder said.
        reason: String,
    },
}

/// The part of a `Status` object that says what went wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// For people.
    pub message: Option<String>,
    /// One word for programs: `AlreadyExists`, `Expired`, ...
    pub reason: Option<String>,
    /// The HTTP status, repeated here for the `ERROR` event of a watch.
    pub code: Option<u16>,
    /// More for programs.
    pub details: Option<StatusDetails>,
}

/// `details` of a `Status`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    /// When to ask again.
    pub retry_after_seconds: Option<u64>,
}

impl ApiError {
    /// The error for an answer with status `code` and this body; `retry_after` is the header of that name.
    pub fn from_answer(code: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let status = serde_json::from_slice::<Status>(body).unwrap_or_default();
        let text = || {
            let text = String::from_utf8_lossy(&body[..body.len().min(256)]);
            let text = text.trim();
            if text.is_empty() { format!("HTTP {code}") } else { text.to_owned() }
        };
        let message = status.message.clone().filter(|m| !m.is_empty()).unwrap_or_else(text);
        Self::of(Status { message: Some(message), code: Some(code), ..status }, retry_after)
    }

    /// The error for a `Status` that came inside a watch.
    pub fn from_status(status: Status) -> Self {
        Self::of(status, None)
    }

    fn of(status: Status, retry_after: Option<Duration>) -> Self {
        let message = status.message.unwrap_or_else(|| "no message".to_owned());
        let from_details = status.details.and_then(|d| d.retry_after_seconds).map(Duration::from_secs);
        let retry_after = retry_after.or(from_details);
        match (status.code.unwrap_or(500), status.reason.as_deref()) {
            (404, _) => ApiError::NotFound(message),
            (409, Some("AlreadyExists")) => ApiError::AlreadyExists(message),
            (409, _) => ApiError::Conflict(message),
            (403, _) => ApiError::Forbidden(message),
            (401, _) => ApiError::Unauthorized(message),
            (410, _) | (_, Some("Expired" | "Gone")) => ApiError::Gone(message),
            (400 | 415 | 422, _) => ApiError::Invalid(message),
            (429, _) => ApiError::TooMany { message, retry_after },
            (503, _) if retry_after.is_some() => ApiError::TooMany { message, retry_after },
            (code, _) => ApiError::Server { code, message },
        }
    }

    /// Whether the same call may succeed later without anybody changing anything on this side.
    pub fn is_transient(&self) -> bool {
        match self {
            ApiError::TooMany { .. } | ApiError::Server { .. } | ApiError::Transport(_) => true,
            ApiError::NotFound(_)
            | ApiError::AlreadyExists(_)
            | ApiError::Conflict(_)
            | ApiError::Forbidden(_)
            | ApiError::Unauthorized(_)
            | ApiError::Gone(_)
            | ApiError::Invalid(_)
            | ApiError::Decode { .. } => false,
        }
    }

    /// How long the server asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::TooMany { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_the_variant_callers_branch_on() {
        let table: &[(u16, &str, ApiError)] = &[
            (
                404,
                r#"{"kind":"Status","message":"pods \"a\" not found"}"#,
                ApiError::NotFound("pods \"a\" not found".into()),
            ),
            (409, r#"{"message":"there","reason":"AlreadyExists"}"#, ApiError::AlreadyExists("there".into())),
            (409, r#"{"message":"changed","reason":"Conflict"}"#, ApiError::Conflict("changed".into())),
            (410, r#"{"message":"too old","reason":"Expired"}"#, ApiError::Gone("too old".into())),
            (422, r#"{"message":"bad"}"#, ApiError::Invalid("bad".into())),
            (
                502,
                "<html>bad gateway</html>",
                ApiError::Server { code: 502, message: "<html>bad gateway</html>".into() },
            ),
            (500, "", ApiError::Server { code: 500, message: "HTTP 500".into() }),
            (
                429,
                r#"{"message":"slow down","details":{"retryAfterSeconds":3}}"#,
                ApiError::TooMany { message: "slow down".into(), retry_after: Some(Duration::from_secs(3)) },
            ),
        ];
        for (code, body, wanted) in table {
            assert_eq!(ApiError::from_answer(*code, body.as_bytes(), None), *wanted, "{code} {body}");
        }
    }

    #[test]
    fn an_error_inside_a_watch_with_reason_expired_is_gone() {
        let status =
            serde_json::from_str(r#"{"code":410,"reason":"Expired","message":"too old resource version"}"#);
        let status: Status = status.expect("a status");
        assert_eq!(ApiError::from_status(status), ApiError::Gone("too old resource version".into()));
    }

    #[test]
    fn the_retry_after_header_wins_over_the_details() {
        let error = ApiError::from_answer(503, b"busy", Some(Duration::from_secs(7)));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert!(error.is_transient());
    }
}
