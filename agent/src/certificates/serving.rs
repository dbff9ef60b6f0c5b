//! The certificate that the node shows on port 10250, signed by the cluster (`serverTLSBootstrap`).
//!
//! Owns: the file, and asking for another one when it is due or when the Node reports other names and addresses. Until there
//! is one, the self-signed one is shown. Never: restarts the server; new connections show the new certificate.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::file::{self, Said};
use super::lifetime::{Standing, pause};
use super::{LOOK_AGAIN, PATIENCE};
use crate::api::backoff::{Backoff, random};
use crate::api::client::Client;
use crate::api::csr::{self, CsrError, SERVING_SIGNER, Wanted};
use crate::node::Registered;
use crate::server::serving::ServingIdentity;

const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The task.
pub struct ServingRotation {
    /// The API server.
    pub client: Client,
    /// What the server shows.
    pub identity: Arc<ServingIdentity>,
    /// The Node as it is at the API server: its addresses are what the certificate names.
    pub registered: Registered,
    /// Where the certificate is kept.
    pub file: PathBuf,
    /// `system:node:<name>`.
    pub user: String,
}

/// A certificate that is shown.
struct Current {
    said: Said,
    jitter: f64,
    since: Timestamp,
}

impl ServingRotation {
    /// Runs as long as the daemon.
    pub async fn run(mut self) {
        let mut current = self.found();
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE * 2);
        let mut key: Option<String> = None;
        loop {
            let names = self.names();
            let now = Timestamp::now();
            let wait = match due(current.as_ref(), &names, &self.user) {
                None => LOOK_AGAIN,
                Some(at) if at > now => pause(at, now, LOOK_AGAIN),
                Some(_) => match self.renew(&names, &mut key).await {
                    // Other names: looked at from the start.
                    None => continue,
                    Some(Ok(said)) => {
                        backoff.succeeded();
                        current = Some(Current { said, jitter: random(), since: Timestamp::now() });
                        continue;
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "no serving certificate from the cluster; the present one stays");
                        backoff.failed(Instant::now(), random())
                    }
                },
            };
            // Cancel-safe: a watch channel keeps that it changed.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.registered.changed() => if changed.is_err() { return },
            }
        }
    }

    /// What an earlier daemon was given, if it still holds.
    fn found(&self) -> Option<Current> {
        let pair = file::load(&self.file).ok()?;
        let fits =
            pair.said.user == self.user && pair.said.lifetime.standing(Timestamp::now()) == Standing::Valid;
        fits.then(|| {
            self.identity.replace(pair.key);
            let since = pair.said.lifetime.not_before;
            Current { said: pair.said, jitter: random(), since }
        })
    }

    fn names(&mut self) -> BTreeSet<String> {
        self.registered.borrow_and_update().as_ref().map(|view| view.addresses.clone()).unwrap_or_default()
    }

    /// None, if the names changed while waiting.
    async fn renew(
        &mut self,
        names: &BTreeSet<String>,
        kept: &mut Option<String>,
    ) -> Option<Result<Said, String>> {
        let key = match kept.take().map_or_else(csr::new_key, Ok) {
            Ok(key) => key,
            Err(error) => return Some(Err(error.to_string())),
        };
        let list = names.iter().cloned().collect();
        let wanted = Wanted { signer: SERVING_SIGNER, user: &self.user, names: list };
        let request = match csr::request(&wanted, &key) {
            Ok(request) => request,
            Err(error) => return Some(Err(error.to_string())),
        };
        let posted = |how_far| {
            if how_far == csr::Progress::Posted {
                tracing::info!(request = request.name, ?names, "asked for a serving certificate");
            }
        };
        let client = self.client.clone();
        let asking = tokio::time::timeout(PATIENCE, csr::obtain(&client, &request, posted));
        let others = self.registered.wait_for(|view| view.as_ref().is_some_and(|v| v.addresses != *names));
        // Cancel-safe: a request that was posted is found again by its name, and names that changed stay changed.
        let result = tokio::select! {
            changed = others => return changed.err().map(|_| Err("the daemon ends".to_owned())),
            result = asking => result,
        };
        match result {
            Ok(Ok(certificate)) => Some(self.take(&certificate, &key)),
            Ok(Err(error)) => {
                if matches!(error, CsrError::Api(_)) {
                    *kept = Some(key);
                }
                Some(Err(error.to_string()))
            }
            Err(_) => {
                *kept = Some(key);
                let name = request.name;
                Some(Err(format!("request {name} is not decided: kubectl certificate approve {name}")))
            }
        }
    }

    fn take(&self, certificate: &[u8], key: &str) -> Result<Said, String> {
        let pair = file::pair(certificate, key.as_bytes(), "the serving certificate that came");
        let pair = pair.map_err(|e| e.to_string())?;
        file::store(&self.file, certificate, key).map_err(|e| e.to_string())?;
        self.identity.replace(pair.key);
        tracing::info!(names = ?pair.said.names, expires = %pair.said.lifetime.not_after, "serving certificate");
        Ok(pair.said)
    }
}

/// When to ask; none while it is not known what for.
fn due(current: Option<&Current>, names: &BTreeSet<String>, user: &str) -> Option<Timestamp> {
    if names.is_empty() {
        return None;
    }
    let fits = current.filter(|c| c.said.names == *names && c.said.user == user);
    Some(fits.map_or(Timestamp::MIN, |c| c.said.lifetime.renew_at(c.jitter, c.since)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::lifetime::Lifetime;

    #[test]
    fn a_certificate_is_due_with_its_age_and_with_other_names() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let lifetime = Lifetime { not_before: at(0), not_after: at(1000) };
        let said = Said { lifetime, user: "system:node:n".into(), names: names(&["n", "10.0.0.1"]) };
        let current = Current { said, jitter: 0.5, since: at(0) };
        let due = |wanted: &[&str], user| due(Some(&current), &names(wanted), user);
        assert_eq!(due(&["10.0.0.1", "n"], "system:node:n"), Some(at(800)));
        assert_eq!(due(&["10.0.0.2", "n"], "system:node:n"), Some(Timestamp::MIN));
        assert_eq!(due(&["10.0.0.1", "n"], "system:node:m"), Some(Timestamp::MIN));
        assert_eq!(due(&[], "system:node:n"), None, "the Node is not registered yet");
        assert_eq!(super::due(None, &names(&["n"]), "system:node:n"), Some(Timestamp::MIN));
    }
}
