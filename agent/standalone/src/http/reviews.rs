//! Questions about tokens and permissions.

use http::StatusCode;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body;
use super::dispatch::Context;
use super::{Response, respond};
use crate::auth::{self, Attributes, Decision, User};
use crate::object::{self, items, text};
use crate::resource::Review;
use crate::status::{ApiError, ApiResult};

/// Answers a review.
///
/// # Errors
/// 400, 405.
pub async fn answer(context: &Context<'_>, review: &Review, incoming: Incoming) -> ApiResult<Response> {
    if context.request.method != http::Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    let bytes = body::read(incoming).await?;
    let mut object = body::parse(&context.headers, &bytes)?;
    let status = match review.name {
        "TokenReview" => token(context, &object["spec"]),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            access(context, &subject(&object["spec"]), &object["spec"])?
        }
        "SelfSubjectAccessReview" => access(context, &context.user, &object["spec"])?,
        _ => json!({"userInfo": context.user.info()}),
    };
    object::metadata(&mut object).insert("creationTimestamp".into(), Value::Null);
    object["kind"] = review.name.into();
    object["apiVersion"] = format!("{}/v1", review.group).into();
    object["status"] = status;
    Ok(respond::json(StatusCode::CREATED, object.to_string()))
}

fn token(context: &Context<'_>, spec: &Value) -> Value {
    let audiences: Vec<String> =
        items(spec, "audiences").iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
    let registry = &context.app.registry;
    // A bootstrap token is for this server and nobody else.
    if audiences.is_empty()
        && let Some(user) = auth::bootstrap::verify(registry, text(spec, "token"))
    {
        return json!({"authenticated": true, "user": user.info(), "audiences": [auth::ISSUER]});
    }
    match context.app.tokens.verify(registry, text(spec, "token"), &audiences) {
        Some((user, both)) => json!({"authenticated": true, "user": user.info(), "audiences": both}),
        None => {
            json!({"user": {}, "error": "[invalid bearer token, service account token has been invalidated]"})
        }
    }
}

fn subject(spec: &Value) -> User {
    let groups = items(spec, "groups").iter().filter_map(|g| g.as_str().map(str::to_owned)).collect();
    User { name: text(spec, "user").to_owned(), uid: text(spec, "uid").to_owned(), groups, extra: Vec::new() }
}

fn access(context: &Context<'_>, user: &User, spec: &Value) -> ApiResult<Value> {
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == other.is_object() {
        let message = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        return Err(ApiError::bad_request(message));
    }
    let attributes = if resource.is_object() {
        Attributes {
            verb: text(resource, "verb").into(),
            group: text(resource, "group").into(),
            resource: text(resource, "resource").into(),
            subresource: text(resource, "subresource").into(),
            namespace: text(resource, "namespace").into(),
            name: text(resource, "name").into(),
            ..Attributes::default()
        }
    } else {
        Attributes {
            verb: text(other, "verb").into(),
            path: text(other, "path").into(),
            ..Attributes::default()
        }
    };
    Ok(match auth::authorize(&context.app.registry, user, &attributes) {
        Decision::Allow => json!({"allowed": true}),
        Decision::Deny(why) if why.is_empty() => json!({"allowed": false}),
        Decision::Deny(why) => json!({"allowed": false, "reason": why}),
    })
}
