//! Lists in pages, each item decoded at once into the caller's compact type.
//!
//! Owns: paging, and the head every object has (name, UID, resource version). Never: keeps a page's JSON longer than
//! it takes to decode it; what the caller's decoder does not ask for (`managedFields` above all) is never allocated.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{CALL_TIMEOUT, Client};
use super::error::ApiError;
use super::path::{Query, Resource};

/// Which objects of which resource.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The resource.
    pub resource: Resource,
    /// Of one namespace, or of all.
    pub namespace: Option<String>,
    /// `fieldSelector`.
    pub field_selector: Option<String>,
    /// `labelSelector`.
    pub label_selector: Option<String>,
    /// Items per page.
    pub page: u32,
}

impl Selection {
    /// All objects of a resource, 100 at a time.
    pub fn all(resource: Resource) -> Self {
        Self { resource, namespace: None, field_selector: None, label_selector: None, page: 100 }
    }

    /// With a field selector.
    pub fn fields(self, selector: impl Into<String>) -> Self {
        Self { field_selector: Some(selector.into()), ..self }
    }

    /// With a label selector.
    pub fn labels(self, selector: impl Into<String>) -> Self {
        Self { label_selector: Some(selector.into()), ..self }
    }

    /// Path and query, with the selectors and `more`.
    pub fn path(&self, more: Query) -> String {
        let query = more
            .with_some("fieldSelector", self.field_selector.as_deref())
            .with_some("labelSelector", self.label_selector.as_deref());
        format!("{}{}", self.resource.collection(self.namespace.as_deref()), query.as_str())
    }
}

/// Which object: enough to forget it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID.
    pub uid: String,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What every object begins with.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HeadMeta {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
}

impl Head {
    /// Of an object's JSON.
    pub(super) fn of(raw: &RawValue) -> Result<Self, String> {
        serde_json::from_str(raw.get()).map_err(|e| e.to_string())
    }

    pub(super) fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }

    pub(super) fn key(self) -> ObjectKey {
        let HeadMeta { name, namespace, uid, .. } = self.metadata;
        ObjectKey { namespace, name, uid }
    }
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMeta,
    /// `null` from some servers when empty.
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

/// Every selected object, and the resource version from which to watch.
pub async fn list<T, D>(
    client: &Client,
    selection: &Selection,
    decode: &D,
) -> Result<(Vec<T>, String), ApiError>
where
    D: Fn(&str) -> Result<T, String>,
{
    match list_pages(client, selection, selection.page, decode).await {
        // The continue token grew too old between two pages: everything in one page cannot.
        Err(ApiError::Gone(_)) => list_pages(client, selection, 0, decode).await,
        other => other,
    }
}

async fn list_pages<T, D>(
    client: &Client,
    selection: &Selection,
    limit: u32,
    decode: &D,
) -> Result<(Vec<T>, String), ApiError>
where
    D: Fn(&str) -> Result<T, String>,
{
    let mut items = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let query = Query::new().with_some("limit", (limit > 0).then_some(limit)).with_some("continue", next);
        let path = selection.path(query);
        let bytes = client.get_bytes(&path, CALL_TIMEOUT).await?;
        let page: Page<'_> = serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::Decode { path: path.clone(), reason: e.to_string() })?;
        for raw in page.items.unwrap_or_default() {
            items.extend(decode_item(&selection.resource, raw, decode));
        }
        if page.metadata.next.is_empty() {
            return Ok((items, page.metadata.resource_version));
        }
        next = Some(page.metadata.next);
    }
}

/// One object, or nothing and a warning when the decoder does not understand it: one bad object must not hide the others.
pub(super) fn decode_item<T, D>(resource: &Resource, raw: &RawValue, decode: &D) -> Option<T>
where
    D: Fn(&str) -> Result<T, String>,
{
    match decode(raw.get()) {
        Ok(item) => Some(item),
        Err(error) => {
            let key = Head::of(raw).map(|h| h.key().to_string()).unwrap_or_default();
            tracing::warn!(resource = resource.plural, object = %key, %error, "object is not understood and left out");
            None
        }
    }
}
