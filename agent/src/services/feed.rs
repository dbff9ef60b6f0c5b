//! What the API server says of services: watches of services, endpoint slices and service ranges, decoded straight into
//! `netproxy`'s own structs.
//!
//! Owns: the watches. Never: keeps an object (the proxy does), or blocks on it: its channel takes everything.

use std::collections::BTreeMap;

use orlop_netproxy::Event;
use orlop_netproxy::objects::{EndpointSlice, ObjectName, Protocol, Service};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::mpsc;

use super::Handle;
use crate::api::client::Client;
use crate::api::error::ApiError;
use crate::api::list::Selection;
use crate::api::path::{ENDPOINT_SLICES, Query, SERVICE_CIDRS, SERVICES};
use crate::api::watch::{Change, watch as watch_objects};
use crate::network::service_env::{ServiceEntry, ServicePort, ServiceVariables};

/// Watches services: into the proxy, and past whoever else wants to see each change first.
pub async fn watch_services(client: Client, proxy: Handle, observe: impl Fn(&Change<Service>) + Send) {
    let (sender, mut changes) = mpsc::channel(64);
    let selection = Selection::all(SERVICES);
    let source = watch_objects(client, selection, decode::<Service>, sender);
    let sink = async {
        while let Some(change) = changes.recv().await {
            observe(&change);
            let event = match change {
                Change::Synced(all) => Event::ServicesReset(all),
                Change::Applied(service) => Event::ServiceApplied(Box::new(service)),
                Change::Deleted(key) => Event::ServiceDeleted(ObjectName::new(&key.namespace, &key.name)),
            };
            if !proxy.send(event) {
                return;
            }
        }
    };
    // Both run until the task is aborted at shutdown; neither holds anything that a drop could lose.
    tokio::join!(source, sink);
}

/// Watches endpoint slices, headless services' excepted.
pub async fn watch_slices(client: Client, proxy: Handle) {
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
            if !proxy.send(event) {
                return;
            }
        }
    };
    tokio::join!(source, sink);
}

/// A `ServiceCIDR` (networking.k8s.io/v1): ranges that cluster addresses are taken from.
#[derive(Deserialize)]
struct ServiceCidr {
    metadata: Named,
    #[serde(default)]
    spec: Ranges,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ranges {
    cidrs: Vec<String>,
}

/// Watches the ranges of cluster addresses, where the server has them and lets us see them: addresses in them that belong
/// to no service are dropped then.
pub async fn watch_ranges(client: Client, proxy: Handle) {
    let first = Selection::all(SERVICE_CIDRS).path(Query::new().with("limit", 1));
    match client.get::<IgnoredAny>(&first).await {
        Err(ApiError::NotFound(_)) => return,
        Err(error @ ApiError::Forbidden(_)) => {
            return tracing::info!(%error, "the ranges of cluster addresses are not known");
        }
        // Anything else passes, or the watch tells of it.
        Ok(_) | Err(_) => {}
    }
    let (sender, mut changes) = mpsc::channel(8);
    let source = watch_objects(client, Selection::all(SERVICE_CIDRS), decode::<ServiceCidr>, sender);
    let sink = async {
        let mut known = BTreeMap::new();
        while let Some(change) = changes.recv().await {
            match change {
                Change::Synced(all) => {
                    known = all.into_iter().map(|one| (one.metadata.name, one.spec.cidrs)).collect();
                }
                Change::Applied(one) => {
                    known.insert(one.metadata.name, one.spec.cidrs);
                }
                Change::Deleted(key) => {
                    known.remove(&key.name);
                }
            }
            let ranges = known.values().flatten().filter_map(|range| range.parse().ok()).collect();
            if !proxy.send(Event::ServiceRanges(ranges)) {
                return;
            }
        }
    };
    tokio::join!(source, sink);
}

/// Reads an object into the proxy's own form.
pub fn decode<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// Keeps the variables that containers get up to date.
pub fn remember(variables: &ServiceVariables, change: &Change<Service>) {
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
