//! Which addresses and ports services have.
//!
//! Owns: the sets of what is given out. They are filled from the store at start and follow it from then on. Never: decides what
//! a service gets (that is `service`).

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use serde_json::Value;

use crate::object::items;

/// The field of the port by which load balancers ask a node for endpoints.
pub(super) const HEALTH_PORT: &str = "healthCheckNodePort";
/// What node ports, and those of health checks, are given from.
pub(super) const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Which service addresses and node ports are taken.
pub struct Allocator {
    networks: Vec<IpNet>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    ports: HashSet<u16>,
    next: Vec<u128>,
    next_port: u16,
}

impl Allocator {
    /// Nothing is taken yet.
    pub fn new(networks: Vec<IpNet>) -> Self {
        // The first address of each network belongs to the API server itself.
        let next = vec![2; networks.len()];
        let taken = Taken { next, next_port: *NODE_PORTS.start(), ..Taken::default() };
        Self { networks, taken: Mutex::new(taken) }
    }

    /// The families in order of preference, as `IPv4` and `IPv6`.
    pub fn families(&self) -> Vec<&'static str> {
        self.networks.iter().map(|n| family(n.addr())).collect()
    }

    /// The first address of the network of a family: that of the service `kubernetes`.
    pub fn api_server_address(&self) -> Option<IpAddr> {
        self.networks.first().and_then(|n| nth(n, 1))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks what a stored service has.
    pub fn take(&self, service: &Value) {
        let mut taken = self.lock();
        taken.addresses.extend(addresses_of(service));
        taken.ports.extend(ports_of(service));
    }

    /// Gives back what a service had.
    pub fn release(&self, service: &Value) {
        let mut taken = self.lock();
        for address in addresses_of(service) {
            taken.addresses.remove(&address);
        }
        for port in ports_of(service) {
            taken.ports.remove(&port);
        }
    }

    pub(super) fn next_address(&self, wanted: &str) -> Option<IpAddr> {
        let index = self.networks.iter().position(|n| family(n.addr()) == wanted)?;
        let network = self.networks.get(index)?;
        let size = 1_u128
            .checked_shl(u32::from(network.max_prefix_len() - network.prefix_len()))
            .unwrap_or(u128::MAX);
        let mut taken = self.lock();
        let start = *taken.next.get(index)?;
        // Broadcast and network address are no service's.
        let usable = size.saturating_sub(2).min(1 << 20);
        for step in 0..usable {
            let n = 1 + (start - 1 + step) % usable.max(1);
            let address = nth(network, n)?;
            if n != 1 && taken.addresses.insert(address) {
                taken.next[index] = n + 1;
                return Some(address);
            }
        }
        None
    }

    pub(super) fn claim_address(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|n| n.contains(&address)) && self.lock().addresses.insert(address)
    }

    pub(super) fn next_port(&self) -> Option<u16> {
        let mut taken = self.lock();
        let size = NODE_PORTS.end() - NODE_PORTS.start() + 1;
        for step in 0..size {
            let port = NODE_PORTS.start() + (taken.next_port - NODE_PORTS.start() + step) % size;
            if taken.ports.insert(port) {
                taken.next_port = if port == *NODE_PORTS.end() { *NODE_PORTS.start() } else { port + 1 };
                return Some(port);
            }
        }
        None
    }

    pub(super) fn claim_port(&self, port: u16) -> bool {
        self.lock().ports.insert(port)
    }
}

/// `IPv4` or `IPv6`.
fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn nth(network: &IpNet, n: u128) -> Option<IpAddr> {
    match network {
        IpNet::V4(v4) => {
            Some(IpAddr::V4((u32::from(v4.network()).checked_add(u32::try_from(n).ok()?)?).into()))
        }
        IpNet::V6(v6) => Some(IpAddr::V6((u128::from(v6.network()).checked_add(n)?).into())),
    }
}

pub(super) fn addresses_of(service: &Value) -> Vec<IpAddr> {
    items(&service["spec"], "clusterIPs").iter().filter_map(|a| a.as_str()?.parse().ok()).collect()
}

/// Of the one range that node ports and health check ports are given from.
pub(super) fn ports_of(service: &Value) -> Vec<u16> {
    let spec = &service["spec"];
    let all = items(spec, "ports").iter().map(|p| &p["nodePort"]).chain([&spec[HEALTH_PORT]]);
    all.filter_map(|p| u16::try_from(p.as_u64()?).ok()).collect()
}
