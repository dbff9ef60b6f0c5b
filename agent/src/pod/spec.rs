//! A pod as the node wants it: compact, decoded once at the door from the API's JSON or a manifest.

/// A pod. Placeholder of the contract: filled in on the branch that owns this module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {}
