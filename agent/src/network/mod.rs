//! A pod's network as the agent sees it: attachment through `cni`, and the files that tell a pod its names.

pub mod dns;
pub mod hosts;
