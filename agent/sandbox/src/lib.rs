//! The per-pod supervisor: pause, reaper, launcher and log writer in one small single-threaded process.
//!
//! ```text
//! daemon ─┐ socket (protocol)                     ┌─ launch: forked helper ─► libcontainer ─► container
//! CLI    ─┴─► connection ─► supervisor (epoll) ───┼─ log: pipes ─► CRI files
//!                              ▲  records on disk └─ cgroup: kill, remove, OOM
//!                              └─ exits (SIGCHLD), helpers' reports
//! ```
//!
//! Architecture invariants: no async runtime, no thread, no TLS, no API types; this crate knows no other crate of the
//! workspace. `unsafe` lives in `sys`. What costs memory happens in forked helpers, which end.

pub mod cgroup;
pub mod connection;
pub mod device;
pub mod holder;
pub mod launch;
pub mod log;
pub mod output;
#[cfg(test)]
#[path = "../../../tests/src/programs.rs"]
mod programs;
pub mod protocol;
mod reaper;
pub mod record;
pub mod rootfs;
pub mod seccomp;
pub mod setup;
pub mod supervisor;
mod sys;

pub use supervisor::main;
pub use sys::{descriptor, environment, memory};
