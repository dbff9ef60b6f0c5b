//! The conditions of a Node, with kubelet's reasons and messages. Pure.
//!
//! Owns: how the state of the node becomes conditions and events. Never: measures the state (those who do hand in
//! [`NodeConditions`]).

use jiff::Timestamp;

/// What others in the daemon know about the node's health.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeConditions {
    /// Whether containers can be started.
    pub runtime: Health,
    /// Whether pods can be connected.
    pub network: Health,
    /// `memory.available` is below its threshold.
    pub memory_pressure: bool,
    /// `nodefs.*` or `imagefs.*` is below its threshold.
    pub disk_pressure: bool,
    /// `pid.available` is below its threshold.
    pub pid_pressure: bool,
    /// The machine is going down.
    pub shutting_down: bool,
    /// Images in the store, for `status.images`: names and size in bytes.
    pub images: Vec<NodeImage>,
}

/// An image in `status.images`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeImage {
    /// Digests first, then tags.
    pub names: Vec<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// Whether one part works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// It does not, or not yet.
    NotReady {
        /// Why, for a person.
        message: String,
    },
}

impl Default for Health {
    fn default() -> Self {
        Health::NotReady { message: "not started yet".to_owned() }
    }
}

/// One condition of the Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCondition {
    /// `Ready`, `MemoryPressure`, ...
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// For a person.
    pub message: String,
    /// When `status` last changed.
    pub since: Option<Timestamp>,
}

/// The conditions to post, `Ready` last as other versions expect it, and the reasons of the events that go with the
/// changes since `previous`.
pub fn conditions(
    now: &NodeConditions,
    previous: &[NodeCondition],
    at: Timestamp,
) -> (Vec<NodeCondition>, Vec<&'static str>) {
    let mut events = Vec::new();
    let posted = wanted(now)
        .into_iter()
        .map(|(kind, holds, reason, message, event)| {
            let status = if holds { "True" } else { "False" };
            let before = previous.iter().find(|c| c.kind == kind);
            let since = match before {
                Some(before) if before.status == status => before.since.or(Some(at)),
                _ => {
                    events.push(event);
                    Some(at)
                }
            };
            NodeCondition { kind: kind.into(), status: status.into(), reason: reason.into(), message, since }
        })
        .collect();
    (posted, events)
}

type Wanted = (&'static str, bool, &'static str, String, &'static str);

fn wanted(now: &NodeConditions) -> [Wanted; 4] {
    let pressure = |kind,
                    holds,
                    (bad, good): ((&'static str, &str), (&'static str, &str)),
                    events: [&'static str; 2]| {
        let (reason, message) = if holds { bad } else { good };
        (kind, holds, reason, message.to_owned(), if holds { events[0] } else { events[1] })
    };
    let troubles = troubles(now);
    let ready = match troubles.len() {
        0 => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned(), "NodeReady"),
        1 => ("Ready", false, "KubeletNotReady", troubles.concat(), "NodeNotReady"),
        _ => ("Ready", false, "KubeletNotReady", format!("[{}]", troubles.join(", ")), "NodeNotReady"),
    };
    [
        pressure(
            "MemoryPressure",
            now.memory_pressure,
            (
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
            ["NodeHasInsufficientMemory", "NodeHasSufficientMemory"],
        ),
        pressure(
            "DiskPressure",
            now.disk_pressure,
            (
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
            ["NodeHasDiskPressure", "NodeHasNoDiskPressure"],
        ),
        pressure(
            "PIDPressure",
            now.pid_pressure,
            (
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
            ["NodeHasInsufficientPID", "NodeHasSufficientPID"],
        ),
        ready,
    ]
}

fn troubles(now: &NodeConditions) -> Vec<String> {
    let mut troubles = Vec::new();
    if let Health::NotReady { message } = &now.runtime {
        troubles.push(format!(
            "container runtime not ready: RuntimeReady=false reason:RuntimeNotReady message:{message}"
        ));
    }
    if let Health::NotReady { message } = &now.network {
        troubles.push(format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{message}"
        ));
    }
    if now.shutting_down {
        troubles.push("node is shutting down".to_owned());
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn healthy() -> NodeConditions {
        NodeConditions { runtime: Health::Ready, network: Health::Ready, ..NodeConditions::default() }
    }

    #[test]
    fn a_healthy_node_says_what_kubelet_says() {
        let (posted, events) = conditions(&healthy(), &[], at(5));
        let shown: Vec<_> =
            posted.iter().map(|c| (c.kind.as_str(), c.status.as_str(), c.reason.as_str())).collect();
        assert_eq!(
            shown,
            [
                ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                ("PIDPressure", "False", "KubeletHasSufficientPID"),
                ("Ready", "True", "KubeletReady"),
            ]
        );
        assert_eq!(posted[3].message, "kubelet is posting ready status");
        assert_eq!(
            events,
            ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"]
        );
    }

    #[test]
    fn the_moment_moves_only_with_the_status() {
        let (first, _) = conditions(&healthy(), &[], at(5));
        let (second, events) = conditions(&healthy(), &first, at(9));
        assert!(second.iter().all(|c| c.since == Some(at(5))));
        assert!(events.is_empty());
        let sick = NodeConditions { memory_pressure: true, ..healthy() };
        let (third, events) = conditions(&sick, &second, at(12));
        assert_eq!((third[0].since, third[1].since), (Some(at(12)), Some(at(5))));
        assert_eq!(events, ["NodeHasInsufficientMemory"]);
    }

    #[test]
    fn unknown_written_by_the_node_controller_is_taken_back() {
        let unknown = NodeCondition {
            kind: "Ready".into(),
            status: "Unknown".into(),
            reason: "NodeStatusUnknown".into(),
            message: "Kubelet stopped posting node status.".into(),
            since: Some(at(1)),
        };
        let (posted, events) = conditions(&healthy(), &[unknown], at(9));
        assert_eq!((posted[3].status.as_str(), posted[3].since), ("True", Some(at(9))));
        assert!(events.contains(&"NodeReady"));
    }

    #[test]
    fn every_trouble_is_told() {
        let down = Health::NotReady { message: "cni plugin not initialized".into() };
        let one = NodeConditions { network: down, ..healthy() };
        let (posted, _) = conditions(&one, &[], at(0));
        assert_eq!(
            posted[3].message,
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin \
             not initialized"
        );
        let two = NodeConditions { shutting_down: true, ..one };
        let (posted, _) = conditions(&two, &[], at(0));
        assert!(posted[3].message.starts_with("[container runtime network"), "{}", posted[3].message);
        assert!(posted[3].message.ends_with(", node is shutting down]"), "{}", posted[3].message);
    }
}
