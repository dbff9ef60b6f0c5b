//! System call filters: from a profile and a set of capabilities to a program for the kernel.
//!
//! Owns: profiles ([`profile`], [`runtime_default`]), system call numbers ([`syscalls`]), the compiler ([`bpf`]).
//! Never: loads a filter (see `sys::privilege`).
//!
//! ```text
//! Localhost file ─► profile::parse ─┐
//!                                   ├─► Rules (numbers, actions, conditions) ─► bpf::compile ─► [Instruction]
//! RuntimeDefault ─► runtime_default ┘
//! ```

pub mod bpf;
pub mod profile;
pub mod runtime_default;
pub mod syscalls;

use std::path::PathBuf;

/// What the filter answers to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Let it through.
    Allow,
    /// Fail with this errno.
    Errno(u16),
    /// Kill the process.
    KillProcess,
    /// Kill the thread.
    KillThread,
    /// Send `SIGSYS`.
    Trap,
    /// Let it through and log it.
    Log,
    /// Ask the tracer; without one, fail with `ENOSYS`.
    Trace(u16),
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `arg == value`
    Equal(u64),
    /// `arg != value`
    NotEqual(u64),
    /// `arg > value`
    Greater(u64),
    /// `arg >= value`
    GreaterOrEqual(u64),
    /// `arg < value`
    Less(u64),
    /// `arg <= value`
    LessOrEqual(u64),
    /// `arg & mask == value`
    Masked {
        /// The bits that are looked at.
        mask: u64,
        /// What they must be.
        value: u64,
    },
}

/// A comparison of one of the six arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    /// How it is compared.
    pub comparison: Comparison,
}

/// What to do with one system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its number on this machine's architecture.
    pub number: u32,
    /// All must hold; none means always.
    pub conditions: Vec<Condition>,
    /// What then happens.
    pub action: Action,
}

/// A profile made concrete: numbers instead of names, no capability left to ask about.
///
/// Of the rules for one number an unconditional one wins, then the first whose conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// For system calls no rule speaks of.
    pub default: Action,
    /// In the profile's order.
    pub rules: Vec<Rule>,
    /// Flags of `seccomp(2)`.
    pub flags: u64,
}

/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: the filter does not switch speculation mitigations on, as with other runtimes.
pub const FLAG_SPEC_ALLOW: u64 = 4;
/// `SECCOMP_FILTER_FLAG_LOG`.
pub const FLAG_LOG: u64 = 2;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The profile's file cannot be read.
    #[error("read seccomp profile {path}: {source}")]
    Read {
        /// The profile.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The profile is not JSON of the known form.
    #[error("parse seccomp profile: {0}")]
    Parse(#[from] serde_json::Error),
    /// The profile asks for something that cannot be honoured; ignoring it would weaken the filter.
    #[error("seccomp profile: {what} {value:?} is not supported")]
    Unsupported {
        /// Which part of the profile.
        what: &'static str,
        /// What it says.
        value: String,
    },
    /// More rules than the kernel takes.
    #[error("seccomp filter has {0} instructions, the kernel takes 4096")]
    TooLong(usize),
    /// Rules for this processor are not known.
    #[error("seccomp filters are not supported on this processor")]
    UnknownArchitecture,
}
