//! A request for a certificate (PKCS#10): what it asks for, and the certificate that answers it.
//!
//! Owns: reading a request and signing it. Never: decides whether it may be signed (that is `control::signing`).

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;

use super::PkiError;

/// Certificates begin a little in the past, for clocks that are late.
const BACKDATE: Duration = Duration::from_secs(300);
/// Below this length the past is not taken off the end (`signer.go`, policy `Short`).
const SHORT: Duration = Duration::from_secs(8 * 3600);

/// A request, read and checked to be signed with its own key.
#[derive(Debug)]
pub struct CertificateRequest {
    inner: CertificateSigningRequestParams,
}

/// For how long a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first moment.
    pub not_before: SystemTime,
    /// Its last.
    pub not_after: SystemTime,
}

impl Validity {
    /// From a little before `now`, for about `length`. The little is at most a twentieth, so that most of a very short
    /// certificate's life lies ahead.
    pub fn starting(now: SystemTime, length: Duration) -> Self {
        let backdate = BACKDATE.min(length / 20);
        let ahead = if length < SHORT { length } else { length - backdate };
        Self { not_before: now - backdate, not_after: now + ahead }
    }
}

impl CertificateRequest {
    /// Reads PEM.
    ///
    /// # Errors
    /// A sentence, when it is none or its signature is wrong.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem)
            .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
        let inner = CertificateSigningRequestParams::from_der(&der).map_err(|e| e.to_string())?;
        Ok(Self { inner })
    }

    fn subject(&self, kind: &DnType) -> &str {
        match self.inner.params.distinguished_name.get(kind) {
            Some(DnValue::Utf8String(text)) => text,
            Some(DnValue::PrintableString(text)) => text.as_str(),
            Some(DnValue::Ia5String(text)) => text.as_str(),
            Some(DnValue::TeletexString(text)) => text.as_str(),
            _ => "",
        }
    }

    /// The common name of the subject, or an empty string.
    pub fn common_name(&self) -> &str {
        self.subject(&DnType::CommonName)
    }

    /// The organization of the subject, or an empty string. Of several, the last; only that one would be signed.
    pub fn organization(&self) -> &str {
        self.subject(&DnType::OrganizationName)
    }

    /// The DNS names asked for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.params.subject_alt_names.iter().filter_map(|s| match s {
            SanType::DnsName(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The addresses asked for.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.inner.params.subject_alt_names.iter().filter_map(|s| match s {
            SanType::IpAddress(address) => Some(*address),
            _ => None,
        })
    }

    /// Whether it asks for alternative names that are neither DNS names nor addresses.
    pub fn names_others(&self) -> bool {
        let all = self.inner.params.subject_alt_names.len();
        self.names().count() + self.addresses().count() != all
    }

    /// Whether it asks to become an authority.
    pub fn wants_authority(&self) -> bool {
        matches!(self.inner.params.is_ca, IsCa::Ca(_))
    }

    /// The signed certificate, PEM.
    pub(super) fn signed(
        &self,
        ca_pem: &str,
        ca_key: &KeyPair,
        usages: &[String],
        validity: Validity,
    ) -> Result<String, PkiError> {
        let named = |source| PkiError::Certificate { what: self.common_name().to_owned(), source };
        let issuer = Issuer::from_ca_cert_pem(ca_pem, ca_key).map_err(named)?;
        let asked = &self.inner.params;
        let mut params = CertificateParams::default();
        params.distinguished_name = asked.distinguished_name.clone();
        params.subject_alt_names = asked.subject_alt_names.clone();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = usages.iter().filter_map(|u| key_usage(u)).collect();
        params.extended_key_usages = usages.iter().filter_map(|u| extended_key_usage(u)).collect();
        params.use_authority_key_identifier_extension = true;
        params.not_before = validity.not_before.into();
        params.not_after = validity.not_after.into();
        let answer = CertificateSigningRequestParams { params, public_key: self.inner.public_key.clone() };
        Ok(answer.signed_by(&issuer).map_err(named)?.pem())
    }
}

fn key_usage(usage: &str) -> Option<KeyUsagePurpose> {
    Some(match usage {
        "digital signature" | "signing" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        _ => return None,
    })
}

fn extended_key_usage(usage: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match usage {
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_a_certificates_life_lies_ahead() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, before, after) in [(20, 1, 20), (600, 30, 600), (7200, 300, 7200), (86400, 300, 86100)]
        {
            let validity = Validity::starting(now, Duration::from_secs(seconds));
            assert_eq!(validity.not_before, now - Duration::from_secs(before), "{seconds}");
            assert_eq!(validity.not_after, now + Duration::from_secs(after), "{seconds}");
        }
    }

    #[test]
    fn a_request_says_what_it_wants() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["n1".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = CertificateRequest::parse(pem.as_bytes()).unwrap();
        assert_eq!((request.organization(), request.common_name()), ("system:nodes", "system:node:n1"));
        assert_eq!(request.names().collect::<Vec<_>>(), ["n1"]);
        assert_eq!(request.addresses().collect::<Vec<_>>(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(!request.names_others() && !request.wants_authority());
        assert!(CertificateRequest::parse(b"junk").unwrap_err().contains("CERTIFICATE REQUEST"));
        let mut damaged = pem.into_bytes();
        let at = damaged.len() / 2;
        damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
        assert!(CertificateRequest::parse(&damaged).is_err(), "the signature is checked");
    }
}
