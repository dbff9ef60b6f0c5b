//! TLS towards API servers: whom to trust and which certificate to show.
//!
//! Owns: the rustls client configuration, and [`ClientIdentity`], the certificate of this node, which can be replaced
//! while connections exist and is read again when its files change. Never: opens a connection.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio::sync::watch;

use super::kubeconfig::{Access, CertificateSource, PemSource, Trust};
use crate::tls::{AnyServer, NamedServer, TlsError, authorities, certified_key, provider};

/// The configuration for `access`, offering HTTP/2 and HTTP/1.1.
pub fn client_config(access: &Access, identity: Arc<ClientIdentity>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Rustls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(access)?);
    let mut config = builder.with_client_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn verifier(access: &Access) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let roots = match &access.trust {
        Trust::Anybody => return Ok(Arc::new(AnyServer::default())),
        Trust::System => system_roots()?,
        Trust::Bundle(pem) => authorities(pem, "certificate authority")?,
    };
    let strict = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| TlsError::pem("certificate authority", e))?;
    match &access.tls_server_name {
        None => Ok(strict),
        Some(name) => {
            let name = ServerName::try_from(name.clone()).map_err(|e| TlsError::pem("tls-server-name", e))?;
            Ok(Arc::new(NamedServer::new(strict, name)))
        }
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TlsError::pem("certificate authority", "none given, and this machine trusts no roots"));
    }
    Ok(roots)
}

/// The certificate this node shows. New connections show the newest one; files are looked at again before each
/// handshake, which is cheap since handshakes are rare. Rotation calls [`ClientIdentity::replace`].
#[derive(Debug)]
pub struct ClientIdentity {
    source: Option<CertificateSource>,
    read_at: Mutex<Option<(SystemTime, SystemTime)>>,
    current: watch::Sender<Option<Arc<CertifiedKey>>>,
}

impl ClientIdentity {
    /// Reads the sources once, so that a bad one is an error at start.
    pub fn new(source: Option<CertificateSource>) -> Result<Self, TlsError> {
        let identity = Self { source, read_at: Mutex::default(), current: watch::Sender::new(None) };
        if let Some(source) = &identity.source {
            let key = read(source)?;
            *identity.read_at.lock().unwrap_or_else(|e| e.into_inner()) = modified(source);
            identity.replace(key);
        }
        Ok(identity)
    }

    /// Shows this certificate from now on.
    pub fn replace(&self, key: CertifiedKey) {
        self.current.send_replace(Some(Arc::new(key)));
    }

    /// The newest certificate; changes when it is replaced.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<CertifiedKey>>> {
        self.current.subscribe()
    }

    /// The certificate to show to a new peer.
    pub fn newest(&self) -> Option<Arc<CertifiedKey>> {
        self.refresh();
        self.current.borrow().clone()
    }

    /// Reads the files again if they changed since. A half-written pair is left for the next time.
    fn refresh(&self) {
        let Some(source) = &self.source else { return };
        let Some(now) = modified(source) else { return };
        let mut read_at = self.read_at.lock().unwrap_or_else(|e| e.into_inner());
        if *read_at == Some(now) {
            return;
        }
        match read(source) {
            Ok(key) => {
                *read_at = Some(now);
                self.replace(key);
            }
            Err(error) => {
                tracing::warn!(%error, "client certificate changed and cannot be used; keeping the old one")
            }
        }
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.newest()
    }

    fn has_certs(&self) -> bool {
        self.current.borrow().is_some()
    }
}

fn read(source: &CertificateSource) -> Result<CertifiedKey, TlsError> {
    let certificate = bytes(&source.certificate, "client certificate")?;
    let key = bytes(&source.key, "client key")?;
    let what = match &source.certificate {
        PemSource::Inline(_) => "client certificate".to_owned(),
        PemSource::File(path) => format!("client certificate {}", path.display()),
    };
    certified_key(&certificate, &key, &what)
}

fn bytes(source: &PemSource, what: &str) -> Result<Vec<u8>, TlsError> {
    match source {
        PemSource::Inline(pem) => Ok(pem.clone()),
        PemSource::File(path) => {
            std::fs::read(path).map_err(|e| TlsError::pem(format!("{what} {}", path.display()), e))
        }
    }
}

/// When the two files changed; `None` for inline sources and files that are not there.
fn modified(source: &CertificateSource) -> Option<(SystemTime, SystemTime)> {
    let of = |pem: &PemSource| match pem {
        PemSource::Inline(_) => Some(SystemTime::UNIX_EPOCH),
        PemSource::File(path) => std::fs::metadata(path).and_then(|m| m.modified()).ok(),
    };
    Some((of(&source.certificate)?, of(&source.key)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::tests::pair;

    #[test]
    fn a_certificate_is_read_again_when_its_files_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let (certificate, key) = (folder.path().join("node.pem"), folder.path().join("node.key"));
        let write = |(c, k): (String, String), age: u64| {
            for (path, text) in [(&certificate, c), (&key, k)] {
                std::fs::write(path, text).expect("written");
                let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + age);
                std::fs::File::options()
                    .write(true)
                    .open(path)
                    .and_then(|f| f.set_modified(time))
                    .expect("dated");
            }
        };
        write(pair("first"), 1);
        let source = CertificateSource {
            certificate: PemSource::File(certificate.clone()),
            key: PemSource::File(key.clone()),
        };
        let identity = ClientIdentity::new(Some(source)).expect("an identity");
        let first = identity.resolve(&[], &[]).expect("a certificate");
        assert_eq!(identity.resolve(&[], &[]).expect("the same").cert, first.cert);
        write(pair("second"), 2);
        let second = identity.resolve(&[], &[]).expect("another");
        assert_ne!(second.cert, first.cert);
        std::fs::write(&certificate, "half a cert").expect("written");
        assert_eq!(identity.resolve(&[], &[]).expect("the old one").cert, second.cert);
    }
}
