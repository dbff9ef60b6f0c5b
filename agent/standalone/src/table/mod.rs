//! Tables: what `kubectl get` prints, with the columns of the real server.

mod age;
mod pod;
mod rows;

use serde_json::{Value, json};

use crate::object;
use crate::resource::{ApiResource, Kind};

pub use age::{human, since};

/// How much of the object comes with each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The metadata.
    Metadata,
    /// All.
    Object,
}

impl Include {
    /// The value of `includeObject`.
    pub fn parse(text: &str) -> Self {
        match text {
            "None" => Self::None,
            "Object" => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// A column: name, type, priority (1 is shown by `-o wide`).
type Column = (&'static str, &'static str, u8);

fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Pod => pod::COLUMNS,
        Kind::Node => rows::NODE,
        Kind::Service => rows::SERVICE,
        Kind::EndpointSlice => rows::ENDPOINT_SLICE,
        Kind::ConfigMap => rows::CONFIG_MAP,
        Kind::Secret => rows::SECRET,
        Kind::Namespace => rows::NAMESPACE,
        Kind::ServiceAccount => rows::SERVICE_ACCOUNT,
        Kind::Event => rows::EVENT,
        Kind::Lease => rows::LEASE,
        Kind::SigningRequest => rows::SIGNING_REQUEST,
    }
}

fn cells(kind: Kind, object: &Value) -> Vec<Value> {
    match kind {
        Kind::Pod => pod::cells(object),
        Kind::Node => rows::node(object),
        Kind::Service => rows::service(object),
        Kind::EndpointSlice => rows::endpoint_slice(object),
        Kind::ConfigMap => rows::config_map(object),
        Kind::Secret => rows::secret(object),
        Kind::Namespace => rows::namespace(object),
        Kind::ServiceAccount => rows::service_account(object),
        Kind::Event => rows::event(object),
        Kind::Lease => rows::lease(object),
        Kind::SigningRequest => rows::signing_request(object),
    }
}

/// A table of stored objects.
pub fn whole(api: &ApiResource, stored: &[&[u8]], include: Include, metadata: &Value) -> Value {
    let definitions: Vec<Value> = columns(api.kind)
        .iter()
        .map(|(name, kind, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({"name": name, "type": kind, "format": format, "description": "", "priority": priority})
        })
        .collect();
    let rows: Vec<Value> = stored
        .iter()
        .map(|bytes| {
            let object = object::parse(bytes);
            let mut row = json!({"cells": cells(api.kind, &object)});
            if let Some(conditions) = pod::row_conditions(api.kind, &object) {
                row["conditions"] = conditions;
            }
            row["object"] = match include {
                Include::None => Value::Null,
                Include::Metadata => metadata_of(&object),
                Include::Object => typed(api, object),
            };
            row
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": definitions, "rows": rows})
}

/// The metadata of an object as `PartialObjectMetadata`.
pub fn metadata_of(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn typed(api: &ApiResource, mut object: Value) -> Value {
    object["kind"] = api.name.into();
    object["apiVersion"] = api.api_version().into();
    object
}
