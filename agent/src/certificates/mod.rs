//! The node's certificates: asked for, kept, and renewed before they end.
//!
//! - `lifetime`: when a certificate is due. Pure
//! - `file`: a certificate and its key in one file
//! - `client`: the certificate that the node shows to the API server
//! - `serving`: the one that it shows to those who come to port 10250
//! - `trouble`: what to say when there is none that holds
//!
//! Owns: when, and where they are kept. Never: makes the request (`api::csr` does), opens a connection.
//!
//! A certificate and its key are one file, replaced by rename: kubelet swaps a link between files for the same end, that both
//! are always of one pair, and keeps the old ones.

pub mod client;
pub mod file;
pub mod lifetime;
pub mod serving;
#[cfg(test)]
mod tests;
pub mod trouble;

use std::time::Duration;

/// Clocks are set and machines sleep, which no timer tells: a date is looked at at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// A request that nobody decides is asked for again after so long, as kubelet does.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
