//! The certificate that the node shows to the API server, renewed with itself before it ends.
//!
//! Owns: the file, the key of a request that is under way, and saying what is wrong when nothing helps. Never: ends a
//! connection: those that are open go on with the certificate they began with, new ones show the new one.
//!
//! ```text
//! valid ── 70 to 90 % of its life ─► asked for with itself ─► stored ─► shown by new connections
//! expired ─► asked for with the bootstrap kubeconfig, where there is one ─► as above; else said what to run, and waited
//! ```
//! A file that somebody replaces (`orlop join` again) is taken over in every state.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;

use super::file::{self, Pair, Said};
use super::lifetime::{Standing, pause};
use super::{LOOK_AGAIN, PATIENCE, trouble};
use crate::api::backoff::{Backoff, random};
use crate::api::client::Client;
use crate::api::csr::{self, CLIENT_SIGNER, CsrError, Wanted};
use crate::api::kubeconfig::{self, Access, CertificateSource, PemSource, Trust};
use crate::api::tls::ClientIdentity;
use crate::tls::{self, provider};

/// Between two attempts.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Request(#[from] CsrError),
    #[error("certificate signing request {0} is not decided: kubectl certificate approve {0}")]
    Undecided(String),
    #[error("{0}")]
    Other(String),
}

/// Puts the access to the API server and the place of its certificate together: where a kubeconfig holds the certificate
/// itself, or names files of others, a renewed one is kept below `root_dir`, and is taken if it is younger.
pub fn settle(mut access: Access, root_dir: &Path) -> (Access, Option<PathBuf>) {
    let Some(source) = &access.certificate else { return (access, None) };
    if let (PemSource::File(certificate), PemSource::File(key)) = (&source.certificate, &source.key)
        && certificate == key
    {
        let file = certificate.clone();
        return (access, Some(file));
    }
    let file = root_dir.join("pki/client-current.pem");
    let given = ClientIdentity::new(Some(source.clone())).ok().and_then(|i| i.newest());
    let given = given.and_then(|key| key.cert.first().and_then(Said::of));
    if let (Some(given), Ok(kept)) = (given, file::load(&file))
        && kept.said.user == given.user
        && kept.said.lifetime.not_before > given.lifetime.not_before
        && is_of(&kept.key, &access.trust)
    {
        let source = PemSource::File(file.clone());
        access.certificate = Some(CertificateSource { certificate: source.clone(), key: source });
    }
    (access, Some(file))
}

/// Whether the authority that vouches for the API server signed a certificate, which holds now.
fn is_of(key: &CertifiedKey, trust: &Trust) -> bool {
    let (Trust::Bundle(pem), Some((leaf, chain))) = (trust, key.cert.split_first()) else { return false };
    let Ok(roots) = tls::authorities(pem, "certificate authority") else { return false };
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    verifier.is_ok_and(|v| v.verify_client_cert(leaf, chain, UnixTime::now()).is_ok())
}

/// The task.
pub struct ClientRotation {
    /// The connection that is to go on.
    pub client: Client,
    /// Where the certificate is kept.
    pub file: PathBuf,
    /// `rotateCertificates`. Without it, only what is wrong is said.
    pub rotate: bool,
    /// Credentials for when the certificate expired.
    pub bootstrap: Option<PathBuf>,
    /// The command that joins this node again, for people.
    pub join: String,
}

/// What is known of the certificate in use.
struct Current {
    key: Arc<CertifiedKey>,
    said: Said,
    jitter: f64,
    since: Timestamp,
}

/// Keys of requests that are not signed yet: who asks again with one finds the same request.
#[derive(Default)]
struct Kept {
    /// Asked for with the certificate.
    own: Option<String>,
    /// Asked for with the bootstrap credentials.
    bootstrap: Option<String>,
}

impl ClientRotation {
    /// Runs as long as the daemon.
    pub async fn run(self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE * 2);
        let mut identities = self.client.identity().watch();
        let mut current: Option<Current> = None;
        let mut kept = Kept::default();
        let mut told: Option<String> = None;
        loop {
            let Some(shown) = self.client.identity().newest() else { return };
            identities.mark_unchanged();
            if current.as_ref().is_none_or(|c| !Arc::ptr_eq(&c.key, &shown)) {
                let Some(found) = self.examine(shown, current.is_some()) else { return };
                current = Some(found);
            }
            let Some(now_shown) = &current else { return };
            let now = Timestamp::now();
            self.tell(&now_shown.said, now, &mut told);
            let wait = match self.next(now_shown, now) {
                Next::Wait(wait) => wait,
                Next::Renew(with) => {
                    match self.renew(&now_shown.said, with.as_ref(), &mut kept, &mut told).await {
                        Ok(()) => {
                            backoff.succeeded();
                            continue;
                        }
                        Err(error) => {
                            tracing::warn!(%error, expires = %now_shown.said.lifetime.not_after, "the node's certificate is not renewed");
                            backoff.failed(Instant::now(), random())
                        }
                    }
                }
            };
            // Cancel-safe: a watch channel keeps that it changed, and a pause is only a pause.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = identities.changed() => if changed.is_err() { return },
            }
        }
    }

    /// None, if it is no certificate that a node could renew.
    fn examine(&self, key: Arc<CertifiedKey>, renewed: bool) -> Option<Current> {
        let said = key.cert.first().and_then(Said::of)?;
        if !said.user.starts_with("system:node:") {
            tracing::info!(user = said.user, "the credentials are not a node's own; they are not renewed");
            return None;
        }
        let since = if renewed { Timestamp::now() } else { said.lifetime.not_before };
        let found = Current { key, said, jitter: random(), since };
        tracing::info!(
            user = found.said.user,
            expires = %found.said.lifetime.not_after,
            renewal = %found.said.lifetime.renew_at(found.jitter, since),
            rotate = self.rotate,
            "certificate towards the API server"
        );
        Some(found)
    }

    /// Says what keeps the certificate from being used, once.
    fn tell(&self, said: &Said, now: Timestamp, told: &mut Option<String>) {
        let trouble = trouble::named(said.lifetime, now, self.client.skew(), &self.join);
        let news = trouble.is_some() != told.is_some();
        if let Some(text) = trouble.as_ref().filter(|_| news) {
            tracing::error!("{text}");
        }
        *told = trouble;
    }

    fn next(&self, current: &Current, now: Timestamp) -> Next {
        let lifetime = current.said.lifetime;
        let due = lifetime.renew_at(current.jitter, current.since);
        match lifetime.standing(now) {
            Standing::Valid if self.rotate && now >= due => Next::Renew(None),
            Standing::Valid => Next::Wait(pause(due.max(now + FIRST_PAUSE), now, LOOK_AGAIN)),
            // Only the clock can help.
            Standing::NotYet => Next::Wait(FIRST_PAUSE * 5),
            Standing::Expired => match self.bootstrap() {
                Some(path) => Next::Renew(Some(path.clone())),
                None => Next::Wait(FIRST_PAUSE * 5),
            },
        }
    }

    /// The bootstrap kubeconfig, if it is there.
    fn bootstrap(&self) -> Option<&PathBuf> {
        self.bootstrap.as_ref().filter(|path| path.exists())
    }

    async fn renew(
        &self,
        said: &Said,
        bootstrap: Option<&PathBuf>,
        kept: &mut Kept,
        told: &mut Option<String>,
    ) -> Result<(), RenewError> {
        let other = |e: &dyn std::fmt::Display| RenewError::Other(e.to_string());
        let client = match bootstrap {
            None => self.client.clone(),
            Some(path) => {
                let access = kubeconfig::load(path).map_err(|e| other(&e))?;
                Client::new(&access).map_err(|e| other(&e))?
            }
        };
        // Another asks for another: approvers look at who does.
        let slot = if bootstrap.is_some() { &mut kept.bootstrap } else { &mut kept.own };
        let key = match slot.take() {
            Some(key) => key,
            None => csr::new_key()?,
        };
        let wanted = Wanted { signer: CLIENT_SIGNER, user: &said.user, names: Vec::new() };
        let request = csr::request(&wanted, &key)?;
        let posted = |how_far| {
            if how_far == csr::Progress::Posted {
                tracing::info!(request = request.name, "asked for a new certificate towards the API server");
            }
        };
        let asking = csr::obtain(&client, &request, posted);
        let certificate = match self.answer(asking, said, bootstrap.is_none(), told).await {
            Some(Ok(certificate)) => certificate,
            Some(Err(error)) => {
                if matches!(error, CsrError::Api(_)) {
                    *slot = Some(key);
                }
                return Err(error.into());
            }
            None => {
                *slot = Some(key);
                return Err(RenewError::Undecided(request.name));
            }
        };
        let pair =
            file::pair(&certificate, key.as_bytes(), "the certificate that came").map_err(|e| other(&e))?;
        self.take(pair, &certificate, &key).map_err(|e| other(&e))
    }

    /// What comes of a request; none if nobody decides while it is worth waiting.
    async fn answer<A: Future>(
        &self,
        asking: A,
        said: &Said,
        with_itself: bool,
        told: &mut Option<String>,
    ) -> Option<A::Output> {
        let mut asking = pin!(asking);
        let now = Timestamp::now();
        let left = if with_itself { pause(said.lifetime.not_after, now, PATIENCE) } else { PATIENCE };
        if let Ok(answer) = tokio::time::timeout(left, &mut asking).await {
            return Some(answer);
        }
        // The certificate that asks may have ended meanwhile.
        self.tell(said, Timestamp::now(), told);
        if self.bootstrap().is_some() {
            return None;
        }
        // What is open goes on, so the answer may come all the same.
        tokio::time::timeout(PATIENCE.saturating_sub(left), asking).await.ok()
    }

    /// On the disk first: what is shown must survive.
    fn take(&self, pair: Pair, certificate: &[u8], key: &str) -> std::io::Result<()> {
        file::store(&self.file, certificate, key)?;
        self.client.identity().replace(pair.key);
        self.client.reconnect();
        Ok(())
    }
}

enum Next {
    Wait(Duration),
    /// With these credentials instead of the certificate.
    Renew(Option<PathBuf>),
}
