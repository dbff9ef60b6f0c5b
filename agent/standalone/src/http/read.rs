//! Get and list, as objects, as a table, or as metadata alone.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::dispatch::Context;
use super::{Response, events_v1, respond};
use crate::object;
use crate::resource::ApiResource;
use crate::selector::Selector;
use crate::status::{ApiError, ApiResult};
use crate::store::Slim;
use crate::table::{self, Include};

/// The form in which objects are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Object,
    /// As rows, each with this much of the object.
    Table(Include),
    /// `PartialObjectMetadata`.
    Metadata,
}

impl Form {
    /// Reads `Accept` and `includeObject`.
    ///
    /// # Errors
    /// 406 when no form in it is JSON.
    pub fn of(context: &Context<'_>) -> ApiResult<Self> {
        for wanted in context.accept().split(',') {
            let wanted = wanted.trim();
            let json = wanted.starts_with("application/json")
                || wanted.starts_with("*/*")
                || wanted.starts_with("application/*");
            if !json {
                continue;
            }
            if wanted.contains("as=Table") && wanted.contains("g=meta.k8s.io") {
                return Ok(Self::Table(Include::parse(context.request.query.get("includeObject"))));
            }
            if wanted.contains("as=PartialObjectMetadata") && wanted.contains("g=meta.k8s.io") {
                return Ok(Self::Metadata);
            }
            if !wanted.contains("as=") {
                return Ok(Self::Object);
            }
        }
        Err(ApiError::not_acceptable())
    }
}

/// The stored object as the resource shows it, parsed, without `kind` and `apiVersion`.
pub fn shown(api: &ApiResource, stored: &[u8]) -> Value {
    let mut object = object::parse(stored);
    if events_v1::applies(api) {
        events_v1::from_stored(&mut object);
    }
    object
}

/// Appends one object in a form.
pub fn push(out: &mut Vec<u8>, api: &ApiResource, stored: &[u8], form: Form) {
    match form {
        Form::Object if events_v1::applies(api) => {
            object::push_with_type(out, api, shown(api, stored).to_string().as_bytes());
        }
        Form::Object => object::push_with_type(out, api, stored),
        Form::Metadata => {
            out.extend_from_slice(table::metadata_of(&object::parse(stored)).to_string().as_bytes())
        }
        Form::Table(include) => {
            let table = table::whole(api, &[stored], include, &json!({}));
            out.extend_from_slice(table.to_string().as_bytes());
        }
    }
}

/// One object, as the answer of a request.
pub fn one(
    context: &Context<'_>,
    api: &ApiResource,
    status: StatusCode,
    stored: &[u8],
) -> ApiResult<Response> {
    let mut out = Vec::with_capacity(stored.len() + 64);
    push(&mut out, api, stored, Form::of(context)?);
    Ok(respond::json(status, out))
}

/// GET of one.
///
/// # Errors
/// 404, 406.
pub fn get(context: &Context<'_>, api: &'static ApiResource) -> ApiResult<Response> {
    let request = &context.request;
    let stored = context.app.registry.get(api, &request.namespace, &request.name)?;
    one(context, api, StatusCode::OK, &stored)
}

struct Listed {
    items: Vec<Bytes>,
    version: u64,
    token: String,
    remaining: Option<usize>,
}

/// GET of many.
///
/// # Errors
/// 400, 406, 410.
pub fn list(context: &Context<'_>, api: &'static ApiResource) -> ApiResult<Response> {
    let form = Form::of(context)?;
    let listed = select(context, api)?;
    let mut metadata = json!({"resourceVersion": listed.version.to_string()});
    if !listed.token.is_empty() {
        metadata["continue"] = listed.token.as_str().into();
        if let Some(remaining) = listed.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    let bytes = match form {
        Form::Table(include) => {
            let rows: Vec<&[u8]> = listed.items.iter().map(AsRef::as_ref).collect();
            table::whole(api, &rows, include, &metadata).to_string().into_bytes()
        }
        Form::Metadata => {
            let items: Vec<Value> =
                listed.items.iter().map(|b| table::metadata_of(&object::parse(b))).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
                .to_string()
                .into_bytes()
        }
        Form::Object => plain(api, &listed.items, &metadata),
    };
    Ok(respond::json(StatusCode::OK, bytes))
}

fn plain(api: &ApiResource, items: &[Bytes], metadata: &Value) -> Vec<u8> {
    let size: usize = items.iter().map(|i| i.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 200);
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        api.name,
        api.api_version()
    );
    out.extend_from_slice(head.as_bytes());
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        if events_v1::applies(api) {
            out.extend_from_slice(shown(api, item).to_string().as_bytes());
        } else {
            out.extend_from_slice(item);
        }
    }
    out.extend_from_slice(b"]}");
    out
}

fn select(context: &Context<'_>, api: &'static ApiResource) -> ApiResult<Listed> {
    let query = &context.request.query;
    let store = &context.app.registry.store;
    let selector = Selector::parse(api, query.get("labelSelector"), query.get("fieldSelector"))?;
    let limit = query
        .number("limit")?
        .filter(|l| *l > 0)
        .map_or(usize::MAX, |l| usize::try_from(l).unwrap_or(usize::MAX));
    let resume = Continue::parse(query.get("continue"))?;
    check_version(context, resume.as_ref())?;
    if let Some(resume) = &resume
        && store.since(api.kind, resume.version).is_err()
    {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                       without the continue parameter, or use the continue token in this response to retrieve the remainder of the results.";
        return Err(ApiError::expired(message));
    }
    let namespace = (!context.request.namespace.is_empty()).then_some(context.request.namespace.as_str());
    let mut after = resume.as_ref().map(|r| r.after.clone());
    let mut items = Vec::new();
    let (mut version, mut token) = (None, String::new());
    loop {
        let page = store.list(api.kind, namespace, after.as_deref(), limit.saturating_sub(items.len()))?;
        let shown = *version.get_or_insert_with(|| resume.as_ref().map_or(page.version, |r| r.version));
        let last = page.items.last().map(|(key, _)| key.clone());
        let fits = |b: &Bytes| selector.is_empty() || selector.matches(api.kind, &Slim::of(b));
        items.extend(page.items.into_iter().map(|(_, b)| b).filter(fits));
        let Some(last) = last.filter(|_| page.more) else { break };
        if items.len() >= limit {
            token = Continue { version: shown, after: last }.encode();
            break;
        }
        after = Some(last);
    }
    let remaining = (!token.is_empty() && selector.is_empty() && namespace.is_none() && resume.is_none())
        .then(|| store.count(api.kind).saturating_sub(items.len()));
    Ok(Listed { items, version: version.unwrap_or_else(|| store.version()), token, remaining })
}

/// `resourceVersion` and `resourceVersionMatch` of a list. This server always shows the newest state.
fn check_version(context: &Context<'_>, resume: Option<&Continue>) -> ApiResult<()> {
    let query = &context.request.query;
    let (text, matching) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
    if text.is_empty() {
        return Ok(());
    }
    let version: u64 = text
        .parse()
        .map_err(|_| ApiError::bad_request(format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax")))?;
    if resume.is_some() && version != 0 {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    let newest = context.app.registry.store.version();
    if version > newest {
        let details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1});
        let message = format!("Timeout: Too large resource version: {version}, current: {newest}");
        return Err(ApiError { code: 504, reason: "Timeout", message, details });
    }
    if matching == "Exact" && version != newest {
        return Err(ApiError::expired(format!(
            "The resourceVersion for the provided list is too old: {version}"
        )));
    }
    Ok(())
}

/// Where a list goes on.
struct Continue {
    version: u64,
    after: String,
}

impl Continue {
    fn parse(text: &str) -> ApiResult<Option<Self>> {
        use base64::Engine as _;
        if text.is_empty() {
            return Ok(None);
        }
        let bad = || ApiError::bad_request("continue key is not valid");
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let version = value["rv"].as_u64().ok_or_else(bad)?;
        let after = object::text(&value, "start").to_owned();
        Ok(Some(Self { version, after }))
    }

    fn encode(&self) -> String {
        use base64::Engine as _;
        let value = json!({"v": "meta.k8s.io/v1", "rv": self.version, "start": self.after});
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    }
}
