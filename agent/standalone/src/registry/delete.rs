//! Delete: at once, gracefully for pods, or when the last finalizer is gone.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::Registry;
use crate::object::{self, at, text_at};
use crate::resource::{ApiResource, Kind};
use crate::status::{ApiError, ApiResult};
use crate::store::Tx;

/// The body of a DELETE.
#[derive(Debug, Default, Clone, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct DeleteOptions {
    /// Seconds that a pod has to end; zero removes it at once.
    pub grace_period_seconds: Option<i64>,
    /// What must be true of the object.
    pub preconditions: Option<Preconditions>,
    /// `Orphan`, `Background` or `Foreground`; this server takes `Foreground` for `Background`.
    pub propagation_policy: Option<String>,
    /// Check everything, change nothing.
    pub dry_run: Vec<String>,
}

impl DeleteOptions {
    /// Whether nothing shall be changed.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run.iter().any(|d| d == "All")
    }
}

/// What must be true of the object that is deleted.
#[derive(Debug, Default, Clone, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Preconditions {
    /// Its UID.
    pub uid: Option<String>,
    /// Its resourceVersion.
    pub resource_version: Option<String>,
}

/// What became of the object.
#[derive(Debug, Clone, PartialEq)]
pub enum Deleted {
    /// It is gone; these were its last bytes.
    Gone(Bytes),
    /// It is on its way; these are its bytes now.
    Terminating(Bytes),
}

/// What to do with an object that shall go.
#[derive(Debug, PartialEq)]
enum Verdict {
    Remove,
    Mark(i64),
    Leave,
}

impl Registry {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// 403 for what must stay, 404, 409 when a precondition does not hold.
    pub fn delete(
        &self,
        api: &'static ApiResource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> ApiResult<Deleted> {
        self.store.write(|tx| {
            let before = tx.get(api.kind, namespace, name)?.ok_or_else(|| ApiError::not_found(api, name))?;
            let mut object = object::parse(&before);
            check(api, &object, options)?;
            let verdict = judge(api.kind, &object, options);
            match verdict {
                Verdict::Leave => Ok(Deleted::Terminating(before)),
                _ if options.is_dry_run() => Ok(Deleted::Gone(before)),
                Verdict::Remove => {
                    if options.propagation_policy.as_deref() == Some("Orphan") {
                        self.disown(tx, object::uid(&object))?;
                    }
                    let last = tx.delete(api.kind, namespace, name)?.unwrap_or(before);
                    Ok(Deleted::Gone(last))
                }
                Verdict::Mark(grace) => {
                    mark(api.kind, &mut object, grace);
                    Ok(Deleted::Terminating(tx.put(api.kind, object)?))
                }
            }
        })
    }

    /// Takes the references to an owner away from what it owned.
    fn disown(&self, tx: &mut Tx<'_>, uid: &str) -> ApiResult<()> {
        let owned = self.index.read().owned.get(uid).cloned().unwrap_or_default();
        for (kind, namespace, name) in owned {
            let Some(bytes) = tx.get(kind, &namespace, &name)? else { continue };
            let mut item = object::parse(&bytes);
            object::list_mut(&mut item["metadata"], "ownerReferences")
                .retain(|o| object::text(o, "uid") != uid);
            tx.put(kind, item)?;
        }
        Ok(())
    }

    /// Removes a namespace whose content is gone.
    ///
    /// # Errors
    /// 500, when the store fails.
    pub fn remove_namespace(&self, name: &str) -> ApiResult<()> {
        self.store.write(|tx: &mut Tx<'_>| {
            tx.delete(Kind::Namespace, "", name)?;
            Ok(())
        })
    }
}

fn check(api: &ApiResource, object: &Value, options: &DeleteOptions) -> ApiResult<()> {
    let name = object::name(object);
    if api.kind == Kind::Namespace && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(ApiError::forbidden(api, name, "this namespace may not be deleted"));
    }
    let Some(wanted) = &options.preconditions else { return Ok(()) };
    let held = [
        ("UID", &wanted.uid, object::uid(object)),
        ("ResourceVersion", &wanted.resource_version, text_at(object, &["metadata", "resourceVersion"])),
    ];
    for (what, wanted, have) in held {
        if let Some(wanted) = wanted.as_deref().filter(|w| *w != have) {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {have}"
            );
            return Err(ApiError::conflict(api, name, &why));
        }
    }
    Ok(())
}

fn judge(kind: Kind, object: &Value, options: &DeleteOptions) -> Verdict {
    let terminating = object::is_terminating(object);
    let remove = if object::has_finalizers(object) { Verdict::Mark(0) } else { Verdict::Remove };
    match kind {
        Kind::Namespace if terminating => Verdict::Leave,
        Kind::Namespace => Verdict::Mark(0),
        Kind::Pod => {
            let grace = pod_grace(object, options.grace_period_seconds);
            let present = at(object, &["metadata", "deletionGracePeriodSeconds"]).as_i64();
            match (terminating, grace) {
                (true, 0) if present == Some(0) && object::has_finalizers(object) => Verdict::Leave,
                (_, 0) => remove,
                // A second delete can only make the rest shorter.
                (true, grace) if present.is_some_and(|p| grace >= p) => Verdict::Leave,
                (_, grace) => Verdict::Mark(grace),
            }
        }
        _ if terminating && object::has_finalizers(object) => Verdict::Leave,
        _ => remove,
    }
}

/// Seconds that a pod gets. One that runs nowhere, or no longer, gets none.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let nowhere = text_at(pod, &["spec", "nodeName"]).is_empty();
    let over = matches!(text_at(pod, &["status", "phase"]), "Succeeded" | "Failed");
    if nowhere || over {
        return 0;
    }
    let grace = asked.or_else(|| at(pod, &["spec", "terminationGracePeriodSeconds"]).as_i64()).unwrap_or(30);
    if grace < 0 { 1 } else { grace }
}

fn mark(kind: Kind, object: &mut Value, grace: i64) {
    let now = Timestamp::now();
    let marked = object::parse_time(text_at(object, &["metadata", "deletionTimestamp"]));
    let given = at(object, &["metadata", "deletionGracePeriodSeconds"]).as_i64().unwrap_or(0);
    let begun = marked.map_or(now, |m| m - SignedDuration::from_secs(given));
    if marked.is_none() && at(object, &["metadata", "generation"]).is_i64() {
        object::bump_generation(object);
    }
    let metadata = object::metadata(object);
    metadata
        .insert("deletionTimestamp".into(), object::time(begun + SignedDuration::from_secs(grace)).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if kind == Kind::Namespace {
        metadata.remove("deletionGracePeriodSeconds");
        object["status"]["phase"] = "Terminating".into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options(grace: Option<i64>) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() }
    }

    #[test]
    fn a_pod_goes_gracefully_if_it_runs_somewhere() {
        let bound = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        let mut unbound = bound.clone();
        unbound["spec"]["nodeName"] = "".into();
        let mut over = bound.clone();
        over["status"]["phase"] = "Failed".into();
        let mut held = bound.clone();
        held["metadata"] = json!({"finalizers": ["a/b"]});
        let cases = [
            (&bound, None, Verdict::Mark(30)),
            (&bound, Some(5), Verdict::Mark(5)),
            (&bound, Some(-1), Verdict::Mark(1)),
            (&bound, Some(0), Verdict::Remove),
            (&unbound, None, Verdict::Remove),
            (&over, Some(20), Verdict::Remove),
            (&held, Some(0), Verdict::Mark(0)),
        ];
        for (pod, grace, want) in cases {
            assert_eq!(judge(Kind::Pod, pod, &options(grace)), want);
        }
    }

    #[test]
    fn a_second_delete_only_shortens() {
        let mut pod = json!({"metadata": {"generation": 1}, "spec": {"nodeName": "n"}});
        mark(Kind::Pod, &mut pod, 30);
        assert_eq!(judge(Kind::Pod, &pod, &options(None)), Verdict::Leave);
        assert_eq!(judge(Kind::Pod, &pod, &options(Some(60))), Verdict::Leave);
        assert_eq!(judge(Kind::Pod, &pod, &options(Some(10))), Verdict::Mark(10));
        let long = object::parse_time(text_at(&pod, &["metadata", "deletionTimestamp"])).unwrap();
        mark(Kind::Pod, &mut pod, 10);
        let short = object::parse_time(text_at(&pod, &["metadata", "deletionTimestamp"])).unwrap();
        assert_eq!((long - short).get_seconds(), 20);
        assert_eq!(pod["metadata"]["generation"], 2);
        assert_eq!(judge(Kind::Pod, &pod, &options(Some(0))), Verdict::Remove);
    }
}
