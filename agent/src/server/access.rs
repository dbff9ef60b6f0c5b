//! Who asks, and may they: authentication and authorization of requests to the node's server.
//!
//! Owns: the order (certificate, token, anonymous), the questions to the API server (TokenReview,
//! SubjectAccessReview), and how long an answer is believed. Never: grants what it could not ask about.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::peer::User;
use crate::api::client::Client;
use crate::api::error::ApiError;
use crate::api::path::{SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS};
use crate::config::{Authorization, Server};

/// Answers believed at a time.
const REMEMBERED: usize = 1024;
/// A token that was not accepted is not asked about again for so long.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// What comes of a request's credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allowed,
    /// 401.
    Unauthenticated,
    /// 403, with kubelet's text.
    Forbidden(String),
    /// 500: it could not be found out.
    Unknown(String),
}

/// What somebody wants to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path of the URL.
    pub path: &'a str,
    /// The user of the client certificate.
    pub certificate: Option<User>,
    /// The bearer token.
    pub token: Option<&'a str>,
}

/// The judge.
#[derive(Debug)]
pub struct Access {
    client: Client,
    node: String,
    anonymous: bool,
    token_review: Option<Duration>,
    authorization: Authorization,
    tokens: Memory<[u8; 32], Option<User>>,
    verdicts: Memory<(User, &'static str, &'static str), bool>,
}

impl Access {
    /// As configured, for this node.
    pub fn new(client: Client, node: String, server: &Server) -> Self {
        Self {
            client,
            node,
            anonymous: server.anonymous,
            token_review: server.token_review,
            authorization: server.authorization,
            tokens: Memory::default(),
            verdicts: Memory::default(),
        }
    }

    /// Judges one request.
    pub async fn judge(&self, attempt: &Attempt<'_>) -> Decision {
        let user = match self.authenticate(attempt).await {
            Ok(Some(user)) => user,
            Ok(None) => return Decision::Unauthenticated,
            Err(error) => {
                tracing::warn!(%error, "a bearer token could not be reviewed");
                return Decision::Unauthenticated;
            }
        };
        let (allowed_for, denied_for) = match self.authorization {
            Authorization::AlwaysAllow => return Decision::Allowed,
            Authorization::Webhook { allowed_for, denied_for } => (allowed_for, denied_for),
        };
        let verb = verb(attempt.method);
        let subresources = subresources(attempt.path);
        for subresource in subresources {
            let key = (user.clone(), verb, *subresource);
            let known = self.verdicts.get(&key, |allowed| if *allowed { allowed_for } else { denied_for });
            let allowed = match known {
                Some(allowed) => allowed,
                None => match self.review_access(&user, verb, subresource).await {
                    Ok(allowed) => {
                        self.verdicts.put(key, allowed);
                        allowed
                    }
                    Err(error) => {
                        tracing::warn!(user = %user.name, verb, subresource, %error, "authorization error");
                        return Decision::Unknown(format!(
                            "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                            user.name
                        ));
                    }
                },
            };
            if allowed {
                return Decision::Allowed;
            }
        }
        Decision::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        ))
    }

    async fn authenticate(&self, attempt: &Attempt<'_>) -> Result<Option<User>, ApiError> {
        if let Some(user) = &attempt.certificate {
            return Ok(Some(authenticated(user.clone())));
        }
        if let (Some(token), Some(believed_for)) =
            (attempt.token.filter(|t| !t.is_empty()), self.token_review)
        {
            let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
            let known = self.tokens.get(&key, |user| if user.is_some() { believed_for } else { REFUSED_FOR });
            let user = match known {
                Some(user) => user,
                None => {
                    let user = self.review_token(token).await?;
                    self.tokens.put(key, user.clone());
                    user
                }
            };
            // A bad token is an error and not somebody anonymous.
            return Ok(user.map(authenticated));
        }
        let nobody = User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..User::default()
        };
        Ok(self.anonymous.then_some(nobody))
    }

    async fn review_token(&self, token: &str) -> Result<Option<User>, ApiError> {
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token },
        });
        let answer: TokenReview = self.client.create(&TOKEN_REVIEWS.collection(None), &body).await?;
        let TokenReviewStatus { authenticated, user } = answer.status;
        Ok(authenticated.then_some(User {
            name: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra.into_iter().collect(),
        }))
    }

    async fn review_access(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, ApiError> {
        let extra: serde_json::Map<_, _> = user.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name,
                "uid": user.uid,
                "groups": user.groups,
                "extra": extra,
                "resourceAttributes": {
                    "verb": verb,
                    "group": "",
                    "version": "v1",
                    "resource": "nodes",
                    "subresource": subresource,
                    "name": self.node,
                },
            },
        });
        let answer: AccessReview =
            self.client.create(&SUBJECT_ACCESS_REVIEWS.collection(None), &body).await?;
        Ok(answer.status.allowed)
    }
}

fn authenticated(mut user: User) -> User {
    const EVERYBODY: &str = "system:authenticated";
    if !user.groups.iter().any(|g| g == EVERYBODY) {
        user.groups.push(EVERYBODY.to_owned());
    }
    user
}

fn verb(method: &str) -> &'static str {
    match method {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// Subresources of the Node that stand for a path; one that is allowed is enough (KEP-2862).
fn subresources(path: &str) -> &'static [&'static str] {
    let is =
        |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    if is("/pods") || is("/runningpods") {
        &["pods", "proxy"]
    } else if is("/healthz") {
        &["healthz", "proxy"]
    } else if is("/configz") {
        &["configz", "proxy"]
    } else if is("/stats") {
        &["stats"]
    } else if is("/metrics") {
        &["metrics"]
    } else if is("/logs") {
        &["log"]
    } else if is("/checkpoint") {
        &["checkpoint"]
    } else if is("/statusz") {
        &["statusz"]
    } else if is("/flagz") {
        &["configz"]
    } else {
        &["proxy"]
    }
}

/// Answers and when they were given.
#[derive(Debug)]
struct Memory<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, V: Clone> Memory<K, V> {
    fn get(&self, key: &K, lifetime: impl Fn(&V) -> Duration) -> Option<V> {
        let entries = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let (at, value) = entries.get(key)?;
        (at.elapsed() < lifetime(value)).then(|| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut entries = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if entries.len() >= REMEMBERED {
            // Rare: whoever is forgotten is asked about once more.
            entries.clear();
        }
        entries.insert(key, (Instant::now(), value));
    }
}

#[derive(Deserialize)]
struct TokenReview {
    status: TokenReviewStatus,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct TokenReviewStatus {
    authenticated: bool,
    user: UserWire,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UserWire {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct AccessReview {
    status: AccessReviewStatus,
}

#[derive(Deserialize)]
struct AccessReviewStatus {
    #[serde(default)]
    allowed: bool,
}

#[cfg(test)]
mod tests {
    use axum::response::Response;
    use serde_json::Value;

    use super::*;
    use crate::api::fake::{self, Fake, Seen};

    fn server(anonymous: bool, authorization: Authorization) -> Server {
        Server {
            address: None,
            read_only: None,
            healthz: None,
            tls_files: None,
            client_ca_file: None,
            anonymous,
            token_review: Some(Duration::from_secs(120)),
            authorization,
        }
    }

    const WEBHOOK: Authorization =
        Authorization::Webhook { allowed_for: Duration::from_secs(300), denied_for: Duration::from_secs(30) };

    /// Accepts the token `good`; allows user `admin` everything and everybody `pods`.
    fn answer(seen: &Seen) -> Response {
        let body = seen.json();
        let status: Value = if seen.path.contains("tokenreviews") {
            match body["spec"]["token"].as_str() {
                Some("good") => json!({"authenticated": true, "user": {"username": "joe", "groups": ["g"]}}),
                Some("broken") => return fake::status(500, "InternalError", "etcd"),
                _ => json!({"authenticated": false}),
            }
        } else {
            let spec = &body["spec"];
            json!({"allowed": spec["user"] == "admin" || spec["resourceAttributes"]["subresource"] == "pods"})
        };
        fake::json(201, &json!({"status": status}))
    }

    async fn fake() -> Fake {
        Fake::start(|seen| std::future::ready(answer(&seen))).await
    }

    fn admin() -> Option<User> {
        Some(User { name: "admin".into(), ..User::default() })
    }

    fn attempt<'a>(path: &'a str, certificate: Option<User>, token: Option<&'a str>) -> Attempt<'a> {
        Attempt { method: "GET", path, certificate, token }
    }

    #[tokio::test]
    async fn requests_are_judged_as_kubelet_judges_them() {
        let fake = fake().await;
        let access = Access::new(fake.client(), "n1".into(), &server(false, WEBHOOK));
        let forbidden = Decision::Forbidden(
            "Forbidden (user=joe, verb=get, resource=nodes, subresource(s)=[proxy])\n".into(),
        );
        let table = [
            (attempt("/containerLogs/a/b/c", admin(), None), Decision::Allowed),
            (attempt("/containerLogs/a/b/c", None, Some("good")), forbidden),
            (attempt("/pods", None, Some("good")), Decision::Allowed),
            (attempt("/pods", None, Some("bad")), Decision::Unauthenticated),
            (attempt("/pods", None, Some("broken")), Decision::Unauthenticated),
            (attempt("/pods", None, None), Decision::Unauthenticated),
        ];
        for (attempt, wanted) in table {
            assert_eq!(access.judge(&attempt).await, wanted, "{attempt:?}");
        }
        let review =
            fake.seen().into_iter().find(|s| s.path.contains("subjectaccess")).expect("asked").json();
        assert_eq!(review["spec"]["groups"], json!(["system:authenticated"]));
        assert_eq!(
            review["spec"]["resourceAttributes"],
            json!({"verb":"get","group":"","version":"v1","resource":"nodes","subresource":"proxy","name":"n1"})
        );
    }

    #[tokio::test]
    async fn answers_are_believed_for_a_while() {
        let fake = fake().await;
        let access = Access::new(fake.client(), "n1".into(), &server(false, WEBHOOK));
        for _ in 0..3 {
            assert_eq!(access.judge(&attempt("/pods", None, Some("good"))).await, Decision::Allowed);
        }
        assert_eq!(fake.seen().len(), 2, "one token review, one access review");
    }

    #[tokio::test]
    async fn anonymous_requests_are_somebodys_only_when_allowed() {
        let fake = fake().await;
        let access = Access::new(fake.client(), "n1".into(), &server(true, WEBHOOK));
        assert_eq!(access.judge(&attempt("/pods", None, None)).await, Decision::Allowed);
        assert_eq!(access.judge(&attempt("/pods", None, Some("bad"))).await, Decision::Unauthenticated);
        let open = Access::new(fake.client(), "n1".into(), &server(false, Authorization::AlwaysAllow));
        assert_eq!(open.judge(&attempt("/run", admin(), None)).await, Decision::Allowed);
        assert_eq!(open.judge(&attempt("/run", None, None)).await, Decision::Unauthenticated);
    }

    #[tokio::test]
    async fn what_cannot_be_found_out_is_not_allowed() {
        let fake = Fake::start(|_| async { fake::status(500, "InternalError", "etcd") }).await;
        let access = Access::new(fake.client(), "n1".into(), &server(false, WEBHOOK));
        let wanted = "Authorization error (user=admin, verb=get, resource=nodes, subresource=proxy)";
        assert_eq!(access.judge(&attempt("/exec", admin(), None)).await, Decision::Unknown(wanted.into()));
    }

    #[test]
    fn paths_stand_for_subresources() {
        let table: &[(&str, &[&str])] = &[
            ("/pods", &["pods", "proxy"]),
            ("/pods/", &["pods", "proxy"]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/podsx", &["proxy"]),
            ("/metrics/resource", &["metrics"]),
            ("/stats/summary", &["stats"]),
            ("/logs/", &["log"]),
            ("/containerLogs/a/b/c", &["proxy"]),
            ("/", &["proxy"]),
        ];
        for (path, wanted) in table {
            assert_eq!(subresources(path), *wanted, "{path}");
        }
    }
}
