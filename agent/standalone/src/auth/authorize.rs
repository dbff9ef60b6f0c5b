//! Authorization: masters may do everything, nodes what nodes do, who joins what that takes, everyone who is known may look
//! around.

use super::{User, bootstrap, node};
use crate::registry::Registry;

/// What a request wants to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// The API group.
    pub group: String,
    /// The resource; empty for paths that are none.
    pub resource: String,
    /// The subresource.
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The path, if it is no resource.
    pub path: String,
    /// The field selector of a list or a watch.
    pub field_selector: String,
}

/// Whether one may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow,
    /// No, with a reason or an empty string.
    Deny(String),
}

impl Attributes {
    /// The message of a 403, as the real server words it.
    pub fn refusal(&self, user: &User, why: &str) -> String {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        if self.resource.is_empty() {
            return format!(
                "forbidden: User \"{}\" cannot {} path \"{}\"{why}",
                user.name, self.verb, self.path
            );
        }
        let qualified = if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        };
        let named = if self.name.is_empty() { qualified } else { format!("{qualified} \"{}\"", self.name) };
        let resource = if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", self.namespace)
        };
        format!(
            "{named} is forbidden: User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{why}",
            user.name, self.verb, self.group
        )
    }
}

/// Decides.
pub fn authorize(registry: &Registry, user: &User, attributes: &Attributes) -> Decision {
    if user.is_in("system:masters") || looks_around(user, attributes) || bootstrap::may(user, attributes) {
        return Decision::Allow;
    }
    if user.node().is_some() {
        return node::authorize(registry, user, attributes);
    }
    Decision::Deny(String::new())
}

/// Roles `system:discovery` and `system:basic-user`.
fn looks_around(user: &User, a: &Attributes) -> bool {
    if !user.is_in("system:authenticated") {
        return false;
    }
    if a.resource.is_empty() {
        let roots = [
            "/api",
            "/apis",
            "/openapi",
            "/version",
            "/healthz",
            "/livez",
            "/readyz",
            "/.well-known",
            "/openid",
        ];
        return a.verb == "get" && roots.iter().any(|r| a.path.starts_with(r));
    }
    a.verb == "create"
        && matches!(
            (a.group.as_str(), a.resource.as_str()),
            ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
                | ("authentication.k8s.io", "selfsubjectreviews")
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_the_real_server_words_them() {
        let user = User { name: "system:serviceaccount:default:default".into(), ..User::default() };
        let mut a = Attributes {
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "default".into(),
            ..Attributes::default()
        };
        assert_eq!(
            a.refusal(&user, ""),
            "pods is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API group \"\" \
             in the namespace \"default\""
        );
        a = Attributes {
            verb: "update".into(),
            group: "coordination.k8s.io".into(),
            resource: "leases".into(),
            name: "n".into(),
            subresource: "status".into(),
            ..Attributes::default()
        };
        assert_eq!(
            a.refusal(&user, "why"),
            "leases.coordination.k8s.io \"n\" is forbidden: User \"system:serviceaccount:default:default\" cannot update \
             resource \"leases/status\" in API group \"coordination.k8s.io\" at the cluster scope: why"
        );
    }
}
