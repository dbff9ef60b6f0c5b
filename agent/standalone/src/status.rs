//! What goes wrong, in the words of the Kubernetes API: a `Status` object with code, reason, message and details.
//!
//! Owns: the wording, which clients match on. Never: decides that something is wrong.

use serde_json::{Map, Value, json};

use crate::resource::ApiResource;

/// An error that a client sees as a `Status` object.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status code.
    pub code: u16,
    /// The machine readable reason, as `NotFound`.
    pub reason: &'static str,
    /// The sentence for people.
    pub message: String,
    /// The `details` object, or null.
    pub details: Value,
}

/// The result of everything that a request asks for.
pub type ApiResult<T> = Result<T, ApiError>;

/// One thing that is wrong with one field (`field.Error` in Kubernetes).
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, ...
    pub reason: &'static str,
    /// The path, as `spec.containers[0].image`.
    pub field: String,
    /// The text after the path.
    pub message: String,
}

impl Cause {
    /// A field that must be there and is not.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    /// A value that is not allowed; strings are quoted as Go does.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let message = format!("Invalid value: {}: {detail}", shown(value));
        Self { reason: "FieldValueInvalid", field: field.into(), message }
    }

    /// A value outside a closed set.
    pub fn not_supported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let list = allowed.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {}: supported values: {list}", shown(value));
        Self { reason: "FieldValueNotSupported", field: field.into(), message }
    }

    /// A value that may occur only once.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {}", shown(value)),
        }
    }

    /// A change or a field that is not allowed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {detail}") }
    }

    /// A reference to something that is not there.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueNotFound",
            field: field.into(),
            message: format!("Not found: {}", shown(value)),
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) | Value::Array(_) => value.to_string(),
        other => other.to_string(),
    }
}

impl ApiError {
    fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    /// 404 for an object.
    pub fn not_found(api: &ApiResource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", api.qualified());
        Self { details: details(api.group, api.plural, name), ..Self::plain(404, "NotFound", message) }
    }

    /// 404 for a path that names nothing this server serves.
    pub fn no_such_path() -> Self {
        Self {
            details: json!({}),
            ..Self::plain(404, "NotFound", "the server could not find the requested resource")
        }
    }

    /// 409 for a create of something that is there.
    pub fn already_exists(api: &ApiResource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", api.qualified());
        Self { details: details(api.group, api.plural, name), ..Self::plain(409, "AlreadyExists", message) }
    }

    /// 409 for a write that was based on something else than what is there.
    pub fn conflict(api: &ApiResource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", api.qualified());
        Self { details: details(api.group, api.plural, name), ..Self::plain(409, "Conflict", message) }
    }

    /// 409 for an update with an old resourceVersion.
    pub fn modified(api: &ApiResource, name: &str) -> Self {
        Self::conflict(
            api,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with one cause for each field.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let errors: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let text = if errors.len() == 1 { errors[0].clone() } else { format!("[{}]", errors.join(", ")) };
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let mut object = Map::new();
        object.insert("name".into(), name.into());
        if !group.is_empty() {
            object.insert("group".into(), group.into());
        }
        object.insert("kind".into(), kind.into());
        let list: Vec<Value> = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect();
        object.insert("causes".into(), list.into());
        let message = format!("{qualified} \"{name}\" is invalid: {text}");
        Self { details: Value::Object(object), ..Self::plain(422, "Invalid", message) }
    }

    /// 400 for a request that cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::plain(400, "BadRequest", message)
    }

    /// 403 from admission, about one object.
    pub fn forbidden(api: &ApiResource, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", api.qualified());
        Self { details: details(api.group, api.plural, name), ..Self::plain(403, "Forbidden", message) }
    }

    /// 403 with the words given.
    pub fn forbidden_text(message: impl Into<String>) -> Self {
        Self { details: json!({}), ..Self::plain(403, "Forbidden", message) }
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::plain(401, "Unauthorized", "Unauthorized")
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: json!({}), ..Self::plain(405, "MethodNotAllowed", message) }
    }

    /// 406, with what could have been asked for.
    pub fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::plain(406, "NotAcceptable", message)
    }

    /// 415, with what could have been sent.
    pub fn unsupported_media(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::plain(415, "UnsupportedMediaType", message)
    }

    /// 410 for a resourceVersion or continue token that is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::plain(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::plain(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 429 with the seconds to wait.
    pub fn too_many(message: impl Into<String>, seconds: u32) -> Self {
        Self {
            details: json!({"retryAfterSeconds": seconds}),
            ..Self::plain(429, "TooManyRequests", message)
        }
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let details = json!({"causes": [{"message": message.to_string()}]});
        Self { details, ..Self::plain(500, "InternalError", format!("Internal error occurred: {message}")) }
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::plain(503, "ServiceUnavailable", message)
    }

    /// The `Status` object.
    pub fn body(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

fn details(group: &str, plural: &str, name: &str) -> Value {
    if group.is_empty() {
        json!({"name": name, "kind": plural})
    } else {
        json!({"name": name, "group": group, "kind": plural})
    }
}

/// The `Status` object of a deletion that leaves nothing to show.
pub fn deleted(api: &ApiResource, name: &str, uid: &str) -> Value {
    let mut details = details(api.group, api.plural, name);
    details["uid"] = uid.into();
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{PODS, find};

    #[test]
    fn errors_read_as_the_real_server_words_them() {
        assert_eq!(ApiError::not_found(PODS, "a").message, "pods \"a\" not found");
        let leases = find("coordination.k8s.io", "v1", "leases").unwrap();
        assert_eq!(ApiError::not_found(leases, "a").message, "leases.coordination.k8s.io \"a\" not found");
        assert_eq!(
            ApiError::modified(PODS, "a").message,
            "Operation cannot be fulfilled on pods \"a\": the object has been modified; \
             please apply your changes to the latest version and try again"
        );
        let one = [Cause::required("spec.containers[0].image", "")];
        assert_eq!(
            ApiError::invalid("", "Pod", "a", &one).message,
            "Pod \"a\" is invalid: spec.containers[0].image: Required value"
        );
    }
}
