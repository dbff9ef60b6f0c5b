//! The HTTP side: connections, routes, formats.

mod body;
mod connection;
mod discovery;
mod dispatch;
mod events_v1;
mod openapi;
mod proxy;
mod read;
mod request;
mod respond;
mod reviews;
mod subresource;
mod watch;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

use crate::auth::Tokens;
use crate::registry::Registry;

pub use connection::{Listener, serve};
pub use proxy::NodeClient;

/// What every response carries.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// A response.
pub type Response = http::Response<Body>;

/// What a request is answered from.
pub struct App {
    /// The objects.
    pub registry: Arc<Registry>,
    /// Tokens of service accounts.
    pub tokens: Tokens,
    /// The way to the nodes.
    pub nodes: NodeClient,
}
