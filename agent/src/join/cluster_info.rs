//! The config map `kube-public/cluster-info`: where the cluster is and whom to trust, signed with each bootstrap token.
//!
//! Owns: reading it, and checking its signature (detached JWS, RFC 7515 appendix F, HS256 keyed with the token's secret).
//! Never: fetches it. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use serde::Deserialize;
use serde_json::Value;

use super::token::BootstrapToken;

/// Where it is.
pub const PATH: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const SIGNATURE: &str = "jws-kubeconfig-";

/// The config map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInfo {
    /// A kubeconfig without users.
    pub kubeconfig: String,
    signatures: BTreeMap<String, String>,
}

/// What a signature says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// Whoever signed knows the token's secret, and nothing was changed.
    Valid,
    /// Nobody signed with this token.
    Missing,
    /// The secret is another, or the text was changed.
    Wrong,
}

/// A cluster, as a kubeconfig names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `https://host:port`.
    pub server: String,
    /// Its certificate authorities, PEM.
    pub ca_pem: Vec<u8>,
}

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Named {
    cluster: Fields,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Fields {
    server: Option<String>,
    certificate_authority_data: Option<String>,
}

impl ClusterInfo {
    /// Of the object's JSON.
    ///
    /// # Errors
    /// When it has no kubeconfig.
    pub fn of(object: &Value) -> Result<Self, String> {
        let data = object["data"].as_object().ok_or("cluster-info holds no data")?;
        let kubeconfig =
            data.get("kubeconfig").and_then(Value::as_str).ok_or("cluster-info holds no kubeconfig")?;
        let signatures = data
            .iter()
            .filter_map(|(key, value)| {
                Some((key.strip_prefix(SIGNATURE)?.to_owned(), value.as_str()?.to_owned()))
            })
            .collect();
        Ok(Self { kubeconfig: kubeconfig.to_owned(), signatures })
    }

    /// What the signature made with this token says.
    pub fn check(&self, token: &BootstrapToken) -> Signature {
        match self.signatures.get(token.id()) {
            None => Signature::Missing,
            Some(jws) if is_signed(jws, &self.kubeconfig, token) => Signature::Valid,
            Some(_) => Signature::Wrong,
        }
    }

    /// The cluster it names.
    ///
    /// # Errors
    /// When it names none, or one without a certificate authority.
    pub fn cluster(&self) -> Result<Cluster, String> {
        cluster(&self.kubeconfig)
    }
}

/// The first cluster of a kubeconfig.
///
/// # Errors
/// When there is none, or one without a certificate authority of its own.
pub fn cluster(kubeconfig: &str) -> Result<Cluster, String> {
    let parsed: Kubeconfig = serde_saphyr::from_str(kubeconfig)
        .map_err(|e| format!("it is no kubeconfig: {}", e.without_snippet()))?;
    let fields = parsed.clusters.into_iter().flatten().next().ok_or("it names no cluster")?.cluster;
    let server = fields.server.unwrap_or_default();
    if !server.starts_with("https://") {
        return Err(format!("its server is {server:?}, which is no https address"));
    }
    let data = fields.certificate_authority_data.unwrap_or_default();
    if data.is_empty() {
        return Err("it has no certificate-authority-data".to_owned());
    }
    let compact: String = data.split_whitespace().collect();
    let ca_pem =
        STANDARD.decode(compact).map_err(|e| format!("its certificate-authority-data is not base64: {e}"))?;
    Ok(Cluster { server: server.trim_end_matches('/').to_owned(), ca_pem })
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

/// Whether `header..signature` is one by this token over this text. The header may not choose the algorithm.
fn is_signed(jws: &str, payload: &str, token: &BootstrapToken) -> bool {
    let Some((header, signature)) = jws.trim().split_once("..") else { return false };
    let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let head: Option<Header> = decoded(header).and_then(|json| serde_json::from_slice(&json).ok());
    let fits = head.is_some_and(|head| head.alg == "HS256" && head.kid == token.id());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.secret().as_bytes());
    fits && decoded(signature).is_some_and(|tag| hmac::verify(&key, signed.as_bytes(), &tag).is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: Q0E=\n    server: https://192.0.2.2:6443\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {}\nusers: null\n";
    /// By another implementation of RFC 7515: HMAC-SHA256 with the secret `0123456789abcdef`.
    const JWS: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..0ZFv1yBFR_EumCdnXgd8jT4AWckOozR4uYoGNhVbfH8";

    fn info(text: &str, jws: &str) -> ClusterInfo {
        let object = json!({"data": {"kubeconfig": text, "jws-kubeconfig-abcdef": jws, "other": 1}});
        ClusterInfo::of(&object).expect("cluster-info")
    }

    fn token(text: &str) -> BootstrapToken {
        text.parse().expect("a token")
    }

    #[test]
    fn a_signature_is_checked_with_the_whole_token() {
        let right = token("abcdef.0123456789abcdef");
        assert_eq!(info(TEXT, JWS).check(&right), Signature::Valid);
        assert_eq!(info(TEXT, JWS).check(&token("abcdef.0123456789abcdee")), Signature::Wrong);
        assert_eq!(info(TEXT, JWS).check(&token("abcdeg.0123456789abcdef")), Signature::Missing);
        assert_eq!(info(&TEXT.replace("192.0.2.2", "192.0.2.3"), JWS).check(&right), Signature::Wrong);
    }

    #[test]
    fn a_header_cannot_choose_its_algorithm_or_its_key() {
        let right = token("abcdef.0123456789abcdef");
        let (header, signature) = JWS.split_once("..").expect("two parts");
        for forged in [r#"{"alg":"none","kid":"abcdef"}"#, r#"{"alg":"HS256","kid":"zzzzzz"}"#] {
            let jws = format!("{}..{signature}", URL_SAFE_NO_PAD.encode(forged));
            assert_eq!(info(TEXT, &jws).check(&right), Signature::Wrong, "{forged}");
        }
        for jws in ["", "..", header, &format!("{header}.."), &format!("{header}.e30.{signature}")] {
            assert_eq!(info(TEXT, jws).check(&right), Signature::Wrong, "{jws}");
        }
    }

    #[test]
    fn the_cluster_needs_no_context() {
        let cluster = info(TEXT, JWS).cluster().expect("a cluster");
        assert_eq!(cluster, Cluster { server: "https://192.0.2.2:6443".into(), ca_pem: b"CA".to_vec() });
        for (from, to, wanted) in [
            ("https:", "http:", "no https address"),
            ("Q0E=", "'*'", "not base64"),
            ("Q0E=", "''", "no certificate-authority-data"),
        ] {
            let error = info(&TEXT.replace(from, to), JWS).cluster().expect_err(wanted);
            assert!(error.contains(wanted), "{error}");
        }
        assert!(cluster_error("clusters: []").contains("names no cluster"));
        assert!(ClusterInfo::of(&json!({"data": {}})).is_err());
    }

    fn cluster_error(text: &str) -> String {
        cluster(text).expect_err("no cluster")
    }
}
