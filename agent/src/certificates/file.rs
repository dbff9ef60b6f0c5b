//! A certificate and its key in one file.
//!
//! Owns: reading what a certificate says of itself, and writing the pair so that it is there whole or not at all, for root
//! alone. Never: decides whether it is due.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;

use super::lifetime::Lifetime;
use crate::host::files::write_durable;
use crate::tls::{TlsError, certified_key};

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// From when to when it is valid.
    pub lifetime: Lifetime,
    /// The common name.
    pub user: String,
    /// DNS names and addresses.
    pub names: BTreeSet<String>,
}

/// A certificate with its key, and what it says.
#[derive(Debug, Clone)]
pub struct Pair {
    /// For connections.
    pub key: CertifiedKey,
    /// What it says.
    pub said: Said,
}

impl Said {
    /// Reads a certificate; none if it cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let validity = parsed.validity();
        let lifetime = Lifetime {
            not_before: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
            not_after: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
        };
        let user = parsed.subject().iter_common_name().next().and_then(|n| n.as_str().ok());
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        let names = alternatives.iter().flat_map(|a| &a.value.general_names).filter_map(name);
        Some(Self { lifetime, user: user.unwrap_or_default().to_owned(), names: names.collect() })
    }
}

fn name(general: &GeneralName<'_>) -> Option<String> {
    match general {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

/// Reads a file.
///
/// # Errors
/// When it is not there, or holds no pair.
pub fn load(path: &Path) -> Result<Pair, TlsError> {
    let what = format!("certificate {}", path.display());
    let pem = std::fs::read(path).map_err(|e| TlsError::pem(&what, e))?;
    pair(&pem, &pem, &what)
}

/// A pair of what was just signed.
///
/// # Errors
/// When they do not belong together.
pub fn pair(certificate: &[u8], key: &[u8], what: &str) -> Result<Pair, TlsError> {
    let key = certified_key(certificate, key, what)?;
    let said = key.cert.first().and_then(Said::of);
    let said = said.ok_or_else(|| TlsError::pem(what, "cannot be read"))?;
    Ok(Pair { key, said })
}

/// Writes a file; its directory is made.
///
/// # Errors
/// When the disk does not take it; what was there stays.
pub fn store(path: &Path, certificate: &[u8], key: &str) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let text = [certificate.trim_ascii_end(), b"\n", key.as_bytes()].concat();
    write_durable(path, &text, 0o600)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_pair_is_found_again_and_is_roots_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("pki/client.pem");
        let mut params =
            rcgen::CertificateParams::new(["n1".to_owned(), "fd00::1".to_owned()]).expect("names");
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n1");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed").pem();
        store(&path, certificate.as_bytes(), &key.serialize_pem()).expect("stored");
        let found = load(&path).expect("found").said;
        assert_eq!(found.user, "system:node:n1");
        assert_eq!(found.names, ["fd00::1", "n1"].map(str::to_owned).into());
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&dir.path().join("pki"))), (0o600, 0o700));
        let left = std::fs::read_dir(dir.path().join("pki")).expect("listed").count();
        assert_eq!(left, 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_is_no_pair_is_named() {
        let error = load(Path::new("/nonexistent/client.pem")).expect_err("missing").to_string();
        assert!(error.starts_with("certificate /nonexistent/client.pem: "), "{error}");
    }
}
