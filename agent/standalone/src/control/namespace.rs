//! The end of namespaces, and of what was owned by something that is gone.

use std::collections::HashSet;

use serde_json::Value;

use super::Work;

use crate::object::{self, items, text};
use crate::registry::{DeleteOptions, Registry, Target, WriteOptions};
use crate::resource::{ALL_KINDS, Kind, NAMESPACES};
use crate::status::{ApiError, ApiResult};
use crate::strategy::Part;

/// Deletes the content of a namespace that is being deleted, and the namespace when nothing is left.
/// Called again each time something in it is gone.
pub fn empty(registry: &Registry, name: &str) -> ApiResult<()> {
    let Some(namespace) = registry.find(Kind::Namespace, "", name)? else { return Ok(()) };
    if !object::is_terminating(&namespace) {
        return Ok(());
    }
    let mut left = 0;
    for kind in ALL_KINDS.into_iter().filter(|k| k.api().namespaced) {
        for (_, bytes) in registry.store.list(kind, Some(name), None, usize::MAX)?.items {
            let item = object::parse(&bytes);
            let options = DeleteOptions::default();
            let result = registry.delete(kind.api(), name, object::name(&item), &options);
            match result {
                Ok(crate::registry::Deleted::Gone(_)) => {}
                Ok(crate::registry::Deleted::Terminating(_)) => left += 1,
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
    }
    if left > 0 {
        return Ok(());
    }
    let others = items(&namespace["spec"], "finalizers").iter().any(|f| f != "kubernetes");
    if others || object::has_finalizers(&namespace) {
        return finalize(registry, name);
    }
    registry.remove_namespace(name)
}

/// Takes the API server's own finalizer away; others still hold the namespace.
fn finalize(registry: &Registry, name: &str) -> ApiResult<()> {
    registry.store.write(|tx| {
        let Some(bytes) = tx.get(Kind::Namespace, "", name)? else { return Ok(()) };
        let mut namespace = object::parse(&bytes);
        let finalizers = object::list_mut(&mut namespace["spec"], "finalizers");
        let before = finalizers.len();
        finalizers.retain(|f| f != "kubernetes");
        if finalizers.len() != before {
            tx.put(Kind::Namespace, namespace)?;
        }
        Ok::<_, ApiError>(())
    })
}

/// Deletes what had the object of this UID as its only owner; takes the reference away where there are others.
pub fn collect(registry: &Registry, uid: &str) -> ApiResult<()> {
    let owned = registry.index.read().owned.get(uid).cloned().unwrap_or_default();
    for (kind, namespace, name) in owned {
        let Some(item) = registry.find(kind, &namespace, &name)? else { continue };
        let others = items(&item["metadata"], "ownerReferences").iter().any(|o| text(o, "uid") != uid);
        let result = if others { disown(registry, kind, &item, uid) } else { remove(registry, kind, &item) };
        match result {
            Err(error) if error.code != 404 => return Err(error),
            _ => {}
        }
    }
    registry.index.forget_owner(uid);
    Ok(())
}

/// Finds what lost its owner while the server was not there to see it: killed after the owner went and before the rest did.
pub fn find_orphans(registry: &Registry) -> ApiResult<()> {
    let mut owners: HashSet<String> = registry.index.read().owned.keys().cloned().collect();
    if owners.is_empty() {
        return Ok(());
    }
    for kind in ALL_KINDS {
        for (_, bytes) in registry.store.list(kind, None, None, usize::MAX)?.items {
            owners.remove(object::uid(&object::parse(&bytes)));
        }
    }
    for uid in owners {
        registry.queue.push(Work::Collect(uid));
    }
    Ok(())
}

fn remove(registry: &Registry, kind: Kind, item: &Value) -> ApiResult<()> {
    let (namespace, name) = (object::namespace(item), object::name(item));
    let options = DeleteOptions::default();
    registry.delete(kind.api(), namespace, name, &options).map(|_| ())
}

fn disown(registry: &Registry, kind: Kind, item: &Value, uid: &str) -> ApiResult<()> {
    let target = Target {
        api: kind.api(),
        namespace: object::namespace(item),
        name: object::name(item),
        part: Part::Main,
    };
    let change = |now: &Value| {
        let mut new = now.clone();
        object::list_mut(&mut new["metadata"], "ownerReferences").retain(|o| text(o, "uid") != uid);
        Ok(new)
    };
    registry.update(target, WriteOptions::default(), change).map(|_| ())
}

/// The `finalize` subresource: writes `spec.finalizers` and removes the namespace if nothing holds it any longer.
///
/// # Errors
/// 404, 409.
pub fn finalize_by_request(registry: &Registry, name: &str, wanted: &Value) -> ApiResult<Value> {
    registry.store.write(|tx| {
        let bytes =
            tx.get(Kind::Namespace, "", name)?.ok_or_else(|| ApiError::not_found(NAMESPACES, name))?;
        let mut namespace = object::parse(&bytes);
        let version = object::text_at(wanted, &["metadata", "resourceVersion"]);
        if !version.is_empty() && namespace["metadata"]["resourceVersion"] != version {
            return Err(ApiError::modified(NAMESPACES, name));
        }
        namespace["spec"]["finalizers"] = items(&wanted["spec"], "finalizers").into();
        let bytes = tx.put(Kind::Namespace, namespace)?;
        let now = object::parse(&bytes);
        let held = !items(&now["spec"], "finalizers").is_empty() || object::has_finalizers(&now);
        if object::is_terminating(&now) && !held {
            tx.delete(Kind::Namespace, "", name)?;
        }
        Ok(now)
    })
}
