//! Whether the kernel can do what the proxy needs.
//!
//! Owns: one transaction that makes a table with every set, chain and kind of rule there is, and removes it again. The
//! kernel takes or refuses it as a whole; nothing is ever seen of it.
//! Never: leaves anything behind.

use std::sync::Arc;

use super::Netlink;
use crate::backend::{Backend, BackendError, Operation, Transaction};
use crate::objects::{Family, Protocol};
use crate::ruleset::{
    ChainKind, LocalSource, Network, NodePortMatch, Policy, SetName, skeleton, spread, sticky,
};

impl Netlink {
    /// Tries everything the proxy uses, in one family.
    ///
    /// # Errors
    /// Names the first thing the kernel cannot do.
    pub fn probe(&mut self, family: Family) -> Result<(), BackendError> {
        let network = Network {
            local: LocalSource::InterfacePrefix("veth".into()),
            masquerade_all: false,
            service_ranges: Vec::new(),
            node_ports: NodePortMatch::AnyLocal,
        };
        let service: Arc<str> = "probe/probe/tcp/".into();
        let clients = SetName::Clients(Policy::Cluster, service.clone());
        let mut chains = vec![
            spread(ChainKind::Vip, Policy::Cluster, 2),
            spread(ChainKind::NodePort, Policy::Local, 2),
            sticky::choose(ChainKind::Vip, Policy::Cluster, &service, Protocol::Tcp, 2),
            sticky::remember(Policy::Cluster, &service, 60),
        ];
        chains.extend(skeleton(family, &network));
        let mut operations = vec![Operation::CreateTable(family)];
        operations.extend(
            SetName::STATIC.into_iter().chain([clients]).map(|set| Operation::CreateSet(family, set)),
        );
        operations.extend(chains.iter().map(|defined| Operation::CreateChain(family, defined.chain.clone())));
        for defined in chains {
            let chain = defined.chain;
            operations.extend(
                defined.rules.into_iter().map(|rule| Operation::AddRule(family, chain.clone(), rule)),
            );
        }
        operations.push(Operation::DeleteTable(family));
        self.try_out(operations)
    }

    /// The families the kernel can do; the others are named in the log with what is missing.
    pub fn families(&mut self) -> Vec<Family> {
        let mut able = Family::ALL.to_vec();
        able.retain(|family| match self.probe(*family) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%family, %error, "no services in this family");
                false
            }
        });
        able
    }

    /// Tries whether a table can be owned and outlive its owner.
    pub(super) fn probe_owners(&mut self) -> Result<(), BackendError> {
        self.try_out(vec![Operation::CreateTable(Family::V4), Operation::DeleteTable(Family::V4)])
    }

    fn try_out(&mut self, operations: Vec<Operation>) -> Result<(), BackendError> {
        let table = format!("orlop-probe-{}", self.socket.port());
        self.commit(&Transaction { table, operations })
    }
}
