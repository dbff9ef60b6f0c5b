//! Reading container logs, for `kubectl logs` (through the node's server) and for `orlop logs` alike.
//!
//! - `entry`, `print`: pure; the CRI format in, lines out
//! - `files`, `tail`, `reader`: the files of one log, read in order while the supervisor writes and rotates them
//! - `follow`: the log as a stream of bytes
//! - `cli`: the body of `orlop logs`
//!
//! Never: writes a log (the supervisor does).

pub mod cli;
pub mod entry;
pub mod files;
pub mod follow;
pub mod print;
pub mod reader;
pub mod tail;
#[cfg(test)]
mod tests;
