//! Finding the cluster, and believing it.
//!
//! Owns: the order of questions. Never: sends a token to a server whose certificate is not vouched for by a CA that the
//! user named, unless the user said that the CA need not be checked.
//!
//! ```text
//! cluster-info, from anybody ─► signed with the token? ─► CA among the hashes? ─► cluster-info again, over that CA ─► the same?
//! ```
//! Where the signature is missing or wrong and the CA is the right one, that CA's server is asked whether it knows the
//! token: this tells a token that is over from a `cluster-info` that somebody changed.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde_json::Value;

use super::cluster_info::{self, Cluster, ClusterInfo, PATH, Signature};
use super::failure::{Exit, Failure};
use super::pin::{Pin, hashes};
use super::progress::Progress;
use super::settings::{self, Discovery, Settings};
use super::token::BootstrapToken;
use crate::api::http::{Http, HttpError, HttpOptions, PlainHttp, Request, StatusCode, Trust, header};
use crate::api::kubeconfig::{self, Access, TokenSource};
use crate::preflight::{self, Finding, Level};

/// The longest silence of a server.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two questions to a server that does not answer, or has not signed yet.
const PAUSE: Duration = Duration::from_millis(500);
/// Without a CA to ask, a signature that is missing is waited for so long: a new token is signed within moments.
const SIGNING: Duration = Duration::from_secs(10);
/// The longest `cluster-info` or kubeconfig.
const MAX_ANSWER: usize = 1 << 20;
const NEW_TOKEN: &str = "get a new one: kubeadm token create --print-join-command (or, at an orlop that runs the API \
                         server: orlop standalone token create --print-join-command)";

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The cluster.
    pub cluster: Cluster,
    /// As whom a certificate is asked for.
    pub bootstrap: Access,
    /// Why the cluster is believed, for people.
    pub why: String,
}

/// Finds the cluster.
///
/// # Errors
/// With the exit code that tells which step failed.
pub async fn discover(settings: &Settings, progress: &mut Progress) -> Result<Found, Failure> {
    let deadline = Instant::now() + settings.timeouts.discovery;
    match &settings.discovery {
        Discovery::Token { endpoint, token, pins } => {
            let url = format!("https://{endpoint}{PATH}");
            let mut asking =
                Asking { url, deadline, progress, ignored: &settings.ignored, clock_checked: false };
            let cluster = asking.by_token(token, pins).await?;
            let mut why = format!("signed with token {}", token.id());
            if !pins.is_empty() {
                why += ", CA as its hash says";
            }
            let token = settings.bootstrap_token.as_ref().unwrap_or(token);
            Ok(Found { bootstrap: with_token(&cluster, token), cluster, why })
        }
        Discovery::File(file) => {
            let text = read(file).await?;
            let (cluster, given) = of_file(&text, file)?;
            let url = format!("{}{PATH}", cluster.server);
            let mut asking =
                Asking { url, deadline, progress, ignored: &settings.ignored, clock_checked: false };
            let cluster = asking.refreshed(cluster).await?;
            let bootstrap = match (&settings.bootstrap_token, given) {
                (Some(token), _) => with_token(&cluster, token),
                (None, Some(given)) => Access { server: cluster.server.clone(), ..given },
                (None, None) => {
                    let what = format!("{file} holds no credentials");
                    return Err(Failure::new(Exit::Usage, what).advise("give --tls-bootstrap-token"));
                }
            };
            Ok(Found { bootstrap, cluster, why: format!("as {file} says") })
        }
    }
}

/// How an API server's clock differs from ours, for `orlop check`.
pub fn clock(endpoint: &str) -> Finding {
    let unknown =
        |reason: String| Finding::warn(preflight::CLOCK, reason, "see whether the API server can be reached");
    let endpoint = match settings::endpoint(endpoint) {
        Ok(endpoint) => endpoint,
        Err(reason) => return unknown(reason),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return unknown(error.to_string()),
    };
    let http = client(Trust::Anyone);
    let request = Request::get(format!("https://{endpoint}{PATH}")).patience(Some(PATIENCE));
    match runtime.block_on(http.send(request)) {
        Ok(response) => match date(response.headers().get(header::DATE)) {
            Some(server) => preflight::clock(server, Timestamp::now()),
            None => unknown(format!("{endpoint} does not tell its time")),
        },
        Err(error) => unknown(error.to_string()),
    }
}

fn client(trust: Trust) -> Http {
    Http::new(HttpOptions {
        trust,
        plain: PlainHttp::Never,
        connect_timeout: PATIENCE,
        ..HttpOptions::default()
    })
}

fn date(value: Option<&crate::api::http::HeaderValue>) -> Option<Timestamp> {
    let text = value?.to_str().ok()?;
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

fn with_token(cluster: &Cluster, token: &BootstrapToken) -> Access {
    Access {
        server: cluster.server.clone(),
        trust: kubeconfig::Trust::Bundle(cluster.ca_pem.clone()),
        tls_server_name: None,
        proxy_url: None,
        certificate: None,
        token: Some(TokenSource::Inline(token.bearer())),
        namespace: None,
    }
}

/// An answer of any status.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
    date: Option<Timestamp>,
}

/// Questions about one `cluster-info`.
struct Asking<'a> {
    url: String,
    deadline: Instant,
    progress: &'a mut Progress,
    ignored: &'a [String],
    clock_checked: bool,
}

impl Asking<'_> {
    async fn by_token(&mut self, token: &BootstrapToken, pins: &[Pin]) -> Result<Cluster, Failure> {
        let anybody = client(Trust::Anyone);
        let unsigned_until = Instant::now() + SIGNING;
        let mut accepted = false;
        let info = loop {
            let info = self.info(&anybody, None).await?.map_err(|tls| {
                Failure::new(Exit::Unreachable, tls).advise("see whether this is the API server's port")
            })?;
            let signature = info.check(token);
            if signature == Signature::Valid {
                break info;
            }
            let cluster = info.cluster().map_err(not_understood)?;
            if pins.is_empty() {
                if signature == Signature::Wrong {
                    return Err(Failure::new(
                        Exit::NotAuthentic,
                        format!(
                            "cluster-info is not signed with this token {}: its secret is another one, or somebody \
                             changed cluster-info on its way",
                            token.id()
                        ),
                    )
                    .advise("give --discovery-token-ca-cert-hash, which tells one from the other"));
                }
                if Instant::now() >= unsigned_until {
                    return Err(unknown_token(token));
                }
            } else {
                self.judge(signature, token, &cluster, pins).await?;
                accepted = true;
            }
            self.progress.waiting(format!("cluster-info to be signed with token {}", token.id()));
            self.pause(|| if accepted { not_signing(token) } else { unknown_token(token) }).await?;
        };
        let cluster = info.cluster().map_err(not_understood)?;
        if pins.is_empty() {
            return Ok(cluster);
        }
        if !fits(pins, &cluster)? {
            return Err(other_ca(&cluster, pins));
        }
        self.again(&info, token, &cluster).await?;
        Ok(cluster)
    }

    /// Why `cluster-info` does not have the token's signature. Ok where it may yet get it.
    async fn judge(
        &mut self,
        signature: Signature,
        token: &BootstrapToken,
        cluster: &Cluster,
        pins: &[Pin],
    ) -> Result<(), Failure> {
        match (fits(pins, cluster)?, signature) {
            (false, Signature::Wrong) => {
                let what = "cluster-info has neither the token's signature nor a CA with the given hash";
                return Err(Failure::new(Exit::NotAuthentic, what)
                    .advise("whoever answers there is not the cluster that made the token"));
            }
            (false, Signature::Missing | Signature::Valid) => return Err(other_ca(cluster, pins)),
            (true, _) => {}
        }
        let trusted = client(Trust::Only(cluster.ca_pem.clone()));
        let answer = self.answer(&trusted, Some(token)).await?.map_err(not_the_clusters)?;
        match (answer.status, signature) {
            (StatusCode::UNAUTHORIZED, _) => Err(unknown_token(token)),
            (_, Signature::Wrong) => {
                let what = format!(
                    "cluster-info was changed on its way: the cluster knows token {}, and the signature does not fit",
                    token.id()
                );
                Err(Failure::new(Exit::NotAuthentic, what)
                    .advise("see who stands between this machine and the API server"))
            }
            (_, Signature::Missing | Signature::Valid) => Ok(()),
        }
    }

    /// Reads it again over the CA that it names.
    async fn again(
        &mut self,
        first: &ClusterInfo,
        token: &BootstrapToken,
        cluster: &Cluster,
    ) -> Result<(), Failure> {
        let trusted = client(Trust::Only(cluster.ca_pem.clone()));
        let second = self.info(&trusted, None).await?.map_err(not_the_clusters)?;
        if second.check(token) == Signature::Valid && second.kubeconfig == first.kubeconfig {
            return Ok(());
        }
        let what = "cluster-info is another when it is read over the cluster's CA";
        Err(Failure::new(Exit::NotAuthentic, what).advise(
            "see who stands between this machine and the API server; or it changed just now: join again",
        ))
    }

    /// The cluster of a discovery file, as it says itself today; as the file says where it may not be asked.
    async fn refreshed(&mut self, cluster: Cluster) -> Result<Cluster, Failure> {
        let trusted = client(Trust::Only(cluster.ca_pem.clone()));
        let answer = self.answer(&trusted, None).await?.map_err(not_the_clusters)?;
        if !answer.status.is_success() {
            return Ok(cluster);
        }
        parse(&answer.body)?.cluster().map_err(not_understood)
    }

    async fn info(
        &mut self,
        http: &Http,
        token: Option<&BootstrapToken>,
    ) -> Result<Result<ClusterInfo, String>, Failure> {
        let answer = match self.answer(http, token).await? {
            Ok(answer) => answer,
            Err(tls) => return Ok(Err(tls)),
        };
        match answer.status {
            status if status.is_success() => parse(&answer.body).map(Ok),
            StatusCode::NOT_FOUND => Err(Failure::new(
                Exit::Cluster,
                format!(
                    "{}: there is no cluster-info: this cluster was not made for joining by token",
                    self.url
                ),
            )
            .advise("kubeadm init phase bootstrap-token makes it; or use --discovery-file")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::new(
                Exit::Cluster,
                format!("{}: cluster-info cannot be read without credentials", self.url),
            )
            .advise("allow anonymous requests to it, or use --discovery-file")),
            status => Err(Failure::new(Exit::Unreachable, format!("{}: HTTP {}", self.url, status.as_u16()))),
        }
    }

    /// Asks until there is an answer, or no time left. A failure of TLS is left to the caller: it may mean that the
    /// server is not the right one.
    async fn answer(
        &mut self,
        http: &Http,
        token: Option<&BootstrapToken>,
    ) -> Result<Result<Answer, String>, Failure> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let mut request = Request::get(&self.url).patience(Some(PATIENCE.min(left)));
            if let Some(token) = token {
                request = request.bearer(&token.bearer());
            }
            let reason = match receive(http, request).await {
                Ok(answer)
                    if answer.status == StatusCode::TOO_MANY_REQUESTS || answer.status.is_server_error() =>
                {
                    format!("{}: HTTP {}", self.url, answer.status.as_u16())
                }
                Ok(answer) => {
                    self.check_clock(&answer)?;
                    return Ok(Ok(answer));
                }
                Err(HttpError::Tls { url, reason }) => return Ok(Err(format!("{url}: {reason}"))),
                Err(error) if error.is_transient() => error.to_string(),
                Err(error) => return Err(Failure::new(Exit::Unreachable, error)),
            };
            self.progress.waiting(format!("the API server: {reason}"));
            self.pause(|| {
                Failure::new(Exit::Unreachable, format!("the API server does not answer in time: {reason}"))
                    .advise("see whether its address is right, and a firewall in between")
            })
            .await?;
        }
    }

    /// A wrong clock makes good certificates look bad: it is told before they are looked at.
    fn check_clock(&mut self, answer: &Answer) -> Result<(), Failure> {
        let (Some(server), false) = (answer.date, self.clock_checked) else { return Ok(()) };
        self.clock_checked = true;
        let finding = preflight::clock(server, Timestamp::now()).ignoring(self.ignored);
        match finding.level {
            Level::Ok => Ok(()),
            Level::Warn => {
                self.progress
                    .note(format!("warning: {}: {}: {}", finding.name, finding.detail, finding.advice));
                Ok(())
            }
            Level::Fail => {
                let what = format!("the clock is wrong: it is {}", finding.detail);
                Err(Failure::new(Exit::Preflight, what)
                    .advise(format!("{}; or --ignore-preflight-errors={}", finding.advice, finding.name)))
            }
        }
    }

    async fn pause(&self, over: impl FnOnce() -> Failure) -> Result<(), Failure> {
        // Without time for another question its silence would be told, which says nothing.
        if self.deadline.saturating_duration_since(Instant::now()) < PAUSE * 2 {
            return Err(over());
        }
        // Nobody tells an outsider when a server is back or has signed: there is nothing to watch.
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

async fn receive(http: &Http, request: Request) -> Result<Answer, HttpError> {
    let response = http.send(request).await?;
    let (status, date) = (response.status(), date(response.headers().get(header::DATE)));
    let body = response.bytes(MAX_ANSWER).await?.to_vec();
    Ok(Answer { status, body, date })
}

fn parse(body: &[u8]) -> Result<ClusterInfo, Failure> {
    let object: Value = serde_json::from_slice(body).map_err(not_understood)?;
    ClusterInfo::of(&object).map_err(not_understood)
}

fn fits(pins: &[Pin], cluster: &Cluster) -> Result<bool, Failure> {
    let found = hashes(&cluster.ca_pem).map_err(not_understood)?;
    Ok(found.iter().any(|hash| pins.contains(hash)))
}

fn not_understood(reason: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Cluster, format!("cluster-info is not understood: {reason}"))
}

fn not_the_clusters(tls: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::NotAuthentic, format!("the server is not vouched for by the cluster's CA: {tls}"))
        .advise("see whether the endpoint is the API server, and whether its certificate names this address")
}

fn unknown_token(token: &BootstrapToken) -> Failure {
    let what = format!(
        "the cluster does not accept token {}: it has expired, was deleted, or is not the one that was made",
        token.id()
    );
    Failure::new(Exit::Token, what).advise(NEW_TOKEN)
}

/// The cluster takes the token as credentials, and nobody signs with it.
fn not_signing(token: &BootstrapToken) -> Failure {
    let what = format!(
        "the cluster accepts token {}, and does not sign cluster-info with it: it was made without the usage `signing`, or \
         the controller that signs does not run",
        token.id()
    );
    Failure::new(Exit::Token, what).advise(
        "make one for both: kubeadm token create --usages=signing,authentication; or use --discovery-file",
    )
}

fn other_ca(cluster: &Cluster, pins: &[Pin]) -> Failure {
    let texts = |pins: &[Pin]| pins.iter().map(Pin::to_string).collect::<Vec<_>>().join(", ");
    let found = hashes(&cluster.ca_pem).map(|found| texts(&found)).unwrap_or_default();
    let what = format!("the cluster's CA has the hash {found}, and the one given is {}", texts(pins));
    Failure::new(Exit::CaHash, what)
        .advise("compare with the cluster's own /etc/kubernetes/pki/ca.crt; do not join if they differ")
}

/// The text of a discovery file, from the disk or from an https URL.
async fn read(file: &str) -> Result<String, Failure> {
    if file.starts_with("http://") || file.starts_with("https://") {
        let http = client(Trust::default());
        let answer = receive(&http, Request::get(file).patience(Some(PATIENCE)))
            .await
            .map_err(|error| Failure::new(Exit::Unreachable, error))?;
        if !answer.status.is_success() {
            return Err(Failure::new(Exit::Unreachable, format!("{file}: HTTP {}", answer.status.as_u16())));
        }
        return String::from_utf8(answer.body)
            .map_err(|_| Failure::new(Exit::Usage, format!("{file} is not a text")));
    }
    tokio::fs::read_to_string(file)
        .await
        .map_err(|error| Failure::new(Exit::Usage, format!("--discovery-file {file}: {error}")))
}

/// The cluster of a discovery file, and its credentials where it has some.
fn of_file(text: &str, file: &str) -> Result<(Cluster, Option<Access>), Failure> {
    if let Ok(access) = kubeconfig::parse(text, Path::new(file))
        && let kubeconfig::Trust::Bundle(ca_pem) = access.trust.clone()
    {
        let cluster = Cluster { server: access.server.clone(), ca_pem };
        let has = access.certificate.is_some() || access.token.is_some();
        return Ok((cluster, has.then_some(access)));
    }
    // One for discovery alone has no context.
    let cluster = cluster_info::cluster(text);
    let cluster =
        cluster.map_err(|reason| Failure::new(Exit::Usage, format!("--discovery-file {file}: {reason}")))?;
    Ok((cluster, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::HeaderValue;

    #[test]
    fn the_servers_time_is_read_from_its_answer() {
        let value = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(Some(&value)).map(|t| t.as_second()), Some(784_111_777));
        assert_eq!(date(Some(&HeaderValue::from_static("yesterday"))), None);
    }

    #[test]
    fn a_discovery_file_may_have_no_context_or_credentials_of_its_own() {
        let bare = "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: Q0E=\n    server: https://a:1\n  name: \"\"\n";
        let (cluster, given) = of_file(bare, "/f").expect("a cluster");
        assert_eq!((cluster.server.as_str(), given), ("https://a:1", None));
        let whole = format!(
            "{bare}contexts:\n- name: c\n  context: {{cluster: \"\", user: u}}\ncurrent-context: c\nusers:\n- name: u\n  user: {{token: t}}\n"
        );
        let (_, given) = of_file(&whole, "/f").expect("a cluster");
        assert_eq!(given.and_then(|access| access.token), Some(TokenSource::Inline("t".into())));
        let failure = of_file("kind: Config\n", "/f").expect_err("no cluster");
        assert_eq!(failure.exit, Exit::Usage);
    }
}
