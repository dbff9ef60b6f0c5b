//! The Kubernetes objects the proxy reads, as compact values of our own.
//!
//! Owns: parsing and validation at the door. `Service`, `EndpointSlice` and `Node` deserialize straight from the
//! API server's JSON, keep the dozen fields that matter and turn each into a typed value. A field that makes no
//! sense is left out and remembered as a [`Problem`]; it never makes the whole object, or its neighbours, fail.
//! Never: keeps labels, annotations or managed fields; reads the network; knows which node it runs on.

mod node;
mod service;
mod slice;
#[cfg(test)]
mod tests;
mod time;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

pub use node::Node;
pub use service::{Service, ServiceKind, ServicePort};
pub(crate) use time::rfc3339;

pub use slice::{Endpoint, EndpointSlice, SlicePort};

/// A transport protocol a service port can have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Protocol {
    /// `TCP`
    Tcp = 6,
    /// `UDP`
    Udp = 17,
    /// `SCTP`
    Sctp = 132,
}

impl Protocol {
    /// The number in the IP header.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// From the number in the IP header.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// In lower case, as nft spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// From the API's spelling. An absent protocol is TCP.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An IP family; each has a table of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// `ip`
    V4,
    /// `ip6`
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family an address belongs to.
    pub const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// As nft spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `namespace/name`. Copies share the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// Joins the two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both parts are names Kubernetes would accept: lower-case letters, digits, `-` and `.`, at most 63
    /// bytes for the namespace and 253 for the name.
    pub fn is_valid(&self) -> bool {
        let Some((namespace, name)) = self.0.split_once('/') else { return false };
        let plain = |part: &str, longest: usize| {
            !part.is_empty()
                && part.len() <= longest
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        plain(namespace, 63) && plain(name, 253)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of an object that was left out, and why.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Problem {
    /// The field, by its own spelling.
    pub field: &'static str,
    /// The value found there.
    pub value: Box<str>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} is not usable", self.field, self.value)
    }
}

/// Notes a problem; the value is cut so that hostile input cannot fill the log.
fn complain(problems: &mut Vec<Problem>, field: &'static str, value: impl fmt::Display) {
    const LONGEST: usize = 80;
    const MOST: usize = 16;
    if problems.len() < MOST {
        problems.push(Problem { field, value: value.to_string().chars().take(LONGEST).collect() });
    }
}

/// Parses an address and lifts IPv4-mapped IPv6 to IPv4.
fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// An address something can listen on for others: not unspecified, loopback, multicast or broadcast.
fn is_reachable(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast)
}

/// `metadata`, the part any object needs.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
}

/// The labels that mean something to a proxy.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Labels {
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    proxy_name: Option<String>,
    #[serde(rename = "service.kubernetes.io/headless")]
    headless: Option<String>,
    #[serde(rename = "kubernetes.io/service-name")]
    service_name: Option<String>,
    #[serde(rename = "topology.kubernetes.io/zone")]
    zone: Option<String>,
}

/// The annotations that mean something to a proxy.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    triggered: Option<String>,
}
