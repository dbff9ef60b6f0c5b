//! A certificate by CertificateSigningRequest: make the request, post it, wait until the cluster has signed or refused it.
//!
//! Owns: the request's form, its name, and the wait. Never: writes a file, decides when a certificate is due.
//!
//! The name follows from the key and the subject: whoever asks again with the same key finds the same request, signed
//! meanwhile perhaps, instead of leaving a second one behind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::client::Client;
use super::error::ApiError;
use super::list::Selection;
use super::path::CERTIFICATE_SIGNING_REQUESTS;
use super::watch::{Change, watch};

/// Signs client certificates of nodes.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs serving certificates of nodes.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The key or the request could not be made.
    #[error("certificate signing request: {0}")]
    Make(#[from] rcgen::Error),
    /// The API server did not take it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Somebody refused it.
    #[error("certificate signing request {name} was denied: {message}")]
    Denied {
        /// Its name.
        name: String,
        /// What was said.
        message: String,
    },
    /// The signer could not sign it.
    #[error("certificate signing request {name} failed: {message}")]
    Failed {
        /// Its name.
        name: String,
        /// What was said.
        message: String,
    },
    /// Somebody deleted it.
    #[error("certificate signing request {0} was deleted before it was signed")]
    Deleted(String),
}

/// A certificate that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// One of the signers above.
    pub signer: &'static str,
    /// Common name: `system:node:<name>`.
    pub user: &'a str,
    /// DNS names and addresses of a serving certificate.
    pub names: Vec<String>,
}

/// A request that is ready to be posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningRequest {
    /// Its name at the API server.
    pub name: String,
    /// The object.
    pub object: Value,
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The server has it.
    Posted,
    /// Nobody has decided about it yet.
    Undecided,
}

/// A new P-256 key, PEM.
///
/// # Errors
/// When the machine has no randomness.
pub fn new_key() -> Result<String, CsrError> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_pem())
}

/// The request for a key.
///
/// # Errors
/// When the text is no key, or a name cannot stand in a certificate.
pub fn request(wanted: &Wanted<'_>, key_pem: &str) -> Result<SigningRequest, CsrError> {
    let key = KeyPair::from_pem(key_pem)?;
    let mut params = CertificateParams::new(wanted.names.clone())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, wanted.user);
    let pem = params.serialize_request(&key)?.pem()?;
    let mut digest = Sha256::new();
    for part in [key.der_bytes(), wanted.signer.as_bytes(), wanted.user.as_bytes()] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    for name in &wanted.names {
        digest.update(name.as_bytes());
        digest.update([0]);
    }
    let prefix = if wanted.signer == CLIENT_SIGNER { "node-csr-" } else { "csr-" };
    let name = format!("{prefix}{}", hex::encode(&digest.finalize()[..20]));
    let usage = if wanted.signer == CLIENT_SIGNER { "client auth" } else { "server auth" };
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": { "name": name },
        "spec": {
            "request": BASE64.encode(pem),
            "signerName": wanted.signer,
            "usages": ["digital signature", usage],
        },
    });
    Ok(SigningRequest { name, object })
}

/// Posts the request, unless it is there already, and waits for the certificate: PEM, the node's own first. It waits for as
/// long as it is polled, and tells how far it is, each once.
///
/// # Errors
/// When the server does not take the request, or somebody refuses or deletes it.
pub async fn obtain(
    client: &Client,
    request: &SigningRequest,
    mut tell: impl FnMut(Progress),
) -> Result<Vec<u8>, CsrError> {
    let path = CERTIFICATE_SIGNING_REQUESTS.collection(None);
    match client.create::<_, Value>(&path, &request.object).await {
        Ok(_) | Err(ApiError::AlreadyExists(_)) => tell(Progress::Posted),
        Err(error) => return Err(error.into()),
    }
    let selection =
        Selection::all(CERTIFICATE_SIGNING_REQUESTS).fields(format!("metadata.name={}", request.name));
    let (sender, mut changes) = mpsc::channel(4);
    let watching = watch(client.clone(), selection, Seen::decode, sender);
    let judging = async {
        let mut told = false;
        while let Some(change) = changes.recv().await {
            let seen = match change {
                Change::Synced(all) => all.into_iter().find(|seen| seen.metadata.name == request.name),
                Change::Applied(seen) => Some(seen),
                Change::Deleted(_) => None,
            };
            let Some(seen) = seen else { return Err(CsrError::Deleted(request.name.clone())) };
            if let Some(result) = seen.judge() {
                return result;
            }
            if !std::mem::replace(&mut told, true) {
                tell(Progress::Undecided);
            }
        }
        Err(CsrError::Deleted(request.name.clone()))
    };
    tokio::select! {
        // The watch goes on until nobody listens; the other arm is the one that ends.
        () = watching => Err(CsrError::Deleted(request.name.clone())),
        result = judging => result,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Seen {
    metadata: Meta,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    certificate: String,
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    reason: String,
    message: String,
}

impl Seen {
    fn decode(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    /// What came of it, if anything did yet.
    fn judge(self) -> Option<Result<Vec<u8>, CsrError>> {
        let Self { metadata: Meta { name }, status } = self;
        for condition in status.conditions {
            let words = [condition.reason, condition.message];
            let message = words.iter().filter(|w| !w.is_empty()).cloned().collect::<Vec<_>>().join(": ");
            match condition.kind.as_str() {
                "Denied" => return Some(Err(CsrError::Denied { name, message })),
                "Failed" => return Some(Err(CsrError::Failed { name, message })),
                _ => {}
            }
        }
        if status.certificate.is_empty() {
            return None;
        }
        Some(
            BASE64.decode(&status.certificate).map_err(|e| CsrError::Failed {
                name,
                message: format!("its certificate is not base64: {e}"),
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::api::fake::Fake;

    const NODE: Wanted<'static> = Wanted { signer: CLIENT_SIGNER, user: "system:node:n1", names: Vec::new() };

    #[test]
    fn a_request_says_who_asks_and_has_the_same_name_for_the_same_key() {
        let (key, other) = (new_key().expect("a key"), new_key().expect("a key"));
        let first = request(&NODE, &key).expect("made");
        assert_eq!(first.name, request(&NODE, &key).expect("made").name);
        assert_ne!(first.name, request(&NODE, &other).expect("made").name);
        let neighbour = Wanted { user: "system:node:n2", ..NODE };
        assert_ne!(first.name, request(&neighbour, &key).expect("made").name);
        assert!(first.name.starts_with("node-csr-") && first.name.len() == 49, "{}", first.name);

        let pem = BASE64.decode(first.object["spec"]["request"].as_str().expect("a text")).expect("base64");
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        use x509_parser::prelude::FromDer;
        let (_, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
            .expect("DER");
        assert_eq!(csr.certification_request_info.subject.to_string(), "O=system:nodes, CN=system:node:n1");
    }

    fn seen(status: &Value) -> Option<Result<Vec<u8>, String>> {
        let object = json!({"metadata": {"name": "c"}, "status": status});
        let seen = Seen::decode(&object.to_string()).expect("decoded");
        seen.judge().map(|result| result.map_err(|e| e.to_string()))
    }

    #[test]
    fn what_came_of_a_request_is_read_from_its_status() {
        assert_eq!(seen(&json!({})), None);
        assert_eq!(seen(&json!({"conditions": [{"type": "Approved"}]})), None);
        assert_eq!(seen(&json!({"certificate": "UEVN"})), Some(Ok(b"PEM".to_vec())));
        let denied = seen(&json!({"conditions": [{"type": "Denied", "reason": "No", "message": "not you"}]}));
        assert_eq!(denied, Some(Err("certificate signing request c was denied: No: not you".into())));
        assert!(seen(&json!({"certificate": "*"})).is_some_and(|r| r.is_err()));
    }

    /// A server that has the request, and after the first look also the certificate.
    async fn having(name: &str, decided_at_first: bool) -> Fake {
        let name = name.to_owned();
        Fake::start(move |seen| {
            let item = |status: Value| {
                json!({"metadata": {"name": &name, "resourceVersion": "8"}, "status": status})
            };
            let signed = item(json!({"certificate": "UEVN"}));
            let answer = if seen.method == "POST" {
                crate::api::fake::status(409, "AlreadyExists", "it is there")
            } else if seen.path.contains("watch=true") {
                format!("{}\n", json!({"type": "MODIFIED", "object": signed})).into_response()
            } else {
                let first = if decided_at_first { signed } else { item(json!({})) };
                let list = json!({"metadata": {"resourceVersion": "7"}, "items": [first]});
                crate::api::fake::json(200, &list)
            };
            std::future::ready(answer)
        })
        .await
    }

    #[tokio::test]
    async fn a_request_that_is_there_already_is_waited_for_while_it_is_undecided() {
        let key = new_key().expect("a key");
        let wanted = request(&NODE, &key).expect("made");
        for decided in [false, true] {
            let fake = having(&wanted.name, decided).await;
            let mut told = Vec::new();
            let certificate = obtain(&fake.client(), &wanted, |p| told.push(p)).await.expect("signed");
            assert_eq!(certificate, b"PEM");
            let all = [Progress::Posted, Progress::Undecided];
            assert_eq!(told, all[..if decided { 1 } else { 2 }]);
        }
    }
}
