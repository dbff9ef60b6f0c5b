//! What to say when the node has no certificate that holds: what is wrong, and what to do. Pure.

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::lifetime::{Lifetime, Standing};
use crate::api::kubeconfig::Trust;
use crate::tls;

/// A clock that is off by less is left alone.
pub const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// The command that joins this node again.
pub fn join_command(server: &str, trust: &Trust) -> String {
    let endpoint = server.split_once("://").map_or(server, |(_, rest)| rest).trim_end_matches('/');
    let hash = match trust {
        Trust::Bundle(pem) => ca_hash(pem).unwrap_or_else(|| "sha256:HASH".to_owned()),
        Trust::System | Trust::Anybody => "sha256:HASH".to_owned(),
    };
    format!("orlop join {endpoint} --token TOKEN --discovery-token-ca-cert-hash {hash}")
}

fn ca_hash(pem: &[u8]) -> Option<String> {
    let certificates = tls::certificates(pem, "certificate authority").ok()?;
    let (_, ca) = x509_parser::parse_x509_certificate(certificates.first()?).ok()?;
    Some(format!("sha256:{}", hex::encode(Sha256::digest(ca.public_key().raw))))
}

/// What keeps a certificate from being used now; none if nothing does. `skew` is how far the API server's clock is ahead of
/// this machine's, where that is known.
pub fn named(lifetime: Lifetime, now: Timestamp, skew: Option<SignedDuration>, join: &str) -> Option<String> {
    let standing = lifetime.standing(now);
    if standing == Standing::Valid {
        return None;
    }
    let there = skew.filter(|s| s.abs() > TOLERANCE).and_then(|s| now.checked_add(s).ok());
    if let Some(there) = there.filter(|there| lifetime.standing(*there) == Standing::Valid) {
        return Some(format!(
            "the clock of this machine is wrong: it says {now:.0}, the API server says {there:.0}; set it (the node's \
             certificate is valid from {} to {})",
            lifetime.not_before, lifetime.not_after
        ));
    }
    Some(match standing {
        Standing::NotYet => format!(
            "the node's certificate is valid from {}, and the clock of this machine says {now:.0}: set the clock",
            lifetime.not_before
        ),
        Standing::Expired | Standing::Valid => format!(
            "the node's certificate expired at {}; if the clock of this machine is right ({now:.0}), run: {join} (a token is \
             made on the cluster with: kubeadm token create --print-join-command)",
            lifetime.not_after
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn said(now: &str, skew: Option<i64>) -> Option<String> {
        let lifetime =
            Lifetime { not_before: at("2026-01-01T00:00:00Z"), not_after: at("2026-02-01T00:00:00Z") };
        named(lifetime, at(now), skew.map(SignedDuration::from_hours), "orlop join h:6443")
    }

    #[test]
    fn a_wrong_clock_is_named_as_such_and_not_as_an_expired_certificate() {
        assert_eq!(said("2026-01-15T00:00:00Z", None), None);
        let early = said("1970-01-01T00:00:10Z", None).expect("said");
        assert!(early.contains("1970-01-01T00:00:10Z: set the clock"), "{early}");
        let late = said("2026-03-01T00:00:00Z", Some(-24 * 40)).expect("said");
        assert!(late.starts_with("the clock of this machine is wrong: it says 2026-03-01"), "{late}");
        assert!(!late.contains("join"), "{late}");
    }

    #[test]
    fn an_expired_certificate_comes_with_what_to_run() {
        for skew in [None, Some(0)] {
            let text = said("2026-03-01T00:00:00Z", skew).expect("said");
            assert!(
                text.contains("expired at 2026-02-01") && text.contains("run: orlop join h:6443"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_command_pins_the_authority_of_the_cluster() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let ca = rcgen::CertificateParams::new(Vec::new()).expect("names").self_signed(&key).expect("signed");
        use rcgen::PublicKeyData as _;
        let hash = hex::encode(Sha256::digest(key.subject_public_key_info()));
        let command = join_command("https://10.0.0.1:6443", &Trust::Bundle(ca.pem().into_bytes()));
        let wanted =
            format!("orlop join 10.0.0.1:6443 --token TOKEN --discovery-token-ca-cert-hash sha256:{hash}");
        assert_eq!(command, wanted);
    }
}
