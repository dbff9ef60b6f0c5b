//! DEL and GC: nothing of an attachment is left.
//!
//! Owns: the order. Host ports are freed first, then the links go, then the addresses are released; each step is
//! done even when one before it failed, and the first error is the answer.

use std::sync::PoisonError;

use nix::errno::Errno;

use crate::netlink::unless;
use crate::spec::CniError;
use crate::store::Owner;

use super::conf::{Conf, Ipam};
use super::reaper::{Job, delete_links};
use super::request::{Request, Verb};
use super::{Plugin, ipam, names};

impl Plugin {
    pub(super) fn del(&self, request: &Request, conf: &Conf) -> Result<(), CniError> {
        let owner = request.owner()?;
        let early = matches!(conf.ipam, Ipam::None | Ipam::Own { .. });
        let Some(reaper) = self.reaper.as_ref().filter(|_| early) else {
            // Another plugin's address must not be given out before the link is gone, and only we can wait for that.
            return self.remove(request, conf, &owner);
        };
        self.free_ports(conf, std::slice::from_ref(&owner))?;
        reaper.bury(Job { links: links_of(conf, &owner), store: self.store(conf), owner })
    }

    /// Removes an attachment and waits for it.
    pub(super) fn remove(&self, request: &Request, conf: &Conf, owner: &Owner) -> Result<(), CniError> {
        let ports = self.free_ports(conf, std::slice::from_ref(owner));
        let links = self.with_route(|channel| {
            for link in links_of(conf, owner) {
                unless(channel.delete_link(&link), &[Errno::ENODEV])?;
            }
            Ok(())
        });
        let delegated = Self::release_delegated(request, conf);
        ports.and(links).and(delegated)?;
        self.release(conf, std::slice::from_ref(owner))
    }

    fn release(&self, conf: &Conf, owners: &[Owner]) -> Result<(), CniError> {
        let store = self.store(conf);
        store.lock().unwrap_or_else(PoisonError::into_inner).release(owners).map_err(Into::into)
    }

    /// Removes every attachment that is not in `cni.dev/valid-attachments`, and the network's own rules when none is
    /// left.
    pub(super) fn gc(&self, request: &Request, conf: &Conf) -> Result<(), CniError> {
        self.settle();
        let valid = conf.valid.as_deref();
        let valid = valid.ok_or_else(|| CniError::config("GC without cni.dev/valid-attachments"))?;
        let store = self.store(conf);
        let known = store.lock().unwrap_or_else(PoisonError::into_inner).owners()?;
        let stale: Vec<Owner> =
            known.into_iter().map(|(owner, _)| owner).filter(|o| !valid.contains(o)).collect();
        let mut first = self.free_ports(conf, &stale);
        let links: Vec<String> = stale.iter().flat_map(|owner| links_of(conf, owner)).collect();
        first = first.and(self.with_route(|channel| delete_links(channel, &links).map_err(Into::into)));
        first = first.and(self.gc_delegated(request, conf, &stale));
        if first.is_ok() {
            first = self.release(conf, &stale);
        }
        let mut rules = Ok(());
        let emptied = store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .while_empty(|| rules = self.forget_network(conf));
        first.and(emptied.map(|_| ()).map_err(Into::into)).and(rules)
    }

    /// A delegated plugin that knows GC is told the same; one that does not gets a DEL for each stale attachment.
    fn gc_delegated(&self, request: &Request, conf: &Conf, stale: &[Owner]) -> Result<(), CniError> {
        let Ipam::Delegate(kind) = &conf.ipam else { return Ok(()) };
        if conf.version.has_gc() && ipam::delegate(kind, request, Verb::Gc).is_ok() {
            return Ok(());
        }
        let mut first = Ok(());
        for owner in stale {
            let one = Request {
                verb: Verb::Del,
                container: owner.container.clone(),
                ifname: owner.ifname.clone(),
                netns: None,
                ..request.clone()
            };
            first = first.and(ipam::delegate(kind, &one, Verb::Del).map(|_| ()));
        }
        first
    }

    /// Frees the host ports of these attachments.
    fn free_ports(&self, conf: &Conf, owners: &[Owner]) -> Result<(), CniError> {
        if owners.is_empty() { Ok(()) } else { self.unmap_ports(conf, owners) }
    }
}

/// The links an attachment may have on the host.
fn links_of(conf: &Conf, owner: &Owner) -> Vec<String> {
    vec![names::host_link(&conf.network, owner), names::ifb_link(&conf.network, owner)]
}
