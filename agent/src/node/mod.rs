//! This machine as a Node: what it is, how it is, and that it is alive.
//!
//! - `facts`: looks at the machine. The rest reads nothing
//! - `resources`, `conditions`, `object`, `view`: pure; facts and configuration in, the Node object out
//! - `task`: registers the Node and keeps its status true
//! - `lease`: renews the Lease

pub mod conditions;
pub mod facts;
pub mod lease;
pub mod object;
pub mod resources;
pub mod task;
#[cfg(test)]
mod tests;
pub mod view;

pub use conditions::{Health, NodeConditions, NodeImage};
pub use lease::LeaseTask;
pub use task::{NodeTask, Registered};
pub use view::NodeView;
