//! One host that speaks the distribution API: authorization, redirects, and statuses that are no success.
//!
//! Owns: what is known of the host. Redirects are followed here and not in the HTTP client, because a registry's storage must
//! not see the registry's `Authorization`.

use super::challenge;
use super::token::{Purpose, Tokens};
use super::{Place, RegistryError};
use crate::api::http::{HeaderValue, Http, Request, Response, StatusCode, header};

const LONGEST_MESSAGE: usize = 64 << 10;
const MOST_REDIRECTS: usize = 10;

/// A registry, or a mirror of it.
pub(super) struct Endpoint {
    pub http: Http,
    /// Up to and including `/v2`.
    pub base: String,
    /// The registry it stands in for, if it is a mirror. Mirrors get no credentials: those are for the registry.
    pub mirror_of: Option<String>,
    pub resolve: bool,
    pub pull: bool,
}

impl Endpoint {
    /// The URL of something in a repository.
    pub fn url(&self, place: Place<'_>, what: &str) -> String {
        let url = format!("{}/{}/{what}", self.base, place.reference.repository());
        match &self.mirror_of {
            // How a mirror of several registries knows which one is meant.
            Some(registry) => format!("{url}?ns={registry}"),
            None => url,
        }
    }

    /// Sends a request: with what authorization is known, once more if another is asked for, and on to where it redirects.
    pub async fn send(
        &self,
        tokens: &Tokens,
        place: Place<'_>,
        request: &Request,
    ) -> Result<Response, RegistryError> {
        let purpose = Purpose {
            registry: authority(&self.base),
            repository: place.reference.repository(),
            credential: place.credential.filter(|_| self.mirror_of.is_none()),
        };
        let known = tokens.known(&purpose);
        let response = self.follow(authorized(request, known)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.answer(place, response).await;
        }
        let headers = response.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges = challenge::parse(headers.iter().filter_map(|v| v.to_str().ok()));
        match tokens.answer(&self.http, &challenges, &purpose).await? {
            None => self.answer(place, response).await,
            Some(authorization) => {
                let response = self.follow(authorized(request, Some(authorization))).await?;
                self.answer(place, response).await
            }
        }
    }

    async fn follow(&self, mut request: Request) -> Result<Response, RegistryError> {
        for _ in 0..MOST_REDIRECTS {
            let url = request.url.clone();
            let response = self.http.send(request.clone()).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            let target =
                location.and_then(|l| redirect_target(&url, l)).ok_or_else(|| RegistryError::Unusable {
                    url: url.clone(),
                    reason: format!("a redirect to {:?} cannot be followed", location.unwrap_or_default()),
                })?;
            if target.starts_with("http://") && url.starts_with("https://") {
                let reason = format!("a redirect from TLS to plain HTTP ({target}) is refused");
                return Err(RegistryError::Unusable { url, reason });
            }
            if authority(&target) != authority(&url) {
                request.headers.remove(header::AUTHORIZATION);
            }
            request.url = target;
        }
        Err(RegistryError::Unusable { url: request.url, reason: "too many redirects".into() })
    }

    /// Turns statuses that are no success into errors.
    async fn answer(&self, place: Place<'_>, response: Response) -> Result<Response, RegistryError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let url = response.url().to_owned();
        let body = response.bytes(LONGEST_MESSAGE).await.unwrap_or_default();
        let message = message(&body, status);
        let registry = match self.mirror_of {
            Some(_) => authority(&self.base).to_owned(),
            None => place.reference.registry().to_owned(),
        };
        let image = place.reference.to_string();
        Err(match status.as_u16() {
            404 => RegistryError::NotFound { image, registry },
            401 | 403 => RegistryError::Unauthorized { image, registry, message },
            429 => RegistryError::RateLimited { url, message },
            _ => RegistryError::Status { url, status, message },
        })
    }
}

fn authorized(request: &Request, authorization: Option<HeaderValue>) -> Request {
    let mut request = request.clone();
    if let Some(value) = authorization {
        request.headers.insert(header::AUTHORIZATION, value);
    }
    request
}

/// The registry's own words (distribution specification, "Error Codes"), printable and short.
pub(super) fn message(body: &[u8], status: StatusCode) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<OneError>,
    }
    #[derive(serde::Deserialize)]
    struct OneError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) if !errors.is_empty() => {
            let one = |e: OneError| if e.message.is_empty() { e.code } else { e.message };
            errors.into_iter().map(one).collect::<Vec<_>>().join("; ")
        }
        Ok(_) | Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text: String = text.trim().chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.is_empty() { status.canonical_reason().unwrap_or("no reason given").to_owned() } else { text }
}

/// Host and port of a URL.
pub(super) fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

/// An absolute URL from a `Location`, which may be relative to the host or carry its own scheme.
fn redirect_target(from: &str, location: &str) -> Option<String> {
    let (scheme, _) = from.split_once("://")?;
    if location.starts_with("http://") || location.starts_with("https://") {
        Some(location.to_owned())
    } else if let Some(rest) = location.strip_prefix("//") {
        Some(format!("{scheme}://{rest}"))
    } else if location.starts_with('/') {
        Some(format!("{scheme}://{}{location}", authority(from)))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_resolve_against_their_origin() {
        let from = "https://reg.example:5000/v2/x/blobs/y?z";
        for (location, target) in [
            ("https://cdn.example/a?b", Some("https://cdn.example/a?b")),
            ("/other", Some("https://reg.example:5000/other")),
            ("//cdn.example/a", Some("https://cdn.example/a")),
            ("ftp://x/", None),
            ("", None),
        ] {
            assert_eq!(redirect_target(from, location).as_deref(), target, "{location}");
        }
    }

    #[test]
    fn messages_of_registries_are_short_and_printable() {
        let status = StatusCode::NOT_FOUND;
        assert_eq!(message(br#"{"errors":[{"code":"DENIED","message":"no\u001b[1m"}]}"#, status), "no [1m");
        assert_eq!(message(br#"{"errors":[{"code":"DENIED"}]}"#, status), "DENIED");
        assert_eq!(message(b"", status), "Not Found");
        assert!(message(&[b'x'; 5000], status).len() <= 200);
    }
}
