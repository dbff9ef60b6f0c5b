//! orlop: a whole Kubernetes node in one small daemon.
//!
//! Architecture invariants: only `api` names the HTTP client; the planning half of `pod` is pure (no clock, no I/O, no
//! async); `host` carries actions out and decides nothing.

pub mod api;
pub mod certificates;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod host;
pub mod image;
pub mod join;
pub mod logging;
pub mod logs;
pub mod network;
pub mod node;
pub mod pod;
pub mod preflight;
pub mod server;
pub mod services;
pub mod shutdown;
pub mod tls;
pub mod volume;
