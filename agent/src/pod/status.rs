//! The pod's status as the API server wants it.

/// `status` of a pod. Placeholder of the contract: filled in on the branch that owns this module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodStatus {}
