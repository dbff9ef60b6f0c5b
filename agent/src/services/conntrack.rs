//! The kernel's limits of connection tracking, as kube-proxy sets them.
//!
//! Owns: which file under `/proc/sys/net/netfilter` gets which number. Never: lowers how many connections there may be; fails
//! (a machine that does not let it be set runs with what it has).

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::config::services::Conntrack;

const FOLDER: &str = "/proc/sys/net/netfilter";
const MAX: &str = "nf_conntrack_max";

/// Sets what is to be set, in the network namespace of the caller.
pub fn apply(limits: &Conntrack) {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    apply_in(Path::new(FOLDER), &wanted(limits, cores));
}

/// Files and numbers.
fn wanted(limits: &Conntrack, cores: u64) -> Vec<(&'static str, u64)> {
    let mut all = Vec::new();
    // As in kube-proxy, the minimum counts only where connections are counted by core.
    if limits.max_per_core > 0 {
        all.push((MAX, (u64::from(limits.max_per_core) * cores).max(limits.min.into())));
    }
    let times = [
        ("nf_conntrack_tcp_timeout_established", limits.tcp_established),
        ("nf_conntrack_tcp_timeout_close_wait", limits.tcp_close_wait),
        ("nf_conntrack_udp_timeout", limits.udp),
        ("nf_conntrack_udp_timeout_stream", limits.udp_stream),
    ];
    let seconds = |(file, time): (&'static str, Option<Duration>)| Some((file, time?.as_secs()));
    all.extend(times.into_iter().filter_map(seconds));
    if limits.tcp_be_liberal {
        all.push(("nf_conntrack_tcp_be_liberal", 1));
    }
    all
}

fn apply_in(folder: &Path, wanted: &[(&str, u64)]) {
    for (file, number) in wanted {
        if let Err(error) = set(&folder.join(file), *number, *file == MAX) {
            tracing::warn!(sysctl = file, number, %error, "cannot be set, the kernel keeps what it has");
        }
    }
}

/// Writes only what differs: in a network namespace some of these can be read but not written.
fn set(file: &Path, number: u64, is_minimum: bool) -> io::Result<()> {
    let now: Option<u64> = fs::read_to_string(file)?.trim().parse().ok();
    let enough = now.is_some_and(|now| now == number || (is_minimum && now > number));
    if enough { Ok(()) } else { fs::write(file, number.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxys_defaults_grow_with_the_cores() {
        let of = |limits: Conntrack, cores| wanted(&limits, cores);
        let times =
            [("nf_conntrack_tcp_timeout_established", 86_400), ("nf_conntrack_tcp_timeout_close_wait", 3600)];
        assert_eq!(of(Conntrack::default(), 2), [&[(MAX, 131_072)], &times[..]].concat());
        assert_eq!(of(Conntrack::default(), 64)[0], (MAX, 64 * 32_768));
        let none = Conntrack {
            max_per_core: 0,
            tcp_established: None,
            tcp_close_wait: None,
            ..Conntrack::default()
        };
        assert_eq!(of(none, 2), []);
        let some = Conntrack { tcp_be_liberal: true, udp_stream: Some(Duration::from_secs(180)), ..none };
        let all = [("nf_conntrack_udp_timeout_stream", 180), ("nf_conntrack_tcp_be_liberal", 1)];
        assert_eq!(of(some, 2), all);
    }

    #[test]
    fn numbers_are_set_and_the_size_is_never_lowered() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        fs::write(file(MAX), "262144\n").expect("written");
        fs::write(file("nf_conntrack_udp_timeout"), "30\n").expect("written");
        apply_in(folder.path(), &[(MAX, 131_072), ("nf_conntrack_udp_timeout", 10), ("not_there", 1)]);
        let read = |name: &str| fs::read_to_string(file(name)).expect("read");
        assert_eq!((read(MAX).trim(), read("nf_conntrack_udp_timeout").trim()), ("262144", "10"));
        assert!(!file("not_there").exists(), "what the kernel does not have is not made");
        apply_in(folder.path(), &[(MAX, 400_000)]);
        assert_eq!(read(MAX).trim(), "400000");
    }
}
