//! The heart: what a pod is, what was seen of it, and what to do next.
//!
//! Pure (no clock, no I/O, no async): `names`, `spec`, `observed`, `action`, `history`, `restart`, `plan`, `status`.
//! Not pure: `host` and `reporter` (the traits at the edge), `worker` (one task for each pod), `manager` (uid to worker).

pub mod action;
pub mod host;
pub mod names;
pub mod observed;
pub mod quantity;
pub mod reporter;
pub mod spec;
pub mod status;
