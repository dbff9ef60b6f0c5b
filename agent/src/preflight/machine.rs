//! What is on this machine beside the kernel: names, swap, the clock, the disk, ports that are taken.
//!
//! Owns: these checks. Never: ends whoever is in the way; it is named.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

use jiff::Timestamp;
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, statfs};

use super::Finding;
use crate::services::control::SOCKET;

/// The name of the finding about the root directory.
const ROOT_DIR: &str = "RootDir";
/// The name of the findings about the clock.
pub const CLOCK: &str = "Clock";
const SET_CLOCK: &str =
    "set the clock (timedatectl set-ntp true): certificates and tokens are good for a time";
/// 2026-11-01T00:00:00Z.
const WRITTEN: i64 = 1_793_491_200;
/// Certificates are usually good from five minutes before they were signed: a clock later than that cannot use them.
const SKEW_FAIL: i64 = 300;
/// Seconds.
const SKEW_WARN: i64 = 30;

/// Every check that needs nobody else.
pub fn findings(root_dir: &Path, run_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![swap(), hostname(), clock_alone(Timestamp::now()), disk(root_dir)];
    findings.extend(ports(run_dir));
    findings
}

fn swap() -> Finding {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() <= 1 {
        Finding::ok("Swap", "off")
    } else {
        Finding::warn(
            "Swap",
            "on",
            "swapoff -a and take it out of /etc/fstab, or set failSwapOn: false knowingly",
        )
    }
}

fn hostname() -> Finding {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Finding::ok("Hostname", name.to_lowercase())
    } else {
        let advice =
            "set one with hostnamectl, or name the node: --node-name for join, --hostname-override for run";
        Finding::fail("Hostname", format!("{name:?} cannot be the name of a node"), advice)
    }
}

/// What can be said of the clock without another one: a board that keeps no time wakes up long ago.
fn clock_alone(here: Timestamp) -> Finding {
    if here.as_second() < WRITTEN {
        let detail = format!("says {here:.0}, which is before this program was written");
        Finding::fail(CLOCK, detail, SET_CLOCK)
    } else {
        Finding::ok(CLOCK, format!("says {here:.0}"))
    }
}

/// The difference between an API server's clock and this one.
pub fn clock(server: Timestamp, here: Timestamp) -> Finding {
    let seconds = here.duration_since(server).as_secs();
    let detail = match seconds {
        0 => "as the API server's".to_owned(),
        n if n > 0 => format!("{n} s ahead of the API server's"),
        n => format!("{} s behind the API server's", -n),
    };
    match seconds.abs() {
        0..=SKEW_WARN => Finding::ok(CLOCK, detail),
        n if n <= SKEW_FAIL => Finding::warn(CLOCK, detail, SET_CLOCK),
        _ => Finding::fail(CLOCK, detail, SET_CLOCK),
    }
}

/// Containers write into the upper layer of an overlay below the root directory, and not every file system can hold one.
/// What is not there yet will be on the file system of the nearest directory that is.
fn disk(root_dir: &Path) -> Finding {
    let there = root_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let kind = match statfs(there) {
        Ok(found) => found.filesystem_type(),
        Err(errno) => {
            let detail = format!("{} cannot be looked at: {}", there.display(), errno.desc());
            return Finding::fail(ROOT_DIR, detail, "see mount(8)");
        }
    };
    // Documentation/filesystems/overlayfs.rst: the upper layer needs trusted extended attributes and valid d_type.
    let unfit = [
        (OVERLAYFS_SUPER_MAGIC, "an overlay, which cannot hold the upper layer of another one"),
        (NFS_SUPER_MAGIC, "NFS, which cannot hold the upper layer of an overlay"),
        (MSDOS_SUPER_MAGIC, "FAT, which cannot hold the upper layer of an overlay"),
    ];
    match unfit.into_iter().find(|(magic, _)| *magic == kind) {
        None => Finding::ok(ROOT_DIR, format!("{} can hold containers", root_dir.display())),
        Some((_, why)) => Finding::fail(
            ROOT_DIR,
            format!("{} is on {why}", root_dir.display()),
            "mount a disk with ext4 or xfs there, or choose another --root-dir",
        ),
    }
}

/// The ports of a node: its server, both health checks, the services' metrics.
fn ports(run_dir: &Path) -> Vec<Finding> {
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    // Our own daemon, if it runs, holds them by right.
    let ours = UnixStream::connect(run_dir.join(SOCKET)).is_ok();
    [(any, 10250), (loopback, 10248), (any, 10256), (loopback, 10249)]
        .map(|(address, port)| taken(SocketAddr::new(address, port), ours))
        .into()
}

fn taken(address: SocketAddr, ours: bool) -> Finding {
    let name = format!("Port-{}", address.port());
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(name, "free"),
        Err(error) if error.kind() == ErrorKind::AddrInUse && ours => {
            Finding::ok(name, "in use by the orlop that runs here")
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let holder = holder(address.port()).map_or_else(String::new, |who| format!(" by {who}"));
            Finding::fail(name, format!("in use{holder}"), "end that program, or give it another port")
        }
        Err(error) => Finding::fail(name, format!("cannot be listened on: {error}"), "see what forbids it"),
    }
}

/// The process that listens on a port: its name and number.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    let sockets: HashSet<String> = tables
        .iter()
        .flat_map(|table| listeners(table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    // Others there, `self` among them, are no processes of their own.
    let numbered = processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    for process in numbered {
        let holds = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|link| sockets.contains(link.to_string_lossy().as_ref()))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// The inodes of sockets that listen on a port, in a table such as `/proc/net/tcp`.
fn listeners(table: &str, port: u16) -> Vec<String> {
    let wanted = format!(":{port:04X}");
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "0A";
        listens.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    };
    table.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_clock_of_long_ago_is_wrong_whoever_is_asked() {
        let at = |text: &str| clock_alone(text.parse().expect("a time"));
        let early = at("1970-01-01T00:00:09.5Z");
        assert_eq!(early.detail, "says 1970-01-01T00:00:09Z, which is before this program was written");
        assert_eq!((early.level, at("2026-10-31T23:59:59Z").level), (Level::Fail, Level::Fail));
        assert_eq!(at("2026-11-01T00:00:00Z").level, Level::Ok);
    }

    #[test]
    fn a_clock_that_is_wrong_is_named_with_its_direction() {
        let server = Timestamp::from_second(1_800_000_000).expect("a time");
        for (offset, level, detail) in [
            (0, Level::Ok, "as the API server's"),
            (-20, Level::Ok, "20 s behind the API server's"),
            (60, Level::Warn, "60 s ahead of the API server's"),
            (-301, Level::Fail, "301 s behind the API server's"),
            (86_400, Level::Fail, "86400 s ahead of the API server's"),
        ] {
            let here = Timestamp::from_second(1_800_000_000 + offset).expect("a time");
            let finding = clock(server, here);
            assert_eq!((finding.level, finding.detail.as_str()), (level, detail));
        }
    }

    #[test]
    fn whoever_holds_a_port_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let address = listener.local_addr().expect("an address");
        let finding = taken(address, false);
        assert_eq!(
            (finding.level, finding.name.as_str()),
            (Level::Fail, &*format!("Port-{}", address.port()))
        );
        let us = format!("(process {})", std::process::id());
        assert!(
            finding.detail.starts_with("in use by ") && finding.detail.ends_with(&us),
            "{}",
            finding.detail
        );
        assert_eq!(taken(address, true).level, Level::Ok);
        drop(listener);
    }

    #[test]
    fn only_sockets_that_listen_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 x\n   \
            1: 0100007F:280A 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 222 1 x\n   \
            2: 0100007F:280B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 x\n";
        assert_eq!(listeners(table, 10250), ["111"]);
    }
}
