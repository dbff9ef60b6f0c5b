//! What the kernel lets this process do: tried by use, not looked up by version.
//!
//! Owns: the trials. Never: changes the machine: what is tried, is tried in namespaces that end with it.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::{Config, Event, Proxy};

use super::Finding;
use crate::host::cgroup::Cgroups;

/// Under this name kubeadm looks at the kernel as a whole.
const SYSTEM: &str = "SystemVerification";
const FORWARDING: &str = "FileContent--proc-sys-net-ipv4-ip_forward";

/// Every trial.
pub fn findings() -> Vec<Finding> {
    vec![
        privileges(),
        namespaces(),
        cgroups(),
        overlay(),
        nftables(),
        seccomp(),
        forwarding(),
        bridge_filter(),
        resource_capability(),
    ]
}

fn privileges() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::ok("IsPrivilegedUser", "running as root")
    } else {
        Finding::fail("IsPrivilegedUser", "not running as root", "run as root: sudo orlop ...")
    }
}

/// Tries each namespace on a thread of its own, which ends with them.
fn namespaces() -> Finding {
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ];
    let mut missing = vec![];
    for (name, flag) in kinds {
        let tried = std::thread::spawn(move || unshare(flag)).join();
        match tried {
            Ok(Ok(())) => {}
            Ok(Err(errno)) => missing.push(format!("{name}: {}", errno.desc())),
            Err(_) => missing.push(format!("{name}: could not be tried")),
        }
    }
    if missing.is_empty() {
        Finding::ok("Namespaces", "net ipc uts pid mnt cgroup")
    } else {
        Finding::fail(
            "Namespaces",
            missing.join(", "),
            "run as root, outside a container, on a kernel with these namespaces",
        )
    }
}

fn cgroups() -> Finding {
    let cgroups = match Cgroups::detect("/") {
        Ok(cgroups) => cgroups,
        Err(error) => {
            return Finding::fail("Cgroups", error.to_string(), "mount -t cgroup2 none /sys/fs/cgroup");
        }
    };
    let have = cgroups.controllers();
    let lacking: Vec<&str> =
        ["cpu", "memory", "pids"].into_iter().filter(|want| !have.iter().any(|c| c == want)).collect();
    let version = if cgroups.is_v2() { "version 2" } else { "version 1" };
    if !lacking.is_empty() {
        return Finding::fail(
            "Cgroups",
            format!("{version}, without {}", lacking.join(", ")),
            "enable the controllers on the kernel command line (cgroup_enable=memory, ...)",
        );
    }
    let detail = format!("{version}: {}", have.join(" "));
    if cgroups.is_v2() {
        Finding::ok("Cgroups", detail)
    } else {
        Finding::warn(
            "Cgroups",
            detail,
            "version 1 is deprecated: boot with systemd.unified_cgroup_hierarchy=1",
        )
    }
}

/// Mounts one, in a mount namespace of a thread's own.
fn overlay() -> Finding {
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        // Everything below is in memory, and ends with the namespace.
        let base = std::env::temp_dir();
        mount(Some("tmpfs"), &base, Some("tmpfs"), MsFlags::empty(), Some("size=1m"))?;
        for dir in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(base.join(dir)).map_err(|_| nix::errno::Errno::EIO)?;
        }
        let dirs = ["lower", "upper", "work"].map(|dir| format!("{dir}dir={}", base.join(dir).display()));
        let options = dirs.join(",");
        mount(
            Some("overlay"),
            &base.join("merged"),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
    })
    .join();
    match tried {
        Ok(Ok(())) => Finding::ok("Overlay", "can be mounted"),
        Ok(Err(errno)) => Finding::fail("Overlay", errno.desc(), "modprobe overlay"),
        Err(_) => Finding::fail("Overlay", "could not be tried", "modprobe overlay"),
    }
    .also(SYSTEM)
}

fn nftables() -> Finding {
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.desc().to_owned())?;
        // The namespace ends with this thread, and the table with it.
        let netlink = Netlink::open().map_err(|error| error.to_string())?;
        let mut proxy = Proxy::new(Config { table: "orlop-check".to_owned(), ..Config::default() }, netlink);
        proxy.apply(Event::ServicesReset(vec![]));
        proxy.apply(Event::SlicesReset(vec![]));
        proxy.sync(std::time::SystemTime::now()).map(|_| ()).map_err(|error| error.to_string())
    })
    .join();
    match tried {
        Ok(Ok(())) => Finding::ok("NFTables", "the service rules can be made"),
        Ok(Err(error)) => {
            Finding::fail("NFTables", error, "modprobe nf_tables nft_nat nft_masq nf_conntrack")
        }
        Err(_) => Finding::fail("NFTables", "could not be tried", "modprobe nf_tables"),
    }
}

/// What filters may answer; the profiles of this node answer with an error number.
fn seccomp() -> Finding {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        Finding::ok("Seccomp", "filters can be set")
    } else {
        Finding::fail(
            "Seccomp",
            "the kernel has no seccomp filters",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    }
    .also(SYSTEM)
}

fn forwarding() -> Finding {
    match std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").as_deref().map(str::trim) {
        Ok("1") => Finding::ok(FORWARDING, "on"),
        Ok(_) => Finding::ok(FORWARDING, "off now; the node turns it on when the first pod gets its network"),
        Err(_) => Finding::fail(FORWARDING, "no /proc/sys/net/ipv4", "mount /proc"),
    }
}

/// With br_netfilter off, traffic between two pods of one bridge bypasses the service rules on its way back.
fn bridge_filter() -> Finding {
    let path = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    match std::fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("1") => Finding::ok("BridgeNetfilter", "on"),
        Ok(_) | Err(_) => {
            Finding::ok("BridgeNetfilter", "off; not needed, pods reach services by hairpin routing")
        }
    }
}

fn resource_capability() -> Finding {
    let has =
        caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE).unwrap_or(false);
    if has {
        Finding::ok("SysResource", "held")
    } else {
        Finding::warn(
            "SysResource",
            "CAP_SYS_RESOURCE is missing: OOM scores cannot be lowered, limits cannot be raised",
            "run outside a container, or grant the capability",
        )
    }
}
