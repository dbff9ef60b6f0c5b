//! What a client trusts and how it proves who it is.
//!
//! Owns: the parsed system store, shared between clients and freed with the last of them (parsed it is several hundred
//! kilobytes, which an idle daemon need not hold). TLS is rustls with the ring provider, nothing else is linked.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::tls::{AnyServer, NamedServer, provider};

/// Which certificate authorities are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The system's store and the authorities of these PEM bundles.
    System(Vec<Vec<u8>>),
    /// Only the authorities of this PEM bundle, as `certificate-authority-data` of a kubeconfig wants it.
    Only(Vec<u8>),
    /// Any certificate at all, as `insecure-skip-tls-verify` of a kubeconfig wants it.
    Anyone,
}

impl Default for Trust {
    fn default() -> Self {
        Self::System(Vec::new())
    }
}

/// A client certificate with its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate and its intermediates.
    pub certificate: Vec<u8>,
    /// The private key.
    pub key: Vec<u8>,
}

/// Settings for a client that speaks no TLS: no store is read.
pub(super) fn nobody() -> ClientConfig {
    builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

/// Settings for TLS connections.
pub(super) fn client_config(
    trust: &Trust,
    identity: Option<&Identity>,
    server_name: Option<&str>,
) -> Result<ClientConfig, String> {
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Anyone => Arc::new(AnyServer::default()),
        Trust::Only(pem) => verifier_for(Arc::new(bundle(pem)?))?,
        Trust::System(extra) if extra.is_empty() => verifier_for(system_roots())?,
        Trust::System(extra) => {
            let mut roots = system_roots().as_ref().clone();
            for pem in extra {
                roots.extend(bundle(pem)?.roots);
            }
            verifier_for(Arc::new(roots))?
        }
    };
    let verifier = match server_name {
        None => verifier,
        Some(name) => {
            let name =
                ServerName::try_from(name.to_owned()).map_err(|e| format!("server name {name:?}: {e}"))?;
            Arc::new(NamedServer::new(verifier, name))
        }
    };
    let config = builder().dangerous().with_custom_certificate_verifier(verifier);
    match identity {
        None => Ok(config.with_no_client_auth()),
        Some(Identity { certificate, key }) => {
            let chain = CertificateDer::pem_slice_iter(certificate)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| format!("client certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("client key: {e}"))?;
            config.with_client_auth_cert(chain, key).map_err(|e| format!("client certificate and key: {e}"))
        }
    }
}

/// Whether TLS itself, rather than the network below it, is why a request failed.
pub(super) fn is_tls_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(here) = cause {
        if here.is::<rustls::Error>() {
            return true;
        }
        // An io::Error made from another error hides that one from `source`.
        let inside = here.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inside.is_some_and(|inner| is_tls_failure(inner)) {
            return true;
        }
        cause = here.source();
    }
    false
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports TLS 1.2 and 1.3")
}

fn verifier_for(roots: Arc<RootCertStore>) -> Result<Arc<dyn ServerCertVerifier>, String> {
    if roots.is_empty() {
        return Err(
            "no certificate authority is trusted: the system's store is empty (ca-certificates)".into()
        );
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
    verifier.map(|v| v as Arc<dyn ServerCertVerifier>).map_err(|e| e.to_string())
}

fn bundle(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("certificate authority: {e}"))?;
        roots.add(certificate).map_err(|e| format!("certificate authority: {e}"))?;
    }
    if roots.is_empty() {
        return Err("certificate authority: the PEM text holds no certificate".into());
    }
    Ok(roots)
}

fn system_roots() -> Arc<RootCertStore> {
    static SHARED: Mutex<Weak<RootCertStore>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(roots) = shared.upgrade() {
        return roots;
    }
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a part of the system's certificate store is unreadable");
    }
    roots.add_parsable_certificates(found.certs);
    let roots = Arc::new(roots);
    *shared = Arc::downgrade(&roots);
    roots
}
