//! CHECK: is the attachment still as ADD left it?
//!
//! Owns: the comparison with `prevResult`.

use std::sync::PoisonError;

use crate::netns::Netns;
use crate::spec::{CniError, NetworkResult, code};
use crate::store::Owner;

use super::conf::{Conf, Ipam, Mode};
use super::inside::{self, Found};
use super::request::{Request, Verb};
use super::{Plugin, ipam, names};

fn failed(msg: impl Into<String>) -> CniError {
    CniError::new(code::CHECK_FAILED, msg)
}

impl Plugin {
    pub(super) fn check(&self, request: &Request, conf: &Conf) -> Result<(), CniError> {
        if !conf.version.has_check() {
            let msg = format!("CNI {} has no CHECK", conf.version);
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg));
        }
        let owner = request.owner()?;
        let previous = conf.previous.as_ref().ok_or_else(|| CniError::config("CHECK without prevResult"))?;
        let path = request.netns.as_deref().ok_or_else(|| failed("CNI_NETNS not set for CHECK"))?;
        self.check_lease(request, conf, &owner, previous)?;
        self.check_host(conf, &owner)?;
        check_inside(&inside::look(&Netns::open(path)?, &owner.ifname)?, previous, path)?;
        if conf.masquerade {
            // Rules that were flushed by somebody are put back rather than reported.
            let position =
                previous.interfaces.iter().position(|i| i.name == owner.ifname && !i.sandbox.is_empty());
            let ours: Vec<_> = previous.ips.iter().filter(|ip| ip.interface == position).cloned().collect();
            self.masquerade(conf, &ours)?;
        }
        Ok(())
    }

    fn check_lease(
        &self,
        request: &Request,
        conf: &Conf,
        owner: &Owner,
        previous: &NetworkResult,
    ) -> Result<(), CniError> {
        let store = self.store(conf);
        let held = store.lock().unwrap_or_else(PoisonError::into_inner).addresses(owner)?;
        let held = held.ok_or_else(|| failed(format!("container {} is not attached", owner.container)))?;
        match &conf.ipam {
            Ipam::None => Ok(()),
            Ipam::Delegate(kind) => ipam::delegate(kind, request, Verb::Check).map(|_| ()),
            Ipam::Own { .. } => {
                match held.iter().find(|held| !previous.ips.iter().any(|ip| ip.address.addr() == **held)) {
                    Some(other) => Err(failed(format!("address {other} is leased but not in prevResult"))),
                    None => Ok(()),
                }
            }
        }
    }

    fn check_host(&self, conf: &Conf, owner: &Owner) -> Result<(), CniError> {
        let name = names::host_link(&conf.network, owner);
        self.with_route(|channel| {
            let link = channel.link(&name)?.ok_or_else(|| failed(format!("interface {name} is missing")))?;
            if !link.up {
                return Err(failed(format!("interface {name} is down")));
            }
            if conf.mode == Mode::Bridge {
                let bridge = channel.link(&conf.bridge)?;
                let bridge = bridge.ok_or_else(|| failed(format!("bridge {} is missing", conf.bridge)))?;
                if link.master != Some(bridge.index) {
                    return Err(failed(format!("interface {name} is not a port of bridge {}", conf.bridge)));
                }
            }
            Ok(())
        })
    }
}

fn check_inside(found: &Found, previous: &NetworkResult, path: &std::path::Path) -> Result<(), CniError> {
    let name = &found.link.name;
    let path = path.display().to_string();
    let position = previous.interfaces.iter().position(|i| i.name == *name && i.sandbox == path);
    let position = position.ok_or_else(|| failed(format!("prevResult has no interface {name} in {path}")))?;
    let said = &previous.interfaces[position].mac;
    let mac = crate::netlink::format_mac(&found.link.mac);
    if !said.is_empty() && !said.eq_ignore_ascii_case(&mac) {
        return Err(failed(format!("interface {name} has hardware address {mac}, not {said}")));
    }
    for ip in previous.ips.iter().filter(|ip| ip.interface == Some(position)) {
        if !found.addresses.contains(&ip.address) {
            return Err(failed(format!("interface {name} lacks address {}", ip.address)));
        }
    }
    for route in &previous.routes {
        let same = |r: &&crate::netlink::RouteSpec| {
            r.dst == route.dst.trunc() && route.gw.is_none_or(|gw| r.gateway == Some(gw))
        };
        if !found.routes.iter().any(|r| same(&r)) {
            return Err(failed(format!("the container lacks the route to {}", route.dst)));
        }
    }
    Ok(())
}
