//! What each kind wants done to an object before it is stored: defaults, allocation, validation.
//!
//! Pure but for the allocator of services and for reading what an object refers to.

mod allocator;
mod meta;
mod pod;
mod pod_admission;
mod pod_defaults;
mod pod_spec_checks;
mod service;
mod signing_request;
mod simple;

use serde_json::Value;

use crate::object;
use crate::registry::Registry;
use crate::resource::{ApiResource, Kind};
use crate::status::{ApiResult, Cause};
use crate::store::Tx;

pub use allocator::Allocator;
use meta::{is_dns_label, is_dns_subdomain};
pub use signing_request::{parse as parse_signing_request, stamp as stamp_signing_request};

/// Which part of an object an update writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status and little else.
    Status,
    /// The decision about a signing request.
    Approval,
}

/// Fills in and checks a new object.
///
/// # Errors
/// 403 or 422, in the words of the real server.
pub fn prepare_create(
    registry: &Registry,
    tx: &Tx<'_>,
    api: &ApiResource,
    object: &mut Value,
) -> ApiResult<()> {
    meta::fill(object);
    let mut causes = meta::validate(api, object);
    match api.kind {
        Kind::Pod => pod::create(registry, tx, object, &mut causes)?,
        Kind::Service => service::create(registry, object, &mut causes)?,
        Kind::Node => simple::node_create(object, &mut causes),
        Kind::Namespace => simple::namespace_create(object),
        Kind::Secret => simple::secret(object, &mut causes),
        Kind::ConfigMap => simple::config_map(object, &mut causes),
        Kind::EndpointSlice => {
            simple::endpoint_slice(object, &mut causes);
            object::bump_generation(object);
        }
        Kind::Event => simple::event(object, &mut causes),
        Kind::Lease => simple::lease(object, &mut causes),
        Kind::SigningRequest => signing_request::create(object, &mut causes),
        Kind::ServiceAccount => {}
    }
    done(api, object, &causes)
}

/// Takes over what an update must not change, fills in and checks the rest.
///
/// # Errors
/// 422, in the words of the real server.
pub fn prepare_update(
    registry: &Registry,
    api: &ApiResource,
    old: &Value,
    new: &mut Value,
    part: Part,
) -> ApiResult<()> {
    let mut causes = Vec::new();
    meta::carry_over(old, new, &mut causes);
    if part != Part::Main {
        keep_all_but_status(old, new);
    } else if api.subresource("status").is_some() {
        take_over(old, new, "status");
    }
    causes.extend(meta::validate(api, new));
    match (api.kind, part) {
        (Kind::Pod, Part::Main) => pod::update(old, new, &mut causes),
        (Kind::Pod, Part::Status) => pod::update_status(old, new, &mut causes),
        (Kind::Service, Part::Main) => service::update(registry, old, new, &mut causes)?,
        (Kind::Namespace, Part::Main) => simple::namespace_update(old, new),
        (Kind::Node, Part::Main) => simple::node_update(old, new, &mut causes),
        (Kind::Secret, _) => simple::secret_update(old, new, &mut causes),
        (Kind::ConfigMap, _) => simple::config_map_update(old, new, &mut causes),
        (Kind::EndpointSlice, _) => simple::endpoint_slice_update(old, new, &mut causes),
        (Kind::Event, _) => simple::event(new, &mut causes),
        (Kind::Lease, _) => simple::lease(new, &mut causes),
        (Kind::SigningRequest, Part::Main) => signing_request::update(old, new),
        (Kind::SigningRequest, Part::Status) => signing_request::update_status(old, new, &mut causes),
        (Kind::SigningRequest, Part::Approval) => signing_request::update_approval(old, new, &mut causes),
        (Kind::Node | Kind::Service | Kind::Namespace, Part::Status)
        | (Kind::Pod | Kind::Node | Kind::Service | Kind::Namespace, Part::Approval)
        | (Kind::ServiceAccount, _) => {}
    }
    done(api, new, &causes)
}

fn done(api: &ApiResource, object: &Value, causes: &[Cause]) -> ApiResult<()> {
    if causes.is_empty() {
        return Ok(());
    }
    let name = if object::name(object).is_empty() {
        object::text_at(object, &["metadata", "generateName"])
    } else {
        object::name(object)
    };
    Err(crate::status::ApiError::invalid(api.group, api.name, name, causes))
}

fn take_over(old: &Value, new: &mut Value, key: &str) {
    match old.get(key) {
        Some(value) => {
            object::object_of(new).insert(key.to_owned(), value.clone());
        }
        None => {
            object::remove(new, key);
        }
    }
}

/// A status update takes only the status; labels and annotations stay as they are, too.
fn keep_all_but_status(old: &Value, new: &mut Value) {
    let status = object::remove(new, "status");
    let metadata = object::remove(new, "metadata");
    *new = old.clone();
    if let Some(status) = status {
        object::object_of(new).insert("status".into(), status);
    } else {
        object::remove(new, "status");
    }
    // Conditions of the kubelet come with annotations and finalizers at times; the real server lets these two through.
    if let Some(given) = metadata {
        for key in ["annotations", "labels", "finalizers", "managedFields"] {
            match given.get(key) {
                Some(value) => {
                    object::metadata(new).insert(key.into(), value.clone());
                }
                None => {
                    object::metadata(new).remove(key);
                }
            }
        }
    }
}
