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
use crate::api::path::{ENDPOINT_SLICES, Query, Resource, SERVICE_CIDRS, SERVICES};
use crate::api::watch::{Change, watch as watch_objects};
use crate::network::service_env::{ServiceEntry, ServicePort, ServiceVariables};

/// The binding that lets nodes read what a service proxy reads; the role is Kubernetes' own.
const REMEDY: &str =
    "kubectl create clusterrolebinding orlop-services --clusterrole=system:node-proxier --group=system:nodes";
const SERVICES_LOSS: &str = "no service is programmed";
/// Before 1.33 the role does not have them, nor does the server.
const RANGES_LOSS: &str = "connections to cluster addresses of no service are not dropped";

/// Asks for one object, so that an identity that may not see any is told what is missing and how to grant it. The watch
/// that follows tries again until it works.
async fn may_read(client: &Client, resource: &Resource, loss: &str) -> Result<(), ApiError> {
    let first = Selection::all(*resource).path(Query::new().with("limit", 1));
    let answer = client.get::<IgnoredAny>(&first).await.map(|_| ());
    let resource = resource.plural;
    match &answer {
        Err(error @ ApiError::Forbidden(_)) if loss == RANGES_LOSS => {
            tracing::warn!(resource, %error, loss, remedy = REMEDY, "this identity may not read");
        }
        Err(error @ ApiError::Forbidden(_)) => {
            tracing::error!(resource, %error, loss, remedy = REMEDY, "this identity may not read");
        }
        Ok(()) | Err(_) => {}
    }
    answer
}

/// Watches services: into the proxy, and past whoever else wants to see each change first.
pub async fn watch_services(client: Client, proxy: Handle, observe: impl Fn(&Change<Service>) + Send) {
    // Whatever else the answer is, the watch tells of it.
    let _ = may_read(&client, &SERVICES, SERVICES_LOSS).await;
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
    let _ = may_read(&client, &ENDPOINT_SLICES, SERVICES_LOSS).await;
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

/// Watches the ranges of cluster addresses, where the server has them: addresses in them that belong to no service are
/// dropped then. Servers before 1.33 do not.
pub async fn watch_ranges(client: Client, proxy: Handle) {
    if let Err(ApiError::NotFound(_)) = may_read(&client, &SERVICE_CIDRS, RANGES_LOSS).await {
        return;
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use serde_json::json;

    use super::super::driver::Message;
    use super::*;
    use crate::api::fake::{self, Fake};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic while locked").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn next_event(messages: &Receiver<Message>) -> Event {
        match messages.recv_timeout(Duration::from_secs(30)).expect("an event") {
            Message::Event(event) => event,
            Message::Question(question) => panic!("{question:?}"),
        }
    }

    #[tokio::test]
    async fn who_may_not_read_is_told_what_to_grant_and_goes_on_once_it_is() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        // The first look, and the first list, before the binding is there.
        let server = Fake::start(move |seen| {
            let denied = count.fetch_add(1, Ordering::Relaxed) < 2;
            let answer = if denied {
                let message = "servicecidrs.networking.k8s.io is forbidden: User \"system:node:n1\" cannot list resource";
                fake::status(403, "Forbidden", message)
            } else if seen.path.contains("watch") {
                fake::status(500, "InternalError", "no watch in this test")
            } else {
                fake::json(200, &json!({"metadata": {"resourceVersion": "1"}, "items": [
                    {"metadata": {"name": "kubernetes", "resourceVersion": "1"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00::/108"]}}]}))
            };
            std::future::ready(answer)
        })
        .await;
        let (sender, messages) = channel();
        let watching = tokio::spawn(watch_ranges(server.client(), Handle::new(sender)));
        server.wait_for(3).await;
        let event = tokio::task::spawn_blocking(move || next_event(&messages)).await.expect("an event");
        watching.abort();
        let ranges = ["10.96.0.0/16", "fd00::/108"].map(|range| range.parse().expect("a range"));
        assert_eq!(event, Event::ServiceRanges(ranges.to_vec()));
        let text = String::from_utf8(log.0.lock().expect("no panic while locked").clone()).expect("text");
        for part in [
            "WARN",
            "servicecidrs",
            "system:node:n1",
            "--clusterrole=system:node-proxier --group=system:nodes",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
