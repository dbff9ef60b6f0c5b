//! Starting processes: from a request to a running program, by way of a forked helper that calls `libcontainer`.
//!
//! `libcontainer` clones and then runs ordinary Rust in the child, changes its caller (`oom_score_adj`, dumpable,
//! working directory) and leaves its garbage behind. So it never runs in the supervisor: a helper does it and ends.
//!
//! ```text
//! supervisor ── fork ──► helper ── libcontainer: clone(CLONE_PARENT) twice ──► init ── Launcher::exec ──► program
//!     ▲                    │ Report::Created{pid}, the pty master                │ Report::Failed{why}
//!     └────────── report channel (SOCK_SEQPACKET, close-on-exec) ◄───────────────┘
//! ```
//! The container's first process is a child of the supervisor. Everybody who holds the channel's other end either ends
//! or executes the program, so its end of file means that the outcome is known: the program runs if a pid was reported
//! and no failure. The supervisor only ever waits for this descriptor in its event loop.
//!
//! # What the daemon puts into `config.json`
//! An ordinary OCI spec (1.x), in which the supervisor then overrides (see [`spec`]): `root.path`, everything about
//! namespaces but the choice of `mount`, `pid` and `cgroup`, `process.terminal`. What [`crate::protocol::Security`]
//! says is left out of what `libcontainer` sees and applied by [`executor::Launcher`], in the order of [`confine`].

pub mod confine;
pub mod container;
pub mod details;
pub mod exec;
pub mod executor;
pub mod program;
pub mod report;
pub mod spec;

use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

use crate::cgroup::Hierarchies;
use crate::protocol::{ContainerId, Failure, FailureKind, SandboxDir};

/// What every helper needs to know of the sandbox.
#[derive(Debug, Clone)]
pub struct Site {
    /// The run directory.
    pub dir: SandboxDir,
    /// Where `libcontainer` keeps its state.
    pub state_dir: PathBuf,
    /// The pod's sandbox number.
    pub sandbox: u32,
    /// PID 1 of the shared pid namespace, if there is one.
    pub pid_ns_holder: Option<i32>,
    /// The machine's cgroups.
    pub hierarchies: Hierarchies,
}

impl Site {
    /// The bundle that `libcontainer` gets: the daemon's spec with everything filled in.
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.dir.attempt(id).join("bundle")
    }

    /// The daemon's spec.
    pub fn config(&self, id: &ContainerId) -> PathBuf {
        self.dir.attempt(id).join("config.json")
    }

    /// `libcontainer`'s own directory for a container.
    pub fn state(&self, container_id: &str) -> PathBuf {
        self.state_dir.join(container_id)
    }
}

/// Prepares the helper, which is a fresh copy of the supervisor.
fn enter_helper(oom_score_adj: i32) {
    umask(Mode::from_bits_truncate(0o022));
    // A machine may lack CAP_SYS_RESOURCE: then the value cannot be lowered, and that is no reason not to start.
    let _ = std::fs::write("/proc/self/oom_score_adj", oom_score_adj.to_string());
}

/// A failure to create, with a name in front.
fn cannot_create(what: impl std::fmt::Display) -> Failure {
    Failure { kind: FailureKind::CannotCreate, message: what.to_string() }
}

/// An error with everything it was caused by, each thing said once.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// What `libcontainer` says, without the names it gives to each of its own layers on the way.
fn from_libcontainer(error: &dyn std::error::Error) -> Failure {
    let text = in_full(error);
    cannot_create(text.rsplit("error in executing process : ").next().unwrap_or(&text))
}

fn named(what: &str, path: &Path, error: &dyn std::error::Error) -> Failure {
    cannot_create(format!("{what} {}: {}", path.display(), in_full(error)))
}
