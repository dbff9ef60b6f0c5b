//! Issues certificates.

use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::{PkiError, Validity};

const CA_YEARS: i64 = 10;
const LEAF_DAYS: i64 = 365;

/// What a certificate is for.
#[derive(Debug, Clone)]
pub enum Purpose<'a> {
    /// A server, under these names and addresses.
    Server {
        /// Subject alternative names.
        names: &'a [String],
    },
    /// A client.
    Client {
        /// The user.
        name: &'a str,
        /// Its group.
        group: &'a str,
        /// How long it lives; none for a year.
        length: Option<Duration>,
    },
}

/// A certificate and its key, PEM and DER.
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The key.
    pub key_pem: String,
    /// The certificate, DER.
    pub cert_der: Vec<u8>,
    /// The key, PKCS#8 DER.
    pub key_der: Vec<u8>,
}

fn failed(what: &str) -> impl FnOnce(rcgen::Error) -> PkiError + '_ {
    move |source| PkiError::Certificate { what: what.to_owned(), source }
}

fn validity(params: &mut CertificateParams, length: SignedDuration) {
    let day = |t: Timestamp| {
        let date = t.to_zoned(jiff::tz::TimeZone::UTC).date();
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    // Whole days; the day before covers clocks that are late.
    params.not_before = day(Timestamp::now() - SignedDuration::from_hours(24));
    params.not_after = day(Timestamp::now() + length);
}

/// The certificate of a new CA.
pub(super) fn self_signed(key: &KeyPair) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::KeyEncipherment,
    ];
    validity(&mut params, SignedDuration::from_hours(CA_YEARS * 365 * 24));
    Ok(params.self_signed(key).map_err(failed("CA"))?.pem())
}

/// A certificate signed by the CA.
pub(super) fn issue(ca_pem: &str, ca_key: &KeyPair, purpose: &Purpose<'_>) -> Result<Issued, PkiError> {
    let issuer = Issuer::from_ca_cert_pem(ca_pem, ca_key).map_err(failed("CA"))?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed("key"))?;
    let (mut params, common_name) = match purpose {
        Purpose::Server { names } => {
            let mut params = CertificateParams::new(names.to_vec()).map_err(failed("of the server"))?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            (params, "kube-apiserver")
        }
        Purpose::Client { name, .. } => {
            let mut params = CertificateParams::default();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            (params, *name)
        }
    };
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Purpose::Client { group, .. } = purpose
        && !group.is_empty()
    {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    match purpose {
        Purpose::Client { length: Some(length), .. } => {
            let validity = Validity::starting(SystemTime::now(), *length);
            params.not_before = validity.not_before.into();
            params.not_after = validity.not_after.into();
        }
        Purpose::Client { length: None, .. } | Purpose::Server { .. } => {
            validity(&mut params, SignedDuration::from_hours(LEAF_DAYS * 24));
        }
    }
    let cert = params.signed_by(&key, &issuer).map_err(failed(common_name))?;
    Ok(Issued {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
        cert_der: cert.der().to_vec(),
        key_der: key.serialize_der(),
    })
}
