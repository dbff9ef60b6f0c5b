//! The library of the node agent.

pub mod api;
pub mod image;
