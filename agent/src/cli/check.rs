//! `orlop check`: what this machine lacks to be a node. Features are tried, not looked up by kernel version.
//!
//! Owns: the list of findings. Never: changes the machine; what it tries, it tries in namespaces that end with it.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use nix::sched::{CloneFlags, unshare};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::{Config, Event, Proxy};
use serde::Serialize;

use crate::host::cgroup::Cgroups;

/// The flags of `orlop check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Output format
    #[arg(short, long, value_parser = ["json", "table"], default_value = "table")]
    output: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// The node runs, with less.
    Warn,
    /// The node cannot run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    what: &'static str,
    detail: String,
    /// What to do about it; empty if nothing.
    advice: &'static str,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { level: Level::Ok, what, detail: detail.into(), advice: "" }
    }
    fn warn(what: &'static str, detail: impl Into<String>, advice: &'static str) -> Self {
        Self { level: Level::Warn, what, detail: detail.into(), advice }
    }
    fn fail(what: &'static str, detail: impl Into<String>, advice: &'static str) -> Self {
        Self { level: Level::Fail, what, detail: detail.into(), advice }
    }
}

/// Looks at everything and prints it. Exit code 1 if the node cannot run here.
pub fn main(args: &CheckArgs) -> ExitCode {
    let findings = findings();
    if args.output == "json" {
        println!("{}", serde_json::to_string_pretty(&findings).unwrap_or_default());
    } else {
        print(&findings);
    }
    if findings.iter().any(|finding| finding.level == Level::Fail) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn print(findings: &[Finding]) {
    let color = std::io::stdout().is_terminal();
    for finding in findings {
        let (word, code) = match finding.level {
            Level::Ok => ("ok", "32"),
            Level::Warn => ("warn", "33"),
            Level::Fail => ("FAIL", "31"),
        };
        let word = if color { format!("\x1b[{code}m{word:<4}\x1b[0m") } else { format!("{word:<4}") };
        println!("{word}  {:<14} {}", finding.what, finding.detail);
        if !finding.advice.is_empty() {
            println!("      {:<14} → {}", "", finding.advice);
        }
    }
}

fn findings() -> Vec<Finding> {
    let mut findings = vec![privileges()];
    findings.push(namespaces());
    findings.push(cgroups());
    findings.push(overlay());
    findings.push(nftables());
    findings.push(seccomp());
    findings.push(forwarding());
    findings.push(bridge_filter());
    findings.push(swap());
    findings.push(resource_capability());
    findings.push(hostname());
    findings
}

fn privileges() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::ok("root", "running as root")
    } else {
        Finding::fail("root", "not running as root", "run as root: sudo orlop ...")
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
        Finding::ok("namespaces", "net ipc uts pid mnt cgroup")
    } else {
        Finding::fail(
            "namespaces",
            missing.join(", "),
            "run as root, outside a container, on a kernel with these namespaces",
        )
    }
}

fn cgroups() -> Finding {
    let cgroups = match Cgroups::detect("/") {
        Ok(cgroups) => cgroups,
        Err(error) => {
            return Finding::fail("cgroups", error.to_string(), "mount -t cgroup2 none /sys/fs/cgroup");
        }
    };
    let have = cgroups.controllers();
    let lacking: Vec<&str> =
        ["cpu", "memory", "pids"].into_iter().filter(|want| !have.iter().any(|c| c == want)).collect();
    let version = if cgroups.is_v2() { "version 2" } else { "version 1" };
    if !lacking.is_empty() {
        return Finding::fail(
            "cgroups",
            format!("{version}, without {}", lacking.join(", ")),
            "enable the controllers on the kernel command line (cgroup_enable=memory, ...)",
        );
    }
    let detail = format!("{version}: {}", have.join(" "));
    if cgroups.is_v2() {
        Finding::ok("cgroups", detail)
    } else {
        Finding::warn(
            "cgroups",
            detail,
            "version 1 is deprecated: boot with systemd.unified_cgroup_hierarchy=1",
        )
    }
}

fn overlay() -> Finding {
    let list = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if list.lines().any(|line| line.ends_with("\toverlay")) {
        Finding::ok("overlay", "available")
    } else {
        Finding::fail("overlay", "the kernel does not list it", "modprobe overlay")
    }
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
        Ok(Ok(())) => Finding::ok("nftables", "the service rules can be made"),
        Ok(Err(error)) => {
            Finding::fail("nftables", error, "modprobe nf_tables nft_nat nft_masq nf_conntrack")
        }
        Err(_) => Finding::fail("nftables", "could not be tried", "modprobe nf_tables"),
    }
}

fn seccomp() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line.starts_with("Seccomp_filters:") || line.starts_with("Seccomp:")) {
        Finding::ok("seccomp", "available")
    } else {
        Finding::fail("seccomp", "the kernel has no seccomp", "use a kernel with CONFIG_SECCOMP_FILTER")
    }
}

fn forwarding() -> Finding {
    match std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").as_deref().map(str::trim) {
        Ok("1") => Finding::ok("ip_forward", "on"),
        Ok(_) => {
            Finding::ok("ip_forward", "off now; the node turns it on when the first pod gets its network")
        }
        Err(_) => Finding::fail("ip_forward", "no /proc/sys/net/ipv4", "mount /proc"),
    }
}

/// With br_netfilter off, traffic between two pods of one bridge bypasses the service rules on its way back.
fn bridge_filter() -> Finding {
    let path = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    match std::fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("1") => Finding::ok("br_netfilter", "on"),
        Ok(_) | Err(_) => {
            Finding::ok("br_netfilter", "off; not needed, pods reach services by hairpin routing")
        }
    }
}

fn swap() -> Finding {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() <= 1 {
        Finding::ok("swap", "off")
    } else {
        Finding::warn("swap", "on", "swapoff -a, or set failSwapOn: false knowingly")
    }
}

fn resource_capability() -> Finding {
    let has =
        caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE).unwrap_or(false);
    if has {
        Finding::ok("SYS_RESOURCE", "held")
    } else {
        Finding::warn(
            "SYS_RESOURCE",
            "CAP_SYS_RESOURCE is missing: OOM scores cannot be lowered, limits cannot be raised",
            "run outside a container, or grant the capability",
        )
    }
}

fn hostname() -> Finding {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let valid = !name.is_empty()
        && name.len() <= 253
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if valid {
        Finding::ok("hostname", name.to_lowercase())
    } else {
        Finding::fail(
            "hostname",
            format!("{name:?} is no DNS name"),
            "set one with hostnamectl, or use --hostname-override",
        )
    }
}
