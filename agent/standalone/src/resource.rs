//! The resources that are served: their names, their verbs and where they are stored.
//!
//! Owns: one static table. Parsing a path and discovery both read it, so that what is announced is what is served.

/// What is stored under one key space. `events` of both API groups share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Pods.
    Pod,
    /// Nodes.
    Node,
    /// Services.
    Service,
    /// Endpoint slices.
    EndpointSlice,
    /// Config maps.
    ConfigMap,
    /// Secrets.
    Secret,
    /// Namespaces.
    Namespace,
    /// Service accounts.
    ServiceAccount,
    /// Events.
    Event,
    /// Leases.
    Lease,
    /// Certificate signing requests.
    SigningRequest,
}

/// How many kinds there are.
pub const KINDS: usize = 11;

/// Every kind, in the order of its number.
pub const ALL_KINDS: [Kind; KINDS] = [
    Kind::Pod,
    Kind::Node,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::ConfigMap,
    Kind::Secret,
    Kind::Namespace,
    Kind::ServiceAccount,
    Kind::Event,
    Kind::Lease,
    Kind::SigningRequest,
];

impl Kind {
    /// The first part of its keys in the store.
    pub fn prefix(self) -> &'static str {
        self.api().plural
    }

    /// The API resource that a stored object of this kind is by default.
    pub fn api(self) -> &'static ApiResource {
        RESOURCES.iter().find(|r| r.kind == self).expect("every kind has an entry in the table")
    }
}

/// One resource of one API group and version.
#[derive(Debug, PartialEq)]
pub struct ApiResource {
    /// Where its objects are stored.
    pub kind: Kind,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version of the group.
    pub version: &'static str,
    /// The name in paths.
    pub plural: &'static str,
    /// The name of one.
    pub singular: &'static str,
    /// The value of `kind`.
    pub name: &'static str,
    /// The type in the schema.
    pub schema: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Short names for the command line.
    pub short: &'static [&'static str],
    /// Categories, as `all`.
    pub categories: &'static [&'static str],
    /// Subresources with the group, version and kind of their body, and their verbs.
    pub subresources: &'static [Subresource],
}

/// One subresource.
#[derive(Debug, PartialEq)]
pub struct Subresource {
    /// The last part of the path.
    pub name: &'static str,
    /// Group of the body.
    pub group: &'static str,
    /// Version of the body.
    pub version: &'static str,
    /// Kind of the body.
    pub kind: &'static str,
    /// Verbs in discovery.
    pub verbs: &'static [&'static str],
}

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];

const fn sub(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, group: "", version: "v1", kind, verbs }
}

impl ApiResource {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The name with its group, as error messages have it: `leases.coordination.k8s.io`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Its verbs, as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        if self.kind == Kind::Namespace { &VERBS_ONE_BY_ONE } else { &VERBS }
    }

    /// Whether it has this subresource.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// The entry of pods.
pub const PODS: &ApiResource = &RESOURCES[0];
/// The entry of nodes.
pub const NODES: &ApiResource = &RESOURCES[1];
/// The entry of services.
pub const SERVICES: &ApiResource = &RESOURCES[2];
/// The entry of namespaces.
pub const NAMESPACES: &ApiResource = &RESOURCES[6];
/// The entry of certificate signing requests.
pub const SIGNING_REQUESTS: &ApiResource = &RESOURCES[10];
const fn core(kind: Kind, plural: &'static str, singular: &'static str, name: &'static str) -> ApiResource {
    ApiResource {
        kind,
        group: "",
        version: "v1",
        plural,
        singular,
        name,
        schema: name,
        namespaced: true,
        short: &[],
        categories: &[],
        subresources: &[],
    }
}

/// The verbs of every stored resource, as discovery lists them.
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Those of namespaces, which go one by one.
const VERBS_ONE_BY_ONE: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];

/// Everything that is served and stored.
pub static RESOURCES: [ApiResource; 12] = [
    ApiResource {
        short: &["po"],
        categories: &["all"],
        subresources: &[
            sub("attach", "PodAttachOptions", CONNECT),
            sub("binding", "Binding", &["create"]),
            Subresource {
                name: "eviction",
                group: "policy",
                version: "v1",
                kind: "Eviction",
                verbs: &["create"],
            },
            sub("exec", "PodExecOptions", CONNECT),
            sub("log", "Pod", &["get"]),
            sub("portforward", "PodPortForwardOptions", CONNECT),
            sub("status", "Pod", STATUS_VERBS),
        ],
        ..core(Kind::Pod, "pods", "pod", "Pod")
    },
    ApiResource {
        namespaced: false,
        short: &["no"],
        subresources: &[
            sub("proxy", "NodeProxyOptions", &["create", "delete", "get", "patch", "update"]),
            sub("status", "Node", STATUS_VERBS),
        ],
        ..core(Kind::Node, "nodes", "node", "Node")
    },
    ApiResource {
        short: &["svc"],
        categories: &["all"],
        subresources: &[sub("status", "Service", STATUS_VERBS)],
        ..core(Kind::Service, "services", "service", "Service")
    },
    ApiResource {
        group: "discovery.k8s.io",
        schema: "discovery.EndpointSlice",
        ..core(Kind::EndpointSlice, "endpointslices", "endpointslice", "EndpointSlice")
    },
    ApiResource { short: &["cm"], ..core(Kind::ConfigMap, "configmaps", "configmap", "ConfigMap") },
    core(Kind::Secret, "secrets", "secret", "Secret"),
    ApiResource {
        namespaced: false,
        short: &["ns"],
        subresources: &[sub("finalize", "Namespace", &["update"]), sub("status", "Namespace", STATUS_VERBS)],
        ..core(Kind::Namespace, "namespaces", "namespace", "Namespace")
    },
    ApiResource {
        short: &["sa"],
        subresources: &[Subresource {
            name: "token",
            group: "authentication.k8s.io",
            version: "v1",
            kind: "TokenRequest",
            verbs: &["create"],
        }],
        ..core(Kind::ServiceAccount, "serviceaccounts", "serviceaccount", "ServiceAccount")
    },
    ApiResource { short: &["ev"], ..core(Kind::Event, "events", "event", "Event") },
    ApiResource { group: "coordination.k8s.io", ..core(Kind::Lease, "leases", "lease", "Lease") },
    ApiResource {
        group: "certificates.k8s.io",
        short: &["csr"],
        schema: "certificates.CertificateSigningRequest",
        namespaced: false,
        subresources: &[
            sub("approval", "CertificateSigningRequest", STATUS_VERBS),
            sub("status", "CertificateSigningRequest", STATUS_VERBS),
        ],
        ..core(
            Kind::SigningRequest,
            "certificatesigningrequests",
            "certificatesigningrequest",
            "CertificateSigningRequest",
        )
    },
    ApiResource {
        group: "events.k8s.io",
        short: &["ev"],
        schema: "events.Event",
        ..core(Kind::Event, "events", "event", "Event")
    },
];

/// A question that is answered and not stored.
#[derive(Debug, PartialEq)]
pub struct Review {
    /// Its API group.
    pub group: &'static str,
    /// The name in paths.
    pub plural: &'static str,
    /// The name of one.
    pub singular: &'static str,
    /// The value of `kind`.
    pub name: &'static str,
    /// Whether it is asked in a namespace.
    pub namespaced: bool,
}

/// The reviews that are answered; all are of version v1.
pub static REVIEWS: [Review; 5] = [
    review("authentication.k8s.io", "selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview", false),
    review("authentication.k8s.io", "tokenreviews", "tokenreview", "TokenReview", false),
    review(
        "authorization.k8s.io",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        "LocalSubjectAccessReview",
        true,
    ),
    review(
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "SelfSubjectAccessReview",
        false,
    ),
    review(
        "authorization.k8s.io",
        "subjectaccessreviews",
        "subjectaccessreview",
        "SubjectAccessReview",
        false,
    ),
];

const fn review(
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    name: &'static str,
    namespaced: bool,
) -> Review {
    Review { group, plural, singular, name, namespaced }
}

/// The groups beside the core group, in the order in which discovery shows them. All are of version v1.
pub const GROUPS: [&str; 6] = [
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
];

/// The resource of a path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static ApiResource> {
    RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_under_its_number() {
        for (number, kind) in ALL_KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, number);
            assert_eq!(RESOURCES[number].kind, *kind);
            assert_eq!(kind.api(), &RESOURCES[number]);
        }
        assert_eq!(NAMESPACES.plural, "namespaces");
    }
}
