//! The pulling half of the OCI distribution specification, for OCI and docker registries and their mirrors.
//!
//! Owns: [`Registry`], which lives as long as a pull: its connections and tokens, and which hosts stand for which registry.
//! `oci-client` is not used: it keeps an HTTP client of its own, and has no byte ranges, which pulls need to go on after a
//! break. Never: writes a file.

mod challenge;
pub mod credentials;
mod endpoint;
mod error;
mod hosts;
mod token;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use self::endpoint::{Endpoint, authority, message};
use self::hosts::{Host, Hosts};
use self::token::Tokens;
use super::digest::{Digest, DigestContext};
use super::manifest::{self, Blob, Document, Manifest, Platform};
use super::reference::Reference;
use crate::api::http::{
    HeaderValue, Http, HttpError, HttpOptions, Method, PlainHttp, Request, Response, StatusCode, Trust,
    header,
};
pub use credentials::{Credential, Keyring};
pub use error::RegistryError;
pub use hosts::InvalidHosts;

const LONGEST_MANIFEST: usize = 4 << 20;
const LONGEST_CONFIG: u64 = 8 << 20;
const DEEPEST_INDEX: usize = 4;

/// What the configuration says about registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Registries besides loopback that may be spoken to in plain HTTP: `host` or `host:port`.
    pub plain_http: Vec<String>,
    /// PEM bundles of certificate authorities besides the system's.
    pub authorities: Vec<Vec<u8>>,
    /// A folder as containerd's `certs.d`: `<registry>/hosts.toml` names the registry's mirrors.
    pub hosts_folder: Option<PathBuf>,
}

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
    config: RegistryConfig,
    http: Http,
    tokens: Tokens,
    /// Where each registry's images may be had, in the order to try.
    endpoints: Mutex<HashMap<String, Arc<Vec<Endpoint>>>>,
}

impl Registry {
    /// A client that has neither connected nor read a file yet.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Self {
        let http = Http::new(HttpOptions {
            plain: PlainHttp::LoopbackAnd(config.plain_http.clone()),
            trust: Trust::System(config.authorities.clone()),
            ..HttpOptions::default()
        });
        Self { config, http, tokens: Tokens::default(), endpoints: Mutex::default() }
    }

    /// The digest behind a name, without fetching the manifest. `None` if the registry does not say.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn digest(&self, place: Place<'_>) -> Result<Option<Digest>, RegistryError> {
        let what = format!("manifests/{}", place.reference.selector());
        let mut request = Request::new(Method::HEAD, "");
        request.headers.insert(header::ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let response = self.send(place, &what, request).await?;
        Ok(stated_digest(&response))
    }

    /// The manifest for `platform` behind a name.
    ///
    /// # Errors
    /// See [`RegistryError`]; content is checked against every digest that is known.
    pub async fn resolve(&self, place: Place<'_>, platform: &Platform) -> Result<Resolved, RegistryError> {
        let image = place.reference.to_string();
        let unusable = |cause| RegistryError::Manifest { image: image.clone(), cause };
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
        if blob.size > LONGEST_CONFIG {
            let reason = format!("its {} bytes are too many", blob.size);
            return Err(RegistryError::Config { image: place.reference.to_string(), reason });
        }
        let response = self.blob(place, &blob.digest, 0).await?;
        let body = response.bytes(usize::try_from(LONGEST_CONFIG).unwrap_or(usize::MAX)).await?;
        check(&blob.digest, &body, format!("{}: image configuration", place.reference))?;
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
        let mut request = Request::get("");
        if from > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={from}-"))
        {
            request.headers.insert(header::RANGE, range);
        }
        self.send(place, &format!("blobs/{digest}"), request).await
    }

    async fn manifest(
        &self,
        place: Place<'_>,
        wanted: Option<&Digest>,
        selector: &str,
    ) -> Result<(Digest, Bytes), RegistryError> {
        let mut request = Request::get("");
        request.headers.insert(header::ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let response = self.send(place, &format!("manifests/{selector}"), request).await?;
        let stated = stated_digest(&response);
        let body = response.bytes(LONGEST_MANIFEST).await?;
        match wanted.or(stated.as_ref()) {
            Some(wanted) => {
                check(wanted, &body, format!("{}: manifest {selector}", place.reference))?;
                Ok((wanted.clone(), body))
            }
            None => Ok((Digest::of(&body), body)),
        }
    }

    /// Asks each host in turn until one gives an answer. If none does, the registry's own error counts.
    async fn send(
        &self,
        place: Place<'_>,
        what: &str,
        mut request: Request,
    ) -> Result<Response, RegistryError> {
        let endpoints = self.endpoints(place.reference.registry()).await?;
        // Content is checked against its digest, so any host may have it; what a tag means is for those who are trusted to say.
        let by_digest = what.starts_with("blobs/") || what.contains("sha256:") || what.contains("sha512:");
        let mut last = None;
        for endpoint in endpoints.iter().filter(|e| if by_digest { e.pull } else { e.resolve }) {
            request.url = endpoint.url(place, what);
            match endpoint.send(&self.tokens, place, &request).await {
                Ok(response) => return Ok(response),
                Err(error) => {
                    if endpoint.mirror_of.is_some() {
                        tracing::info!(image = %place.reference, %error, "a mirror does not help; trying the next host");
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::NotFound {
            image: place.reference.to_string(),
            registry: format!("{} (its hosts.toml allows nobody to answer)", place.reference.registry()),
        }))
    }

    async fn endpoints(&self, registry: &str) -> Result<Arc<Vec<Endpoint>>, RegistryError> {
        let known = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).get(registry).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let hosts = match &self.config.hosts_folder {
            Some(folder) => hosts::load(folder, registry)?,
            None => Hosts::default(),
        };
        let mut endpoints: Vec<Endpoint> =
            hosts.mirrors.iter().map(|host| self.endpoint(host, Some(registry.to_owned()))).collect();
        endpoints.push(match &hosts.server {
            Some(host) => self.endpoint(host, None),
            None => {
                let base = self.base(registry).await?;
                Endpoint { http: self.http.clone(), base, mirror_of: None, resolve: true, pull: true }
            }
        });
        let endpoints = Arc::new(endpoints);
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(registry.to_owned(), endpoints.clone());
        Ok(endpoints)
    }

    /// A host from `hosts.toml`: its scheme is the configuration's word, and so is whom it trusts.
    fn endpoint(&self, host: &Host, mirror_of: Option<String>) -> Endpoint {
        let mut plain = self.config.plain_http.clone();
        if host.url.starts_with("http://") {
            plain.push(authority(&host.url).to_owned());
        }
        let http = Http::new(HttpOptions {
            plain: PlainHttp::LoopbackAnd(plain),
            trust: host.trust.clone().unwrap_or_else(|| Trust::System(self.config.authorities.clone())),
            ..HttpOptions::default()
        });
        let base = if host.override_path { host.url.clone() } else { format!("{}/v2", host.url) };
        Endpoint { http, base, mirror_of, resolve: host.resolve, pull: host.pull }
    }

    /// `https://host/v2`, or `http://host/v2` where that is allowed and what the host speaks.
    async fn base(&self, registry: &str) -> Result<String, RegistryError> {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        if !PlainHttp::LoopbackAnd(self.config.plain_http.clone()).allows(host) {
            return Ok(format!("https://{host}/v2"));
        }
        // Nothing secret is in this request, so plain HTTP may be tried first.
        match self.http.send(Request::get(format!("http://{host}/v2/"))).await {
            Ok(response) if response.status() != StatusCode::BAD_REQUEST => Ok(format!("http://{host}/v2")),
            Ok(_) | Err(HttpError::Broken { .. }) => Ok(format!("https://{host}/v2")),
            Err(error) => Err(error.into()),
        }
    }
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
