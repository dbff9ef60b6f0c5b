//! Reads the body of a request: JSON, YAML or protobuf, of a bounded size, held against the schema.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::request::Query;
use crate::object;
use crate::resource::ApiResource;
use crate::schema::{self, Strictness};
use crate::status::{ApiError, ApiResult};

/// The largest body, as the real server has it.
pub const MAX_BYTES: usize = 3 << 20;

/// Reads everything.
///
/// # Errors
/// 413, or 400 when the client goes away.
pub async fn read(body: Incoming) -> ApiResult<bytes::Bytes> {
    match Limited::new(body, MAX_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::too_large(MAX_BYTES)),
        Err(error) => Err(ApiError::bad_request(format!("reading the body: {error}"))),
    }
}

/// The media type of a request, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    text.split(';').next().unwrap_or_default().trim()
}

/// Parses a body.
///
/// # Errors
/// 400, 415.
pub fn parse(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    match media_type(headers) {
        "application/json" | "" | "*/*" | "application/x-www-form-urlencoded" => parse_json(bytes),
        "application/yaml" | "application/x-yaml" => parse_yaml(bytes),
        "application/vnd.kubernetes.protobuf" => schema::decode_protobuf(bytes)
            .map_err(|why| ApiError::bad_request(format!("error decoding protobuf: {why}"))),
        _ => Err(ApiError::unsupported_media(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// Parses JSON.
///
/// # Errors
/// 400.
pub fn parse_json(bytes: &[u8]) -> ApiResult<Value> {
    serde_json::from_slice(bytes)
        .map_err(|e| ApiError::bad_request(format!("couldn't get version/kind; json parse error: {e}")))
}

/// Parses YAML.
///
/// # Errors
/// 400.
pub fn parse_yaml(bytes: &[u8]) -> ApiResult<Value> {
    serde_saphyr::from_slice(bytes).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))
}

/// What a write says about unknown fields and about trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// `fieldValidation`.
    pub strictness: Strictness,
    /// `dryRun=All`.
    pub dry_run: bool,
}

impl Mode {
    /// Reads the query.
    ///
    /// # Errors
    /// 422 for values that are not known.
    pub fn of(query: &Query) -> ApiResult<Self> {
        let strictness = match query.get("fieldValidation") {
            "Strict" => Strictness::Strict,
            "Warn" | "" => Strictness::Warn,
            "Ignore" => Strictness::Ignore,
            other => return Err(ApiError::bad_request(format!("invalid fieldValidation: {other}"))),
        };
        let dry_run = match query.get("dryRun") {
            "" => false,
            "All" => true,
            other => return Err(ApiError::bad_request(format!("Invalid value: dryRun: {other}"))),
        };
        Ok(Self { strictness, dry_run })
    }
}

/// Holds an object against the schema of its resource and takes `kind` and `apiVersion` away. Returns warnings.
///
/// # Errors
/// 400, when the kind is another, a value has a wrong type, or a field is unknown and that is not allowed.
pub fn admit(api: &ApiResource, object: &mut Value, mode: Mode) -> ApiResult<Vec<String>> {
    let (kind, version) =
        (object::text(object, "kind").to_owned(), object::text(object, "apiVersion").to_owned());
    let fine = |given: &str, want: &str| given.is_empty() || given == want;
    if !fine(&kind, api.name) || !fine(&version, &api.api_version()) {
        let message = format!(
            "{kind} in version \"{version}\" cannot be handled as a {}: expected {} of {}",
            api.name,
            api.name,
            api.api_version()
        );
        return Err(ApiError::bad_request(message));
    }
    checked(api.schema, api.name, &api.api_version(), object, mode.strictness)
}

/// Holds a value against a type and takes `kind` and `apiVersion` away. Returns warnings.
///
/// # Errors
/// 400.
pub fn checked(
    schema: &'static str,
    kind: &str,
    version: &str,
    object: &mut Value,
    strictness: Strictness,
) -> ApiResult<Vec<String>> {
    if !object.is_object() {
        return Err(ApiError::bad_request("the object provided is unrecognized (must be of type object)"));
    }
    let unknown = schema::check(object, schema).map_err(|why| {
        let version = version.rsplit('/').next().unwrap_or(version);
        ApiError::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
    })?;
    object::remove(object, "kind");
    object::remove(object, "apiVersion");
    let named: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    match strictness {
        Strictness::Ignore => Ok(Vec::new()),
        Strictness::Warn => Ok(named),
        Strictness::Strict if named.is_empty() => Ok(named),
        Strictness::Strict => {
            Err(ApiError::bad_request(format!("strict decoding error: {}", named.join(", "))))
        }
    }
}
