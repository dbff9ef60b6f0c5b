//! Where an attachment's addresses come from: our store, or another plugin.
//!
//! Owns: turning leases into addresses with gateways and routes, and calling a delegated plugin.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::PoisonError;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::exec::{self, ExecError};
use crate::spec::{CniError, IpConfig, NetworkResult, Route, code};
use crate::store::{Lease, Owner, RangeSet, StoreError};

use super::conf::{Conf, Ipam};
use super::request::{Request, Verb};
use super::{DELEGATE_TIMEOUT, Plugin};

impl Plugin {
    /// Notes the attachment and gets addresses for it. Routes do not include the default route of
    /// `isDefaultGateway` yet.
    pub(super) fn lease(
        &self,
        request: &Request,
        conf: &Conf,
        owner: &Owner,
    ) -> Result<NetworkResult, CniError> {
        let leases = match self.note(conf, owner) {
            // In process it is the runtime that knows which attachments are complete. It calls for this one, so what
            // is here is of a DEL that a killed daemon did not finish.
            Err(StoreError::AlreadyLeased { .. }) if self.reaper.is_some() => {
                self.remove(request, conf, owner)?;
                self.note(conf, owner)?
            }
            other => other?,
        };
        match &conf.ipam {
            Ipam::None => Ok(NetworkResult::default()),
            Ipam::Own { sets, routes, dns } => {
                let ips = leases.iter().map(|lease| with_gateway(lease, sets)).collect();
                let (routes, dns) = (routes.clone(), dns.clone());
                Ok(NetworkResult { ips, routes, dns, ..NetworkResult::default() })
            }
            Ipam::Delegate(kind) => {
                let addresses = lease_elsewhere(kind, request, conf);
                if addresses.is_err() {
                    self.undo(request, conf, owner);
                }
                addresses
            }
        }
    }

    /// Puts the attachment into the store, with addresses if they are ours to give.
    fn note(&self, conf: &Conf, owner: &Owner) -> Result<Vec<Lease>, StoreError> {
        let store = self.store(conf);
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        match &conf.ipam {
            Ipam::Own { sets, .. } => store.lease(owner, sets, &conf.requested),
            Ipam::None | Ipam::Delegate(_) => store.attach(owner).map(|()| Vec::new()),
        }
    }

    /// Lets a delegated plugin take its addresses back. Our own are released with the attachment, later.
    pub(super) fn release_delegated(request: &Request, conf: &Conf) -> Result<(), CniError> {
        match &conf.ipam {
            Ipam::Delegate(kind) => delegate(kind, request, Verb::Del).map(|_| ()),
            Ipam::None | Ipam::Own { .. } => Ok(()),
        }
    }
}

fn lease_elsewhere(kind: &str, request: &Request, conf: &Conf) -> Result<NetworkResult, CniError> {
    let value = delegate(kind, request, Verb::Add)?;
    let result = NetworkResult::from_json(&value, conf.version)?;
    if result.ips.is_empty() {
        return Err(CniError::new(code::DELEGATE, format!("ipam plugin {kind} returned no address")));
    }
    Ok(result)
}

fn with_gateway(lease: &Lease, sets: &[RangeSet]) -> IpConfig {
    let range = sets.get(lease.set).and_then(|set| set.iter().find(|r| r.contains(lease.address)));
    let whole = if lease.address.is_ipv4() { 32 } else { 128 };
    let prefix = range.map_or(whole, |r| r.subnet.prefix_len());
    let address = IpNet::new(lease.address, prefix).expect("a subnet's prefix length fits its own addresses");
    IpConfig { interface: None, address, gateway: range.map(|r| r.gateway) }
}

/// Runs the `ipam` plugin `kind` with the request's own environment and configuration.
pub(super) fn delegate(kind: &str, request: &Request, verb: Verb) -> Result<serde_json::Value, CniError> {
    let failed = |e: ExecError| match e {
        ExecError::Said(error) => CniError { msg: format!("ipam plugin {kind}: {}", error.msg), ..error },
        other => CniError::new(code::DELEGATE, format!("ipam plugin {kind} {other}")),
    };
    let program = exec::find(kind, &request.path).map_err(failed)?;
    let input = serde_json::to_vec(&request.conf).map_err(|e| CniError::new(code::DECODE, e.to_string()))?;
    exec::run(&program, &environment(request, verb), &input, DELEGATE_TIMEOUT).map_err(failed)
}

/// The `CNI_*` variables of a request, for another plugin.
pub(crate) fn environment(request: &Request, verb: Verb) -> BTreeMap<String, String> {
    let args: Vec<_> = request.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let path = std::env::join_paths(&request.path).unwrap_or_default();
    let netns = request.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    [
        ("CNI_COMMAND", verb.as_str().to_owned()),
        ("CNI_CONTAINERID", request.container.clone()),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", request.ifname.clone()),
        ("CNI_ARGS", args.join(";")),
        ("CNI_PATH", path.to_string_lossy().into_owned()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v))
    .collect()
}

/// Everything, in the family of `address`.
pub(super) fn everything(address: IpAddr) -> IpNet {
    if address.is_ipv4() { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
}

/// The routes the container gets: those of the address plugin, and with `isDefaultGateway` a default route for each
/// family that has none.
pub(super) fn routes(conf: &Conf, addresses: &NetworkResult) -> Result<Vec<Route>, CniError> {
    let mut routes = addresses.routes.clone();
    if !conf.is_default_gateway {
        return Ok(routes);
    }
    for ip in &addresses.ips {
        let dst = everything(ip.address.addr());
        if routes.iter().any(|r| r.dst.trunc() == dst) {
            continue;
        }
        let gateway = ip.gateway.ok_or_else(|| {
            CniError::config(format!("isDefaultGateway is set, but address {} has no gateway", ip.address))
        })?;
        routes.push(Route::new(dst, Some(gateway)));
    }
    Ok(routes)
}
