//! Newtypes for the names that must not be mixed up. Owns: their types and display. Never: validates against a server.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(Arc::from(text))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(Arc::from(text))
            }
        }
    };
}

name! {
    /// `metadata.uid` of a pod: what everything on the node is keyed by, since names get reused.
    PodUid
}
name! {
    /// A container's name, unique within its pod over init, regular and ephemeral containers.
    ContainerName
}

impl Default for ContainerName {
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

impl Default for PodUid {
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

/// One attempt to run a container; `attempt` is the container's `restartCount` while it is the newest one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// Which container of the pod.
    pub name: ContainerName,
    /// From 0, never reused within the pod's life.
    pub attempt: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.attempt)
    }
}
