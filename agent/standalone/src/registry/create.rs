//! Create.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Registry, WriteOptions};
use crate::object;
use crate::resource::{ApiResource, Kind, NAMESPACES};
use crate::status::{ApiError, ApiResult};
use crate::store::Tx;
use crate::strategy;

impl Registry {
    /// Stores a new object and returns its bytes.
    ///
    /// # Errors
    /// 400, 403, 404 (the namespace), 409, 422, in the words of the real server.
    pub fn create(
        &self,
        api: &'static ApiResource,
        namespace: &str,
        mut object: Value,
        options: WriteOptions,
    ) -> ApiResult<Bytes> {
        place(api, namespace, &mut object)?;
        if !object::text_at(&object, &["metadata", "resourceVersion"]).is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        self.store.write(|tx| {
            if api.namespaced {
                check_namespace(tx, api, namespace, object::name(&object))?;
            }
            let name = object::name(&object);
            if !name.is_empty() && tx.get(api.kind, namespace, name)?.is_some() {
                return Err(ApiError::already_exists(api, name));
            }
            strategy::prepare_create(self, tx, api, &mut object)?;
            if options.dry_run {
                if api.kind == Kind::Service {
                    self.allocator.release(&object);
                }
                return Ok(Bytes::from(object.to_string()));
            }
            if tx.get(api.kind, namespace, object::name(&object))?.is_some() {
                return Err(ApiError::already_exists(api, object::name(&object)));
            }
            let name = object::name(&object).to_owned();
            let bytes = tx.put(api.kind, object)?;
            if api.kind == Kind::Namespace {
                self.furnish(tx, &name)?;
            }
            Ok(bytes)
        })
    }

    /// What every namespace has: a service account and the certificate of the CA.
    fn furnish(&self, tx: &mut Tx<'_>, namespace: &str) -> ApiResult<()> {
        let account = json!({"metadata": {"name": "default", "namespace": namespace}});
        let root = json!({
            "metadata": {"name": "kube-root-ca.crt", "namespace": namespace, "annotations": {
                "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using \
                    internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                    guaranteed across distributions of Kubernetes clusters."}},
            "data": {"ca.crt": self.settings.ca_pem},
        });
        for (kind, mut object) in [(Kind::ServiceAccount, account), (Kind::ConfigMap, root)] {
            strategy::prepare_create(self, tx, kind.api(), &mut object)?;
            tx.put(kind, object)?;
        }
        Ok(())
    }
}

/// Puts the namespace of the path into the object.
fn place(api: &ApiResource, namespace: &str, object: &mut Value) -> ApiResult<()> {
    let given = object::namespace(object);
    if !api.namespaced {
        if !given.is_empty() {
            object::metadata(object).remove("namespace");
        }
        return Ok(());
    }
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request (\"{given}\" vs \"{namespace}\")"
        )));
    }
    object::metadata(object).insert("namespace".into(), namespace.into());
    Ok(())
}

fn check_namespace(tx: &Tx<'_>, api: &ApiResource, namespace: &str, name: &str) -> ApiResult<()> {
    let Some(found) = tx.get(Kind::Namespace, "", namespace)? else {
        return Err(ApiError::not_found(NAMESPACES, namespace));
    };
    // A terminating namespace still takes events about its own end.
    if object::is_terminating(&object::parse(&found)) && api.kind != Kind::Event {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = ApiError::forbidden(api, name, &why);
        error.details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
        return Err(error);
    }
    Ok(())
}
