//! Which sysctls a pod may set: the safe ones, and the unsafe ones that the node's administrator allows.
//!
//! Owns: the list of safe sysctls (<https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster>), the patterns of
//! `allowedUnsafeSysctls`, and which namespace a sysctl belongs to. Never: sets one (the pod's supervisor does, and refuses
//! what is not the pod's own whatever is allowed here).

use thiserror::Error;

use super::spec::Pod;

/// Those of a namespace of the pod that touch no other pod. The kernels this node runs on have namespaces for all of them.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Those of an IPC namespace that have no common prefix.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// Longest name, in bytes.
const LONGEST: usize = 253;

/// A namespace that sysctls belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

impl Namespace {
    /// Of a sysctl, or of all that begin with a prefix.
    fn of(name: &str) -> Option<Self> {
        if name.starts_with("net.") {
            return Some(Namespace::Net);
        }
        let ipc = IPC.contains(&name)
            || name.starts_with("fs.mqueue.")
            // kernel.shm* and kernel.msg*.
            || matches!(name, "kernel.shm" | "kernel.msg");
        ipc.then_some(Namespace::Ipc)
    }

    fn as_str(self) -> &'static str {
        match self {
            Namespace::Ipc => "IPC",
            Namespace::Net => "Net",
        }
    }

    fn is_the_nodes(self, pod: &Pod) -> bool {
        match self {
            Namespace::Ipc => pod.spec.host_ipc,
            Namespace::Net => pod.spec.host_network,
        }
    }
}

/// An entry of `allowedUnsafeSysctls` that is not one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatternError {
    /// It does not have the form of one.
    #[error(
        "`{0}` is neither a sysctl such as kernel.msgmax nor a prefix such as net.core.*, in lower case and at most \
         253 characters long"
    )]
    Malformed(String),
    /// It may change the node.
    #[error(
        "`{0}` is not known to belong to a namespace of a pod: net.*, fs.mqueue.*, kernel.shm*, kernel.msg* and kernel.sem do"
    )]
    NotNamespaced(String),
}

/// What pods may set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sysctls {
    names: Vec<String>,
    prefixes: Vec<String>,
}

impl Sysctls {
    /// The safe ones and those of `allowedUnsafeSysctls`.
    ///
    /// # Errors
    /// The first pattern that is malformed, or that could change the node.
    pub fn allow(patterns: &[String]) -> Result<Self, PatternError> {
        let mut allowed = Self::default();
        for pattern in patterns {
            let name = normal(pattern);
            let (name, list) = match name.strip_suffix('*') {
                Some(prefix) => (prefix, &mut allowed.prefixes),
                None => (name.as_str(), &mut allowed.names),
            };
            if !is_pattern(pattern) {
                return Err(PatternError::Malformed(pattern.clone()));
            }
            if Namespace::of(name).is_none() {
                return Err(PatternError::NotNamespaced(pattern.clone()));
            }
            list.push(name.to_owned());
        }
        Ok(allowed)
    }

    /// Why the pod may not run: its first sysctl that is not allowed, in kubelet's words.
    pub fn forbidden(&self, pod: &Pod) -> Option<String> {
        pod.spec.security_context.sysctls.iter().find_map(|sysctl| {
            let name = normal(&sysctl.name);
            if !self.has(&name) {
                return Some(format!("forbidden sysctl: \"{name}\" not allowlisted"));
            }
            let namespace = Namespace::of(&name).filter(|namespace| namespace.is_the_nodes(pod))?;
            let namespace = namespace.as_str();
            Some(format!("forbidden sysctl: \"{name}\" not allowed with host {namespace} enabled"))
        })
    }

    fn has(&self, name: &str) -> bool {
        SAFE.contains(&name)
            || self.names.iter().any(|allowed| allowed == name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// With dots between its parts. As in sysctl(8), whichever of `.` and `/` comes first is the separator; the other is then
/// part of a name (`net/ipv4/conf/eth0.1/forwarding`).
fn normal(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Whether these are parts of letters, digits, `-` and `_`, or `*` as the end.
fn is_pattern(pattern: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let segment = |part: &str| {
        part.starts_with(plain)
            && part.ends_with(plain)
            && part.chars().all(|c| plain(c) || matches!(c, '-' | '_'))
    };
    let body = pattern.strip_suffix('*').unwrap_or(pattern);
    let mut parts: Vec<&str> = body.split(['.', '/']).collect();
    // Before the star a part may be unfinished, or not begun.
    let open = if body.len() < pattern.len() { parts.pop() } else { None };
    pattern.len() <= LONGEST
        && parts.into_iter().all(segment)
        && open.is_none_or(|part| part.is_empty() || segment(part) || segment(&format!("{part}0")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(sysctl: &str, host_network: bool, host_ipc: bool) -> Pod {
        let spec = json!({
            "hostNetwork": host_network, "hostIPC": host_ipc, "containers": [{"name": "a", "image": "a:1"}],
            "securityContext": {"sysctls": [
                {"name": "net.ipv4.tcp_syncookies", "value": "1"}, {"name": sysctl, "value": "1"},
            ]},
        });
        let mut pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        if host_network {
            pod.spec.security_context.sysctls.remove(0);
        }
        pod
    }

    fn allow(patterns: &[&str]) -> Result<Sysctls, String> {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        Sysctls::allow(&patterns).map_err(|error| error.to_string())
    }

    #[test]
    fn unsafe_sysctls_are_forbidden_unless_the_node_allows_them() {
        let safe = allow(&[]).expect("nothing to be wrong");
        for name in SAFE {
            assert_eq!(safe.forbidden(&pod(name, false, false)), None, "{name}");
        }
        let message = |name: &str| safe.forbidden(&pod(name, false, false));
        for name in ["kernel.msgmax", "net.core.somaxconn", "net/core/somaxconn", "vm.swappiness"] {
            let dotted = name.replace('/', ".");
            assert_eq!(message(name), Some(format!("forbidden sysctl: \"{dotted}\" not allowlisted")));
        }
        let more = allow(&["kernel.msg*", "net.core.*", "net/ipv6/conf/eth0.1/*"]).expect("namespaced");
        for name in ["kernel.msgmax", "net.core.somaxconn", "net/core/somaxconn", "net/ipv6/conf/eth0.1/mtu"]
        {
            assert_eq!(more.forbidden(&pod(name, false, false)), None, "{name}");
        }
        for name in ["kernel.sem", "net.corex", "net.ipv6.conf.eth0.1.mtu", "vm.swappiness"] {
            assert!(more.forbidden(&pod(name, false, false)).is_some(), "{name}");
        }
    }

    #[test]
    fn a_pod_in_the_nodes_namespace_may_not_set_what_belongs_to_it() {
        let allowed = allow(&["kernel.sem", "net.core.*"]).expect("namespaced");
        let cases = [
            ("net.core.somaxconn", true, false, Some("Net")),
            ("net.ipv4.tcp_syncookies", true, false, Some("Net")),
            ("kernel.sem", true, false, None),
            ("kernel.sem", false, true, Some("IPC")),
            ("kernel.shm_rmid_forced", false, true, Some("IPC")),
            ("net.core.somaxconn", false, true, None),
        ];
        for (name, network, ipc, namespace) in cases {
            let wanted = namespace
                .map(|space| format!("forbidden sysctl: \"{name}\" not allowed with host {space} enabled"));
            assert_eq!(allowed.forbidden(&pod(name, network, ipc)), wanted, "{name}");
        }
    }

    #[test]
    fn patterns_that_are_not_the_pods_own_are_refused() {
        for good in
            ["kernel.shm*", "kernel.shmmax", "fs.mqueue.*", "net.*", "net.ipv4.tcp_*", "net/core/rmem_max"]
        {
            assert!(allow(&[good]).is_ok(), "{good}");
        }
        for node in
            ["vm.swappiness", "kernel.*", "kernel.shmx", "kernel.s*", "fs.*", "net*", "*", "networks.a"]
        {
            assert!(allow(&[node]).expect_err(node).contains("is not known to belong"), "{node}");
        }
        for wrong in ["", "net..a", "net.core.", "net.*.a", "net.Core", "net.core.**", "net.a b"] {
            assert!(allow(&["net.*", wrong]).expect_err(wrong).contains("is neither a sysctl"), "{wrong}");
        }
    }
}
