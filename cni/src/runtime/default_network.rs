//! The network a node has when nobody configured one. Pure.
//!
//! Owns: turning the node's pod ranges into a configuration list of our own plugin.

use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::plugin::KIND;
use crate::spec::NetworkList;

/// What is known of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultNetwork {
    /// The network's name.
    pub name: String,
    /// The bridge's name.
    pub bridge: String,
    /// The node's pod ranges: one, or one of each family (`Node.spec.podCIDRs`).
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges that see pods by their own addresses: all pods of the cluster.
    pub cluster_cidrs: Vec<IpNet>,
    /// MTU in bytes; that of the default route's interface when absent.
    pub mtu: Option<u32>,
    /// Whether what pods send to the outside leaves with the node's address.
    pub masquerade: bool,
    /// The nftables table.
    pub table: String,
    /// Where leases are kept; the runtime's own place when absent.
    pub state_dir: Option<PathBuf>,
}

impl Default for DefaultNetwork {
    fn default() -> Self {
        Self {
            name: "orlop".to_owned(),
            bridge: "cni0".to_owned(),
            pod_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            mtu: None,
            masquerade: true,
            table: KIND.to_owned(),
            state_dir: None,
        }
    }
}

impl DefaultNetwork {
    /// The configuration, as it would be written to `10-orlop.conflist`.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let ranges: Vec<Value> =
            self.pod_cidrs.iter().map(|net| json!([{ "subnet": net.trunc() }])).collect();
        let mut ipam = json!({"type": KIND, "ranges": ranges});
        if let Some(dir) = &self.state_dir {
            ipam["dataDir"] = json!(dir);
        }
        let mut plugin = json!({
            "type": KIND,
            "bridge": self.bridge,
            "isDefaultGateway": true,
            "forceAddress": true,
            // Where bridged packets pass the IP hooks (bridge-nf-call-iptables), a pod that reaches itself through a
            // service or host port is sent back by the port it came from.
            "hairpinMode": true,
            "ipMasq": self.masquerade,
            "nftTable": self.table,
            "clusterCIDRs": self.cluster_cidrs,
            "capabilities": {"portMappings": true, "bandwidth": true, "mac": true, "ips": true},
            "ipam": ipam,
        });
        if let Some(mtu) = self.mtu {
            plugin["mtu"] = json!(mtu);
        }
        json!({"cniVersion": "1.1.0", "name": self.name, "plugins": [plugin]})
    }

    /// The same as a list for the runtime. `None` while the node has no pod ranges.
    #[must_use]
    pub fn to_list(&self) -> Option<NetworkList> {
        if self.pod_cidrs.is_empty() {
            return None;
        }
        NetworkList::from_value(self.to_value()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_ranges_become_one_set_each() {
        let network = DefaultNetwork {
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
            mtu: Some(1450),
            ..DefaultNetwork::default()
        };
        let list = network.to_list().unwrap();
        assert_eq!(list.plugins[0].kind, KIND);
        let raw = &list.plugins[0].raw;
        assert_eq!(
            raw["ipam"]["ranges"],
            json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]])
        );
        assert_eq!((&raw["mtu"], &raw["ipMasq"]), (&json!(1450), &json!(true)));
        assert_eq!(NetworkList::from_value(list.to_value()).unwrap(), list);
    }

    #[test]
    fn without_ranges_there_is_no_network() {
        assert_eq!(DefaultNetwork::default().to_list(), None);
    }
}
