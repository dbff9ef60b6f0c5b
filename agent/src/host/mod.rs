//! Carries actions out on this node. Decides nothing.
//!
//! Owns: what is on the node for a pod: sandboxes, cgroups, directories, network attachment, volumes, log files.

pub mod cgroup;
pub mod container;
pub mod files;
pub mod supervisor;
