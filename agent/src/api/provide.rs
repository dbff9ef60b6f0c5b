//! The API server's objects for volumes, variables and image pulls: [`Objects`] in the words of `volume`.
//!
//! Owns: the translation. Never: asks a server itself (`objects` does).

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::objects::{self, Content, Objects, TokenWanted};
use crate::pod::spec::Pod;
use crate::volume::objects as wanted;

impl wanted::Objects for Objects {
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<wanted::ObjectData>, wanted::ObjectError>> {
        async move { translate(Objects::config_map(self, namespace, name).await) }.boxed()
    }

    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<wanted::ObjectData>, wanted::ObjectError>> {
        async move { translate(Objects::secret(self, namespace, name).await) }.boxed()
    }

    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: &'a str,
        expiration: Duration,
    ) -> BoxFuture<'a, Result<String, wanted::ObjectError>> {
        async move {
            let account = pod.spec.service_account_name.as_str();
            let token = Objects::token(
                self,
                &TokenWanted {
                    namespace: pod.namespace(),
                    service_account: if account.is_empty() { "default" } else { account },
                    audience,
                    expiration_seconds: expiration.as_secs(),
                    pod: pod.name(),
                    pod_uid: pod.uid().as_str(),
                },
            )
            .await
            .map_err(|error| failed(&error))?;
            Ok(token.token)
        }
        .boxed()
    }
}

fn translate(
    found: Result<Arc<Content>, objects::ObjectError>,
) -> Result<Arc<wanted::ObjectData>, wanted::ObjectError> {
    let content = found.map_err(|error| failed(&error))?;
    Ok(Arc::new(wanted::ObjectData { data: content.data.clone(), kind: content.kind.clone() }))
}

fn failed(error: &objects::ObjectError) -> wanted::ObjectError {
    match error {
        objects::ObjectError::NotFound { .. } => wanted::ObjectError::NotFound(error.to_string()),
        objects::ObjectError::Api { .. } => wanted::ObjectError::Failed(error.to_string()),
    }
}
