//! The daemon: parse, build, spawn, drain. No logic of its own.
//!
//! Owns: the order in which the parts of a node come up, and the tasks. Never: decides anything about a pod.
//!
//! ```text
//! configuration ─► embedded server? ─► client ─► services' thread ─► host (adopts what runs) ─► node ─► pods
//! ```
//! Pods are watched only after the Node is registered and the services have been listed once: a container's variables
//! name the services there are.

mod build;
mod image_gc;
pub mod lock;
mod machine;
mod node;
pub mod notify;
mod quiet;

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use orlop_netproxy::objects::Service;
use orlop_standalone::{Server, StartError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::client::Client;
use crate::api::events::Events;
use crate::api::kubeconfig::{self, Access, Trust};
use crate::api::list::Selection;
use crate::api::path::PODS;
use crate::api::reporter::ApiReporter;
use crate::api::watch::{Change, watch as watch_objects};
use crate::certificates::client::{self as client_certificate, ClientRotation};
use crate::certificates::serving::ServingRotation;
use crate::certificates::trouble;
use crate::config::{Config, RunArgs};
use crate::network::service_env::ServiceVariables;
use crate::node::{LeaseTask, NodeConditions, NodeTask, Registered};
use crate::pod::manager::{Manager, NodeWatch, Source, SourceEvent, SourceUpdate};
use crate::pod::spec::Pod;
use crate::pod::worker;
use crate::server::NodeServer;
use crate::server::lookup::NodePods;
use crate::server::port::when_free;
use crate::services::{self, Listen, control, feed};
use crate::{logging, shutdown};

/// The threads of the runtime: the work is waiting, not computing.
const WORKERS: usize = 2;
/// Calls that block (file system, network namespaces) run on threads that end when they have been idle this long.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long tasks may take to end after the signal.
const DRAIN: Duration = Duration::from_secs(5);

/// `orlop run`.
///
/// # Errors
/// Whatever keeps the node from starting, by name. Once it runs it does not give up.
pub fn main(args: &RunArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the node must run as root: sudo orlop run ... (`orlop check` says what else it needs)");
    }
    let (config, notices) = Config::load(args)?;
    logging::start(config.verbosity);
    for notice in notices {
        tracing::warn!(field = %notice.field, says = notice.says, "a field of the configuration has no effect");
    }
    machine::check(&config.machine)?;
    let access = args.kubeconfig.as_deref().map(kubeconfig::load).transpose()?;
    let _lock = lock::take(&config.run_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("orlop")
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(run(args, config, access));
    runtime.shutdown_timeout(DRAIN);
    result
}

async fn run(args: &RunArgs, mut config: Config, access: Option<Access>) -> anyhow::Result<()> {
    let stop = shutdown::on_signals()?;
    let addresses = crate::node::facts::addresses(&config.node_ips);
    let server = match args.standalone {
        true => {
            let wanted = server_config(args, &config, &addresses);
            if access.is_none() {
                config.services.service_cidrs.clone_from(&wanted.service_cidrs);
            }
            Some(start_server(wanted).await?)
        }
        false => None,
    };
    let access = match (access, &server) {
        (Some(access), _) => access,
        (None, Some(server)) => {
            let text = server.node_kubeconfig(&config.node_name)?;
            kubeconfig::parse(&text, &config.root_dir.join("standalone"))?
        }
        (None, None) => bail!("no API server: give --kubeconfig or --standalone"),
    };
    let (access, certificate) = client_certificate::settle(access, &config.root_dir);
    let config = Arc::new(with_client_ca(config, &access)?);
    let mut tasks = Tasks::default();
    let client = Client::new(&access)?;
    if let Some(file) = certificate {
        let rotation = ClientRotation {
            client: client.clone(),
            file,
            rotate: config.certificates.rotate,
            bootstrap: config.certificates.bootstrap_kubeconfig.clone(),
            join: trouble::join_command(&access.server, &access.trust),
        };
        tasks.spawn("client certificate", rotation.run());
    }
    let node = start_node(&config, &addresses, client, &mut tasks, &stop).await?;
    tasks.spawn("watchdog", notify::watchdog());
    // What runs here is looked after from now on, whether or not an API server answers.
    notify::ready("waits for the API server");
    tasks.spawn("registration", node::announce(node.registered.clone()));
    stop.cancelled().await;
    notify::stopping();
    tasks.end().await;
    if let Some(server) = server {
        server.shutdown().await;
    }
    Ok(())
}

fn server_config(args: &RunArgs, config: &Config, addresses: &[IpAddr]) -> orlop_standalone::Config {
    let dir = config.root_dir.join("standalone");
    let mut server = orlop_standalone::Config::new(&dir);
    server.advertise = addresses.first().copied();
    server.signing.duration = args.cluster_signing_duration;
    server.names = vec![config.node_name.clone(), "127.0.0.1".to_owned(), "localhost".to_owned()];
    server.admin_kubeconfig = Some(dir.join("admin.kubeconfig"));
    server
}

async fn start_server(server: orlop_standalone::Config) -> anyhow::Result<Server> {
    let taken = |error: &StartError| matches!(error, StartError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse);
    let server =
        when_free(|| Server::start(server.clone()), taken).await.context("start the embedded API server")?;
    tracing::info!(url = server.url(), kubeconfig = %server.admin_kubeconfig().display(), "the embedded API server is up");
    Ok(server)
}

/// Without `authentication.x509.clientCAFile`, the CA that vouches for the API server vouches for its clients too: whoever
/// holds it can tell this node anything already. What a client may do is still decided by `authorization`.
fn with_client_ca(mut config: Config, access: &Access) -> anyhow::Result<Config> {
    if config.server.client_ca_file.is_none()
        && let Trust::Bundle(pem) = &access.trust
    {
        let file = config.root_dir.join("pki/cluster-ca.crt");
        std::fs::create_dir_all(config.root_dir.join("pki"))?;
        crate::host::files::write_atomic(&file, pem, 0o644)?;
        config.server.client_ca_file = Some(file);
    }
    Ok(config)
}

/// What `run` needs of a node that came up.
struct Running {
    registered: Registered,
}

async fn start_node(
    config: &Arc<Config>,
    addresses: &[IpAddr],
    client: Client,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<Running> {
    let (events, event_driver) = Events::new(client.clone(), config.node_name.clone());
    tasks.spawn("events", event_driver);
    let (reporter, report_driver) = ApiReporter::new(client.clone(), events.clone());
    tasks.spawn("statuses", report_driver);

    let proxy = services::start(build::proxy(config, addresses))?;
    let handle = proxy.handle.clone();
    let variables = Arc::<ServiceVariables>::default();
    let (services_seen, services_listed) = watch::channel(false);
    let observed = Arc::clone(&variables);
    let observe = move |change: &Change<Service>| {
        feed::remember(&observed, change);
        if matches!(change, Change::Synced(_)) {
            services_seen.send_replace(true);
        }
    };
    tasks.spawn("services", feed::watch_services(client.clone(), handle.clone(), observe));
    services::conntrack::apply(&config.services.conntrack);
    let listen = Listen::new(&config.services, addresses.first(), config.run_dir.join(control::SOCKET));
    proxy.spawn(&client, events.clone(), &listen, tasks);

    let parts = build::parts(config, addresses, &client, variables)?;
    let network = Arc::clone(&parts.network);
    tasks.spawn("ways to other nodes", build::nodes(config, addresses, &network).run(client.clone()));
    tasks.spawn("network configurations", node::follow_network(Arc::clone(&network)));
    let images = Arc::clone(&parts.images);
    let host = Arc::new(crate::host::NodeHost::open(parts).await.context("take the node over")?);

    let (conditions, inputs) = watch::channel(NodeConditions::default());
    let (node_task, registered) = NodeTask::new(client.clone(), Arc::clone(config), inputs, events);
    tasks.spawn("node", node_task.run());
    let lease = LeaseTask::new(
        client.clone(),
        config.node_name.clone(),
        config.node.lease_duration,
        registered.clone(),
    );
    tasks.spawn("lease", lease.run());
    let (allocatable, allocatable_seen) = watch::channel(build::allocatable(config));
    let follow = node::Follow {
        config: Arc::clone(config),
        registered: registered.clone(),
        network,
        images: Arc::clone(&images),
        conditions,
        allocatable,
        proxy: handle,
    };
    tasks.spawn("node facts", follow.run());

    let (facts, facts_seen) = watch::channel(build::node_facts(config, addresses));
    tasks.keep(facts);
    let watching = NodeWatch { facts: facts_seen, allocatable: allocatable_seen };
    let context = worker::Context {
        host: Arc::clone(&host),
        reporter: Arc::new(reporter),
        clock: Arc::new(jiff::Timestamp::now),
    };
    let (manager, pods) = Manager::new(context, watching, [Source::Api], stop.clone());
    let (updates, source) = mpsc::channel(64);
    tasks.spawn("pods", manager.run(source));
    tasks.spawn(
        "pod source",
        pod_source(client.clone(), config.node_name.clone(), registered.clone(), services_listed, updates),
    );
    tasks.spawn("quiet", quiet::run(registered.clone(), pods.clone()));
    tasks.spawn("image garbage", image_gc::run(images, config.images.clone(), pods.clone()));
    let lookup = Arc::new(NodePods::new(pods, config.pod_logs_dir.clone()));
    let server = NodeServer::bind(config, addresses, client.clone(), lookup).await?;
    if let Some(identity) = server.identity().filter(|_| config.certificates.serving_from_cluster) {
        let rotation = ServingRotation {
            client,
            identity: Arc::clone(identity),
            registered: registered.clone(),
            file: config.root_dir.join("pki/serving-current.pem"),
            user: format!("system:node:{}", config.node_name),
        };
        tasks.spawn("serving certificate", rotation.run());
    }
    tasks.spawn("server", server.run());
    Ok(Running { registered })
}

/// Watches the pods bound to this node, once it is registered and the services are known.
async fn pod_source(
    client: Client,
    node: String,
    mut registered: Registered,
    mut services: watch::Receiver<bool>,
    updates: mpsc::Sender<SourceUpdate>,
) {
    // Both are watch channels: a value that is there is not lost when the other is waited for.
    let ready =
        registered.wait_for(Option::is_some).await.is_ok() && services.wait_for(|seen| *seen).await.is_ok();
    if !ready {
        return;
    }
    let (sender, mut changes) = mpsc::channel(16);
    let selection = Selection::all(PODS).fields(format!("spec.nodeName={node}"));
    let decode =
        |json: &str| Pod::from_json(json.as_bytes()).map(Arc::new).map_err(|error| error.to_string());
    let source = watch_objects(client, selection, decode, sender);
    let sink = async {
        while let Some(change) = changes.recv().await {
            let event = match change {
                Change::Synced(pods) => SourceEvent::Synced(pods),
                Change::Applied(pod) => SourceEvent::Applied(pod),
                Change::Deleted(key) => SourceEvent::Deleted { uid: key.uid.into() },
            };
            if updates.send(SourceUpdate { source: Source::Api, event }).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(source, sink);
}

/// Every task of the daemon, by name.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    kept: Vec<Box<dyn std::any::Any + Send>>,
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    /// Keeps a value until the end: the sending half of a channel whose value never changes.
    pub fn keep(&mut self, value: impl std::any::Any + Send) {
        self.kept.push(Box::new(value));
    }

    /// Ends all of them. Pods are not touched; what was to be told of them is told by the next daemon.
    pub async fn end(mut self) {
        self.set.abort_all();
        let ended = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, ended).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
    }
}
