//! Bootstrap tokens, and what those may do who come with one: `kubeadm`'s roles for machines that join.
//!
//! A token `<id>.<secret>` is the secret `bootstrap-token-<id>` in kube-system. Owns: when such a secret lets somebody in.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::{Attributes, User};
use crate::object::{self, text, text_at};
use crate::registry::Registry;
use crate::resource::Kind;

/// The namespace of tokens.
pub const NAMESPACE: &str = "kube-system";
/// What the names of their secrets begin with.
pub const PREFIX: &str = "bootstrap-token-";
/// The group of everybody who comes with a token.
const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// The group that `kubeadm` gives tokens for nodes.
const NODE_BOOTSTRAPPERS: &str = "system:bootstrappers:kubeadm:default-node-token";

/// A token as its secret describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    /// The part that may be known.
    pub id: String,
    /// The part that may not.
    pub secret: String,
    /// When it ends; never, if there is none.
    pub expires: Option<Timestamp>,
    authentication: bool,
    /// Whether `cluster-info` is signed with it.
    pub signing: bool,
    groups: BTreeSet<String>,
}

impl BootstrapToken {
    /// Reads a secret; none if it is no token.
    pub fn of(secret: &Value) -> Option<Self> {
        let data = |key| {
            let bytes = STANDARD.decode(text_at(secret, &["data", key])).ok()?;
            String::from_utf8(bytes).ok()
        };
        let id = data("token-id")?;
        let named = object::name(secret).strip_prefix(PREFIX) == Some(id.as_str());
        if text(secret, "type") != "bootstrap.kubernetes.io/token" || !named || object::is_terminating(secret)
        {
            return None;
        }
        let token_secret = data("token-secret").filter(|s| !s.is_empty())?;
        // A time that cannot be read is over.
        let expires = data("expiration")
            .filter(|e| !e.is_empty())
            .map(|e| object::parse_time(&e).unwrap_or(Timestamp::UNIX_EPOCH));
        let used = |key| data(key).as_deref() == Some("true");
        let extra = data("auth-extra-groups").unwrap_or_default();
        let groups: BTreeSet<String> =
            extra.split(',').map(str::trim).filter(|g| !g.is_empty()).map(str::to_owned).collect();
        if groups.iter().any(|g| !is_bootstrap_group(g)) {
            return None;
        }
        Some(Self {
            id,
            secret: token_secret,
            expires,
            authentication: used("usage-bootstrap-authentication"),
            signing: used("usage-bootstrap-signing"),
            groups,
        })
    }

    /// Whether it is over.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|e| e <= now)
    }

    /// The user that comes with `secret`, if that is the token's and it is good for this.
    fn user(&self, secret: &str, now: Timestamp) -> Option<User> {
        // Both are hashed, so that the time a comparison takes tells nothing of the secret.
        let digest = |text: &str| ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let same = digest(secret).as_ref() == digest(&self.secret).as_ref();
        if !same || !self.authentication || self.is_expired(now) {
            return None;
        }
        let mut groups = vec![BOOTSTRAPPERS.to_owned()];
        groups.extend(self.groups.iter().cloned());
        groups.push("system:authenticated".into());
        Some(User { name: format!("system:bootstrap:{}", self.id), groups, ..User::default() })
    }
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`.
fn is_bootstrap_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    rest.len() <= 256 && rest.ends_with(letter) && rest.chars().all(|c| letter(c) || c == ':' || c == '-')
}

/// The two parts of a token: six and sixteen lower case letters and digits.
pub fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fine = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fine(id, 6) && fine(secret, 16)).then_some((id, secret))
}

/// The user of a bootstrap token.
pub fn verify(registry: &Registry, token: &str) -> Option<User> {
    let (id, secret) = parts(token)?;
    let found = registry.find(Kind::Secret, NAMESPACE, &format!("{PREFIX}{id}")).ok().flatten()?;
    BootstrapToken::of(&found)?.user(secret, Timestamp::now())
}

/// The object that strangers may read: whom to trust, for those who hold a token to check it with.
pub fn is_cluster_info(a: &Attributes) -> bool {
    a.verb == "get"
        && (a.group.as_str(), a.resource.as_str(), a.subresource.as_str()) == ("", "configmaps", "")
        && (a.namespace.as_str(), a.name.as_str()) == ("kube-public", "cluster-info")
}

/// `kubeadm`'s roles for its tokens and for nodes: `kubeadm:kubelet-config`, `kubeadm:get-nodes`,
/// `kubeadm:kubelet-bootstrap`, and the two that let certificates of nodes be approved.
pub fn may(user: &User, a: &Attributes) -> bool {
    let (bootstraps, node) = (user.is_in(NODE_BOOTSTRAPPERS), user.is_in("system:nodes"));
    let reads = matches!(a.verb.as_str(), "get" | "list" | "watch");
    match (a.group.as_str(), a.resource.as_str(), a.subresource.as_str()) {
        ("", "configmaps", "") => {
            let which = (a.namespace.as_str(), a.name.as_str());
            (bootstraps || node) && a.verb == "get" && which == (NAMESPACE, "kubelet-config")
        }
        ("", "nodes", "") => bootstraps && a.verb == "get",
        ("certificates.k8s.io", "certificatesigningrequests", "") => {
            bootstraps && (a.verb == "create" || reads)
        }
        ("certificates.k8s.io", "certificatesigningrequests", "nodeclient") => {
            bootstraps && a.verb == "create"
        }
        ("certificates.k8s.io", "certificatesigningrequests", "selfnodeclient") => node && a.verb == "create",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(data: &Value) -> Value {
        let encoded = data
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.clone(), STANDARD.encode(v.as_str().unwrap()).into()));
        json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
            "data": Value::Object(encoded.collect())})
    }

    fn whole() -> Value {
        json!({"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true", "auth-extra-groups": NODE_BOOTSTRAPPERS})
    }

    fn admitted(data: &Value, given: &str) -> Option<User> {
        BootstrapToken::of(&secret(data))?.user(given, "2026-01-01T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_good_token_is_a_bootstrapper() {
        let user = admitted(&whole(), "0123456789abcdef").unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", NODE_BOOTSTRAPPERS, "system:authenticated"]);
        assert_eq!(admitted(&whole(), "0123456789abcdeg"), None);
    }

    #[test]
    fn a_token_that_is_over_misnamed_or_for_something_else_lets_nobody_in() {
        let cases = [
            ("expiration", "2025-12-31T23:59:59Z", false),
            ("expiration", "2026-01-01T00:00:01Z", true),
            ("expiration", "tomorrow", false),
            ("token-id", "abcdeg", false),
            ("usage-bootstrap-authentication", "false", false),
            ("auth-extra-groups", "system:masters", false),
            ("auth-extra-groups", "system:bootstrappers:a, system:bootstrappers:b", true),
        ];
        for (key, value, fine) in cases {
            let mut data = whole();
            data[key] = value.into();
            assert_eq!(admitted(&data, "0123456789abcdef").is_some(), fine, "{key}: {value}");
        }
    }

    #[test]
    fn tokens_have_two_parts() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in [
            "",
            "abcdef",
            "abcde.0123456789abcdef",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcde",
            "a.b.c",
        ] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_joins_reads_little_and_asks_for_certificates() {
        let user = admitted(&whole(), "0123456789abcdef").unwrap();
        let cases = [
            ("get", "", "configmaps", "", NAMESPACE, "kubelet-config", true),
            ("get", "", "configmaps", "", NAMESPACE, "other", false),
            ("list", "", "configmaps", "", NAMESPACE, "", false),
            ("get", "", "secrets", "", NAMESPACE, "bootstrap-token-abcdef", false),
            ("get", "", "nodes", "", "", "n1", true),
            ("create", "", "nodes", "", "", "", false),
            ("create", "certificates.k8s.io", "certificatesigningrequests", "", "", "", true),
            ("watch", "certificates.k8s.io", "certificatesigningrequests", "", "", "", true),
            ("update", "certificates.k8s.io", "certificatesigningrequests", "approval", "", "r", false),
            ("create", "certificates.k8s.io", "certificatesigningrequests", "nodeclient", "", "", true),
            ("create", "certificates.k8s.io", "certificatesigningrequests", "selfnodeclient", "", "", false),
        ];
        for (verb, group, resource, sub, namespace, name, fine) in cases {
            let a = Attributes {
                verb: verb.into(),
                group: group.into(),
                resource: resource.into(),
                subresource: sub.into(),
                namespace: namespace.into(),
                name: name.into(),
                ..Attributes::default()
            };
            assert_eq!(may(&user, &a), fine, "{verb} {resource}/{sub} {name}");
        }
    }
}
