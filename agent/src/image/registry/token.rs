//! Getting and keeping the `Authorization` a registry wants.
//!
//! Owns: the tokens of one pull, by what they are for. Never: sends a credential anywhere but to the registry itself or the
//! token server it names.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::challenge::Challenge;
use super::credentials::Credential;
use super::error::RegistryError;
use crate::api::http::{HeaderValue, Http, Request, header};

/// What the specification says of an answer without `expires_in`.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Tokens are renewed a little before their end.
const MARGIN: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: usize = 1 << 20;

#[derive(PartialEq, Eq, Hash, Clone)]
struct Key {
    registry: String,
    scope: String,
    credential: Option<Credential>,
}

struct Kept {
    authorization: HeaderValue,
    until: Option<Instant>,
}

/// Authorizations that worked.
#[derive(Default)]
pub(super) struct Tokens {
    kept: Mutex<HashMap<Key, Kept>>,
}

/// What an authorization is for.
#[derive(Clone, Copy)]
pub(super) struct Purpose<'a> {
    pub registry: &'a str,
    pub repository: &'a str,
    pub credential: Option<&'a Credential>,
}

impl Purpose<'_> {
    fn scope(&self) -> String {
        format!("repository:{}:pull", self.repository)
    }

    fn key(&self) -> Key {
        Key { registry: self.registry.to_owned(), scope: self.scope(), credential: self.credential.cloned() }
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Tokens {
    /// What worked before and is still valid.
    pub fn known(&self, purpose: &Purpose<'_>) -> Option<HeaderValue> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(&purpose.key())?;
        found.until.is_none_or(|until| Instant::now() < until).then(|| found.authorization.clone())
    }

    /// Answers the first challenge that can be answered; `None` if there is no such.
    pub async fn answer(
        &self,
        http: &Http,
        challenges: &[Challenge],
        purpose: &Purpose<'_>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        for challenge in challenges {
            let kept = match (challenge, purpose.credential) {
                (_, Some(Credential { registry_token, .. })) if !registry_token.is_empty() => {
                    sensitive(format!("Bearer {registry_token}"))
                        .map(|authorization| Kept { authorization, until: None })
                }
                (Challenge::Basic, Some(credential)) => {
                    sensitive(basic(credential)).map(|authorization| Kept { authorization, until: None })
                }
                (Challenge::Basic, None) => None,
                (Challenge::Bearer { realm, service, scope }, _) => {
                    Some(fetch(http, realm, service.as_deref(), scope.as_deref(), purpose).await?)
                }
            };
            if let Some(kept) = kept {
                let authorization = kept.authorization.clone();
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(purpose.key(), kept);
                return Ok(Some(authorization));
            }
        }
        Ok(None)
    }
}

async fn fetch(
    http: &Http,
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
    purpose: &Purpose<'_>,
) -> Result<Kept, RegistryError> {
    // The registry's own word for what is needed; it need not be the repository itself.
    let scope = scope.map_or_else(|| purpose.scope(), str::to_owned);
    let mut query = vec![("scope", &*scope)];
    query.extend(service.map(|s| ("service", s)));
    let request = match purpose.credential {
        Some(Credential { identity_token, .. }) if !identity_token.is_empty() => {
            query.extend([
                ("grant_type", "refresh_token"),
                ("refresh_token", identity_token),
                ("client_id", "orlop"),
            ]);
            let mut request = Request::new(crate::api::http::Method::POST, realm);
            request.body = encode(&query).into();
            request
                .headers
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            request
        }
        credential => {
            let separator = if realm.contains('?') { '&' } else { '?' };
            let mut request = Request::get(format!("{realm}{separator}{}", encode(&query)));
            if let Some(value) = credential.and_then(|c| sensitive(basic(c))) {
                request.headers.insert(header::AUTHORIZATION, value);
            }
            request
        }
    };
    let response = http.send(request).await?;
    let status = response.status();
    let body = response.bytes(LONGEST_ANSWER).await?;
    if !status.is_success() {
        let message = super::message(&body, status);
        let (image, registry) =
            (format!("{}/{}", purpose.registry, purpose.repository), purpose.registry.to_owned());
        return Err(match status.as_u16() {
            401 | 403 => RegistryError::Unauthorized { image, registry, message },
            429 => RegistryError::RateLimited { url: realm.to_owned(), message },
            _ => RegistryError::Status { url: realm.to_owned(), status, message },
        });
    }
    let unusable = |reason: String| RegistryError::Token { url: realm.to_owned(), reason };
    let answer: Answer = serde_json::from_slice(&body).map_err(|e| unusable(e.to_string()))?;
    let token = answer.token.or(answer.access_token).filter(|t| !t.is_empty());
    let token = token.ok_or_else(|| unusable("neither `token` nor `access_token`".into()))?;
    let authorization = sensitive(format!("Bearer {token}"))
        .ok_or_else(|| unusable("the token cannot stand in a header".into()))?;
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).max(DEFAULT_LIFE);
    Ok(Kept { authorization, until: Some(Instant::now() + life - MARGIN) })
}

fn basic(credential: &Credential) -> String {
    format!("Basic {}", STANDARD.encode(format!("{}:{}", credential.username, credential.password)))
}

fn sensitive(value: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `application/x-www-form-urlencoded`, everything but letters, digits and `-._~` as `%XX`.
fn encode(pairs: &[(&str, &str)]) -> String {
    let part = |text: &str| {
        let mut out = String::new();
        for b in text.bytes() {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("%{b:02X}"));
            }
        }
        out
    };
    pairs.iter().map(|(name, value)| format!("{}={}", part(name), part(value))).collect::<Vec<_>>().join("&")
}
