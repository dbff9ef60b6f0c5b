//! Whether the node takes a pod: a scheduler may have been wrong, late, or absent.
//!
//! Owns: the checks of sysctls, CPU, memory, number of pods, node labels and host ports, with kubelet's reasons.
//! Never: remembers who was taken (that is `manager`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::spec::{Pod, Protocol};
use super::sysctls::Sysctls;
use super::wanted::Rejection;

/// What the node offers to pods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allocatable {
    /// CPU in millicores.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Number of pods.
    pub pods: u64,
    /// The Node's labels.
    pub labels: BTreeMap<String, String>,
    /// What they may set.
    pub sysctls: Sysctls,
}

/// Decides whether `pod` fits beside `others`, the pods that were taken and have not ended.
pub fn admit<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    node: &Allocatable,
) -> Result<(), Rejection> {
    if let Some(message) = node.sysctls.forbidden(pod) {
        return Err(Rejection { reason: "SysctlForbidden", message });
    }
    check_labels(pod, node)?;
    check_host_ports(pod, others.clone())?;
    let count = others.clone().count() as u64;
    if count >= node.pods {
        return Err(out_of("pods", "OutOfpods", [1, count, node.pods]));
    }
    let asked = pod.total_resources();
    let mut cpu = 0u64;
    let mut memory = 0u64;
    for other in others {
        let used = other.total_resources();
        cpu = cpu.saturating_add(used.cpu_request_millis);
        memory = memory.saturating_add(used.memory_request_bytes);
    }
    if asked.cpu_request_millis > node.cpu_millis.saturating_sub(cpu) && asked.cpu_request_millis > 0 {
        return Err(out_of("cpu", "OutOfcpu", [asked.cpu_request_millis, cpu, node.cpu_millis]));
    }
    let free = node.memory_bytes.saturating_sub(memory);
    if asked.memory_request_bytes > free && asked.memory_request_bytes > 0 {
        let figures = [asked.memory_request_bytes, memory, node.memory_bytes];
        return Err(out_of("memory", "OutOfmemory", figures));
    }
    Ok(())
}

fn out_of(resource: &str, reason: &'static str, [requested, used, capacity]: [u64; 3]) -> Rejection {
    Rejection {
        reason,
        message: format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    }
}

fn check_labels(pod: &Pod, node: &Allocatable) -> Result<(), Rejection> {
    let fits = pod.spec.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v));
    if fits {
        return Ok(());
    }
    Err(Rejection {
        reason: "NodeAffinity",
        message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
            .to_owned(),
    })
}

fn check_host_ports<'a>(pod: &Pod, others: impl Iterator<Item = &'a Pod>) -> Result<(), Rejection> {
    let wanted: Vec<HostPort> = host_ports(pod).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    for other in others {
        for taken in host_ports(other) {
            if let Some(port) = wanted.iter().find(|w| w.conflicts(&taken)) {
                return Err(Rejection {
                    reason: "NodePorts",
                    message: format!(
                        "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports: \
                         {:?} {} is taken by {}/{}",
                        port.protocol,
                        port.port,
                        other.namespace(),
                        other.name()
                    ),
                });
            }
        }
    }
    Ok(())
}

/// A port of the node that a pod asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HostPort {
    ip: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
}

impl HostPort {
    /// The same port of the same protocol, on the same address or on all.
    fn conflicts(&self, other: &HostPort) -> bool {
        let every = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || every(self.ip) || every(other.ip))
    }
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> {
    pod.host_ports().map(|p| HostPort { ip: p.host_ip, protocol: p.protocol, port: p.host_port })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::spec::Sysctl;
    use super::*;

    fn pod(name: &str, cpu: &str, ports: &Value) -> Pod {
        let container = json!({
            "name": "a", "image": "a:1", "ports": ports, "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}},
        });
        Pod::from_value(json!({"metadata": {"name": name}, "spec": {"containers": [container]}})).unwrap()
    }

    fn node() -> Allocatable {
        Allocatable { cpu_millis: 1000, memory_bytes: 3 << 20, pods: 3, ..Allocatable::default() }
    }

    fn reason(result: Result<(), Rejection>) -> &'static str {
        result.err().map_or("taken", |r| r.reason)
    }

    #[test]
    fn a_pod_is_taken_only_while_there_is_room() {
        let none = json!([]);
        let small = pod("small", "400m", &none);
        let cases = [
            ("400m", 0, "taken"),
            ("600m", 1, "taken"),
            ("601m", 1, "OutOfcpu"),
            ("100m", 2, "taken"),
            ("0", 3, "OutOfpods"),
        ];
        for (cpu, others, wanted) in cases {
            let taken = std::iter::repeat_n(&small, others);
            assert_eq!(reason(admit(&pod("new", cpu, &none), taken, &node())), wanted, "{cpu}");
        }
        let tight = Allocatable { memory_bytes: (2 << 20) - 1, ..node() };
        let result = admit(&small, std::iter::once(&small), &tight);
        assert_eq!(
            result.unwrap_err().message,
            "Node didn't have enough resource: memory, requested: 1048576, used: 1048576, capacity: 2097151"
        );
    }

    #[test]
    fn labels_must_match_the_selector() {
        let mut picky = pod("picky", "1m", &json!([]));
        picky.spec.node_selector.insert("disk".into(), "ssd".into());
        assert_eq!(reason(admit(&picky, std::iter::empty(), &node())), "NodeAffinity");
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let fitting = Allocatable { labels, ..node() };
        assert_eq!(reason(admit(&picky, std::iter::empty(), &fitting)), "taken");
    }

    #[test]
    fn a_sysctl_that_could_hurt_other_pods_needs_the_nodes_leave() {
        let mut tuned = pod("tuned", "1m", &json!([]));
        let sysctl = Sysctl { name: "net.core.somaxconn".to_owned(), value: "9".to_owned() };
        tuned.spec.security_context.sysctls.push(sysctl);
        assert_eq!(reason(admit(&tuned, std::iter::empty(), &node())), "SysctlForbidden");
        let sysctls = Sysctls::allow(&["net.core.*".to_owned()]).unwrap();
        let allowing = Allocatable { sysctls, ..node() };
        assert_eq!(reason(admit(&tuned, std::iter::empty(), &allowing)), "taken");
    }

    #[test]
    fn a_host_port_is_given_once_for_each_address_and_protocol() {
        let first = pod("a", "1m", &json!([{"containerPort": 1, "hostPort": 80, "hostIP": "127.0.0.1"}]));
        let cases = [
            (json!([{"containerPort": 1, "hostPort": 80, "hostIP": "127.0.0.1"}]), "NodePorts"),
            (json!([{"containerPort": 1, "hostPort": 80}]), "NodePorts"),
            (json!([{"containerPort": 1, "hostPort": 80, "hostIP": "0.0.0.0"}]), "NodePorts"),
            (json!([{"containerPort": 1, "hostPort": 80, "hostIP": "127.0.0.2"}]), "taken"),
            (json!([{"containerPort": 1, "hostPort": 80, "protocol": "UDP"}]), "taken"),
            (json!([{"containerPort": 80}]), "taken"),
        ];
        for (ports, wanted) in cases {
            let result = admit(&pod("b", "1m", &ports), std::iter::once(&first), &node());
            assert_eq!(reason(result), wanted, "{ports}");
        }
    }
}
