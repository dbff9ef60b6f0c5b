//! UDP connections whose endpoint is gone.
//!
//! Owns: finding and removing them as soon as the endpoints changed. UDP has no end that connection tracking could
//! see: without this a client that keeps sending is sent to the old endpoint for ever, also when no endpoint is left
//! (kubernetes/kubernetes#139628).
//! Never: touches a connection to an endpoint that still answers, or TCP.

use std::collections::{HashMap, HashSet};

use super::{Proxy, SyncReport};
use crate::backend::{Backend, BackendError, Flow, FlowFilter};
use crate::objects::{Family, Protocol};
use crate::program::{Address, PortProgram};
use crate::ruleset::{NodePort, NodePortMatch, Target, Vip};

/// An address whose connections are looked at, and the endpoints that still answer, sorted.
pub(super) type Check = (Address, Vec<Target>);

/// More addresses than this, and all UDP connections are listed once instead of some for each address.
const SINGLE_LISTS: usize = 8;

impl<B: Backend> Proxy<B> {
    /// Notes the addresses of a service whose UDP connections may have become stale.
    pub(super) fn check_flows(
        &self,
        service: u32,
        old: &[PortProgram],
        new: &[PortProgram],
        checks: &mut Vec<Check>,
    ) {
        let udp = |programs: &&PortProgram| programs.protocol == Protocol::Udp;
        for after in new.iter().filter(udp) {
            let before = old.iter().find(|before| {
                before.family == after.family
                    && before.protocol == after.protocol
                    && before.port_name == after.port_name
            });
            let lost_endpoint = before.is_some_and(|before| {
                let now: HashSet<&Target> = answering(after).collect();
                answering(before).any(|target| !now.contains(target))
            });
            let known: HashSet<Address> =
                before.iter().flat_map(|before| before.frontends.iter().map(|f| f.address)).collect();
            let touched: Vec<_> = after
                .frontends
                .iter()
                .map(|f| f.address)
                .filter(|address| lost_endpoint || !known.contains(address))
                .collect();
            if !touched.is_empty() {
                let serving = self.serving(service, after);
                checks.extend(touched.into_iter().map(|address| (address, serving.clone())));
            }
        }
        let still: HashSet<Address> =
            new.iter().filter(udp).flat_map(|after| after.frontends.iter().map(|f| f.address)).collect();
        for before in old.iter().filter(udp) {
            let gone = before.frontends.iter().map(|f| f.address).filter(|address| !still.contains(address));
            checks.extend(
                gone.filter(|address| self.claims.winner(address).is_none()).map(|a| (a, Vec::new())),
            );
        }
    }

    /// After a resync: all UDP addresses.
    pub(super) fn forget_all_stale_flows(&mut self, report: &mut SyncReport) {
        let mut checks = Vec::new();
        for (service, programmed) in (0u32..).zip(&self.programs) {
            self.check_flows(service, &[], &programmed.ports, &mut checks);
        }
        self.forget_stale_flows(checks, report);
    }

    /// Removes the stale connections to these addresses.
    pub(super) fn forget_stale_flows(&mut self, mut checks: Vec<Check>, report: &mut SyncReport) {
        let mut all = std::mem::take(&mut self.unchecked);
        let first_time = all.is_empty();
        let newer: HashSet<Address> = checks.iter().map(|(address, _)| *address).collect();
        all.retain(|(address, _)| !newer.contains(address));
        all.append(&mut checks);
        if all.is_empty() {
            return;
        }
        match self.remove_stale_flows(&all) {
            Ok(removed) => {
                for family in Family::ALL {
                    let of_family =
                        removed.iter().filter(|flow| Family::of(&flow.source.address) == family).count();
                    if of_family > 0 {
                        report.flows_removed_by_family.push((family, of_family));
                    }
                }
                report.flows_removed = removed.len();
            }
            Err(error) => {
                if first_time {
                    tracing::warn!(%error, "stale UDP connections stay for now");
                }
                self.unchecked = all;
            }
        }
    }

    fn remove_stale_flows(&mut self, checks: &[Check]) -> Result<Vec<Flow>, BackendError> {
        let by_address: HashMap<Address, &[Target]> =
            checks.iter().map(|(address, serving)| (*address, serving.as_slice())).collect();
        let mut stale = Vec::new();
        for filter in filters(checks) {
            let flows = self.backend.flows(&filter)?;
            stale.extend(flows.into_iter().filter(|flow| self.is_stale(flow, &by_address)));
        }
        stale.sort_unstable_by_key(|flow| (flow.source, flow.destination));
        stale.dedup();
        self.backend.forget_flows(&stale)?;
        Ok(stale)
    }

    fn is_stale(&self, flow: &Flow, checks: &HashMap<Address, &[Target]>) -> bool {
        let Target { address, port } = flow.destination;
        let family = Family::of(&address);
        let vip = Address::Vip(Vip { address, protocol: flow.protocol, port });
        let node_port = Address::NodePort(family, NodePort { protocol: flow.protocol, port });
        let translated = flow.answered_by != flow.destination;
        let is_stale = |serving: &&[Target]| {
            // With nobody left only translated connections were ours.
            serving.binary_search(&flow.answered_by).is_err() && (translated || !serving.is_empty())
        };
        match (checks.get(&vip), self.claims.winner(&vip)) {
            (Some(serving), _) => is_stale(serving),
            (None, Some(_)) => false,
            (None, None) => {
                let ours = match self.networks.get(&family).map(|network| network.node_ports) {
                    Some(NodePortMatch::Listed) => {
                        self.known.node_port_ips.get(&family).is_some_and(|ips| ips.contains(&address))
                    }
                    Some(NodePortMatch::AnyLocal) => {
                        self.surroundings.interface_addresses.is_empty()
                            || self.surroundings.interface_addresses.contains(&address)
                    }
                    None => false,
                };
                ours && checks.get(&node_port).is_some_and(is_stale)
            }
        }
    }
}

/// The endpoints of a UDP port that may have connections: those in use, and those that used to be and still answer.
fn answering(program: &PortProgram) -> impl Iterator<Item = &Target> {
    program.cluster.iter().chain(&program.local).chain(&program.lingering)
}

fn filters(checks: &[Check]) -> Vec<FlowFilter> {
    let protocol = Protocol::Udp;
    if checks.len() > SINGLE_LISTS {
        let all = |family| FlowFilter { family, protocol, address: None, port: None };
        return Family::ALL.map(all).to_vec();
    }
    let one = |(address, _): &Check| match address {
        Address::Vip(vip) => {
            FlowFilter { family: vip.family(), protocol, address: Some(vip.address), port: Some(vip.port) }
        }
        Address::NodePort(family, node_port) => {
            FlowFilter { family: *family, protocol, address: None, port: Some(node_port.port) }
        }
    };
    checks.iter().map(one).collect()
}
