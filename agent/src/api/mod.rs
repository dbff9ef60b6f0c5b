//! The API server's side of the node. Only this folder names the HTTP client, and only it knows that a cluster is
//! somewhere else.
//!
//! - `kubeconfig`, `tls`, `token`: who the server is and who we are
//! - `client`, `error`, `path`, `outage`: calls and what comes of them
//! - `list`, `watch`, `lines`, `backoff`: a resource as a stream of changes

pub mod backoff;
pub mod client;
pub mod error;
#[cfg(test)]
pub(crate) mod fake;
pub mod kubeconfig;
mod lines;
pub mod list;
pub mod outage;
pub mod path;
pub mod tls;
mod token;
pub mod watch;

#[cfg(test)]
mod tests;
