//! Why a node did not join, and the exit code that says so.
//!
//! Owns: the one table of exit codes, which `--help` and the manual show. Never: decides what is an error.

use std::fmt;
use std::process::ExitCode;

/// The exit codes of `orlop join`. Scripts rely on them: a number is never given another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Anything without a number of its own.
    Failed = 1,
    /// Flags or JoinConfiguration.
    Usage = 2,
    /// A finding of the preflight checks that is not ignored.
    Preflight = 3,
    /// No API server answers.
    Unreachable = 4,
    /// The token is unknown, wrong or over.
    Token = 5,
    /// The CA is another than the one whose hash was given.
    CaHash = 6,
    /// `cluster-info`, or who serves it, is not what the token and the CA vouch for.
    NotAuthentic = 7,
    /// The certificate signing request was refused.
    Denied = 8,
    /// Nobody approved the certificate signing request in time.
    NotApproved = 9,
    /// The cluster lacks what a node needs to join, or this node cannot do what it asks for.
    Cluster = 10,
    /// A file cannot be written.
    Write = 11,
    /// systemd does not start the service.
    Service = 12,
    /// The node joined, but did not become Ready in time.
    NotReady = 13,
}

impl Exit {
    /// All of them, by number.
    pub const ALL: [Self; 13] = [
        Self::Failed,
        Self::Usage,
        Self::Preflight,
        Self::Unreachable,
        Self::Token,
        Self::CaHash,
        Self::NotAuthentic,
        Self::Denied,
        Self::NotApproved,
        Self::Cluster,
        Self::Write,
        Self::Service,
        Self::NotReady,
    ];

    /// For the manual.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Failed => "another failure, which is printed",
            Self::Usage => "wrong flags or JoinConfiguration",
            Self::Preflight => "a preflight check failed that is not ignored",
            Self::Unreachable => "no API server answers at the endpoint in time",
            Self::Token => "the token is unknown, wrong, or has expired",
            Self::CaHash => "the cluster's CA has none of the given hashes",
            Self::NotAuthentic => "cluster-info was changed on its way, or its server is not the cluster's",
            Self::Denied => "the certificate signing request was denied",
            Self::NotApproved => {
                "the certificate signing request was not approved in time; joining again goes on from there"
            }
            Self::Cluster => "the cluster offers no usable kubelet-config, or does not let nodes join",
            Self::Write => "a file cannot be written (disk full, read-only); nothing was left half-written",
            Self::Service => "systemd did not take the service",
            Self::NotReady => "the node has joined and is not Ready in time",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The table for `--help` and the manual.
pub fn exit_codes() -> String {
    let mut text = "Exit codes:\n   0  the node is Ready\n".to_owned();
    for exit in Exit::ALL {
        text += &format!("  {:>2}  {}\n", exit as u8, exit.meaning());
    }
    text
}

/// A join that ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    what: String,
    advice: Option<String>,
}

impl Failure {
    /// With what happened.
    pub fn new(exit: Exit, what: impl fmt::Display) -> Self {
        Self { exit, what: what.to_string(), advice: None }
    }

    /// And what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl fmt::Display) -> Self {
        self.advice = Some(advice.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.advice {
            Some(advice) => write!(f, "\n  → {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_in_the_table_once() {
        let numbers: Vec<u8> = Exit::ALL.iter().map(|exit| *exit as u8).collect();
        assert_eq!(numbers, (1..=13).collect::<Vec<u8>>());
        let table = exit_codes();
        assert_eq!(table.lines().count(), 15);
        assert!(table.contains("   5  the token is unknown, wrong, or has expired\n"), "{table}");
        assert!(table.contains("  11  a file cannot be written"), "{table}");
    }

    #[test]
    fn a_failure_says_what_and_then_what_to_do() {
        let failure = Failure::new(Exit::Token, "no").advise("ask for another");
        assert_eq!(failure.to_string(), "no\n  → ask for another");
    }
}
