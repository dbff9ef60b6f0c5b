//! What a pod asks for as a whole: sums over containers, and its quality of service.
//!
//! Owns: the arithmetic (KEP-753 for sidecars, KEP-2837 for pod-level resources). Never: compares with a node.

use serde::{Deserialize, Serialize};

use super::{Container, Pod, Resources};
use crate::pod::quantity::Quantity;

/// `status.qosClass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum QosClass {
    /// Requests equal limits for CPU and memory in every container.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None.
    #[default]
    BestEffort,
}

/// A pod's resources as a whole, for its cgroup and for admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodResources {
    /// Requested CPU in millicores.
    pub cpu_request_millis: u64,
    /// Requested memory in bytes.
    pub memory_request_bytes: u64,
    /// CPU limit in millicores, if every container has one.
    pub cpu_limit_millis: Option<u64>,
    /// Memory limit in bytes, if every container has one.
    pub memory_limit_bytes: Option<u64>,
}

impl Pod {
    /// Requests and limits of the pod as a whole.
    pub fn total_resources(&self) -> PodResources {
        let spec = &self.spec;
        let cpu = |r: &Resources| Some(r.cpu_request_millis());
        let memory = |r: &Resources| Some(r.memory_request_bytes());
        let level = &spec.resources;
        let has = |name| level.requests.contains_key(name);
        PodResources {
            cpu_request_millis: match has("cpu") {
                true => level.cpu_request_millis(),
                false => self.total(cpu).unwrap_or(0),
            },
            memory_request_bytes: match has("memory") {
                true => level.memory_request_bytes(),
                false => self.total(memory).unwrap_or(0),
            },
            cpu_limit_millis: level.cpu_limit_millis().or_else(|| self.total(Resources::cpu_limit_millis)),
            memory_limit_bytes: level
                .memory_limit_bytes()
                .or_else(|| self.total(Resources::memory_limit_bytes)),
        }
    }

    /// The most that is needed at one time: regular containers and sidecars together, or one init container with the
    /// sidecars before it. `None` if `of` is `None` for any container, which means "without limit".
    fn total(&self, of: impl Fn(&Resources) -> Option<u64>) -> Option<u64> {
        let mut sidecars = 0u64;
        let mut peak = 0u64;
        for container in &self.spec.init_containers {
            let amount = of(&container.resources)?;
            if container.is_sidecar() {
                sidecars = sidecars.saturating_add(amount);
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars.saturating_add(amount));
            }
        }
        let mut running = sidecars;
        for container in &self.spec.containers {
            running = running.saturating_add(of(&container.resources)?);
        }
        Some(running.max(peak))
    }

    /// `status.qosClass`: the one the API server has set, which never changes, else computed.
    pub fn qos_class(&self) -> QosClass {
        self.status.qos_class.unwrap_or_else(|| self.computed_qos_class())
    }

    fn computed_qos_class(&self) -> QosClass {
        if self.spec.resources != Resources::default() {
            return class_of(std::iter::once(&self.spec.resources));
        }
        let spec = &self.spec;
        class_of(spec.containers.iter().chain(&spec.init_containers).map(|c: &Container| &c.resources))
    }
}

fn class_of<'a>(all: impl Iterator<Item = &'a Resources> + Clone) -> QosClass {
    let present = |q: Option<&Quantity>| q.copied().filter(|q| !q.is_zero());
    let both = ["cpu", "memory"];
    let any = all.clone().any(|r| {
        let named = |n: &&str| present(r.requests.get(*n)).or(present(r.limits.get(*n))).is_some();
        both.iter().any(named)
    });
    if !any {
        return QosClass::BestEffort;
    }
    let exact = all.into_iter().all(|r| {
        both.iter().all(|n| {
            let limit = present(r.limits.get(*n));
            limit.is_some_and(|l| r.requests.get(*n).is_none_or(|q| q.millis() == l.millis()))
        })
    });
    if exact { QosClass::Guaranteed } else { QosClass::Burstable }
}
