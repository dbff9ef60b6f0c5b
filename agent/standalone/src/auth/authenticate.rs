//! Authentication: client certificates of the server's CA, tokens it issued, and bootstrap tokens.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Tokens, User, bootstrap};
use crate::registry::Registry;
use crate::status::{ApiError, ApiResult};

/// Asks every client for a certificate and lets the handshake go on whatever comes, so that a stranger reads 401 in a `Status`
/// and not a broken connection, as with the real server.
#[derive(Debug)]
pub struct ClientCertificate {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertificate {
    /// Wraps the verifier that knows the CA.
    pub fn new(inner: Arc<dyn ClientCertVerifier>) -> Self {
        Self { inner }
    }

    /// The user of a client's certificates, if the CA signed them and they are valid now.
    pub fn user(&self, chain: &[CertificateDer<'_>]) -> Option<User> {
        let (leaf, intermediates) = chain.split_first()?;
        self.inner.verify_client_cert(leaf, intermediates, UnixTime::now()).ok()?;
        let (_, cert) = X509Certificate::from_der(leaf).ok()?;
        let subject = cert.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect();
        groups.push("system:authenticated".into());
        Some(User { name, groups, ..User::default() })
    }
}

impl ClientCertVerifier for ClientCertificate {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // Judged for each request by `user`; who fails there is nobody.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The user of a request.
///
/// # Errors
/// 401.
pub fn authenticate(
    registry: &Registry,
    tokens: &Tokens,
    certificate: Option<&User>,
    authorization: Option<&str>,
) -> ApiResult<User> {
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    let token =
        authorization.and_then(|a| a.strip_prefix("Bearer ")).map(str::trim).filter(|t| !t.is_empty());
    let Some(token) = token else { return Err(ApiError::unauthorized()) };
    let user = bootstrap::verify(registry, token);
    user.or_else(|| tokens.verify(registry, token, &[]).map(|(user, _)| user))
        .ok_or_else(ApiError::unauthorized)
}

/// Paths that anyone may read, as kubeadm's `system:public-info-viewer` allows.
pub fn anonymous_allowed(method: &http::Method, path: &str) -> bool {
    let open = ["/healthz", "/livez", "/readyz", "/version"];
    method == http::Method::GET
        && open.iter().any(|p| path == *p || path.strip_prefix(p).is_some_and(|r| r.starts_with('/')))
}
