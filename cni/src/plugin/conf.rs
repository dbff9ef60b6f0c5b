//! What the plugin is asked to do: its configuration, read and checked once.
//!
//! Owns: the keys. They are those of the reference `bridge`, `ptp`, `host-local`, `portmap` and `bandwidth` plugins,
//! so that their configurations work unchanged, and a few of our own: `mode`, `clusterCIDRs`, `nftTable`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::spec::{CniError, Dns, NetworkResult, Route, Version, code, valid_ifname, valid_network_name};
use crate::store::{Owner, Range, RangeSet};

use super::request::Request;

/// This plugin's name in a configuration, both as `type` and as `ipam.type`.
pub const KIND: &str = "orlop-cni";

/// How a container is joined to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// By a port of a bridge.
    #[default]
    Bridge,
    /// By a link of its own to the host, with a route for each address.
    Ptp,
}

/// Where addresses come from.
#[derive(Debug, Clone)]
pub(super) enum Ipam {
    /// Nowhere: the interface gets none.
    None,
    /// From our store.
    Own { sets: Vec<RangeSet>, routes: Vec<Route>, dns: Dns },
    /// From another plugin.
    Delegate(String),
}

/// A port of the node that leads to the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortMapping {
    pub(super) host_address: Option<IpAddr>,
    pub(super) host_port: u16,
    pub(super) container_port: u16,
    pub(super) protocol: Protocol,
}

/// A protocol with ports, by its IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

/// Limits in bits; the names are those of the `bandwidth` capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Bandwidth {
    pub(super) ingress_rate: u64,
    pub(super) ingress_burst: u64,
    pub(super) egress_rate: u64,
    pub(super) egress_burst: u64,
}

/// The configuration.
#[derive(Debug, Clone)]
pub(super) struct Conf {
    pub(super) version: Version,
    pub(super) network: String,
    pub(super) mode: Mode,
    pub(super) bridge: String,
    pub(super) is_gateway: bool,
    pub(super) is_default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) masquerade: bool,
    pub(super) mtu: Option<u32>,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    pub(super) isolated: bool,
    pub(super) detect_duplicates: bool,
    pub(super) ipam: Ipam,
    pub(super) requested: Vec<IpAddr>,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) dns: Dns,
    pub(super) ports: Vec<PortMapping>,
    /// Whether the configuration is for port mappings at all.
    pub(super) maps_ports: bool,
    pub(super) bandwidth: Bandwidth,
    pub(super) previous: Option<NetworkResult>,
    pub(super) valid: Option<Vec<Owner>>,
    pub(super) table: String,
    pub(super) inside: Vec<IpNet>,
    pub(super) data_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    cni_version: String,
    name: String,
    mode: Mode,
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    enabledad: bool,
    vlan: u32,
    vlan_trunk: Vec<Value>,
    macspoofchk: bool,
    ipam: Option<RawIpam>,
    dns: Dns,
    capabilities: Capabilities,
    runtime_config: RuntimeConfig,
    args: Args,
    nft_table: String,
    #[serde(rename = "clusterCIDRs")]
    cluster_cidrs: Vec<IpNet>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            cni_version: String::new(),
            name: String::new(),
            mode: Mode::default(),
            bridge: "cni0".to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            port_isolation: false,
            enabledad: false,
            vlan: 0,
            vlan_trunk: Vec::new(),
            macspoofchk: false,
            ipam: None,
            dns: Dns::default(),
            capabilities: Capabilities::default(),
            runtime_config: RuntimeConfig::default(),
            args: Args::default(),
            nft_table: KIND.to_owned(),
            cluster_cidrs: Vec::new(),
            prev_result: None,
            valid: None,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawIpam {
    r#type: String,
    ranges: Vec<RangeSet>,
    subnet: Option<Value>,
    routes: Vec<Route>,
    data_dir: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Capabilities {
    port_mappings: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Vec<RawPort>,
    bandwidth: Option<Bandwidth>,
    mac: String,
    ips: Vec<String>,
    ip_ranges: Vec<RangeSet>,
    dns: Option<RuntimeDns>,
}

/// The `dns` capability, which has other names for what `dns` of a configuration says.
#[derive(Deserialize, Default)]
#[serde(default)]
struct RuntimeDns {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl From<RuntimeDns> for Dns {
    fn from(dns: RuntimeDns) -> Self {
        let RuntimeDns { servers, searches, options } = dns;
        Self { nameservers: servers, search: searches, options, ..Self::default() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CniArgs {
    mac: String,
    ips: Vec<String>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

impl Conf {
    /// Reads the configuration of a request.
    ///
    /// # Errors
    /// What does not fit, with the code the specification has for it.
    pub(super) fn read(request: &Request) -> Result<Self, CniError> {
        let decode =
            |e: serde_json::Error| CniError::new(code::DECODE, format!("network configuration: {e}"));
        let mut raw = Raw::deserialize(&request.conf).map_err(decode)?;
        let version = Version::from_str(&raw.cni_version)?;
        refuse_unsupported(&raw)?;
        if !valid_network_name(&raw.name) {
            return Err(CniError::config(format!("network name {:?} is not allowed", raw.name)));
        }
        if !valid_ifname(&raw.bridge) {
            return Err(CniError::config(format!("bridge name {:?} is not allowed", raw.bridge)));
        }
        let ports = raw.runtime_config.port_mappings.iter().filter(|p| p.host_port != 0).map(read_port);
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        let previous = raw.prev_result.as_ref().filter(|v| !v.is_null());
        let previous = previous.map(|v| NetworkResult::from_json(v, version)).transpose()?;
        let valid =
            raw.valid.take().map(|all| all.iter().map(|a| Owner::new(&a.container, &a.ifname)).collect());
        let data_dir = raw.ipam.as_ref().and_then(|i| i.data_dir.clone());
        let bandwidth = raw.runtime_config.bandwidth;
        Ok(Self {
            version,
            mac: read_mac(&raw, request)?,
            requested: read_requested(&raw, request)?,
            ipam: read_ipam(raw.ipam.take(), &raw.runtime_config.ip_ranges)?,
            dns: raw.runtime_config.dns.map_or(raw.dns, Dns::from),
            maps_ports: raw.capabilities.port_mappings || !ports.is_empty(),
            ports,
            bandwidth: bandwidth.unwrap_or_default(),
            network: raw.name,
            mode: raw.mode,
            bridge: raw.bridge,
            is_gateway: raw.is_gateway || raw.is_default_gateway || raw.mode == Mode::Ptp,
            is_default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            masquerade: raw.ip_masq,
            mtu: (raw.mtu != 0).then_some(raw.mtu),
            hairpin: raw.hairpin_mode,
            promiscuous: raw.promisc_mode,
            isolated: raw.port_isolation,
            detect_duplicates: raw.enabledad,
            previous,
            valid,
            table: raw.nft_table,
            inside: raw.cluster_cidrs,
            data_dir,
        })
    }
}

/// Keys of the reference plugins that are not carried out here. Ignoring them would weaken isolation, so they are
/// refused.
fn refuse_unsupported(raw: &Raw) -> Result<(), CniError> {
    let fields = [
        ("vlan", raw.vlan != 0, raw.vlan.to_string()),
        ("vlanTrunk", !raw.vlan_trunk.is_empty(), format!("{:?}", raw.vlan_trunk)),
        ("macspoofchk", raw.macspoofchk, "true".to_owned()),
        ("hairpinMode and promiscMode together", raw.hairpin_mode && raw.promisc_mode, "true".to_owned()),
    ];
    match fields.into_iter().find(|(_, set, _)| *set) {
        Some((name, _, value)) => {
            Err(CniError::new(code::UNSUPPORTED_FIELD, format!("{name} is not supported"))
                .details(format!("{name}: {value}")))
        }
        None => Ok(()),
    }
}

fn read_ipam(raw: Option<RawIpam>, extra: &[RangeSet]) -> Result<Ipam, CniError> {
    let Some(raw) = raw else { return Ok(Ipam::None) };
    if raw.r#type.is_empty() {
        return Ok(Ipam::None);
    }
    if raw.r#type != KIND {
        if raw.r#type.contains('/') {
            return Err(CniError::config(format!("ipam type {:?} is not allowed", raw.r#type)));
        }
        return Ok(Ipam::Delegate(raw.r#type));
    }
    let mut sets = extra.to_vec();
    if let Some(subnet) = raw.subnet {
        // The old spelling: one range, its keys beside the type.
        let range = Range::deserialize(serde_json::json!({"subnet": subnet}));
        sets.push(vec![range.map_err(|e| CniError::config(format!("ipam: {e}")))?]);
    }
    sets.extend(raw.ranges);
    if sets.is_empty() {
        return Err(CniError::config("ipam has no ranges"));
    }
    crate::store::check_sets(&sets).map_err(|e| CniError::config(format!("ipam: {e}")))?;
    let dns = raw.resolv_conf.map_or(Ok(Dns::default()), |path| {
        let text = std::fs::read_to_string(&path);
        text.map(|t| read_resolv_conf(&t)).map_err(|e| CniError::io(format!("read {}", path.display()), &e))
    })?;
    Ok(Ipam::Own { sets, routes: raw.routes, dns })
}

fn read_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(key) = words.next() else { continue };
        let values = words.map(str::to_owned);
        match key {
            "nameserver" => dns.nameservers.extend(values.take(1)),
            "domain" => dns.domain = values.take(1).collect(),
            "search" => dns.search = values.collect(),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

fn read_port(raw: &RawPort) -> Result<PortMapping, CniError> {
    let protocol = match raw.protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            return Err(CniError::config(format!("port mapping protocol {other:?} is not tcp, udp or sctp")));
        }
    };
    if raw.container_port == 0 {
        return Err(CniError::config(format!("host port {} leads to container port 0", raw.host_port)));
    }
    let host_address = match raw.host_ip.as_str() {
        "" => None,
        text => {
            let ip: IpAddr =
                text.parse().map_err(|_| CniError::config(format!("hostIP {text:?} is not an address")))?;
            (!ip.is_unspecified()).then_some(ip)
        }
    };
    Ok(PortMapping { host_address, host_port: raw.host_port, container_port: raw.container_port, protocol })
}

fn read_mac(raw: &Raw, request: &Request) -> Result<Option<[u8; 6]>, CniError> {
    let asked =
        [raw.runtime_config.mac.as_str(), raw.args.cni.mac.as_str(), request.arg("MAC").unwrap_or_default()];
    let Some(text) = asked.into_iter().find(|t| !t.is_empty()) else { return Ok(None) };
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(|b| u8::from_str_radix(b, 16).ok()).collect();
    let mac = bytes.and_then(|b| <[u8; 6]>::try_from(b).ok());
    // The lowest bit of the first byte says group address, which no interface may have.
    match mac.filter(|m| m[0] & 1 == 0) {
        Some(mac) => Ok(Some(mac)),
        None => Err(CniError::config(format!("hardware address {text:?} is not usable"))),
    }
}

fn read_requested(raw: &Raw, request: &Request) -> Result<Vec<IpAddr>, CniError> {
    let from_args = request.arg("IP").into_iter().flat_map(|v| v.split(','));
    let all = raw.runtime_config.ips.iter().chain(&raw.args.cni.ips).map(String::as_str).chain(from_args);
    let mut requested = Vec::new();
    for text in all.map(str::trim).filter(|t| !t.is_empty()) {
        let bare = text.split('/').next().unwrap_or_default();
        let ip = bare
            .parse()
            .map_err(|_| CniError::config(format!("requested address {text:?} is not an address")))?;
        if !requested.contains(&ip) {
            requested.push(ip);
        }
    }
    Ok(requested)
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;
