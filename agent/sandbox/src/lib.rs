//! The per-pod supervisor: pause, reaper, launcher and log writer in one small single-threaded process.
//!
//! Architecture invariant: no async runtime, no TLS, no API types; this crate knows no other crate of the workspace.

pub mod protocol;
