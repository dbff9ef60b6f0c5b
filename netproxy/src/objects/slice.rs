//! `discovery.k8s.io/v1.EndpointSlice`: what a proxy needs of it.
//!
//! Owns: the typed form and its validation. Absent conditions get their defaults here (ready and serving are true,
//! terminating is false), so that nothing later asks again.
//! Never: knows whether an endpoint is on this node or in this zone (see `table`).

use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::{Deserialize, Deserializer};

use super::{Family, Metadata, ObjectName, Problem, Protocol, complain, is_reachable, parse_address, time};

/// One port of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// The name of the service port it belongs to; may be empty.
    pub name: Box<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port at the endpoint.
    pub port: NonZeroU16,
}

/// One endpoint: its first address, and what is known of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// `addresses[0]`; further addresses mean the same endpoint and are not used.
    pub address: IpAddr,
    /// `conditions.ready`
    pub ready: bool,
    /// `conditions.serving`
    pub serving: bool,
    /// `conditions.terminating`
    pub terminating: bool,
    /// `nodeName`
    pub node: Option<Box<str>>,
    /// `hints.forZones[].name`
    pub zone_hints: Box<[Box<str>]>,
    /// `hints.forNodes[].name`
    pub node_hints: Box<[Box<str>]>,
}

/// An endpoint slice, validated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// `namespace/name`.
    pub name: ObjectName,
    /// `namespace/name` of the service, from the label `kubernetes.io/service-name`; none for slices of no service
    /// and of headless ones.
    pub service: Option<ObjectName>,
    /// `addressType`; none for `FQDN`, which proxies ignore.
    pub family: Option<Family>,
    /// `ports`; those without a number are left out.
    pub ports: Box<[SlicePort]>,
    /// `endpoints`.
    pub endpoints: Box<[Endpoint]>,
    /// The annotation `endpoints.kubernetes.io/last-change-trigger-time`, milliseconds since the epoch.
    pub triggered_ms: Option<u64>,
    /// What was left out.
    pub problems: Box<[Problem]>,
}

impl<'de> Deserialize<'de> for EndpointSlice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Raw::validate)
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    metadata: Metadata,
    address_type: String,
    endpoints: Option<Vec<RawEndpoint>>,
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
    node_name: Option<Box<str>>,
    hints: Option<Hints>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Hints {
    for_zones: Option<Vec<Hint>>,
    for_nodes: Option<Vec<Hint>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Hint {
    name: Box<str>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawPort {
    name: Option<Box<str>>,
    protocol: Option<String>,
    port: Option<i64>,
}

impl Raw {
    fn validate(self) -> EndpointSlice {
        let mut problems = Vec::new();
        let labels = self.metadata.labels.unwrap_or_default();
        let annotations = self.metadata.annotations.unwrap_or_default();
        let family = match self.address_type.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            "FQDN" => None,
            other => {
                complain(&mut problems, "addressType", other);
                None
            }
        };
        let service = labels.service_name.filter(|name| !name.is_empty() && labels.headless.is_none());
        EndpointSlice {
            name: ObjectName::new(&self.metadata.namespace, &self.metadata.name),
            service: service.map(|name| ObjectName::new(&self.metadata.namespace, &name)),
            ports: ports(&mut problems, self.ports.unwrap_or_default()),
            endpoints: match family {
                Some(family) => endpoints(&mut problems, family, self.endpoints.unwrap_or_default()),
                None => Box::default(),
            },
            family,
            triggered_ms: annotations.triggered.as_deref().and_then(time::parse),
            problems: problems.into(),
        }
    }
}

fn ports(problems: &mut Vec<Problem>, raw: Vec<RawPort>) -> Box<[SlicePort]> {
    let mut found = Vec::with_capacity(raw.len());
    for entry in raw {
        // The API server fills in an empty name; a port without a name or a number means "all ports" or nothing.
        let (Some(name), Some(number)) = (entry.name, entry.port) else { continue };
        let Some(protocol) = Protocol::parse(entry.protocol.as_deref()) else {
            complain(problems, "ports.protocol", entry.protocol.unwrap_or_default());
            continue;
        };
        match u16::try_from(number).ok().map(NonZeroU16::new) {
            Some(Some(port)) => found.push(SlicePort { name, protocol, port }),
            Some(None) => {}
            None => complain(problems, "ports.port", number),
        }
    }
    found.into()
}

fn endpoints(problems: &mut Vec<Problem>, family: Family, raw: Vec<RawEndpoint>) -> Box<[Endpoint]> {
    let mut found = Vec::with_capacity(raw.len());
    for entry in raw {
        let Some(text) = entry.addresses.as_ref().and_then(|all| all.first()) else { continue };
        let usable = |address: &IpAddr| Family::of(address) == family && is_reachable(address);
        let Some(address) = parse_address(text).filter(usable) else {
            complain(problems, "endpoints.addresses", text);
            continue;
        };
        let conditions = entry.conditions.unwrap_or_default();
        let hints = entry.hints.unwrap_or_default();
        let names =
            |hints: Option<Vec<Hint>>| hints.unwrap_or_default().into_iter().map(|hint| hint.name).collect();
        found.push(Endpoint {
            address,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            node: entry.node_name.filter(|name| !name.is_empty()),
            zone_hints: names(hints.for_zones),
            node_hints: names(hints.for_nodes),
        });
    }
    found.into()
}
