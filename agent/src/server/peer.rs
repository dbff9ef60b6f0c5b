//! Who is at the other end of a TLS connection.
//!
//! Owns: judging a client certificate against the client CA, reading user and groups from it. A certificate that does
//! not fit ends no handshake, it is only not believed, and the request may still carry a token; so it is with kubelet.
//! Never: authorizes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::tls::{self, TlsError};

/// A user, as certificates, tokens and the API server name one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct User {
    /// `username`.
    pub name: String,
    /// `uid`, where there is one.
    pub uid: String,
    /// `groups`.
    pub groups: Vec<String>,
    /// `extra`, by key.
    pub extra: Vec<(String, Vec<String>)>,
}

/// `clientCAFile`, read again when it changes.
#[derive(Debug)]
pub struct ClientCa {
    file: PathBuf,
    loaded: Mutex<(Option<SystemTime>, Arc<dyn ClientCertVerifier>)>,
}

impl ClientCa {
    /// Reads the file once, so that a bad one is an error at start.
    pub fn new(file: PathBuf) -> Result<Self, TlsError> {
        let modified = std::fs::metadata(&file).and_then(|m| m.modified()).ok();
        let verifier = load(&file)?;
        Ok(Self { file, loaded: Mutex::new((modified, verifier)) })
    }

    /// The user of a certificate chain, if the CA vouches for it.
    pub fn user(&self, chain: &[CertificateDer<'_>]) -> Option<User> {
        let (end_entity, intermediates) = chain.split_first()?;
        let verified = self.verifier().verify_client_cert(end_entity, intermediates, UnixTime::now());
        if let Err(error) = verified {
            tracing::debug!(%error, "client certificate is not believed");
            return None;
        }
        user_of(end_entity)
    }

    fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        let mut loaded = self.loaded.lock().unwrap_or_else(|e| e.into_inner());
        let modified = std::fs::metadata(&self.file).and_then(|m| m.modified()).ok();
        if modified.is_some() && modified != loaded.0 {
            match load(&self.file) {
                Ok(verifier) => *loaded = (modified, verifier),
                Err(error) => {
                    tracing::warn!(%error, "the client CA changed and cannot be used; keeping the old one")
                }
            }
        }
        Arc::clone(&loaded.1)
    }
}

fn load(file: &std::path::Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let what = format!("clientCAFile {}", file.display());
    let pem = std::fs::read(file).map_err(|e| TlsError::pem(&what, e))?;
    let roots = tls::authorities(&pem, &what)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
    let verifier: Arc<dyn ClientCertVerifier> = builder.build().map_err(|e| TlsError::pem(what, e))?;
    Ok(verifier)
}

/// The common name is the user, the organizations are the groups.
fn user_of(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    (!name.is_empty()).then(|| User { name, groups, ..User::default() })
}
