//! What pods need from the API server on demand: config maps, secrets, service account tokens.
//!
//! Owns: asking once for many that ask at the same time, and remembering an answer for a second, so that thirty pods
//! that start together cost a handful of requests. Never: keeps data longer; a config map changed more than a second
//! before a pod starts is always seen.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::client::Client;
use super::error::ApiError;
use super::path::{CONFIG_MAPS, Resource, SECRETS, SERVICE_ACCOUNTS};

const FRESH: Duration = Duration::from_secs(1);

/// A config map's or a secret's content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// Key to value; text and binary keys alike.
    pub data: BTreeMap<String, Vec<u8>>,
    /// The secret's type; empty for config maps.
    pub kind: String,
    /// `immutable`: it will never change.
    pub immutable: bool,
    /// Version of the object.
    pub resource_version: String,
}

/// Why an object is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// It does not exist, and `optional` references may live with that.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap`, `secret` or `serviceaccount`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Anything else.
    #[error("{kind} {namespace}/{name}: {error}")]
    Api {
        /// `configmap`, `secret` or `serviceaccount`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the server said.
        error: ApiError,
    },
}

/// What a projected volume asks of the token controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWanted<'a> {
    /// Namespace of pod and service account.
    pub namespace: &'a str,
    /// The service account.
    pub service_account: &'a str,
    /// Empty means the API server itself.
    pub audience: &'a str,
    /// At least 600.
    pub expiration_seconds: u64,
    /// Name of the pod that the token is bound to.
    pub pod: &'a str,
    /// Its UID.
    pub pod_uid: &'a str,
}

/// A service account token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub token: String,
    /// When it ends to be valid.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// The way to these objects. One for the daemon.
#[derive(Debug)]
pub struct Objects {
    client: Client,
    config_maps: Answers,
    secrets: Answers,
}

impl Objects {
    /// Nothing is asked yet.
    pub fn new(client: Client) -> Self {
        Self { client, config_maps: Answers::default(), secrets: Answers::default() }
    }

    /// A config map.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Arc<Content>, ObjectError> {
        self.config_maps
            .get(namespace, name, || self.fetch::<ConfigMapWire>(CONFIG_MAPS, "configmap", namespace, name))
            .await
    }

    /// A secret.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Arc<Content>, ObjectError> {
        self.secrets
            .get(namespace, name, || self.fetch::<SecretWire>(SECRETS, "secret", namespace, name))
            .await
    }

    /// A new token (TokenRequest), bound to the pod. Never remembered.
    pub async fn token(&self, wanted: &TokenWanted<'_>) -> Result<Token, ObjectError> {
        let audiences = if wanted.audience.is_empty() { vec![] } else { vec![wanted.audience] };
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": wanted.expiration_seconds,
                "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": wanted.pod, "uid": wanted.pod_uid },
            },
        });
        let path = SERVICE_ACCOUNTS.sub(Some(wanted.namespace), wanted.service_account, "token");
        let answer: TokenAnswer = until_related(|| self.client.create(&path, &body))
            .await
            .map_err(|e| object_error("serviceaccount", wanted.namespace, wanted.service_account, e))?;
        Ok(Token { token: answer.status.token, expires_at: answer.status.expiration_timestamp })
    }

    async fn fetch<W: DeserializeOwned + Into<Content>>(
        &self,
        resource: Resource,
        kind: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Content>, ObjectError> {
        let path = resource.object(Some(namespace), name);
        let found: Result<W, ApiError> = until_related(|| self.client.get(&path)).await;
        found.map(|wire| Arc::new(wire.into())).map_err(|e| object_error(kind, namespace, name, e))
    }
}

/// The Node authorizer lets a node read what its pods name, and learns of a pod a moment after the node does, from a
/// watch of its own. Asked in between it forbids: that answer is worth asking again, soon and not for long.
async fn until_related<A, T>(ask: impl Fn() -> A) -> Result<T, ApiError>
where
    A: Future<Output = Result<T, ApiError>>,
{
    for millis in [20, 40, 80, 160, 320] {
        match ask().await {
            Err(ApiError::Forbidden(message)) if message.contains("no relationship found") => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            answer => return answer,
        }
    }
    ask().await
}

fn object_error(kind: &'static str, namespace: &str, name: &str, error: ApiError) -> ObjectError {
    match error {
        ApiError::NotFound(_) => ObjectError::NotFound { kind, name: name.to_owned() },
        error => ObjectError::Api { kind, namespace: namespace.to_owned(), name: name.to_owned(), error },
    }
}

type Answer = Result<Arc<Content>, ObjectError>;
type Key = (String, String);

/// Recent answers by namespace and name.
#[derive(Debug, Default)]
struct Answers {
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
}

/// Who holds the lock asks the server; the others wait for the lock and find the answer.
#[derive(Debug, Default)]
struct Entry(tokio::sync::Mutex<Option<(Instant, Answer)>>);

impl Answers {
    async fn get<F, A>(&self, namespace: &str, name: &str, fetch: F) -> Answer
    where
        F: FnOnce() -> A,
        A: Future<Output = Answer>,
    {
        let arrived = Instant::now();
        let entry = self.entry(namespace, name);
        let mut slot = entry.0.lock().await;
        if let Some((answered, answer)) = &*slot
            && is_usable(answer, *answered, arrived)
        {
            return answer.clone();
        }
        let answer = fetch().await;
        *slot = Some((Instant::now(), answer.clone()));
        answer
    }

    fn entry(&self, namespace: &str, name: &str) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(|e| e.into_inner());
        let now = Instant::now();
        // What is in use stays (somebody holds a reference); of the rest only what is fresh.
        entries.retain(|_, entry| {
            Arc::strong_count(entry) > 1
                || entry.0.try_lock().is_ok_and(|slot| {
                    slot.as_ref().is_some_and(|(answered, _)| now.duration_since(*answered) < FRESH)
                })
        });
        Arc::clone(entries.entry((namespace.to_owned(), name.to_owned())).or_default())
    }
}

/// A success is good for a second; a failure only for those who were already waiting for it.
fn is_usable(answer: &Answer, answered: Instant, arrived: Instant) -> bool {
    match answer {
        Ok(_) => arrived.saturating_duration_since(answered) < FRESH,
        Err(_) => answered >= arrived,
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    status: TokenStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenStatus {
    token: String,
    expiration_timestamp: Timestamp,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VersionWire {
    resource_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMapWire {
    metadata: VersionWire,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, Base64>>,
    #[serde(default)]
    immutable: Option<bool>,
}

#[derive(Deserialize)]
struct SecretWire {
    metadata: VersionWire,
    #[serde(default)]
    data: Option<BTreeMap<String, Base64>>,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    immutable: Option<bool>,
}

struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        BASE64.decode(text).map(Base64).map_err(serde::de::Error::custom)
    }
}

impl From<ConfigMapWire> for Content {
    fn from(wire: ConfigMapWire) -> Self {
        let text = wire.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
        let binary = wire.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
        Content {
            data: text.chain(binary).collect(),
            kind: String::new(),
            immutable: wire.immutable.unwrap_or(false),
            resource_version: wire.metadata.resource_version,
        }
    }
}

impl From<SecretWire> for Content {
    fn from(wire: SecretWire) -> Self {
        Content {
            data: wire.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect(),
            kind: wire.kind,
            immutable: wire.immutable.unwrap_or(false),
            resource_version: wire.metadata.resource_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{self, Fake};
    use super::*;

    #[tokio::test]
    async fn thirty_that_ask_together_cost_one_request() {
        let fake = Fake::start(|_| async {
            let map =
                json!({"metadata":{"resourceVersion":"3"},"data":{"ca.crt":"PEM"},"binaryData":{"b":"AAE="}});
            fake::json(200, &map)
        })
        .await;
        let objects = Arc::new(Objects::new(fake.client()));
        let asking: Vec<_> = (0..30)
            .map(|_| {
                let objects = Arc::clone(&objects);
                tokio::spawn(async move { objects.config_map("d", "kube-root-ca.crt").await })
            })
            .collect();
        for asked in asking {
            let content = asked.await.expect("no panic").expect("there");
            assert_eq!(content.data["ca.crt"], b"PEM");
            assert_eq!(content.data["b"], [0, 1]);
        }
        assert_eq!(fake.lines(), ["GET /api/v1/namespaces/d/configmaps/kube-root-ca.crt"]);
    }

    #[tokio::test]
    async fn what_is_not_there_is_asked_for_again() {
        let fake = Fake::start(|_| async { fake::status(404, "NotFound", "secrets \"s\" not found") }).await;
        let objects = Objects::new(fake.client());
        for _ in 0..2 {
            let error = objects.secret("d", "s").await.expect_err("not there");
            assert_eq!(error.to_string(), "secret \"s\" not found");
        }
        assert_eq!(fake.seen().len(), 2);
    }

    #[tokio::test]
    async fn secrets_are_decoded_and_other_errors_name_the_object() {
        let fake = Fake::start(|seen| async move {
            if seen.path.ends_with("/good") {
                fake::json(200, &json!({"metadata":{},"type":"Opaque","data":{"k":"c2VjcmV0"}}))
            } else {
                fake::status(403, "Forbidden", "no relationship found between node 'n1' and this object")
            }
        })
        .await;
        let objects = Objects::new(fake.client());
        let secret = objects.secret("d", "good").await.expect("there");
        assert_eq!((secret.kind.as_str(), secret.data["k"].as_slice()), ("Opaque", &b"secret"[..]));
        let error = objects.secret("d", "bad").await.expect_err("forbidden");
        assert_eq!(
            error.to_string(),
            "secret d/bad: no relationship found between node 'n1' and this object"
        );
    }

    #[tokio::test]
    async fn an_authorizer_that_is_a_moment_behind_is_asked_again() {
        let count = std::sync::atomic::AtomicUsize::new(0);
        let fake = Fake::start(move |_| {
            let behind = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
            std::future::ready(if behind {
                fake::status(403, "Forbidden", "no relationship found between node 'n1' and this object")
            } else {
                fake::json(200, &json!({"metadata":{},"data":{}}))
            })
        })
        .await;
        Objects::new(fake.client()).config_map("d", "m").await.expect("allowed at last");
        assert_eq!(fake.seen().len(), 3);
    }

    #[tokio::test]
    async fn a_token_is_bound_to_its_pod() {
        let fake = Fake::start(|_| async {
            fake::json(201, &json!({"status":{"token":"t","expirationTimestamp":"2026-01-01T00:00:00Z"}}))
        })
        .await;
        let wanted = TokenWanted {
            namespace: "d",
            service_account: "default",
            audience: "",
            expiration_seconds: 3607,
            pod: "web",
            pod_uid: "u1",
        };
        let token = Objects::new(fake.client()).token(&wanted).await.expect("a token");
        assert_eq!(token.expires_at.to_string(), "2026-01-01T00:00:00Z");
        let seen = &fake.seen()[0];
        assert_eq!(seen.line(), "POST /api/v1/namespaces/d/serviceaccounts/default/token");
        let spec = &seen.json()["spec"];
        assert_eq!(spec["boundObjectRef"], json!({"apiVersion":"v1","kind":"Pod","name":"web","uid":"u1"}));
        assert_eq!((&spec["expirationSeconds"], &spec["audiences"]), (&json!(3607), &json!([])));
    }
}
