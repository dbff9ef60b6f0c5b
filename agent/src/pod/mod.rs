//! The heart: what a pod is, what was seen of it, and what to do next.
//!
//! Pure (no clock, no I/O, no async): `names`, `quantity`, `spec`, `wanted`, `observed`, `action`, `history`, `facts`,
//! `restart`, `sysctls`, `admission`, `plan`, `status`, `events`. Not pure: `host` and `reporter` (the traits at the edge),
//! `worker` (one task for each pod), `manager` (uid to worker).

pub mod action;
pub mod admission;
pub mod events;
pub mod facts;
pub mod history;
pub mod host;
pub mod manager;
pub mod names;
pub mod observed;
pub mod plan;
pub mod quantity;
pub mod reporter;
pub mod restart;
pub mod spec;
pub mod status;
pub mod sysctls;
pub mod wanted;
pub mod worker;

#[cfg(test)]
mod tests;
