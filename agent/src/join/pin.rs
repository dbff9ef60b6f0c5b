//! The hash by which `--discovery-token-ca-cert-hash` names a CA: SHA-256 of its public key (SubjectPublicKeyInfo, DER).
//!
//! Owns: the form and the comparison. Never: judges a certificate's signature or dates. Pure.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::certificates;

/// A public key's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a hash such as sha256: and 64 hexadecimal digits");
        let (kind, digits) = text.trim().split_once(':').ok_or_else(wrong)?;
        let mut hash = [0; 32];
        if !kind.eq_ignore_ascii_case("sha256") || hex::decode_to_slice(digits, &mut hash).is_err() {
            return Err(wrong());
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

/// The hashes of a bundle's certificates.
///
/// # Errors
/// When the text holds no certificate, or one that cannot be read.
pub fn hashes(ca_pem: &[u8]) -> Result<Vec<Pin>, String> {
    let bundle = certificates(ca_pem, "the cluster's certificate authority").map_err(|e| e.to_string())?;
    let hash = |der: &[u8]| {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        Ok(Pin(Sha256::digest(certificate.public_key().raw).into()))
    };
    bundle.iter().map(|der| hash(der)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl req -x509`; its hash below by `openssl x509 -pubkey | openssl pkey -pubin -outform der | sha256sum`.
    pub(in crate::join) const CA: &str = "-----BEGIN CERTIFICATE-----
MIIBgjCCASegAwIBAgIUHsjNOEueep3BHL6KorQBfMIl9LcwCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKa3ViZXJuZXRlczAgFw0yNjExMjgwNzMwMjNaGA8yMTI2MTEw
NDA3MzAyM1owFTETMBEGA1UEAwwKa3ViZXJuZXRlczBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABFwT+vGddZw+jxFtXaL9HGv5fYcXaKFLWvb8Vp7dy4agWEbf96Fo
Cy6NsG4GqefY2n0b+gakcvAhIuZDMsQ9zQ6jUzBRMB0GA1UdDgQWBBR46p37WGqn
BPhsNMtz5eZCQJL1RTAfBgNVHSMEGDAWgBR46p37WGqnBPhsNMtz5eZCQJL1RTAP
BgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQDLDroFrCpv2WDs8Swd
kKMW0DQ3hdjb60nsz2wdZpm5lwIhANH+IXItXfkiAlACj39shSkhl0ffqSb+XNJL
0XS9sVGt
-----END CERTIFICATE-----
";
    const HASH: &str = "sha256:0fb684b97dc7f60e2f40c74ed60befe4bd4ab34007f18d2e039de70db58137be";

    #[test]
    fn a_hash_is_that_of_openssl() {
        let found = hashes(CA.as_bytes()).expect("a CA");
        assert_eq!(found.iter().map(Pin::to_string).collect::<Vec<_>>(), [HASH]);
        assert_eq!(HASH.to_uppercase().parse::<Pin>(), Ok(found[0]));
        let twice = format!("{CA}{CA}");
        assert_eq!(hashes(twice.as_bytes()).expect("a bundle").len(), 2);
        assert!(hashes(b"no certificate").is_err());
    }

    #[test]
    fn only_sha256_is_a_hash() {
        for wrong in ["", "0fb684b9", "sha512:00", "sha256:", &HASH[..70], &format!("{HASH}0")] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }
}
