//! End-to-end tests and benchmarks: the real binary, driven as its users drive it.
//!
//! - [`node`]: a node with namespaces, directories and a cgroup root of its own; gone when dropped.
//! - [`client`]: a small API client that speaks from inside a node's network namespace.
//! - [`crossroads`]: nodes on two links with a router between.
//! - [`gate`]: stops a transfer in its middle.
//! - [`guest`]: a machine that boots real systemd with cgroup version 2.
//! - [`image`]: images made of Debian's busybox.
//! - `namespaces`: what a node, or a router, runs in.
//! - [`joining`]: machines that join a cluster.
//! - [`programs`]: programs that a test writes and then runs.
//! - [`report`]: a benchmark's figures beside their goals.
//! - [`registry`]: a real registry on a node's loopback.
//! - [`leftovers`]: what a node leaves behind on the machine.
//!
//! Never: links the agent, or knows how it is made inside.

pub mod client;
pub mod crossroads;
pub mod gate;
pub mod guest;
pub mod image;
pub mod joining;
pub mod leftovers;
pub mod manifest;
mod namespaces;
pub mod node;
pub mod programs;
pub mod registry;
pub mod report;
pub mod stats;

/// Why a test cannot run here, if it cannot: printed as `SKIP <reason>` and counted by the runner.
pub fn cannot_run() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    if !std::path::Path::new("/bin/busybox").exists() {
        return Some("needs /bin/busybox (Debian's busybox-static)");
    }
    if std::env::var_os("ORLOP_BIN").is_none() {
        return Some("needs ORLOP_BIN, the binary to test (set by the test runner)");
    }
    None
}

/// Ends the calling test as skipped where it cannot run.
#[macro_export]
macro_rules! require {
    () => {
        if let Some(reason) = $crate::cannot_run() {
            println!("SKIP {reason}");
            return Ok(());
        }
    };
    ($condition:expr, $reason:expr) => {
        if !$condition {
            println!("SKIP {}", $reason);
            return Ok(());
        }
    };
}
