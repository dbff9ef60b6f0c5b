//! What the caller says about a container, and what it gets back.
//!
//! Owns: the shapes of capability arguments as the conventions of CNI have them
//! (<https://github.com/containernetworking/cni/blob/main/CONVENTIONS.md>).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::plugin::Request;
use crate::spec::{CniError, NetworkResult};
use crate::store::Owner;

/// A container to attach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The sandbox's ID: letters, digits, `-`, `_`, `.`.
    pub container_id: String,
    /// Its network namespace: a bind mount, `/proc/<pid>/ns/net` or `/proc/<pid>/fd/<n>`.
    pub netns: PathBuf,
    /// The interface to make inside.
    pub ifname: String,
    /// `CNI_ARGS`: `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `IgnoreUnknown` and the like.
    pub args: Vec<(String, String)>,
    /// Capability arguments. A plugin gets those it declares.
    pub capabilities: Capabilities,
}

/// Capability arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Capabilities {
    /// Ports of the node that lead to the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// The hardware address of the container's interface.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Addresses the container should get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// The container's name servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsServers>,
    /// Path of the pod's cgroup.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup_path: String,
    /// Others, by name, as they are.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// A port of the node that leads to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The node's address; all of them when absent.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// Limits, in bits per second and bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Bandwidth {
    /// What the container may receive.
    pub ingress_rate: u64,
    /// What it may receive at once.
    pub ingress_burst: u64,
    /// What the container may send.
    pub egress_rate: u64,
    /// What it may send at once.
    pub egress_burst: u64,
}

/// The name servers a container is to use. Spelled otherwise than those of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsServers {
    /// Their addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// The search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Attachment {
    /// An attachment of a pod's sandbox, with the arguments Kubernetes' runtimes pass.
    #[must_use]
    pub fn of_pod(container_id: &str, netns: PathBuf, namespace: &str, name: &str, uid: &str) -> Self {
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", namespace),
            ("K8S_POD_NAME", name),
            ("K8S_POD_INFRA_CONTAINER_ID", container_id),
            ("K8S_POD_UID", uid),
        ];
        Self {
            container_id: container_id.to_owned(),
            netns,
            ifname: "eth0".to_owned(),
            args: args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            capabilities: Capabilities::default(),
        }
    }

    /// The attachment's name in stores and records.
    pub(crate) fn owner(&self) -> Result<Owner, CniError> {
        Request { container: self.container_id.clone(), ifname: self.ifname.clone(), ..Request::default() }
            .owner()
    }
}

impl Capabilities {
    /// The arguments by name, without those that were not given.
    pub(crate) fn arguments(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }
}

/// What an attached container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The network's name.
    pub network: String,
    /// The container's addresses, in the order of the result.
    pub ips: Vec<IpAddr>,
    /// Everything the plugins said.
    pub result: NetworkResult,
}

impl Attached {
    pub(crate) fn new(network: String, result: NetworkResult) -> Self {
        let inside = |i: Option<usize>| {
            i.and_then(|i| result.interfaces.get(i)).is_none_or(|interface| !interface.sandbox.is_empty())
        };
        let ips = result.ips.iter().filter(|ip| inside(ip.interface)).map(|ip| ip.address.addr()).collect();
        Self { network, ips, result }
    }
}
