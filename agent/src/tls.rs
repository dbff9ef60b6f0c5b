//! What every TLS connection of this daemon shares, whichever end of it we are.
//!
//! Owns: the one cryptography provider, certificates and keys read from PEM, and the verifiers that judge otherwise
//! than the web does. Never: decides whom to trust (`api` and `server` do), never opens a connection, never reads a file.

use std::sync::{Arc, Once};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

/// What keeps a TLS configuration from being made. Names the thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A certificate, key or bundle is not what it should be.
    #[error("{what}: {reason}")]
    Pem {
        /// Which one, with its file where there is one.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// rustls refuses the whole.
    #[error("TLS: {0}")]
    Rustls(String),
}

impl TlsError {
    /// `what` is wrong because of `reason`.
    pub fn pem(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Pem { what: what.into(), reason: reason.to_string() }
    }
}

/// The one cryptography provider of this program, made the process's default on first use.
pub fn provider() -> Arc<CryptoProvider> {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // An error means that there is a default already, which is as good.
        let _already = ring::default_provider().install_default();
    });
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()))
}

/// The certificates of a PEM text, at least one. `what` is for messages.
pub fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| TlsError::pem(what, e))?;
    if found.is_empty() { Err(TlsError::pem(what, "holds no PEM certificate")) } else { Ok(found) }
}

/// The certificates of a PEM text, at least one, as authorities. `what` is for messages.
pub fn authorities(pem: &[u8], what: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, what)? {
        roots.add(certificate).map_err(|e| TlsError::pem(what, e))?;
    }
    Ok(roots)
}

/// A certificate chain and its key, checked to belong together.
pub fn certified_key(certificate: &[u8], key: &[u8], what: &str) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate, what)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| TlsError::pem(format!("key of {what}"), e))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|e| TlsError::pem(what, e))
}

/// The part of a verifier that is about the handshake and not about the certificate, left to a field of it.
macro_rules! handshake_checked_by {
    ($field:ident) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.$field.verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.$field.verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.$field.supported_verify_schemes()
        }
    };
}

/// Checks a server's certificate for a name of our choice (`tls-server-name` of a kubeconfig) instead of the URL's
/// host. The name in the handshake stays the host's.
#[derive(Debug)]
pub struct NamedServer {
    strict: Arc<dyn ServerCertVerifier>,
    name: ServerName<'static>,
}

impl NamedServer {
    /// `strict` judges everything but the name.
    pub fn new(strict: Arc<dyn ServerCertVerifier>, name: ServerName<'static>) -> Self {
        Self { strict, name }
    }
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.strict.verify_server_cert(end_entity, intermediates, &self.name, ocsp, now)
    }

    handshake_checked_by!(strict);
}

/// `insecure-skip-tls-verify` of a kubeconfig: any certificate will do, but the handshake must be signed with its key.
#[derive(Debug, Default)]
pub struct AnyServer {
    signatures: Signatures,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    handshake_checked_by!(signatures);
}

/// Asks every client for a certificate and accepts any, or none: who accepts the connection judges it afterwards. The
/// handshake must be signed with the certificate's key.
#[derive(Debug, Default)]
pub struct AskForCertificate {
    signatures: Signatures,
}

impl ClientCertVerifier for AskForCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    handshake_checked_by!(signatures);
}

/// Handshake signatures, checked with the provider's algorithms.
#[derive(Debug)]
struct Signatures(Arc<CryptoProvider>);

impl Default for Signatures {
    fn default() -> Self {
        Self(provider())
    }
}

impl Signatures {
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A self-signed certificate and its key, both PEM.
    pub(crate) fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_key_that_belongs_to_another_certificate_is_refused() {
        let (certificate, _) = pair("a");
        let (_, key) = pair("b");
        let error = certified_key(certificate.as_bytes(), key.as_bytes(), "client certificate n.pem")
            .expect_err("refused");
        assert!(error.to_string().starts_with("client certificate n.pem: "), "{error}");
    }

    #[test]
    fn text_without_certificate_is_named() {
        let error = certificates(b"nothing", "certificate authority").expect_err("empty");
        assert_eq!(error.to_string(), "certificate authority: holds no PEM certificate");
    }
}
