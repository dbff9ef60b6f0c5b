//! Capacity of a node, and what of it pods may have. Pure.
//!
//! Owns: the arithmetic of kubelet's node allocatable (reserved amounts and hard eviction thresholds subtracted, never
//! below zero). Never: reads the machine.

use std::collections::BTreeMap;

use crate::config::{Pods, Reserved};
use crate::pod::quantity::Quantity;

use super::facts::Facts;

/// Resource name to amount.
pub type Amounts = BTreeMap<String, Quantity>;

/// Everything the machine has.
pub fn capacity(facts: &Facts, pods: &Pods) -> Amounts {
    let most = match pods.per_core {
        0 => u64::from(pods.max),
        per_core => u64::from(pods.max).min(facts.cpus * u64::from(per_core)),
    };
    let mut amounts = Amounts::from([
        ("cpu".to_owned(), Quantity::from_units(facts.cpus)),
        ("memory".to_owned(), Quantity::from_bytes(facts.memory)),
        ("ephemeral-storage".to_owned(), Quantity::from_bytes(facts.ephemeral_storage)),
        ("pods".to_owned(), Quantity::from_units(most)),
    ]);
    for (page, total) in &facts.hugepages {
        amounts.insert(format!("hugepages-{}", Quantity::from_bytes(*page)), Quantity::from_bytes(*total));
    }
    amounts
}

/// What of `capacity` pods may have.
pub fn allocatable(capacity: &Amounts, facts: &Facts, reserved: &Reserved) -> Amounts {
    let kept = |resource: &str| reserved.kube.get(resource).into_iter().chain(reserved.system.get(resource));
    let evicted = |signal: &str, of: u64| reserved.eviction_hard.get(signal).map_or(0, |t| t.of(of));
    let huge: u64 = facts.hugepages.values().sum();
    capacity
        .iter()
        .map(|(resource, amount)| {
            let left = match resource.as_str() {
                "cpu" => {
                    let millis =
                        kept(resource).fold(amount.millis(), |left, q| left.saturating_sub(q.millis()));
                    Quantity::from_millis(millis)
                }
                name => {
                    let eviction = match name {
                        "memory" => evicted("memory.available", facts.memory) + huge,
                        "ephemeral-storage" => evicted("nodefs.available", facts.ephemeral_storage),
                        _ => 0,
                    };
                    let units = kept(resource).fold(amount.units(), |left, q| left.saturating_sub(q.units()));
                    let units = units.saturating_sub(eviction);
                    if name == "pods" { Quantity::from_units(units) } else { Quantity::from_bytes(units) }
                }
            };
            (resource.clone(), left)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::threshold::Threshold;
    use std::time::Duration;

    fn facts() -> Facts {
        Facts {
            cpus: 4,
            memory: 8 << 30,
            ephemeral_storage: 100 << 30,
            hugepages: [(2 << 20, 1 << 30)].into(),
            ..Facts::default()
        }
    }

    fn pods(max: u32, per_core: u32) -> Pods {
        Pods {
            max,
            per_core,
            pids_limit: None,
            max_restart_backoff: Duration::from_secs(300),
            sysctls: crate::pod::sysctls::Sysctls::default(),
            seccomp_default: false,
        }
    }

    fn reserved(kube: &[(&str, &str)], system: &[(&str, &str)]) -> Reserved {
        let of = |list: &[(&str, &str)]| {
            list.iter().map(|(k, v)| ((*k).to_owned(), v.parse().expect("a quantity"))).collect()
        };
        Reserved {
            kube: of(kube),
            system: of(system),
            eviction_hard: [
                ("memory.available".to_owned(), Threshold::Amount(100 << 20)),
                ("nodefs.available".to_owned(), Threshold::Share(0.1)),
            ]
            .into(),
        }
    }

    fn shown(amounts: &Amounts) -> Vec<(&str, String)> {
        amounts.iter().map(|(k, v)| (k.as_str(), v.to_string())).collect()
    }

    #[test]
    fn capacity_is_what_the_machine_has() {
        let wanted = [
            ("cpu", "4"),
            ("ephemeral-storage", "100Gi"),
            ("hugepages-2Mi", "1Gi"),
            ("memory", "8Gi"),
            ("pods", "110"),
        ];
        assert_eq!(shown(&capacity(&facts(), &pods(110, 0))), wanted.map(|(k, v)| (k, v.to_owned())));
        assert_eq!(capacity(&facts(), &pods(110, 10))["pods"].units(), 40);
    }

    #[test]
    fn allocatable_is_less_reserved_eviction_and_huge_pages() {
        let reserved = reserved(&[("cpu", "200m"), ("memory", "1Gi")], &[("cpu", "300m"), ("pods", "10")]);
        let left = allocatable(&capacity(&facts(), &pods(110, 0)), &facts(), &reserved);
        let wanted = [
            ("cpu", "3500m"),
            ("ephemeral-storage", "90Gi"),
            ("hugepages-2Mi", "1Gi"),
            ("memory", "6044Mi"),
            ("pods", "100"),
        ];
        assert_eq!(shown(&left), wanted.map(|(k, v)| (k, v.to_owned())));
    }

    #[test]
    fn nothing_is_ever_negative() {
        let reserved = reserved(&[("cpu", "99"), ("memory", "99Ti"), ("pods", "9999")], &[]);
        let left = allocatable(&capacity(&facts(), &pods(110, 0)), &facts(), &reserved);
        assert_eq!((left["cpu"].millis(), left["memory"].units(), left["pods"].units()), (0, 0, 0));
    }
}
