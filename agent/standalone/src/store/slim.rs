//! The few fields of an object that selectors look at, read from its bytes without building the whole object.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;

use crate::resource::Kind;

/// What selectors see.
#[derive(Debug, Default, Deserialize, Clone, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Slim {
    metadata: SlimMeta,
    spec: SlimSpec,
    status: SlimStatus,
    involved_object: SlimReference,
    source: SlimSource,
    reason: Box<str>,
    reporting_component: Box<str>,
    #[serde(rename = "type")]
    kind: Box<str>,
}

#[derive(Debug, Default, Deserialize, Clone, PartialEq)]
#[serde(default)]
struct SlimMeta {
    name: Box<str>,
    namespace: Box<str>,
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
}

#[derive(Debug, Default, Deserialize, Clone, PartialEq)]
#[serde(default, rename_all = "camelCase")]
struct SlimSpec {
    node_name: Box<str>,
    restart_policy: Box<str>,
    scheduler_name: Box<str>,
    service_account_name: Box<str>,
    host_network: bool,
    unschedulable: bool,
    #[serde(rename = "clusterIP")]
    cluster_ip: Box<str>,
    #[serde(rename = "type")]
    kind: Box<str>,
}

#[derive(Debug, Default, Deserialize, Clone, PartialEq)]
#[serde(default, rename_all = "camelCase")]
struct SlimStatus {
    phase: Box<str>,
    #[serde(rename = "podIP")]
    pod_ip: Box<str>,
    nominated_node_name: Box<str>,
}

#[derive(Debug, Default, Deserialize, Clone, PartialEq)]
#[serde(default, rename_all = "camelCase")]
struct SlimReference {
    kind: Box<str>,
    namespace: Box<str>,
    name: Box<str>,
    uid: Box<str>,
    api_version: Box<str>,
    resource_version: Box<str>,
    field_path: Box<str>,
}

#[derive(Debug, Default, Deserialize, Clone, PartialEq)]
#[serde(default)]
struct SlimSource {
    component: Box<str>,
}

impl Slim {
    /// Reads the fields of stored bytes.
    pub fn of(stored: &[u8]) -> Self {
        serde_json::from_slice(stored).unwrap_or_default()
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref().and_then(|l| l.get(key)).map(|v| &**v)
    }

    /// The value of a field label; none if the kind has no such field label.
    pub fn field(&self, kind: Kind, label: &str) -> Option<Cow<'_, str>> {
        let value: &str = match (kind, label) {
            (_, "metadata.name") => &self.metadata.name,
            (Kind::Node | Kind::Namespace, "metadata.namespace") => return None,
            (_, "metadata.namespace") => &self.metadata.namespace,
            (Kind::Pod, _) => return self.pod_field(label),
            (Kind::Event, _) => return self.event_field(label),
            (Kind::Node, "spec.unschedulable") => {
                return Some(if self.spec.unschedulable { "true" } else { "false" }.into());
            }
            (Kind::Service, "spec.clusterIP") => &self.spec.cluster_ip,
            (Kind::Service, "spec.type") => &self.spec.kind,
            (Kind::Secret, "type") => &self.kind,
            (Kind::Namespace, "status.phase") => &self.status.phase,
            _ => return None,
        };
        Some(value.into())
    }

    fn pod_field(&self, label: &str) -> Option<Cow<'_, str>> {
        let value: &str = match label {
            "spec.nodeName" => &self.spec.node_name,
            "spec.restartPolicy" => &self.spec.restart_policy,
            "spec.schedulerName" => &self.spec.scheduler_name,
            "spec.serviceAccountName" => &self.spec.service_account_name,
            "spec.hostNetwork" => {
                if self.spec.host_network {
                    "true"
                } else {
                    "false"
                }
            }
            "status.phase" => &self.status.phase,
            "status.podIP" => &self.status.pod_ip,
            "status.nominatedNodeName" => &self.status.nominated_node_name,
            _ => return None,
        };
        Some(value.into())
    }

    fn event_field(&self, label: &str) -> Option<Cow<'_, str>> {
        let object = &self.involved_object;
        let reference = label.strip_prefix("involvedObject.").or_else(|| label.strip_prefix("regarding."));
        let value: &str = match (reference, label) {
            (Some("kind"), _) => &object.kind,
            (Some("namespace"), _) => &object.namespace,
            (Some("name"), _) => &object.name,
            (Some("uid"), _) => &object.uid,
            (Some("apiVersion"), _) => &object.api_version,
            (Some("resourceVersion"), _) => &object.resource_version,
            (Some("fieldPath"), _) => &object.field_path,
            (Some(_), _) => return None,
            (None, "reason") => &self.reason,
            (None, "reportingComponent" | "reportingController") => &self.reporting_component,
            (None, "source") if self.source.component.is_empty() => &self.reporting_component,
            (None, "source") => &self.source.component,
            (None, "type") => &self.kind,
            (None, _) => return None,
        };
        Some(value.into())
    }
}
