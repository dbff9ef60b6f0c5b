//! The edge towards the API server for what volumes, variables and image pulls take from it.
//!
//! Owns: the trait, its data and errors. Never: caches or retries (implementations do).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::pod::spec::Pod;

/// Fetches objects on behalf of pods.
pub trait Objects: Send + Sync + 'static {
    /// A ConfigMap's `data` and `binaryData`.
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<ObjectData>, ObjectError>>;

    /// A Secret's decoded `data`.
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<ObjectData>, ObjectError>>;

    /// A service account token bound to the pod.
    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: &'a str,
        expiration: Duration,
    ) -> BoxFuture<'a, Result<String, ObjectError>>;
}

/// What an object holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectData {
    /// Values by key.
    pub data: BTreeMap<String, Vec<u8>>,
    /// A Secret's `type`; empty for a ConfigMap.
    pub kind: String,
}

/// Why an object could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// There is none of that name; the text is the API server's: `configmaps "x" not found`.
    #[error("{0}")]
    NotFound(String),
    /// The API server cannot be asked, or refuses.
    #[error("{0}")]
    Failed(String),
}
