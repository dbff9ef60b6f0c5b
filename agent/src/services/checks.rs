//! Health check node ports: what a load balancer asks before it sends a service's traffic here.
//!
//! Owns: one listener for each `healthCheckNodePort` and address, opened and closed as services change. Never: judges.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use axum::Router;
use axum::response::Response;
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use orlop_netproxy::{Health, HealthCheck};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::events::{Event, Events, Regarding};
use crate::server::serve_plain;

/// Load balancers ask one after the other.
const BACKLOG: u32 = 64;

/// What is to be answered, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checks {
    /// The node's addresses that serve node ports.
    pub addresses: Vec<IpAddr>,
    /// One for each service that has a port.
    pub checks: Vec<HealthCheck>,
}

/// A port that is served. Dropping it closes the port.
struct Open {
    answer: watch::Sender<HealthCheck>,
    _listeners: JoinSet<()>,
}

struct Ports {
    addresses: Vec<IpAddr>,
    open: BTreeMap<u16, Open>,
    /// Ports that could not be opened, told once.
    failed: BTreeSet<u16>,
    health: watch::Receiver<Health>,
    events: Events,
}

/// Runs until the proxy ends. A port that cannot be opened is tried again with the next change.
pub async fn run(mut checks: watch::Receiver<Checks>, health: watch::Receiver<Health>, events: Events) {
    let mut ports =
        Ports { addresses: vec![], open: BTreeMap::new(), failed: BTreeSet::new(), health, events };
    loop {
        let wanted = checks.borrow_and_update().clone();
        ports.settle(wanted);
        // Cancel-safe: a watch channel keeps its newest value.
        if checks.changed().await.is_err() {
            return;
        }
    }
}

impl Ports {
    fn settle(&mut self, wanted: Checks) {
        if self.addresses != wanted.addresses {
            self.open.clear();
            self.addresses = wanted.addresses;
        }
        let numbers: BTreeSet<u16> = wanted.checks.iter().map(|check| check.port.get()).collect();
        self.open.retain(|port, _| numbers.contains(port));
        self.failed.retain(|port| numbers.contains(port));
        for check in wanted.checks {
            let port = check.port.get();
            match self.open.get(&port) {
                Some(open) => {
                    open.answer.send_if_modified(|known| {
                        let changed = *known != check;
                        *known = check;
                        changed
                    });
                }
                None => self.open(port, check),
            }
        }
    }

    fn open(&mut self, port: u16, check: HealthCheck) {
        match listen(&self.addresses, port) {
            Ok(listeners) => {
                self.failed.remove(&port);
                let (answer, seen) = watch::channel(check);
                let mut tasks = JoinSet::new();
                for listener in listeners {
                    tasks.spawn(serve_plain(listener, routes(seen.clone(), self.health.clone())));
                }
                self.open.insert(port, Open { answer, _listeners: tasks });
            }
            Err(error) => {
                if self.failed.insert(port) {
                    tracing::warn!(service = %check.service, port, %error, "no health check port");
                    self.events.emit(failure(&check, &error));
                }
            }
        }
    }
}

/// Every address, or none.
fn listen(addresses: &[IpAddr], port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![];
    for address in addresses {
        listeners.push(bind(SocketAddr::new(*address, port))?);
    }
    Ok(listeners)
}

/// Each family for itself, so that both may have all of their addresses.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Any path, as kube-proxy answers.
fn routes(check: watch::Receiver<HealthCheck>, health: watch::Receiver<Health>) -> Router {
    Router::new().fallback(move || {
        let healthy = health.borrow().is_healthy(SystemTime::now());
        let answer = check.borrow().answer(healthy);
        std::future::ready::<Response>(super::http::respond(answer))
    })
}

fn failure(check: &HealthCheck, error: &io::Error) -> Event {
    let (namespace, name) = check.service.as_str().split_once('/').unwrap_or_default();
    Event {
        regarding: Regarding {
            kind: "Service",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: String::new(),
            resource_version: String::new(),
            field_path: String::new(),
        },
        warning: true,
        reason: "FailedToStartServiceHealthcheck",
        message: format!(
            "failed to start healthcheck \"{}\" on port {}: {error}",
            check.service.as_str(),
            check.port
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use orlop_netproxy::objects::{Family, ObjectName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::api::fake::{self, Fake};

    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /any HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    #[tokio::test]
    async fn ports_open_answer_and_close_as_services_change() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let check = |port: u16, local_endpoints| HealthCheck {
            service: ObjectName::new("ns", "web"),
            port: port.try_into().expect("not zero"),
            local_endpoints,
        };
        let fake = Fake::start(|_| std::future::ready(fake::json(201, &serde_json::json!({})))).await;
        let (events, driver) = Events::new(fake.client(), "n1".into());
        let mut health = Health::new(&Family::ALL, SystemTime::now());
        health.updated(SystemTime::now());
        let (_health, health) = watch::channel(health);
        let mut ports =
            Ports { addresses: vec![], open: BTreeMap::new(), failed: BTreeSet::new(), health, events };
        let loopback: Vec<IpAddr> = vec!["127.0.0.1".parse().expect("an address")];
        let busy = taken.local_addr().expect("an address").port();
        let all = |count| Checks {
            addresses: loopback.clone(),
            checks: vec![check(free.port(), count), check(busy, 1)],
        };
        ports.settle(all(0));
        assert!(ask(free.port()).await.expect("answered").starts_with("HTTP/1.0 503"));
        ports.settle(all(2));
        let text = ask(free.port()).await.expect("answered");
        assert!(text.starts_with("HTTP/1.0 200") && text.contains("\"localEndpoints\":2"), "{text}");
        ports.settle(Checks { addresses: loopback.clone(), checks: vec![] });
        tokio::task::yield_now().await;
        assert!(ask(free.port()).await.is_err(), "closed with the service");
        let everywhere = vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        ports.settle(Checks { addresses: everywhere, checks: vec![check(free.port(), 1)] });
        assert!(
            ask(free.port()).await.expect("answered").starts_with("HTTP/1.0 200"),
            "each family by itself"
        );
        drop(ports);
        driver.await;
        let told = fake.seen();
        assert_eq!(told.len(), 1, "told once");
        let body = told[0].json();
        assert_eq!(body["reason"], "FailedToStartServiceHealthcheck");
        assert_eq!((&body["involvedObject"]["name"], &body["type"]), (&"web".into(), &"Warning".into()));
    }
}
