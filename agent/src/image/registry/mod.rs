//! The pulling half of the OCI distribution specification, for OCI and docker registries.
//!
//! Owns: [`Registry`], which lives as long as a pull: its connections and tokens. Redirects are followed here, because a
//! registry's storage must not see the registry's `Authorization`. `oci-client` is not used: it keeps a client of its own, and
//! has no byte ranges, which pulls need to go on after a break. Never: writes a file.

mod challenge;
pub mod credentials;
mod error;
mod token;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use self::token::{Purpose, Tokens};
use super::digest::{Digest, DigestContext};
use super::manifest::{self, Blob, Document, Manifest, Platform};
use super::reference::Reference;
use crate::api::http::{
    HeaderValue, Http, HttpError, Method, PlainHttp, Request, Response, StatusCode, header,
};
pub use credentials::{Credential, Keyring};
pub use error::RegistryError;

const LONGEST_MANIFEST: usize = 4 << 20;
const LONGEST_CONFIG: u64 = 8 << 20;
const LONGEST_MESSAGE: usize = 64 << 10;
const MOST_REDIRECTS: usize = 10;
const DEEPEST_INDEX: usize = 4;

/// One image in a registry, as one credential sees it.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Which image.
    pub reference: &'a Reference,
    /// Shown when the registry asks; `None` is anonymous.
    pub credential: Option<&'a Credential>,
}

/// What a name stands for at the moment.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Digest of the manifest or index behind the name.
    pub digest: Digest,
    /// The manifest for this machine.
    pub manifest: Manifest,
}

/// A client for registries.
pub struct Registry {
    http: Http,
    plain: PlainHttp,
    tokens: Tokens,
    /// Hosts where plain HTTP is allowed, and whether they speak it.
    schemes: Mutex<HashMap<String, &'static str>>,
}

impl Registry {
    /// Uses `http`, whose rule for plain HTTP is `plain`.
    #[must_use]
    pub fn new(http: Http, plain: PlainHttp) -> Self {
        Self { http, plain, tokens: Tokens::default(), schemes: Mutex::default() }
    }

    /// The digest behind a name, without fetching the manifest. `None` if the registry does not say.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn digest(&self, place: Place<'_>) -> Result<Option<Digest>, RegistryError> {
        let url = self.manifest_url(place.reference, &place.reference.selector()).await?;
        let mut request = Request::new(Method::HEAD, url);
        request.headers.insert(header::ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let response = self.send(place, request).await?;
        Ok(stated_digest(&response))
    }

    /// The manifest for `platform` behind a name.
    ///
    /// # Errors
    /// See [`RegistryError`]; content is checked against every digest that is known.
    pub async fn resolve(&self, place: Place<'_>, platform: &Platform) -> Result<Resolved, RegistryError> {
        let image = place.reference.to_string();
        let unusable = |source| RegistryError::Manifest { image: image.clone(), source };
        let (top, mut body) =
            self.manifest(place, place.reference.digest(), &place.reference.selector()).await?;
        for _ in 0..DEEPEST_INDEX {
            match manifest::parse(&body).map_err(unusable)? {
                Document::Manifest(manifest) => return Ok(Resolved { digest: top, manifest }),
                Document::Index(entries) => {
                    let digest = platform.choose(&entries).map_err(unusable)?.blob.digest.clone();
                    (_, body) = self.manifest(place, Some(&digest), &digest.to_string()).await?;
                }
            }
        }
        Err(unusable(manifest::ManifestError::WrongKind("an index of indexes, nested too deep".into())))
    }

    /// An image configuration's bytes.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn config(&self, place: Place<'_>, blob: &Blob) -> Result<Bytes, RegistryError> {
        let what = || format!("{}: image configuration", place.reference);
        if blob.size > LONGEST_CONFIG {
            let reason = format!("its {} bytes are too many", blob.size);
            return Err(RegistryError::Config { image: place.reference.to_string(), reason });
        }
        let response = self.blob(place, &blob.digest, 0).await?;
        let body = response.bytes(usize::try_from(LONGEST_CONFIG).unwrap_or(usize::MAX)).await?;
        check(&blob.digest, &body, what())?;
        Ok(body)
    }

    /// Starts a blob's transfer at an offset. The answer is 206 if the registry honours the offset, otherwise 200.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn blob(
        &self,
        place: Place<'_>,
        digest: &Digest,
        from: u64,
    ) -> Result<Response, RegistryError> {
        let base = self.base(place.reference.registry()).await?;
        let mut request = Request::get(format!("{base}/v2/{}/blobs/{digest}", place.reference.repository()));
        if from > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={from}-"))
        {
            request.headers.insert(header::RANGE, range);
        }
        self.send(place, request).await
    }

    async fn manifest(
        &self,
        place: Place<'_>,
        wanted: Option<&Digest>,
        selector: &str,
    ) -> Result<(Digest, Bytes), RegistryError> {
        let url = self.manifest_url(place.reference, selector).await?;
        let mut request = Request::get(url);
        request.headers.insert(header::ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let response = self.send(place, request).await?;
        let stated = stated_digest(&response);
        let body = response.bytes(LONGEST_MANIFEST).await?;
        let what = || format!("{}: manifest {selector}", place.reference);
        match wanted.or(stated.as_ref()) {
            Some(wanted) => {
                check(wanted, &body, what())?;
                Ok((wanted.clone(), body))
            }
            None => Ok((Digest::of(&body), body)),
        }
    }

    async fn manifest_url(&self, reference: &Reference, selector: &str) -> Result<String, RegistryError> {
        let base = self.base(reference.registry()).await?;
        Ok(format!("{base}/v2/{}/manifests/{selector}", reference.repository()))
    }

    /// `https://host`, or `http://host` where that is allowed and what the host speaks.
    async fn base(&self, registry: &str) -> Result<String, RegistryError> {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        if !self.plain.allows(host) {
            return Ok(format!("https://{host}"));
        }
        let known = self.schemes.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied();
        if let Some(scheme) = known {
            return Ok(format!("{scheme}://{host}"));
        }
        // Nothing secret is in this request, so plain HTTP may be tried first.
        let scheme = match self.http.send(Request::get(format!("http://{host}/v2/"))).await {
            Ok(response) if response.status() != StatusCode::BAD_REQUEST => "http",
            Ok(_) | Err(HttpError::Broken { .. }) => "https",
            Err(error) => return Err(error.into()),
        };
        self.schemes.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), scheme);
        Ok(format!("{scheme}://{host}"))
    }

    /// Sends a request to the registry: with what authorization is known, once more if the registry asks for another, and
    /// on to where it redirects.
    async fn send(&self, place: Place<'_>, request: Request) -> Result<Response, RegistryError> {
        let purpose = Purpose {
            registry: place.reference.registry(),
            repository: place.reference.repository(),
            credential: place.credential,
        };
        let known = self.tokens.known(&purpose);
        let response = self.follow(authorized(&request, known)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return answer(place, response).await;
        }
        let headers = response.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges = challenge::parse(headers.iter().filter_map(|v| v.to_str().ok()));
        match self.tokens.answer(&self.http, &challenges, &purpose).await? {
            None => answer(place, response).await,
            Some(authorization) => {
                answer(place, self.follow(authorized(&request, Some(authorization))).await?).await
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
}

fn authorized(request: &Request, authorization: Option<HeaderValue>) -> Request {
    let mut request = request.clone();
    if let Some(value) = authorization {
        request.headers.insert(header::AUTHORIZATION, value);
    }
    request
}

/// Turns statuses that are no success into errors.
async fn answer(place: Place<'_>, response: Response) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url = response.url().to_owned();
    let body = response.bytes(LONGEST_MESSAGE).await.unwrap_or_default();
    let message = message(&body, status);
    let (image, registry) = (place.reference.to_string(), place.reference.registry().to_owned());
    Err(match status.as_u16() {
        404 => RegistryError::NotFound { image, registry },
        401 | 403 => RegistryError::Unauthorized { image, registry, message },
        429 => RegistryError::RateLimited { url, message },
        _ => RegistryError::Status { url, status, message },
    })
}

/// The registry's own words (distribution specification, "Error Codes"), printable and short.
fn message(body: &[u8], status: StatusCode) -> String {
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

fn stated_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn check(wanted: &Digest, body: &[u8], what: String) -> Result<(), RegistryError> {
    let mut context = DigestContext::new(wanted.algorithm());
    context.update(body);
    let found = context.finish();
    if found == *wanted {
        Ok(())
    } else {
        Err(RegistryError::WrongDigest { what, wanted: wanted.clone(), found })
    }
}

fn authority(url: &str) -> &str {
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
