//! Service account tokens: JWTs signed with ES256, bound to a pod, a secret or a node (KEP 1205).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Value, json};

use super::User;
use crate::object::{self, items, text, text_at};
use crate::registry::Registry;
use crate::resource::Kind;

/// The issuer and default audience of tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What a token says.
#[derive(Debug, Clone, Default)]
pub struct Claims<'a> {
    /// Namespace of the account.
    pub namespace: &'a str,
    /// The account: name, UID.
    pub account: (&'a str, &'a str),
    /// For whom it is.
    pub audiences: Vec<String>,
    /// For how many seconds.
    pub seconds: i64,
    /// What it lives with: `pod` or `secret`, name, UID.
    pub bound: Option<(&'static str, String, String)>,
    /// The node of the pod: name, UID.
    pub node: Option<(String, String)>,
}

/// Signs and verifies tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
}

impl Tokens {
    /// Takes the key, PKCS#8.
    ///
    /// # Errors
    /// When it is no P-256 key.
    pub fn new(pkcs8: &[u8]) -> Result<Self, ring::error::KeyRejected> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { key_id: URL_SAFE_NO_PAD.encode(digest), key, random })
    }

    /// A signed token and the moment at which it ends. None if the machine has no randomness.
    pub fn sign(&self, claims: &Claims<'_>) -> Option<(String, Timestamp)> {
        let now = Timestamp::now().as_second();
        let (name, uid) = claims.account;
        let mut scope = json!({"namespace": claims.namespace, "serviceaccount": {"name": name, "uid": uid}});
        if let Some((kind, name, uid)) = &claims.bound {
            scope[*kind] = json!({"name": name, "uid": uid});
        }
        if let Some((name, uid)) = &claims.node {
            scope["node"] = json!({"name": name, "uid": uid});
        }
        let body = json!({
            "iss": ISSUER, "sub": format!("system:serviceaccount:{}:{name}", claims.namespace), "aud": claims.audiences,
            "exp": now + claims.seconds, "iat": now, "nbf": now, "jti": object::new_uid(), "kubernetes.io": scope,
        });
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&body));
        let signature = self.key.sign(&self.random, signed.as_bytes()).ok()?;
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        Some((token, Timestamp::from_second(now + claims.seconds).ok()?))
    }

    /// The user of a token and the audiences of it that were asked for; none if it is not valid, no longer valid, or
    /// bound to something that is gone.
    pub fn verify(
        &self,
        registry: &Registry,
        token: &str,
        audiences: &[String],
    ) -> Option<(User, Vec<String>)> {
        let body = self.open(token)?;
        let now = Timestamp::now().as_second();
        if body["exp"].as_i64()? <= now || body["nbf"].as_i64()? > now + 60 || text(&body, "iss") != ISSUER {
            return None;
        }
        let default = [ISSUER.to_owned()];
        let wanted = if audiences.is_empty() { &default[..] } else { audiences };
        let given = items(&body, "aud");
        let both: Vec<String> = wanted.iter().filter(|a| given.iter().any(|g| g == *a)).cloned().collect();
        if both.is_empty() {
            return None;
        }
        let user = user_of(registry, &body)?;
        Some((user, both))
    }

    fn open(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        public.verify(signed.as_bytes(), &signature).ok()?;
        let (_, body) = signed.split_once('.')?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()
    }

    /// The public key as a JSON Web Key Set.
    pub fn key_set(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.key.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)}]})
    }
}

fn user_of(registry: &Registry, body: &Value) -> Option<User> {
    let scope = &body["kubernetes.io"];
    let namespace = text(scope, "namespace");
    let (name, uid) =
        (text_at(scope, &["serviceaccount", "name"]), text_at(scope, &["serviceaccount", "uid"]));
    let alive = |kind, namespace: &str, name: &str, uid: &str| {
        registry.find(kind, namespace, name).ok().flatten().filter(|o| object::uid(o) == uid)
    };
    alive(Kind::ServiceAccount, namespace, name, uid)?;
    let mut extra =
        vec![("authentication.kubernetes.io/credential-id".into(), format!("JTI={}", text(body, "jti")))];
    for (key, kind) in [("pod", Kind::Pod), ("secret", Kind::Secret)] {
        if let Some(bound) = scope.get(key) {
            let (name, uid) = (text(bound, "name"), text(bound, "uid"));
            alive(kind, namespace, name, uid)?;
            extra.push((format!("authentication.kubernetes.io/{key}-name"), name.to_owned()));
            extra.push((format!("authentication.kubernetes.io/{key}-uid"), uid.to_owned()));
        }
    }
    if let Some(node) = scope.get("node") {
        extra.push(("authentication.kubernetes.io/node-name".into(), text(node, "name").to_owned()));
        extra.push(("authentication.kubernetes.io/node-uid".into(), text(node, "uid").to_owned()));
    }
    Some(User {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".into(),
        ],
        extra,
    })
}
