//! Who asks, and whether they may.

mod authenticate;
mod authorize;
pub mod bootstrap;
mod node;
mod restriction;
mod token;

pub use authenticate::{ClientCertificate, anonymous_allowed, authenticate};
pub use authorize::{Attributes, Decision, authorize};
pub use restriction::restrict;
pub use token::{Claims, ISSUER, Tokens};

/// A user, as every authenticator names one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The UID, for service accounts.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// More, as `authentication.kubernetes.io/pod-name`.
    pub extra: Vec<(String, String)>,
}

impl User {
    /// Who says nothing about itself.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that this user is, if it is one.
    pub fn node(&self) -> Option<&str> {
        let name = self.name.strip_prefix("system:node:").filter(|n| !n.is_empty())?;
        self.is_in("system:nodes").then_some(name)
    }

    /// The user as `UserInfo`.
    pub fn info(&self) -> serde_json::Value {
        let mut info = serde_json::json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            let extra = self.extra.iter().map(|(k, v)| (k.clone(), vec![v.clone()].into()));
            info["extra"] = serde_json::Value::Object(extra.collect());
        }
        info
    }
}
