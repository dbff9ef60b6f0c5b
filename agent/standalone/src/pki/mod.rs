//! Keys and certificates of the server, kept in one directory.
//!
//! Owns: `ca.crt`, `ca.key`, `sa.key` (the key that signs service account tokens), `admin.conf`. Everything else is issued from
//! the CA when it is needed and lives in memory or in a kubeconfig. P-256 throughout: ring makes no RSA keys, and every
//! client of Kubernetes accepts ECDSA.

mod issue;
mod kubeconfig;
mod request;

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::KeyPair;

pub use issue::{Issued, Purpose};
pub use kubeconfig::kubeconfig;
pub use request::{CertificateRequest, Validity};

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it did not work.
        source: std::io::Error,
    },
    /// A certificate could not be made or read.
    #[error("certificate {what}: {source}")]
    Certificate {
        /// Whose.
        what: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// The CA and the key for tokens.
pub struct Pki {
    /// The CA's certificate, PEM.
    pub ca_pem: String,
    ca_key: KeyPair,
    /// The key that signs tokens, PKCS#8.
    pub token_key: Vec<u8>,
}

impl Pki {
    /// Reads the directory; makes what is missing.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is not what it should be.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        make_dir(dir)?;
        let ca_key = key(&dir.join("ca.key"))?;
        let ca_path = dir.join("ca.crt");
        let ca_pem = match read(&ca_path)? {
            Some(pem) => pem,
            None => {
                let pem = issue::self_signed(&ca_key)?;
                write_atomically(&ca_path, pem.as_bytes(), 0o644)?;
                pem
            }
        };
        let token_key = key(&dir.join("sa.key"))?.serialize_der();
        Ok(Self { ca_pem, ca_key, token_key })
    }

    /// Issues a certificate with a key of its own.
    ///
    /// # Errors
    /// When a name is none.
    pub fn issue(&self, purpose: &Purpose<'_>) -> Result<Issued, PkiError> {
        issue::issue(&self.ca_pem, &self.ca_key, purpose)
    }

    /// Signs a request: the certificate, PEM.
    ///
    /// # Errors
    /// When a name is none.
    pub fn sign(
        &self,
        request: &CertificateRequest,
        usages: &[String],
        validity: Validity,
    ) -> Result<String, PkiError> {
        request.signed(&self.ca_pem, &self.ca_key, usages, validity)
    }

    /// What `--discovery-token-ca-cert-hash` pins: the SHA-256 of the CA's public key, `sha256:` and hexadecimal.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn ca_hash(&self) -> Result<String, PkiError> {
        use rustls_pki_types::pem::PemObject as _;
        use x509_parser::prelude::FromDer as _;
        let unread =
            || PkiError::Certificate { what: "CA".into(), source: rcgen::Error::CouldNotParseCertificate };
        let der =
            rustls_pki_types::CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(|_| unread())?;
        let (_, ca) = x509_parser::certificate::X509Certificate::from_der(&der).map_err(|_| unread())?;
        let digest = ring::digest::digest(&ring::digest::SHA256, ca.public_key().raw);
        let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        Ok(format!("sha256:{hex}"))
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> PkiError + 'a {
    move |source| PkiError::File { what, path: path.to_owned(), source }
}

fn make_dir(dir: &Path) -> Result<(), PkiError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path)(e)),
    }
}

fn key(path: &Path) -> Result<KeyPair, PkiError> {
    let named = |source| PkiError::Certificate { what: path.display().to_string(), source };
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem).map_err(named);
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(named)?;
    write_atomically(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// Writes a file so that it is there whole or not at all.
///
/// # Errors
/// When the directory does not take it.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let partial = path.with_extension("partial");
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).write(true).truncate(true).mode(mode).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_once_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path()).unwrap();
        let second = Pki::open(dir.path()).unwrap();
        assert_eq!(first.ca_pem, second.ca_pem);
        assert_eq!(first.token_key, second.token_key);
    }

    #[test]
    fn a_damaged_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.key"), "junk").unwrap();
        let error = Pki::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("ca.key"), "{error}");
    }
}
