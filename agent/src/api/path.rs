//! Where things are at an API server. Owns: resources, their paths, query strings. Never: sends anything.

use std::fmt::Write as _;

/// A kind of object, by where its collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// `/api/v1`, or `/apis/<group>/<version>`.
    pub prefix: &'static str,
    /// `pods`, `nodes`, ...
    pub plural: &'static str,
}

const fn core(plural: &'static str) -> Resource {
    Resource { prefix: "/api/v1", plural }
}

/// Pods.
pub const PODS: Resource = core("pods");
/// Nodes.
pub const NODES: Resource = core("nodes");
/// Services.
pub const SERVICES: Resource = core("services");
/// Events of the core group, as kubelet writes them.
pub const EVENTS: Resource = core("events");
/// Config maps.
pub const CONFIG_MAPS: Resource = core("configmaps");
/// Secrets.
pub const SECRETS: Resource = core("secrets");
/// Service accounts, for their `token` subresource.
pub const SERVICE_ACCOUNTS: Resource = core("serviceaccounts");
/// Endpoint slices.
pub const ENDPOINT_SLICES: Resource =
    Resource { prefix: "/apis/discovery.k8s.io/v1", plural: "endpointslices" };
/// Ranges that cluster addresses are taken from.
pub const SERVICE_CIDRS: Resource = Resource { prefix: "/apis/networking.k8s.io/v1", plural: "servicecidrs" };
/// Leases.
pub const LEASES: Resource = Resource { prefix: "/apis/coordination.k8s.io/v1", plural: "leases" };
/// Certificate signing requests.
pub const CERTIFICATE_SIGNING_REQUESTS: Resource =
    Resource { prefix: "/apis/certificates.k8s.io/v1", plural: "certificatesigningrequests" };
/// Token reviews.
pub const TOKEN_REVIEWS: Resource =
    Resource { prefix: "/apis/authentication.k8s.io/v1", plural: "tokenreviews" };
/// Subject access reviews.
pub const SUBJECT_ACCESS_REVIEWS: Resource =
    Resource { prefix: "/apis/authorization.k8s.io/v1", plural: "subjectaccessreviews" };

impl Resource {
    /// The collection, of one namespace or of the cluster.
    pub fn collection(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) => format!("{}/namespaces/{}/{}", self.prefix, Encoded(namespace), self.plural),
            None => format!("{}/{}", self.prefix, self.plural),
        }
    }

    /// One object.
    pub fn object(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}/{}", self.collection(namespace), Encoded(name))
    }

    /// A subresource of one object: `status`, `token`.
    pub fn sub(&self, namespace: Option<&str>, name: &str, subresource: &str) -> String {
        format!("{}/{subresource}", self.object(namespace, name))
    }
}

/// A query string under construction.
#[derive(Debug, Clone, Default)]
pub struct Query(String);

impl Query {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more parameter.
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let separator = if self.0.is_empty() { '?' } else { '&' };
        let value = value.to_string();
        let written = write!(self.0, "{separator}{name}={}", Encoded(&value));
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
        self
    }

    /// With one more parameter, if there is a value.
    pub fn with_some(self, name: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Empty, or beginning with `?`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text with everything but unreserved characters percent-encoded (RFC 3986, section 2.3).
struct Encoded<'a>(&'a str);

impl std::fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    f.write_char(char::from(byte))?;
                }
                other => write!(f, "%{other:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_the_api() {
        assert_eq!(PODS.collection(None), "/api/v1/pods");
        assert_eq!(
            PODS.sub(Some("default"), "web-0", "status"),
            "/api/v1/namespaces/default/pods/web-0/status"
        );
        assert_eq!(NODES.object(None, "n1"), "/api/v1/nodes/n1");
        assert_eq!(
            LEASES.object(Some("kube-node-lease"), "n1"),
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1"
        );
    }

    #[test]
    fn a_name_cannot_leave_its_segment() {
        assert_eq!(
            CONFIG_MAPS.object(Some("a/b"), "../x?y"),
            "/api/v1/namespaces/a%2Fb/configmaps/..%2Fx%3Fy"
        );
    }

    #[test]
    fn selectors_are_encoded_in_queries() {
        let query = Query::new()
            .with("watch", true)
            .with("fieldSelector", "spec.nodeName=n 1")
            .with_some("x", None::<u8>);
        assert_eq!(query.as_str(), "?watch=true&fieldSelector=spec.nodeName%3Dn%201");
    }
}
