//! The certificate this node's server shows: the configured files, or a self-signed pair made once and kept.
//!
//! Owns: making the pair, and when it must be made anew. Never: asks a cluster for a certificate (`certificates` does, and
//! has it shown).

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;

use crate::api::kubeconfig::{CertificateSource, PemSource};
use crate::api::tls::ClientIdentity;
use crate::tls::certificates;

/// A self-signed certificate lives so long, and is made anew this long before its end.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The serving certificate. Its files are looked at again for new connections.
#[derive(Debug)]
pub struct ServingIdentity(ClientIdentity);

impl ServingIdentity {
    /// From files that somebody else keeps.
    pub fn from_files(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let source = CertificateSource {
            certificate: PemSource::File(certificate.to_owned()),
            key: PemSource::File(key.to_owned()),
        };
        Ok(Self(ClientIdentity::new(Some(source)).context("serving certificate")?))
    }

    /// Shows this certificate to new connections from now on.
    pub fn replace(&self, key: CertifiedKey) {
        self.0.replace(key);
    }

    /// What new connections are shown.
    pub fn newest(&self) -> Option<Arc<CertifiedKey>> {
        self.0.newest()
    }

    /// From `<root_dir>/pki`, made if there is none that fits.
    pub fn self_signed(root_dir: &Path, names: &[String], addresses: &[IpAddr]) -> anyhow::Result<Self> {
        let pki = root_dir.join("pki");
        let (certificate, key) = (pki.join("kubelet.crt"), pki.join("kubelet.key"));
        let fits = fs::read(&certificate).is_ok_and(|pem| fits(&pem, names, addresses));
        if fits && let Ok(identity) = Self::from_files(&certificate, &key) {
            return Ok(identity);
        }
        fs::create_dir_all(&pki).with_context(|| format!("make {}", pki.display()))?;
        let (certificate_pem, key_pem) = make(names, addresses)?;
        // The key first: a certificate without its key would be taken for a whole pair.
        write(&key, key_pem.as_bytes(), 0o600).with_context(|| format!("write {}", key.display()))?;
        write(&certificate, certificate_pem.as_bytes(), 0o644)
            .with_context(|| format!("write {}", certificate.display()))?;
        tracing::info!(file = %certificate.display(), "made a self-signed serving certificate");
        Self::from_files(&certificate, &key)
    }
}

impl ResolvesServerCert for ServingIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.newest()
    }
}

fn make(names: &[String], addresses: &[IpAddr]) -> anyhow::Result<(String, String)> {
    let subjects: Vec<String> =
        names.iter().cloned().chain(addresses.iter().map(IpAddr::to_string)).collect();
    let Some(common_name) = names.first() else { bail!("a serving certificate needs a name") };
    let mut params = rcgen::CertificateParams::new(subjects).context("names of the serving certificate")?;
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name.clone());
    params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    // A clock that is a little behind must not refuse it.
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(300)).into();
    params.not_after = (now + LIFETIME).into();
    let key = rcgen::KeyPair::generate().context("make a key")?;
    let certificate = params.self_signed(&key).context("sign the serving certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Whether a certificate names everything it should and lives long enough.
fn fits(pem: &[u8], names: &[String], addresses: &[IpAddr]) -> bool {
    let Ok(chain) = certificates(pem, "serving certificate") else { return false };
    let Some(Ok((_, certificate))) = chain.first().map(|der| x509_parser::parse_x509_certificate(der)) else {
        return false;
    };
    let left = certificate.validity().time_to_expiration();
    if left.is_none_or(|left| left.whole_seconds() < RENEW_BEFORE.as_secs().cast_signed()) {
        return false;
    }
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return false };
    let all = &alternatives.value.general_names;
    let named = |name: &String| all.iter().any(|g| matches!(g, GeneralName::DNSName(n) if n == name));
    let addressed = |ip: &IpAddr| {
        let octets = match ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        all.iter().any(|g| matches!(g, GeneralName::IPAddress(bytes) if *bytes == octets))
    };
    names.iter().all(named) && addresses.iter().all(addressed)
}

/// Whole or not at all.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pair_is_made_once_and_anew_when_the_names_change() {
        let root = tempfile::tempdir().expect("a folder");
        let names = ["n1".to_owned()];
        let ip: IpAddr = "10.0.0.1".parse().expect("an address");
        let identity = |addresses: &[IpAddr]| {
            let identity = ServingIdentity::self_signed(root.path(), &names, addresses).expect("made");
            identity.0.newest().expect("a certificate").cert.clone()
        };
        let first = identity(&[ip]);
        assert_eq!(identity(&[ip]), first);
        let other: IpAddr = "fd00::1".parse().expect("an address");
        let second = identity(&[ip, other]);
        assert_ne!(second, first);
        let key = fs::metadata(root.path().join("pki/kubelet.key")).expect("there");
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_pair_is_replaced() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir(root.path().join("pki")).expect("made");
        fs::write(root.path().join("pki/kubelet.crt"), "nonsense").expect("written");
        ServingIdentity::self_signed(root.path(), &["n1".to_owned()], &[]).expect("replaced");
    }

    #[test]
    fn missing_files_are_named() {
        let error =
            ServingIdentity::from_files(Path::new("/nonexistent/a.crt"), Path::new("/nonexistent/a.key"));
        let error = format!("{:#}", error.expect_err("missing"));
        assert!(error.contains("/nonexistent/a.crt"), "{error}");
    }
}
