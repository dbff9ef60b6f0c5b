//! `v1.Node`: the own node's zone, addresses and pod ranges.
//!
//! Owns: the typed form. Never: reads another node than the one it is given.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::{Metadata, is_reachable, parse_address};

const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// The node this proxy runs on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// `metadata.name`
    pub name: Box<str>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Box<str>>,
    /// `status.addresses` of type `InternalIP`, then those of type `ExternalIP`.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<IpNet>,
    /// Whether load balancers may send traffic to it: it is not being deleted, and the cluster autoscaler has not
    /// marked it for removal.
    pub eligible: bool,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Raw::deserialize(deserializer)?;
        let spec = raw.spec.unwrap_or_default();
        let status = raw.status.unwrap_or_default().addresses.unwrap_or_default();
        let of = |kind: &'static str| status.iter().filter(move |entry| entry.r#type == kind);
        let addresses =
            of("InternalIP").chain(of("ExternalIP")).filter_map(|entry| parse_address(&entry.address));
        let ranges = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let leaving = spec.taints.unwrap_or_default().iter().any(|taint| taint.key == TO_BE_DELETED);
        Ok(Self {
            eligible: raw.metadata.deletion_timestamp.is_none() && !leaving,
            name: raw.metadata.name.into(),
            zone: raw
                .metadata
                .labels
                .and_then(|labels| labels.zone)
                .filter(|zone| !zone.is_empty())
                .map(Into::into),
            addresses: addresses.filter(is_reachable).collect(),
            pod_cidrs: ranges
                .iter()
                .filter_map(|range| range.parse::<IpNet>().ok())
                .map(|net| net.trunc())
                .collect(),
        })
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
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Taint {
    key: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Address {
    r#type: String,
    address: String,
}
