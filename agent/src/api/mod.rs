//! The API server's side of the node. Only this folder names the HTTP client, and only it knows that a cluster is
//! somewhere else.
//!
//! - `kubeconfig`, `tls`, `token`: who the server is and who we are
//! - `client`, `error`, `path`, `outage`: calls and what comes of them
//! - `list`, `watch`, `lines`, `backoff`: a resource as a stream of changes
//! - `reporter`, `status_patch`, `events`, `correlate`: what this node tells of its pods
//! - `csr`: certificates by CertificateSigningRequest
//! - `objects`: config maps, secrets and tokens on demand

pub mod backoff;
pub mod client;
pub mod clock;
mod correlate;
pub mod csr;
pub mod error;
pub mod events;
#[cfg(test)]
pub(crate) mod fake;
pub mod http;
pub mod kubeconfig;
mod lines;
pub mod list;
pub mod objects;
pub mod outage;
pub mod path;
mod provide;
pub mod reporter;
mod status_patch;
pub mod tls;
mod token;
pub mod watch;

#[cfg(test)]
mod tests;
