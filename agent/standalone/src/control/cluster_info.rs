//! The config map `cluster-info`: where the cluster is and whom to trust, signed with every bootstrap token, so that who
//! holds one can check it without trust; and the end of tokens that are over.
//!
//! Signatures are detached (RFC 7515, appendix F): the payload, the kubeconfig, stands beside them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::hmac;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::auth::bootstrap::{BootstrapToken, NAMESPACE, PREFIX};
use crate::object::{self, map_mut, text_at};
use crate::registry::{DeleteOptions, Registry, Target, WriteOptions};
use crate::resource::Kind;
use crate::status::ApiResult;
use crate::strategy::Part;

/// Where it is.
pub const PLACE: (&str, &str) = ("kube-public", "cluster-info");
const SIGNATURE: &str = "jws-kubeconfig-";
/// How far ahead an expiry is waited for in one go; far ones are looked at again.
const HORIZON: Duration = Duration::from_secs(3600);

/// When the next token ends.
pub struct Tokens {
    next: Instant,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { next: Instant::now() }
    }
}

impl Tokens {
    /// The moment.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Deletes the tokens that are over and signs with the others.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sync(&mut self, registry: &Registry) -> ApiResult<()> {
        self.next = Instant::now() + HORIZON;
        let now = Timestamp::now();
        let mut signing = Vec::new();
        for token in tokens(registry)? {
            match token.expires {
                Some(at) if at <= now => remove(registry, &token.id)?,
                other => {
                    let left = other.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
                    // A little late, so that it is over then.
                    let due = left.map_or(HORIZON, |l| l + Duration::from_millis(10)).min(HORIZON);
                    self.next = self.next.min(Instant::now() + due);
                    signing.extend(token.signing.then_some(token));
                }
            }
        }
        sign(registry, &signing)
    }
}

fn tokens(registry: &Registry) -> ApiResult<Vec<BootstrapToken>> {
    let secrets = registry.store.list(Kind::Secret, Some(NAMESPACE), None, usize::MAX)?.items;
    let token = |bytes: &[u8]| BootstrapToken::of(&object::parse(bytes));
    Ok(secrets.iter().filter_map(|(_, bytes)| token(bytes)).collect())
}

fn remove(registry: &Registry, id: &str) -> ApiResult<()> {
    tracing::info!(id, "bootstrap token is over");
    let name = format!("{PREFIX}{id}");
    match registry.delete(Kind::Secret.api(), NAMESPACE, &name, &DeleteOptions::default()) {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

fn sign(registry: &Registry, tokens: &[BootstrapToken]) -> ApiResult<()> {
    let target = Target { api: Kind::ConfigMap.api(), namespace: PLACE.0, name: PLACE.1, part: Part::Main };
    let change = |now: &Value| {
        let mut new = now.clone();
        let kubeconfig = text_at(&new, &["data", "kubeconfig"]).to_owned();
        let data = map_mut(&mut new, "data");
        data.retain(|key, _| !key.starts_with(SIGNATURE));
        if !kubeconfig.is_empty() {
            for token in tokens {
                let key = format!("{SIGNATURE}{}", token.id);
                data.insert(key, detached(&kubeconfig, &token.id, &token.secret).into());
            }
        }
        Ok(new)
    };
    match registry.update(target, WriteOptions::default(), change) {
        // An administrator took it away, which is a way to forbid joining.
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

/// A detached signature with HS256, keyed with the token's secret.
fn detached(payload: &str, id: &str, secret: &str) -> String {
    // As the real signer writes it: compared as text by those who check it.
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The config map without signatures.
pub fn config_map(server: &str, ca_pem: &str) -> Value {
    let ca = STANDARD.encode(ca_pem);
    let kubeconfig = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    server: {server}\n  name: \"\"\n\
         contexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n"
    );
    json!({"metadata": {"name": PLACE.1}, "data": {"kubeconfig": kubeconfig}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_whole_token_without_its_payload() {
        let signature = detached("payload", "abcdef", "0123456789abcdef");
        let (header, rest) = signature.split_once("..").unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(header).unwrap(), br#"{"alg":"HS256","kid":"abcdef"}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode("payload"));
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
        hmac::verify(&key, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(rest).unwrap()).unwrap();
    }
}
