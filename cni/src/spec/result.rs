//! What ADD returns, and how every version of the specification spells it.
//!
//! Owns: the conversion between one type and seven JSON shapes.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{CniError, code};
use super::version::Version;

/// The outcome of ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkResult {
    /// Interfaces made or changed, on both sides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses given to the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes inside the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name servers the network suggests.
    pub dns: Dns,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// Its name where it lives.
    pub name: String,
    /// Its hardware address, `aa:bb:cc:dd:ee:ff`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (1.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace path it is in; empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket file that is the interface (1.1).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI device behind it (1.1).
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into [`NetworkResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with its prefix length.
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; the address's gateway when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment to announce, bytes (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as the kernel numbers it (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route to `dst` through `gw`, nothing else said.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name server configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// `ip4` and `ip6` of versions before 0.3.0.
#[derive(Serialize, Deserialize)]
struct LegacyIp {
    ip: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

impl NetworkResult {
    /// The JSON of this result in `version`, `cniVersion` included.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut value = match version {
            Version::V0_1 | Version::V0_2 => self.legacy_json(),
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4 => self.before_1_1().with_ip_versions(),
            Version::V1_0 => plain(&self.before_1_1()),
            Version::V1_1 => plain(self),
        };
        value["cniVersion"] = Value::String(version.as_str().to_owned());
        value
    }

    /// Reads a result in any version; `version` is used when the JSON does not say its own.
    ///
    /// # Errors
    /// The JSON is not a result of the version it names.
    pub fn from_json(value: &Value, version: Version) -> Result<Self, CniError> {
        let said = value.get("cniVersion").and_then(Value::as_str).filter(|v| !v.is_empty());
        let version = said.map_or(Ok(version), str::parse)?;
        let bad = |e: serde_json::Error| CniError::new(code::DECODE, format!("result of CNI {version}: {e}"));
        if version >= Version::V0_3_0 {
            return Self::deserialize(value).map_err(bad);
        }
        let mut result = Self {
            dns: value.get("dns").map_or(Ok(Dns::default()), Dns::deserialize).map_err(bad)?,
            ..Self::default()
        };
        for key in ["ip4", "ip6"] {
            let Some(ip) = value.get(key).filter(|v| !v.is_null()) else { continue };
            let ip = LegacyIp::deserialize(ip).map_err(bad)?;
            result.ips.push(IpConfig { interface: None, address: ip.ip, gateway: ip.gateway });
            result.routes.extend(ip.routes);
        }
        Ok(result)
    }

    fn legacy_json(&self) -> Value {
        let mut map = Map::new();
        for ip in &self.ips {
            let v4 = ip.address.addr().is_ipv4();
            let routes = self.routes.iter().filter(|r| r.dst.addr().is_ipv4() == v4);
            let routes = routes.map(|r| Route::new(r.dst, r.gw)).collect();
            let legacy = LegacyIp { ip: ip.address, gateway: ip.gateway, routes };
            map.entry(if v4 { "ip4" } else { "ip6" }).or_insert_with(|| plain(&legacy));
        }
        map.insert("dns".to_owned(), plain(&self.dns));
        Value::Object(map)
    }

    /// Without the fields that came with 1.1.
    fn before_1_1(&self) -> Self {
        let interface = |i: &Interface| Interface {
            name: i.name.clone(),
            mac: i.mac.clone(),
            sandbox: i.sandbox.clone(),
            ..Interface::default()
        };
        Self {
            interfaces: self.interfaces.iter().map(interface).collect(),
            ips: self.ips.clone(),
            routes: self.routes.iter().map(|r| Route::new(r.dst, r.gw)).collect(),
            dns: self.dns.clone(),
        }
    }

    fn with_ip_versions(&self) -> Value {
        let mut value = plain(self);
        if let Some(ips) = value.get_mut("ips").and_then(Value::as_array_mut) {
            for (ip, json) in self.ips.iter().zip(ips) {
                json["version"] = json!(if ip.address.addr().is_ipv4() { "4" } else { "6" });
            }
        }
        value
    }
}

fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("plain structs with string keys always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::supported_versions;

    fn sample() -> NetworkResult {
        NetworkResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "0a:58:0a:00:00:05".into(),
                mtu: Some(1450),
                sandbox: "/run/netns/x".into(),
                ..Interface::default()
            }],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.0.0.5/24".parse().unwrap(),
                    gateway: "10.0.0.1".parse().ok(),
                },
                IpConfig {
                    interface: Some(0),
                    address: "fd00::5/64".parse().unwrap(),
                    gateway: "fd00::1".parse().ok(),
                },
            ],
            routes: vec![Route {
                mtu: Some(1400),
                ..Route::new("0.0.0.0/0".parse().unwrap(), "10.0.0.1".parse().ok())
            }],
            dns: Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() },
        }
    }

    #[test]
    fn every_version_reads_back_what_it_can_say() {
        for &version in supported_versions() {
            let json = sample().to_json(version);
            assert_eq!(json["cniVersion"], version.as_str());
            let back = NetworkResult::from_json(&json, Version::LATEST).unwrap();
            assert_eq!(back.to_json(version), json, "{version}");
            let addresses: Vec<_> = back.ips.iter().map(|ip| ip.address).collect();
            assert_eq!(addresses, sample().ips.iter().map(|ip| ip.address).collect::<Vec<_>>());
        }
    }

    #[test]
    fn each_shape_is_the_specification_s() {
        let v02 = sample().to_json(Version::V0_2);
        assert_eq!(
            v02["ip4"],
            json!({"ip": "10.0.0.5/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]})
        );
        assert!(v02.get("interfaces").is_none());
        let v04 = sample().to_json(Version::V0_4);
        assert_eq!(v04["ips"][1]["version"], "6");
        let v10 = sample().to_json(Version::V1_0);
        assert_eq!(v10["ips"][0], json!({"interface": 0, "address": "10.0.0.5/24", "gateway": "10.0.0.1"}));
        assert!(v10["interfaces"][0].get("mtu").is_none() && v10["routes"][0].get("mtu").is_none());
        let v11 = sample().to_json(Version::V1_1);
        assert_eq!((&v11["interfaces"][0]["mtu"], &v11["routes"][0]["mtu"]), (&json!(1450), &json!(1400)));
    }
}
