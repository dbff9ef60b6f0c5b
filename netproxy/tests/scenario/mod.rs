//! Scenario tables: cluster objects in, flows with their outcome out.
//!
//! Owns: reading `tests/scenarios/*.json`. A file has `objects`, `flows`, and `configs` by name; a flow's `outcome` and
//! `masquerade` hold for every configuration, or are given by its name. `from` names a place of the lab.
//! Never: knows how a flow is tried (see `model_scenarios` and `root_scenarios`).

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use orlop_netproxy::objects::{EndpointSlice, Family, Node, Protocol, Service};
use orlop_netproxy::{Config, DetectLocal, Event, NodePortAddresses};
use serde::Deserialize;
use serde_json::Value;

/// Where packets of the lab come from: name, IPv4, IPv6.
pub const PLACES: [(&str, &str, &str); 7] = [
    ("a", "10.180.0.10", "fd00:180::10"),
    ("b", "10.180.0.11", "fd00:180::11"),
    ("client", "10.180.0.12", "fd00:180::12"),
    ("far", "10.180.1.10", "fd00:180:0:1::10"),
    ("distant", "10.180.1.11", "fd00:180:0:1::11"),
    ("outside", "192.168.180.2", "fd00:192::2"),
    ("node", "192.168.180.1", "fd00:192::1"),
];
pub const NODE_ADDRESSES: [&str; 3] = ["192.168.180.1", "192.168.180.11", "fd00:192::1"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub about: String,
    #[serde(default)]
    pub configs: BTreeMap<String, Settings>,
    pub objects: Vec<Value>,
    pub flows: Vec<Flow>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// `ClusterCIDR` (the default), `NodeCIDR`, `InterfaceNamePrefix`, `BridgeInterface` or `Off`.
    pub detect_local: Option<String>,
    pub masquerade_all: bool,
    pub node_port_addresses: Option<Vec<String>>,
    pub no_external_ips: bool,
    pub zone: Option<String>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    pub from: String,
    #[serde(default)]
    pub protocol: Option<String>,
    pub to: IpAddr,
    pub port: u16,
    /// Names of endpoints, or `refused`, `dropped`, `untouched`; or such by configuration.
    pub outcome: Value,
    /// Whether the endpoint sees another source address; or such by configuration. Not looked at when absent.
    #[serde(default)]
    pub masquerade: Value,
}

/// What should become of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expected {
    Sent(BTreeSet<String>),
    Refused,
    Dropped,
    Untouched,
}

/// One flow under one configuration.
pub struct Case {
    pub label: String,
    pub flow: Flow,
    pub protocol: Protocol,
    pub expected: Expected,
    pub masquerade: Option<bool>,
}

/// All files, sorted by name.
pub fn all() -> Vec<(String, Scenario)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut found: Vec<(String, Scenario)> = std::fs::read_dir(folder)
        .expect("the folder of scenarios")
        .map(|entry| entry.expect("an entry of the folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().expect("a file's name").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect("a scenario can be read");
            let scenario = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}.json: {error}"));
            (name, scenario)
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 8, "the scenarios are there");
    found
}

/// The address of a place in the family of another address.
pub fn address_of(place: &str, like: &IpAddr) -> IpAddr {
    let (_, v4, v6) =
        PLACES.iter().find(|(name, ..)| *name == place).unwrap_or_else(|| panic!("place {place}"));
    if like.is_ipv4() { v4 } else { v6 }.parse().expect("the table holds addresses")
}

/// The place an address belongs to.
pub fn place_of(address: &IpAddr) -> String {
    let text = address.to_string();
    let found = PLACES.iter().find(|(_, v4, v6)| *v4 == text || *v6 == text);
    found.map_or(text.clone(), |(name, ..)| (*name).to_owned())
}

impl Scenario {
    /// The configurations; one with the defaults if the file names none.
    pub fn configs(&self) -> BTreeMap<String, Settings> {
        if self.configs.is_empty() {
            BTreeMap::from([("base".to_owned(), Settings::default())])
        } else {
            self.configs.clone()
        }
    }

    /// The events that bring the objects in.
    pub fn events(&self, settings: &Settings) -> Vec<Event> {
        let (mut services, mut slices): (Vec<Service>, Vec<EndpointSlice>) = Default::default();
        for object in &self.objects {
            let parse_error = |error| panic!("{object}: {error}");
            match object["kind"].as_str() {
                Some("Service") => {
                    services.push(serde_json::from_value(object.clone()).unwrap_or_else(parse_error));
                }
                _ => slices.push(serde_json::from_value(object.clone()).unwrap_or_else(|error| {
                    panic!("{object}: {error}");
                })),
            }
        }
        let mut node = serde_json::json!({
            "metadata": { "name": "here" },
            "spec": { "podCIDRs": ["10.180.0.0/24", "fd00:180::/64"] },
            "status": { "addresses": [
                { "type": "InternalIP", "address": "192.168.180.1" }, { "type": "InternalIP", "address": "fd00:192::1" } ] },
        });
        if let Some(zone) = &settings.zone {
            node["metadata"]["labels"] = serde_json::json!({ "topology.kubernetes.io/zone": zone });
        }
        let node: Node = serde_json::from_value(node).expect("a node");
        let interfaces = NODE_ADDRESSES.map(|address| address.parse().expect("an address")).to_vec();
        vec![
            Event::NodeApplied(Box::new(node)),
            Event::InterfaceAddresses(interfaces),
            Event::ServicesReset(services),
            Event::SlicesReset(slices),
        ]
    }

    /// The flows as they should be under a configuration.
    pub fn cases(&self, config: &str) -> Vec<Case> {
        let of = |value: &Value| match value {
            Value::Object(by_config) => by_config.get(config).or_else(|| by_config.get("else")).cloned(),
            other => Some(other.clone()),
        };
        self.flows
            .iter()
            .map(|flow| {
                let outcome = of(&flow.outcome).unwrap_or_else(|| panic!("no outcome for {config}"));
                let expected = match &outcome {
                    Value::String(word) if word == "refused" => Expected::Refused,
                    Value::String(word) if word == "dropped" => Expected::Dropped,
                    Value::String(word) if word == "untouched" => Expected::Untouched,
                    Value::Array(names) => {
                        Expected::Sent(names.iter().map(|n| n.as_str().expect("a name").to_owned()).collect())
                    }
                    other => panic!("outcome {other}"),
                };
                let protocol = Protocol::parse(flow.protocol.as_deref()).expect("a protocol");
                let label = format!("{config}: {} -> {protocol} {} {}", flow.from, flow.to, flow.port);
                let masquerade = of(&flow.masquerade).and_then(|value| value.as_bool());
                Case { label, flow: flow.clone(), protocol, expected, masquerade }
            })
            .collect()
    }
}

impl Settings {
    /// As the proxy takes it.
    pub fn config(&self) -> Config {
        let cluster = ["10.180.0.0/16", "fd00:180::/32"].map(|range| range.parse().expect("a range"));
        let detect_local = match self.detect_local.as_deref() {
            None | Some("ClusterCIDR") => DetectLocal::ClusterCidr(cluster.to_vec()),
            Some("NodeCIDR") => DetectLocal::NodeCidr,
            Some("InterfaceNamePrefix") => DetectLocal::InterfaceNamePrefix("veth-c".into()),
            Some("BridgeInterface") => DetectLocal::BridgeInterface("veth-client".into()),
            Some("Off") => DetectLocal::Off,
            Some(other) => panic!("detectLocal {other}"),
        };
        Config {
            node_name: "here".to_owned(),
            detect_local,
            masquerade_all: self.masquerade_all,
            service_cidrs: ["10.96.0.0/16", "fd00:96::/112"].map(|r| r.parse().expect("a range")).to_vec(),
            external_ips: !self.no_external_ips,
            node_port_addresses: match &self.node_port_addresses {
                None => NodePortAddresses::Primary,
                Some(ranges) => NodePortAddresses::Ranges(
                    ranges.iter().map(|range| range.parse().expect("a range")).collect(),
                ),
            },
            families: Family::ALL.to_vec(),
            ..Config::default()
        }
    }
}
