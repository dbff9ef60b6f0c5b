//! The service proxy's thread: events in, nftables elements out.
//!
//! Owns: the thread with the netlink socket, the channel into it, retries after a refused transaction. Reads: the watches
//! of services and endpoint slices, decoded straight into `netproxy`'s own structs. Never: decides what a rule is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::{EndpointSlice, ObjectName, Protocol, Service};
use orlop_netproxy::{Config, Event, Proxy};
use tokio::sync::{mpsc, watch};

use crate::api::client::Client;
use crate::api::list::Selection;
use crate::api::path::{ENDPOINT_SLICES, SERVICES};
use crate::api::watch::{Change, watch as watch_objects};
use crate::network::service_env::{ServiceEntry, ServicePort, ServiceVariables};

/// After a refused transaction the next attempt waits this long.
const RETRY: Duration = Duration::from_secs(1);

/// The proxy, running.
pub struct Services {
    /// Events for it.
    pub events: Sender<Event>,
    /// True once the kernel has what the first complete lists say.
    pub synced: watch::Receiver<bool>,
}

/// Starts the thread, in the network namespace of the caller. It ends when every sender of events is dropped; the
/// tables stay in the kernel.
pub fn start(config: Config) -> anyhow::Result<Services> {
    let backend = Netlink::open().context("open nf_tables over netlink")?;
    let (events, receiver) = channel();
    let (sender, synced) = watch::channel(false);
    let proxy = Proxy::new(config, backend);
    std::thread::Builder::new()
        .name("orlop-proxy".into())
        .stack_size(512 << 10)
        .spawn(move || run(proxy, &receiver, &sender))
        .context("start the service proxy's thread")?;
    Ok(Services { events, synced })
}

fn run(mut proxy: Proxy<Netlink>, events: &Receiver<Event>, synced: &watch::Sender<bool>) {
    let mut complained = false;
    let mut retry = false;
    loop {
        let next =
            if retry { events.recv_timeout(RETRY) } else { events.recv().map_err(RecvTimeoutError::from) };
        match next {
            Ok(event) => proxy.apply(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // What has arrived together goes into the kernel together.
        while let Ok(event) = events.try_recv() {
            proxy.apply(event);
        }
        if !proxy.is_pending() && !retry {
            continue;
        }
        match proxy.sync(SystemTime::now()) {
            Ok(report) => {
                if complained {
                    tracing::info!("the service rules are programmed again");
                }
                (complained, retry) = (false, false);
                if report.committed {
                    tracing::debug!(added = report.added, removed = report.removed, "service rules");
                }
                synced.send_if_modified(|known| std::mem::replace(known, proxy.is_synced()) != *known);
            }
            Err(error) => {
                if !complained {
                    tracing::error!(%error, "cannot program the service rules; trying again every second");
                }
                (complained, retry) = (true, true);
            }
        }
    }
}

/// Watches services: into the proxy, and into the variables that containers get.
pub async fn watch_services(
    client: Client,
    events: Sender<Event>,
    variables: Arc<ServiceVariables>,
    seen: watch::Sender<bool>,
) {
    let (sender, mut changes) = mpsc::channel(64);
    let selection = Selection::all(SERVICES);
    let source = watch_objects(client, selection, decode::<Service>, sender);
    let sink = async {
        while let Some(change) = changes.recv().await {
            remember(&variables, &change);
            let event = match change {
                Change::Synced(all) => {
                    let _ = seen.send(true);
                    Event::ServicesReset(all)
                }
                Change::Applied(service) => Event::ServiceApplied(Box::new(service)),
                Change::Deleted(key) => Event::ServiceDeleted(ObjectName::new(&key.namespace, &key.name)),
            };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    // Both run until the task is aborted at shutdown; neither holds anything that a drop could lose.
    tokio::join!(source, sink);
}

/// Watches endpoint slices, headless services' excepted.
pub async fn watch_slices(client: Client, events: Sender<Event>) {
    let (sender, mut changes) = mpsc::channel(64);
    let selection = Selection::all(ENDPOINT_SLICES).labels("!service.kubernetes.io/headless");
    let source = watch_objects(client, selection, decode::<EndpointSlice>, sender);
    let sink = async {
        while let Some(change) = changes.recv().await {
            let event = match change {
                Change::Synced(all) => Event::SlicesReset(all),
                Change::Applied(slice) => Event::SliceApplied(Box::new(slice)),
                Change::Deleted(key) => Event::SliceDeleted(ObjectName::new(&key.namespace, &key.name)),
            };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    tokio::join!(source, sink);
}

fn decode<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn remember(variables: &ServiceVariables, change: &Change<Service>) {
    match change {
        Change::Synced(all) => {
            let entries: BTreeMap<_, _> =
                all.iter().filter_map(|service| Some((names(&service.name)?, entry(service)?))).collect();
            variables.reset(entries);
        }
        Change::Applied(service) => {
            if let Some((namespace, name)) = names(&service.name) {
                variables.set(&namespace, &name, entry(service));
            }
        }
        Change::Deleted(key) => variables.set(&key.namespace, &key.name, None),
    }
}

fn names(name: &ObjectName) -> Option<(String, String)> {
    let (namespace, name) = name.as_str().split_once('/')?;
    Some((namespace.to_owned(), name.to_owned()))
}

fn entry(service: &Service) -> Option<ServiceEntry> {
    let ports = service.ports.iter().map(|port| ServicePort {
        name: port.name.to_string(),
        port: port.port.get(),
        protocol: match port.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        },
    });
    Some(ServiceEntry { cluster_ip: *service.cluster_ips.first()?, ports: ports.collect() })
}
