//! A Node as read from an API server, compactly: this one, and later its neighbours. Owns: decoding. Never: asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize;

use super::conditions::NodeCondition;

/// The taint by which the cluster autoscaler announces the removal of a node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What is read of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its UID; the Lease names it as owner.
    pub uid: String,
    /// Its labels, for pods' node affinity.
    pub labels: BTreeMap<String, String>,
    /// Its taints as `key=value:effect`.
    pub taints: Vec<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// `spec.podCIDRs`: where this node's pods get their addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// Every name and address in `status.addresses`.
    pub addresses: BTreeSet<String>,
    /// Its conditions.
    pub conditions: Vec<NodeCondition>,
    /// `nodeInfo.bootID`.
    pub boot_id: String,
}

impl NodeView {
    /// Decodes an object's JSON.
    pub fn decode(json: &str) -> Result<Self, String> {
        let wire: Wire = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let Wire { metadata, spec, status } = wire;
        let mut pod_cidrs = spec.pod_cidrs;
        if pod_cidrs.is_empty() {
            pod_cidrs.extend(spec.pod_cidr.filter(|c| !c.is_empty()));
        }
        let addresses =
            status.addresses.iter().map(|a| a.address.clone()).filter(|a| !a.is_empty()).collect();
        let internal = status.addresses.into_iter().filter(|a| a.kind == "InternalIP");
        Ok(Self {
            name: metadata.name,
            uid: metadata.uid,
            labels: metadata.labels,
            deleting: metadata.deletion_timestamp.is_some(),
            taints: spec.taints.iter().map(TaintWire::text).collect(),
            pod_cidrs: pod_cidrs.iter().filter_map(|c| c.parse().ok()).collect(),
            internal_ips: internal.filter_map(|a| a.address.parse().ok()).collect(),
            addresses,
            conditions: status.conditions.into_iter().map(ConditionWire::into_condition).collect(),
            boot_id: status.node_info.boot_id,
        })
    }

    /// Whether load balancers may go on sending traffic here: it is neither being deleted, nor has the cluster autoscaler
    /// marked it for removal.
    pub fn is_staying(&self) -> bool {
        let marked = |taint: &String| taint.split(['=', ':']).next() == Some(TO_BE_DELETED);
        !self.deleting && !self.taints.iter().any(marked)
    }

    /// The status of one condition.
    pub fn condition(&self, kind: &str) -> Option<&str> {
        self.conditions.iter().find(|c| c.kind == kind).map(|c| c.status.as_str())
    }
}

#[derive(Deserialize)]
struct Wire {
    metadata: MetaWire,
    #[serde(default)]
    spec: SpecWire,
    #[serde(default)]
    status: StatusWire,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetaWire {
    name: String,
    uid: String,
    labels: BTreeMap<String, String>,
    #[serde(rename = "deletionTimestamp")]
    deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecWire {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    taints: Vec<TaintWire>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TaintWire {
    key: String,
    value: String,
    effect: String,
}

impl TaintWire {
    fn text(&self) -> String {
        let Self { key, value, effect } = self;
        if value.is_empty() { format!("{key}:{effect}") } else { format!("{key}={value}:{effect}") }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StatusWire {
    addresses: Vec<AddressWire>,
    conditions: Vec<ConditionWire>,
    node_info: InfoWire,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AddressWire {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConditionWire {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
    last_transition_time: Option<Timestamp>,
}

impl ConditionWire {
    fn into_condition(self) -> NodeCondition {
        let Self { kind, status, reason, message, last_transition_time } = self;
        NodeCondition { kind, status, reason, message, since: last_transition_time }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InfoWire {
    #[serde(rename = "bootID")]
    boot_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_of_a_node_is_read() {
        let json = r#"{"metadata":{"name":"n1","uid":"u","labels":{"a":"b"},"managedFields":[{}]},
            "spec":{"podCIDR":"10.1.0.0/24","podCIDRs":["10.1.0.0/24","fd00:1::/64"],
                "taints":[{"key":"k","value":"v","effect":"NoSchedule"},{"key":"k2","effect":"NoExecute"}]},
            "status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"},{"type":"Hostname","address":"n1"}],
                "conditions":[{"type":"Ready","status":"True","reason":"r","message":"m","lastTransitionTime":"2026-01-01T00:00:00Z"}],
                "nodeInfo":{"bootID":"boot"}}}"#;
        let node = NodeView::decode(json).expect("valid");
        assert_eq!((node.name.as_str(), node.uid.as_str(), node.boot_id.as_str()), ("n1", "u", "boot"));
        assert_eq!(node.pod_cidrs.len(), 2);
        assert_eq!(node.taints, ["k=v:NoSchedule", "k2:NoExecute"]);
        assert_eq!(node.internal_ips, ["10.0.0.1".parse::<IpAddr>().expect("an address")]);
        assert_eq!(node.addresses, ["10.0.0.1", "n1"].map(str::to_owned).into());
        assert_eq!(node.condition("Ready"), Some("True"));
    }

    #[test]
    fn a_node_that_goes_takes_no_new_traffic() {
        let staying = |json: &str| NodeView::decode(json).expect("valid").is_staying();
        assert!(staying(
            r#"{"metadata":{"name":"n"},"spec":{"taints":[{"key":"k","effect":"NoSchedule"}]}}"#
        ));
        assert!(!staying(
            r#"{"metadata":{"name":"n"},
                "spec":{"taints":[{"key":"ToBeDeletedByClusterAutoscaler","value":"1","effect":"NoSchedule"}]}}"#
        ));
        assert!(!staying(r#"{"metadata":{"name":"n","deletionTimestamp":"2026-01-01T00:00:00Z"}}"#));
    }

    #[test]
    fn a_bare_node_is_a_node() {
        let node = NodeView::decode(r#"{"metadata":{"name":"n1"},"spec":{"podCIDR":"10.1.0.0/24"}}"#)
            .expect("valid");
        assert_eq!((node.pod_cidrs.len(), node.condition("Ready")), (1, None));
    }
}
