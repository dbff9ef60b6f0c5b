//! What this machine is. The one file of `node` that looks at the system.
//!
//! Owns: reading `/proc`, `/sys`, `/etc` and the kernel's view of addresses. Never: judges; what cannot be read is
//! absent or zero, as it is with kubelet.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use nix::unistd::SysconfVar;

/// Facts about the machine. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Logical CPUs online.
    pub cpus: u64,
    /// Memory the kernel manages.
    pub memory: u64,
    /// Swap.
    pub swap: u64,
    /// Size of the file system that holds the root directory.
    pub ephemeral_storage: u64,
    /// Huge pages: page size to total size.
    pub hugepages: BTreeMap<u64, u64>,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The firmware's UUID, or the machine id where there is none.
    pub system_uuid: String,
    /// Changes at every boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os_image: String,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: &'static str,
}

impl Facts {
    /// Reads everything. Cheap: about a dozen small files.
    pub fn read(root_dir: &Path) -> Self {
        let machine_id = first_line(&["/etc/machine-id", "/var/lib/dbus/machine-id"]);
        let uuid = first_line(&["/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid"]);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cpus: cpus(),
            memory: meminfo_bytes(&meminfo, "MemTotal"),
            swap: meminfo_bytes(&meminfo, "SwapTotal"),
            ephemeral_storage: storage(root_dir),
            hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: first_line(&["/proc/sys/kernel/random/boot_id"]),
            kernel: first_line(&["/proc/sys/kernel/osrelease"]),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            architecture: architecture(std::env::consts::ARCH),
        }
    }
}

/// The addresses of this node: those given, or the one that packets towards the default route leave from, or the first
/// that is not loopback. IPv4 goes before IPv6, as kubelet has it for single-stack nodes. A given `0.0.0.0` or `::` means to
/// look for an address of that family.
pub fn addresses(given: &[IpAddr]) -> Vec<IpAddr> {
    let look = |v4: bool| routed(v4).or_else(|| first_of_interfaces(v4));
    if given.is_empty() {
        let either = routed(true).or_else(|| routed(false));
        return either
            .or_else(|| first_of_interfaces(true))
            .or_else(|| first_of_interfaces(false))
            .into_iter()
            .collect();
    }
    given.iter().filter_map(|ip| if ip.is_unspecified() { look(ip.is_ipv4()) } else { Some(*ip) }).collect()
}

/// The source of packets towards the default route.
fn routed(v4: bool) -> Option<IpAddr> {
    // Connecting a UDP socket sends nothing; it only asks the routing table. The addresses are for documentation.
    let (local, remote) = match v4 {
        true => (SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from(([192, 0, 2, 1], 9))),
        false => {
            let remote = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            (SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), SocketAddr::from((remote, 9)))
        }
    };
    let socket = UdpSocket::bind(local).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(is_usable)
}

fn first_of_interfaces(v4: bool) -> Option<IpAddr> {
    nix::ifaddrs::getifaddrs()
        .ok()?
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .find(|ip| ip.is_ipv4() == v4 && is_usable(ip))
}

fn is_usable(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !link_local
}

fn first_line(paths: &[&str]) -> String {
    let read = |path: &&str| fs::read_to_string(path).ok();
    let line = |text: String| text.lines().next().unwrap_or_default().trim_matches(['\0', ' ']).to_owned();
    paths.iter().filter_map(read).map(line).find(|l| !l.is_empty()).unwrap_or_default()
}

fn cpus() -> u64 {
    let online = nix::unistd::sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(1)
}

/// A line of `/proc/meminfo`, which counts in KiB.
fn meminfo_bytes(meminfo: &str, field: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn storage(root_dir: &Path) -> u64 {
    // Before the first start the directory may not exist yet; its parent is on the file system it will be on.
    let existing = root_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(existing).map_or(0, |s| s.blocks() * s.fragment_size())
}

fn hugepages(folder: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count: u64 =
                fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
            Some((kib * 1024, kib * 1024 * count))
        })
        .collect()
}

fn os_image(os_release: &str) -> String {
    let pretty = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches(['"', '\'']).to_owned())
}

fn architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let facts = Facts::read(Path::new("/nonexistent/orlop"));
        assert!(facts.cpus > 0 && facts.memory > 0 && facts.ephemeral_storage > 0);
        assert!(!facts.boot_id.is_empty() && !facts.kernel.is_empty());
    }

    #[test]
    fn files_are_read_as_they_are_written() {
        assert_eq!(
            meminfo_bytes("MemTotal:       16370948 kB\nSwapTotal: 0 kB\n", "MemTotal"),
            16_370_948 * 1024
        );
        assert_eq!(meminfo_bytes("MemTotalX: 1 kB\n", "MemTotal"), 0);
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
        assert_eq!(architecture("x86_64"), "amd64");
    }

    #[test]
    fn huge_pages_are_counted_by_size() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, count) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n"), ("other", "1")] {
            fs::create_dir(folder.path().join(name)).expect("made");
            fs::write(folder.path().join(name).join("nr_hugepages"), count).expect("written");
        }
        assert_eq!(hugepages(folder.path()), [(2 << 20, 6 << 20), (1 << 30, 0)].into());
    }

    #[test]
    fn given_addresses_are_taken_as_they_are() {
        let given: Vec<IpAddr> = vec!["10.0.0.1".parse().expect("v4"), "fd00::1".parse().expect("v6")];
        assert_eq!(addresses(&given), given);
        assert!(addresses(&[]).iter().all(is_usable));
        let any_v4 = addresses(&["0.0.0.0".parse().expect("v4")]);
        assert!(any_v4.iter().all(|ip| ip.is_ipv4() && is_usable(ip)));
    }
}
