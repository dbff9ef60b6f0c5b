//! The patch formats of the API: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch, apply.

mod apply;
mod strategic;

pub use apply::{Applier, apply as server_side};

use serde_json::Value;

use crate::status::{ApiError, ApiResult};

/// How the body of a PATCH is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json-patch+json`.
    Json,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
    /// `application/apply-patch+yaml`.
    Apply,
}

/// The media types that a PATCH may have.
pub const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, \
     application/strategic-merge-patch+json, application/apply-patch+yaml";

impl Format {
    /// The format of a media type.
    ///
    /// # Errors
    /// 415 for any other.
    pub fn of(media_type: &str) -> ApiResult<Self> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            _ => Err(ApiError::unsupported_media(ACCEPTED)),
        }
    }
}

/// Applies a patch of one of the first three formats to an object of a type.
///
/// # Errors
/// 400 when the patch does not parse, 422 when it does not fit the object.
pub fn apply(format: Format, object: &Value, patch: &Value, type_name: &'static str) -> ApiResult<Value> {
    let mut result = object.clone();
    match format {
        Format::Json => {
            let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
            json_patch::patch(&mut result, &operations).map_err(|e| unprocessable(&e.to_string()))?;
        }
        Format::Merge => json_patch::merge(&mut result, patch),
        Format::Strategic => {
            strategic::merge(&mut result, patch, type_name).map_err(ApiError::bad_request)?
        }
        // Applied by `server_side`, which needs to know who applies.
        Format::Apply => return Err(ApiError::unsupported_media(ACCEPTED)),
    }
    if !result.is_object() {
        return Err(unprocessable("the patched value is no object"));
    }
    Ok(result)
}

fn unprocessable(why: &str) -> ApiError {
    ApiError {
        code: 422,
        reason: "Invalid",
        message: format!("the server rejected our request due to an error in our request: {why}"),
        details: serde_json::json!({}),
    }
}
