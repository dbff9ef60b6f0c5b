//! Update, of the object or of its status.

use bytes::Bytes;
use serde_json::Value;

use super::{Registry, WriteOptions};
use crate::object::{self, text_at};
use crate::resource::{ApiResource, Kind};
use crate::status::{ApiError, ApiResult};
use crate::strategy::{self, Part};

/// Which object an update is about.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The resource.
    pub api: &'static ApiResource,
    /// The namespace, or an empty string.
    pub namespace: &'a str,
    /// The name.
    pub name: &'a str,
    /// What of the object is written.
    pub part: Part,
}

impl Registry {
    /// Stores what `change` makes of the present object and returns its bytes. A change that changes nothing writes nothing.
    ///
    /// # Errors
    /// Those of `change`; 404, 409, 422.
    pub fn update(
        &self,
        target: Target<'_>,
        options: WriteOptions,
        change: impl FnOnce(&Value) -> ApiResult<Value>,
    ) -> ApiResult<Bytes> {
        let Target { api, namespace, name, part } = target;
        self.store.write(|tx| {
            let before = tx.get(api.kind, namespace, name)?.ok_or_else(|| ApiError::not_found(api, name))?;
            let old = object::parse(&before);
            let mut new = change(&old)?;
            check_identity(target, &old, &new)?;
            strategy::prepare_update(self, api, &old, &mut new, part)?;
            object::metadata(&mut new)
                .insert("resourceVersion".into(), old["metadata"]["resourceVersion"].clone());
            if new == old {
                return Ok(before);
            }
            if options.dry_run {
                return Ok(Bytes::from(new.to_string()));
            }
            let gone = object::is_terminating(&new)
                && !object::has_finalizers(&new)
                && object::has_finalizers(&old)
                && nothing_holds(api.kind, &new);
            if gone {
                tx.put(api.kind, new)?;
                return Ok(tx.delete(api.kind, namespace, name)?.unwrap_or(before));
            }
            Ok(tx.put(api.kind, new)?)
        })
    }
}

/// Whether nothing but finalizers kept a terminating object.
fn nothing_holds(kind: Kind, object: &Value) -> bool {
    match kind {
        Kind::Pod => object["metadata"]["deletionGracePeriodSeconds"] == 0,
        Kind::Namespace => object::items(&object["spec"], "finalizers").is_empty(),
        _ => true,
    }
}

fn check_identity(target: Target<'_>, old: &Value, new: &Value) -> ApiResult<()> {
    let Target { api, namespace, name, .. } = target;
    if object::name(new) != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            object::name(new)
        )));
    }
    if object::namespace(new) != namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({}) does not match the namespace on the request ({namespace})",
            object::namespace(new)
        )));
    }
    let given = object::uid(new);
    if !given.is_empty() && given != object::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {given}, UID in object meta: {}",
            object::uid(old)
        );
        return Err(ApiError::conflict(api, name, &why));
    }
    let version = text_at(new, &["metadata", "resourceVersion"]);
    if !version.is_empty() && version != "0" && version != text_at(old, &["metadata", "resourceVersion"]) {
        return Err(ApiError::modified(api, name));
    }
    Ok(())
}
