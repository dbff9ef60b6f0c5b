//! `orlop join`: this machine becomes a node of a cluster, as kubeadm joins one. And `orlop reset`, which undoes it.
//!
//! Owns: the order of the phases. Never: does a phase's work (each has a file of its own).
//!
//! ```text
//! settings ─► preflight ─► discovery ─► configuration ─► room ─► certificate ─► files ─► service ─► Ready
//!                                                                     │
//!               nothing on this machine has changed until here ───────┘ then all files or none
//! ```
//! Every phase can be interrupted and the join run again: files are written whole, the kubeconfig comes last, a request that
//! is not signed yet is found again, and a node that has its certificate keeps it.

pub mod args;
mod certificate;
mod cluster_info;
mod configuration;
pub mod discovery;
pub mod failure;
mod files;
mod pin;
mod progress;
mod ready;
pub mod reset;
mod service;
mod settings;
mod token;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use args::{JoinArgs, Places};
use configuration::{CONFIG_MAP, Run};
use discovery::Found;
use failure::{Exit, Failure};
use files::{User, Writes, is_foreign, kubeconfig};
use progress::Progress;
use settings::{JoinConfiguration, Settings};

use crate::api::client::Client;
use crate::api::error::ApiError;
use crate::api::kubeconfig::{self as access, Trust};
use crate::api::path::{CONFIG_MAPS, NODES};
use crate::daemon::lock;
use crate::preflight::{self, Finding, Level};

/// Between two attempts at a server that does not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// `orlop join`.
pub fn main(args: &JoinArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .map_err(|error| Failure::new(Exit::Failed, format!("start the runtime: {error}")))
        .and_then(|runtime| runtime.block_on(join(args)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("orlop join: {failure}");
            failure.exit.into()
        }
    }
}

async fn join(args: &JoinArgs) -> Result<(), Failure> {
    let mut progress = Progress::default();
    let progress = &mut progress;
    let places = &args.places;
    let settings = settings(args, progress)?;
    let run = Run::new(&settings, places).map_err(usage)?;
    let hostname = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    let node = run.node_name(&hostname).map_err(usage)?;

    check(&settings, places, progress)?;
    let found = discovery::discover(&settings, progress).await?;
    progress.phase("discovery", format!("{}: {}", found.cluster.server, found.why));
    let text = kubelet_config(&found, &settings, progress).await?;
    let config = configuration::adapt(&text, places, &run, &hostname).map_err(|reason| {
        let (namespace, name) = CONFIG_MAP;
        Failure::new(
            Exit::Cluster,
            format!("config map {namespace}/{name} cannot be this node's configuration: {reason}"),
        )
    })?;
    progress.phase("configuration", format!("the cluster's {} for node {node}", CONFIG_MAP.1));
    let plan = Plan { args, settings: &settings, found: &found, node: &node, config: &config, run: &run };
    if settings.dry_run {
        plan.tell(progress);
        return Ok(());
    }
    plan.write(progress).await?;
    let started = plan.start(progress)?;
    plan.wait(started, progress).await
}

fn usage(reason: String) -> Failure {
    Failure::new(Exit::Usage, reason)
}

fn settings(args: &JoinArgs, progress: &mut Progress) -> Result<Settings, Failure> {
    let file = match &args.config {
        None => JoinConfiguration::default(),
        Some(path) => {
            let named = |reason: String| usage(format!("--config {}: {reason}", path.display()));
            let text = fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
            let (file, ignored) = settings::parse(&text).map_err(named)?;
            for field in ignored {
                progress.note(format!("warning: {field} of {} has no effect here", path.display()));
            }
            file
        }
    };
    settings::merge(args, file).map_err(usage)
}

/// The first phase: this machine.
fn check(settings: &Settings, places: &Places, progress: &mut Progress) -> Result<(), Failure> {
    let mut findings = preflight::findings(&places.root_dir, &places.run_dir);
    findings.extend([places.config(), places.environment()].into_iter().filter(|path| is_foreign(path)).map(
        |path| {
            let name = format!("FileAvailable-{}", path.display().to_string().replace('/', "-"));
            Finding::fail(name, format!("{} is there, and not from a join", path.display()), "move it away")
        },
    ));
    let mut warnings = 0;
    let mut failed = Vec::new();
    for finding in findings.into_iter().map(|finding| finding.ignoring(&settings.ignored)) {
        match finding.level {
            Level::Ok => {}
            Level::Warn => {
                warnings += 1;
                progress.note(format!("warning: {}: {}: {}", finding.name, finding.detail, finding.advice));
            }
            Level::Fail => failed.push(finding),
        }
    }
    if failed.is_empty() {
        progress.phase("preflight", format!("this machine can be a node ({warnings} warnings)"));
        return Ok(());
    }
    let lines = failed.iter().map(|f| format!("\n  {}: {}\n    → {}", f.name, f.detail, f.advice));
    let names: Vec<&str> = failed.iter().map(|finding| finding.name.as_str()).collect();
    let what = format!("this machine cannot be a node as it is:{}", lines.collect::<String>());
    Err(Failure::new(Exit::Preflight, what)
        .advise(format!("or knowingly: --ignore-preflight-errors={}", names.join(","))))
}

/// `kubelet-config`, as the bootstrap credentials may read it.
async fn kubelet_config(
    found: &Found,
    settings: &Settings,
    progress: &mut Progress,
) -> Result<String, Failure> {
    let client = Client::new(&found.bootstrap).map_err(|error| Failure::new(Exit::Cluster, error))?;
    let (namespace, name) = CONFIG_MAP;
    let path = CONFIG_MAPS.object(Some(namespace), name);
    let deadline = Instant::now() + settings.timeouts.api_call;
    loop {
        let error = match client.get::<Value>(&path).await {
            Ok(object) => {
                let text = object["data"]["kubelet"].as_str().map(str::to_owned);
                let nothing = || {
                    Failure::new(Exit::Cluster, format!("config map {namespace}/{name} holds no `kubelet`"))
                };
                return text.ok_or_else(nothing);
            }
            Err(error) => error,
        };
        match error {
            error if error.is_transient() && Instant::now() < deadline => {
                progress.waiting(format!("the API server: {error}"));
                tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
            }
            error if error.is_transient() => return Err(Failure::new(Exit::Unreachable, error)),
            ApiError::Unauthorized(_) => {
                return Err(Failure::new(
                    Exit::Token,
                    "the cluster does not accept the bootstrap credentials",
                )
                .advise("get a new token: kubeadm token create --print-join-command"));
            }
            error => {
                return Err(Failure::new(Exit::Cluster, format!("config map {namespace}/{name}: {error}"))
                    .advise(
                        "kubeadm init phase upload-config kubelet makes it, and lets nodes that join read it",
                    ));
            }
        }
    }
}

/// A join whose questions are all answered.
struct Plan<'a> {
    args: &'a JoinArgs,
    settings: &'a Settings,
    found: &'a Found,
    node: &'a str,
    config: &'a str,
    run: &'a Run,
}

/// What the node's kubeconfig is already.
enum Existing {
    /// Good for this node of this cluster.
    Good,
    /// Not there, or of no use any more.
    None,
    /// Of something else.
    Foreign(String),
}

impl Plan<'_> {
    /// What would happen.
    fn tell(&self, progress: &mut Progress) {
        let places = &self.args.places;
        progress.phase("certificate", format!("would be asked for system:node:{}", self.node));
        let mut paths = vec![places.ca(), places.config(), places.environment(), places.certificate()];
        if self.args.keep_bootstrap_kubeconfig {
            paths.push(places.bootstrap_kubeconfig());
        }
        paths.push(places.kubeconfig());
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        progress.phase("files", format!("would be written: {}", names.join(", ")));
        if self.is_managed() {
            progress.phase("service", format!("{} would be enabled and started", service::UNIT));
        } else {
            progress.phase("service", format!("you would run: {}", self.run.command(places)));
        }
        progress.phase("dry run", "nothing was changed");
    }

    fn is_managed(&self) -> bool {
        !self.args.skip_service && service::has_systemd() && configuration::is_the_units(&self.args.places)
    }

    /// Certificate and files.
    async fn write(&self, progress: &mut Progress) -> Result<(), Failure> {
        let places = &self.args.places;
        let existing = self.existing().await;
        if let Existing::Foreign(server) = &existing {
            let name =
                format!("FileAvailable-{}", places.kubeconfig().display().to_string().replace('/', "-"));
            let ignored = &self.settings.ignored;
            if !ignored.iter().any(|n| *n == "all" || *n == name.to_lowercase()) {
                let what =
                    format!("this machine is a node of {server} already ({})", places.kubeconfig().display());
                return Err(Failure::new(Exit::Preflight, what)
                    .advise(format!("orlop reset; or --ignore-preflight-errors={name}")));
            }
        }
        let mut writes = Writes::default();
        for (dir, mode) in [
            (places.etc_dir.clone(), 0o755),
            (places.etc_dir.join("pki"), 0o755),
            (places.root_dir.clone(), 0o755),
            (places.root_dir.join("pki"), 0o700),
        ] {
            writes.dir(&dir, mode)?;
            writes.try_room(&dir)?;
        }
        let cluster = &self.found.cluster;
        let certificate = match existing {
            Existing::Good => {
                progress.phase("certificate", "the node has a good one from an earlier join");
                None
            }
            Existing::None | Existing::Foreign(_) => {
                let timeouts = &self.settings.timeouts;
                let pem = certificate::obtain(self.found, self.node, places, timeouts, progress).await?;
                progress.phase("certificate", format!("system:node:{}, signed by the cluster", self.node));
                Some(pem)
            }
        };
        writes.file(&places.ca(), &cluster.ca_pem, 0o644)?;
        writes.file(&places.config(), self.config.as_bytes(), 0o644)?;
        writes.file(&places.environment(), self.run.environment().as_bytes(), 0o644)?;
        self.keep_token(&mut writes)?;
        if let Some(pem) = certificate {
            writes.file(&places.certificate(), pem.as_bytes(), 0o600)?;
            let user = format!("system:node:{}", self.node);
            let text = kubeconfig(cluster, &user, User::Certificate(&places.certificate()));
            writes.file(&places.kubeconfig(), text.as_bytes(), 0o600)?;
        }
        writes.keep();
        let _ = fs::remove_file(places.pending_key());
        progress
            .phase("files", format!("{} and {}", places.kubeconfig().display(), places.config().display()));
        Ok(())
    }

    fn keep_token(&self, writes: &mut Writes) -> Result<(), Failure> {
        let token = match &self.settings.discovery {
            _ if !self.args.keep_bootstrap_kubeconfig => return Ok(()),
            settings::Discovery::Token { token, .. } => {
                self.settings.bootstrap_token.as_ref().unwrap_or(token)
            }
            settings::Discovery::File(_) => match &self.settings.bootstrap_token {
                Some(token) => token,
                None => return Ok(()),
            },
        };
        let bearer = token.bearer();
        let text = kubeconfig(&self.found.cluster, "bootstrap", User::Token(&bearer));
        writes.file(&self.args.places.bootstrap_kubeconfig(), text.as_bytes(), 0o600)
    }

    /// An earlier join may have got this far.
    async fn existing(&self) -> Existing {
        let path = self.args.places.kubeconfig();
        if !path.exists() {
            return Existing::None;
        }
        let Ok(known) = access::load(&path) else { return Existing::Foreign("another cluster".to_owned()) };
        let cluster = &self.found.cluster;
        if known.server != cluster.server || known.trust != Trust::Bundle(cluster.ca_pem.clone()) {
            return Existing::Foreign(known.server);
        }
        let Ok(client) = Client::new(&known) else { return Existing::None };
        // Each node may ask for itself; whoever is refused is nobody here, or another node.
        match client.get::<Value>(&NODES.object(None, self.node)).await {
            Ok(_) | Err(ApiError::NotFound(_)) => Existing::Good,
            Err(_) => Existing::None,
        }
    }

    /// The service; the moment from which its reports count. None: a daemon that this join did not start is there, and what
    /// it has reported holds.
    fn start(&self, progress: &mut Progress) -> Result<Option<Timestamp>, Failure> {
        let now = Timestamp::now();
        if self.is_managed() {
            service::enable_and_restart()?;
            progress.phase("service", format!("{} is enabled and starts", service::UNIT));
            return Ok(Some(now));
        }
        let command = self.run.command(&self.args.places);
        if lock::holder(&self.args.places.run_dir).is_some() {
            progress
                .phase("service", format!("runs already; if it is not the same, end it and run: {command}"));
            return Ok(None);
        }
        progress.phase("service", format!("not started by this command; run: {command}"));
        Ok(Some(now))
    }

    async fn wait(&self, since: Option<Timestamp>, progress: &mut Progress) -> Result<(), Failure> {
        let limit = self.settings.timeouts.ready;
        if limit.is_zero() {
            progress.phase("ready", format!("not waited for: node {} has joined", self.node));
            return Ok(());
        }
        let begun = Instant::now();
        let kubeconfig = self.args.places.kubeconfig();
        ready::wait(&kubeconfig, self.node, since, limit, progress).await?;
        progress.phase(
            "ready",
            format!("node {} is Ready after {:.1} s", self.node, begun.elapsed().as_secs_f64()),
        );
        Ok(())
    }
}
