//! `v1.Service`: what a proxy needs of it.
//!
//! Owns: the typed form and its validation. A port out of range, an address that is none, an unknown protocol is
//! left out and noted in `problems`; the rest of the service works.
//! Never: decides which service wins an address that two of them claim (see `claims`).

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::{Metadata, ObjectName, Problem, Protocol, complain, is_reachable, parse_address, time};

/// `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceKind {
    /// Reachable at its cluster addresses (and external addresses) only.
    ClusterIp,
    /// Also at a port of the node.
    NodePort,
    /// Also at the addresses in `status.loadBalancer`.
    LoadBalancer,
    /// A DNS alias: nothing for a proxy.
    ExternalName,
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Matches the port of the same name in the endpoint slices; may be empty.
    pub name: Box<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port at cluster, external and load balancer addresses.
    pub port: NonZeroU16,
    /// The port at the node's addresses.
    pub node_port: Option<NonZeroU16>,
}

/// A service, validated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// `namespace/name`.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in milliseconds since the epoch; the older of two services keeps an address.
    pub created_ms: u64,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `spec.clusterIPs`; empty for a headless service.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP or none.
    pub ingress: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges`; `None` lets everyone in, an empty list nobody.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// `spec.ports`.
    pub ports: Box<[ServicePort]>,
    /// Seconds a client sticks to its endpoint, with `spec.sessionAffinity: ClientIP`.
    pub affinity_seconds: Option<u32>,
    /// `spec.externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<NonZeroU16>,
    /// Whether the label `service.kubernetes.io/service-proxy-name` hands it to another proxy.
    pub other_proxy: bool,
    /// What was left out.
    pub problems: Box<[Problem]>,
}

impl Service {
    /// Whether this proxy has anything to do for it.
    pub fn is_served(&self) -> bool {
        let managed = !self.other_proxy && self.kind != ServiceKind::ExternalName;
        managed && !self.cluster_ips.is_empty() && self.name.is_valid()
    }

    /// Whether the outside can reach it: a node port, a load balancer or an external address.
    pub fn is_external(&self) -> bool {
        matches!(self.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer)
            || !self.external_ips.is_empty()
    }
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Raw::validate)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Raw {
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    external_traffic_policy: Option<String>,
    internal_traffic_policy: Option<String>,
    load_balancer_source_ranges: Option<Vec<String>>,
    health_check_node_port: i64,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: String,
    protocol: Option<String>,
    port: i64,
    node_port: i64,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Ingress {
    ip: String,
    ip_mode: Option<String>,
}

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when it is not set.
const AFFINITY_SECONDS: u32 = 10_800;
/// The longest the API allows.
const AFFINITY_SECONDS_MAX: i64 = 86_400;

impl Raw {
    fn validate(self) -> Service {
        let (spec, mut problems) = (self.spec.unwrap_or_default(), Vec::new());
        let name = ObjectName::new(&self.metadata.namespace, &self.metadata.name);
        if !name.is_valid() {
            complain(&mut problems, "metadata.name", &name);
        }
        let kind = match spec.r#type.as_deref() {
            None | Some("" | "ClusterIP") => ServiceKind::ClusterIp,
            Some("NodePort") => ServiceKind::NodePort,
            Some("LoadBalancer") => ServiceKind::LoadBalancer,
            Some("ExternalName") => ServiceKind::ExternalName,
            Some(other) => {
                complain(&mut problems, "spec.type", other);
                ServiceKind::ExternalName
            }
        };
        let cluster = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
        let ingress =
            self.status.unwrap_or_default().load_balancer.unwrap_or_default().ingress.unwrap_or_default();
        let ingress =
            ingress.into_iter().filter(|entry| matches!(entry.ip_mode.as_deref(), None | Some("VIP")));
        let labels = self.metadata.labels.unwrap_or_default();
        Service {
            created_ms: self.metadata.creation_timestamp.as_deref().and_then(time::parse).unwrap_or(u64::MAX),
            cluster_ips: addresses(&mut problems, "spec.clusterIPs", cluster),
            external_ips: addresses(&mut problems, "spec.externalIPs", spec.external_ips.unwrap_or_default()),
            ingress: addresses(
                &mut problems,
                "status.loadBalancer.ingress.ip",
                ingress.map(|entry| entry.ip),
            ),
            source_ranges: source_ranges(
                &mut problems,
                &spec.load_balancer_source_ranges.unwrap_or_default(),
            ),
            ports: ports(&mut problems, spec.ports.unwrap_or_default()),
            affinity_seconds: affinity(
                &mut problems,
                spec.session_affinity.as_deref(),
                spec.session_affinity_config,
            ),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            health_check_node_port: port_number(spec.health_check_node_port),
            other_proxy: labels.proxy_name.is_some(),
            problems: problems.into(),
            name,
            kind,
        }
    }
}

fn port_number(number: i64) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

/// The usable addresses among these, each once, in their order. `None` and empty text mean "no address".
fn addresses(
    problems: &mut Vec<Problem>,
    field: &'static str,
    texts: impl IntoIterator<Item = String>,
) -> Box<[IpAddr]> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for text in texts {
        if text.is_empty() || text == "None" {
            continue;
        }
        match parse_address(&text).filter(is_reachable) {
            Some(address) if known.insert(address) => found.push(address),
            Some(_) => {}
            None => complain(problems, field, text),
        }
    }
    found.into()
}

fn ports(problems: &mut Vec<Problem>, raw: Vec<Port>) -> Box<[ServicePort]> {
    let mut found: Vec<ServicePort> = Vec::with_capacity(raw.len());
    let mut known = HashSet::new();
    for entry in raw {
        let Some(protocol) = Protocol::parse(entry.protocol.as_deref()) else {
            complain(problems, "spec.ports.protocol", entry.protocol.unwrap_or_default());
            continue;
        };
        let Some(port) = port_number(entry.port) else {
            complain(problems, "spec.ports.port", entry.port);
            continue;
        };
        let node_port = port_number(entry.node_port);
        if node_port.is_none() && entry.node_port != 0 {
            complain(problems, "spec.ports.nodePort", entry.node_port);
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if entry.name.len() > 63 || !entry.name.bytes().all(plain) {
            complain(problems, "spec.ports.name", entry.name);
            continue;
        }
        if !known.insert((port, protocol)) {
            complain(problems, "spec.ports", format_args!("{port}/{protocol} twice"));
            continue;
        }
        found.push(ServicePort { name: entry.name.into(), protocol, port, node_port });
    }
    found.into()
}

/// Ranges with the spaces trimmed. Ranges none of which can be read let nobody in, which is the safe side.
fn source_ranges(problems: &mut Vec<Problem>, texts: &[String]) -> Option<Box<[IpNet]>> {
    if texts.is_empty() {
        return None;
    }
    let mut ranges: Vec<IpNet> = Vec::with_capacity(texts.len());
    for text in texts {
        match text.trim().parse::<IpNet>() {
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => complain(problems, "spec.loadBalancerSourceRanges", text),
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges.into())
}

fn affinity(
    problems: &mut Vec<Problem>,
    affinity: Option<&str>,
    config: Option<AffinityConfig>,
) -> Option<u32> {
    match affinity {
        Some("ClientIP") => {}
        None | Some("" | "None") => return None,
        Some(other) => {
            complain(problems, "spec.sessionAffinity", other);
            return None;
        }
    }
    let wanted = config.and_then(|config| config.client_ip).and_then(|client| client.timeout_seconds);
    match wanted {
        None => Some(AFFINITY_SECONDS),
        Some(seconds) if (1..=AFFINITY_SECONDS_MAX).contains(&seconds) => u32::try_from(seconds).ok(),
        Some(seconds) => {
            complain(problems, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds);
            Some(AFFINITY_SECONDS)
        }
    }
}
