//! Why a registry did not give what it was asked for.

use super::super::digest::Digest;
use super::super::manifest::ManifestError;
use super::hosts::InvalidHosts;
use crate::api::http::{HttpError, StatusCode};

/// Every variant names the image or the URL.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry has no such repository, tag or digest.
    #[error("{image}: not found in registry {registry}")]
    NotFound {
        /// Which image.
        image: String,
        /// Where.
        registry: String,
    },
    /// Credentials are missing or do not allow it. Many registries say so for images that do not exist.
    #[error("{image}: pull access denied by registry {registry}: {message}")]
    Unauthorized {
        /// Which image.
        image: String,
        /// Where.
        registry: String,
        /// The registry's words.
        message: String,
    },
    /// The registry asks to come back later.
    #[error("{url}: too many requests: {message}")]
    RateLimited {
        /// What was asked.
        url: String,
        /// The registry's words.
        message: String,
    },
    /// Any other status.
    #[error("{url}: the registry answered {status}: {message}")]
    Status {
        /// What was asked.
        url: String,
        /// The code.
        status: StatusCode,
        /// The registry's words.
        message: String,
    },
    /// A redirect or a byte range that cannot be followed.
    #[error("{url}: {reason}")]
    Unusable {
        /// What was asked.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The token server's answer is of no use.
    #[error("{url}: no token in the answer: {reason}")]
    Token {
        /// The token server.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The content is not what its digest says.
    #[error("{what}: digest is {found}, not {wanted}")]
    WrongDigest {
        /// Manifest, configuration or layer.
        what: String,
        /// As asked for.
        wanted: Digest,
        /// As received.
        found: Digest,
    },
    /// The content has another length than its descriptor says.
    #[error("{what}: {found} bytes, not {wanted}")]
    WrongSize {
        /// Configuration or layer.
        what: String,
        /// As the manifest says.
        wanted: u64,
        /// As received.
        found: u64,
    },
    /// The manifest is of no use.
    #[error("{image}: {cause}")]
    Manifest {
        /// Which image.
        image: String,
        /// Why.
        cause: ManifestError,
    },
    /// The configuration is of no use.
    #[error("{image}: image configuration: {reason}")]
    Config {
        /// Which image.
        image: String,
        /// What is wrong.
        reason: String,
    },
    /// The registry's mirrors cannot be read.
    #[error(transparent)]
    Hosts(#[from] InvalidHosts),
    /// No answer at all.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// Who is to blame, as far as it matters for trying again.
enum Blame<'a> {
    /// The answer, which stays the same however often it is asked for.
    Answer,
    /// Too many requests.
    Haste,
    /// The registry itself is in trouble.
    Registry,
    /// The request or its answer went astray.
    Http(&'a HttpError),
}

impl RegistryError {
    /// Whether the same request may well succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self.blame() {
            Blame::Haste | Blame::Registry => true,
            Blame::Http(error) => error.is_transient(),
            Blame::Answer => false,
        }
    }

    /// Whether the registry could not be reached or could not answer.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self.blame() {
            Blame::Registry => true,
            Blame::Http(error) => matches!(
                error,
                HttpError::Connect { .. }
                    | HttpError::Stalled { .. }
                    | HttpError::Broken { .. }
                    | HttpError::Tls { .. }
            ),
            Blame::Answer | Blame::Haste => false,
        }
    }

    fn blame(&self) -> Blame<'_> {
        match self {
            Self::RateLimited { .. } => Blame::Haste,
            Self::Status { status, .. } if status.is_server_error() => Blame::Registry,
            Self::Http(error) => Blame::Http(error),
            Self::Status { .. }
            | Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Unusable { .. }
            | Self::Token { .. }
            | Self::WrongDigest { .. }
            | Self::WrongSize { .. }
            | Self::Manifest { .. }
            | Self::Config { .. }
            | Self::Hosts(_) => Blame::Answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_of_the_registry_passes_and_its_refusals_stay() {
        let url = || "https://registry.example/v2/".to_owned();
        let status = |status| RegistryError::Status { url: url(), status, message: String::new() };
        let http = |error| RegistryError::Http(error);
        let cases = [
            (RegistryError::RateLimited { url: url(), message: String::new() }, true, false),
            (status(StatusCode::SERVICE_UNAVAILABLE), true, true),
            (status(StatusCode::BAD_REQUEST), false, false),
            (RegistryError::NotFound { image: "a".into(), registry: "b".into() }, false, false),
            (http(HttpError::Connect { url: url(), reason: "refused".into() }), true, true),
            (http(HttpError::Tls { url: url(), reason: "expired".into() }), false, true),
            (http(HttpError::TooLong { url: url(), limit: 1 }), false, false),
        ];
        for (error, transient, unavailable) in cases {
            assert_eq!((error.is_transient(), error.is_unavailable()), (transient, unavailable), "{error}");
        }
    }
}
