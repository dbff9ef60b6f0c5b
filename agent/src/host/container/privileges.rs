//! Capabilities, seccomp profile, device access, masked paths. Pure.
//!
//! Owns: the default sets that container runtimes agree on, and what a security context makes of them. Never: applies
//! them (the supervisor's executor does).

use std::collections::BTreeSet;
use std::path::Path;

use orlop_sandbox::protocol::Seccomp;

use crate::pod::spec::{Capabilities, Container, Pod, ProcMount, SecurityProfile};

/// What a container may do that asks for nothing: the set of docker and containerd.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The capabilities of a container, by names without `CAP_`, sorted.
///
/// # Errors
/// A name that the kernel's headers do not know.
pub fn capabilities(container: &Container) -> Result<Vec<String>, String> {
    let all = || caps::all().iter().map(|cap| short(&cap.to_string())).collect::<BTreeSet<String>>();
    if container.security_context.privileged {
        return Ok(all().into_iter().collect());
    }
    let Capabilities { add, drop } = &container.security_context.capabilities;
    let known = all();
    let parse = |name: &String| {
        let name = short(&name.to_uppercase());
        if name == "ALL" || known.contains(&name) {
            Ok(name)
        } else {
            Err(format!("unknown capability \"{name}\" of container {}", container.name))
        }
    };
    let add = add.iter().map(parse).collect::<Result<BTreeSet<_>, _>>()?;
    let drop = drop.iter().map(parse).collect::<Result<BTreeSet<_>, _>>()?;
    let mut set: BTreeSet<String> = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    // `ALL` first, single names after it: dropping ALL and adding one leaves that one, and the other way round.
    if add.contains("ALL") {
        set.clone_from(&known);
    }
    if drop.contains("ALL") {
        set.clear();
    }
    set.extend(add.into_iter().filter(|name| name != "ALL"));
    set.retain(|name| !drop.contains(name));
    Ok(set.into_iter().collect())
}

fn short(name: &str) -> String {
    name.strip_prefix("CAP_").unwrap_or(name).to_owned()
}

/// The system call filter. `root` is the node's directory of Localhost profiles (`<root-dir>/seccomp`).
///
/// # Errors
/// A Localhost profile whose path leaves that directory.
pub fn seccomp(pod: &Pod, container: &Container, by_default: bool, root: &Path) -> Result<Seccomp, String> {
    if container.security_context.privileged {
        return Ok(Seccomp::Unconfined);
    }
    match container.security_context.within(&pod.spec.security_context).seccomp_profile {
        Some(SecurityProfile::RuntimeDefault) => Ok(Seccomp::RuntimeDefault),
        Some(SecurityProfile::Unconfined) => Ok(Seccomp::Unconfined),
        Some(SecurityProfile::Localhost(path)) => {
            let relative = Path::new(path);
            let descends = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            if path.is_empty() || !descends {
                return Err(format!(
                    "invalid seccomp profile path {path:?}: it must descend from the profile directory"
                ));
            }
            Ok(Seccomp::Localhost(root.join(relative)))
        }
        None if by_default => Ok(Seccomp::RuntimeDefault),
        None => Ok(Seccomp::Unconfined),
    }
}

/// Paths that show nothing, and paths that cannot be written.
pub fn hidden_paths(container: &Container) -> (Vec<String>, Vec<String>) {
    let open =
        container.security_context.privileged || container.security_context.proc_mount == ProcMount::Unmasked;
    if open {
        return (vec![], vec![]);
    }
    (MASKED.map(str::to_owned).to_vec(), READ_ONLY.map(str::to_owned).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::SecurityContext;

    fn container(add: &[&str], drop: &[&str]) -> Container {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = Capabilities { add: set(add), drop: set(drop) };
        Container {
            security_context: SecurityContext { capabilities, ..SecurityContext::default() },
            ..Container::default()
        }
    }

    #[test]
    fn adding_and_dropping_follow_the_names() {
        let caps = |add: &[&str], drop: &[&str]| capabilities(&container(add, drop)).expect("known");
        assert_eq!(caps(&[], &[]), DEFAULT_CAPABILITIES);
        assert_eq!(caps(&[], &["ALL"]), Vec::<String>::new());
        assert_eq!(caps(&["NET_ADMIN"], &["ALL"]), ["NET_ADMIN"]);
        assert_eq!(caps(&["CAP_SYS_TIME"], &["ALL"]), ["SYS_TIME"]);
        assert!(caps(&["ALL"], &["MKNOD"]).len() > 30);
        assert!(!caps(&["ALL"], &["MKNOD"]).contains(&"MKNOD".to_owned()));
        assert!(capabilities(&container(&["FLY"], &[])).expect_err("unknown").contains("\"FLY\""));
    }

    #[test]
    fn a_localhost_profile_stays_in_its_directory() {
        let mut container = Container::default();
        let profile = |container: &Container| seccomp(&Pod::default(), container, true, Path::new("/s"));
        assert_eq!(profile(&container), Ok(Seccomp::RuntimeDefault));
        container.security_context.seccomp_profile = Some(SecurityProfile::Localhost("a/b.json".into()));
        assert_eq!(profile(&container), Ok(Seccomp::Localhost("/s/a/b.json".into())));
        for path in ["../x", "/etc/x", ""] {
            container.security_context.seccomp_profile = Some(SecurityProfile::Localhost(path.into()));
            assert!(profile(&container).is_err(), "{path:?}");
        }
        container.security_context.privileged = true;
        assert_eq!(profile(&container), Ok(Seccomp::Unconfined));
    }
}
