//! The subresources that are not just a part of the object.

use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{self, Mode};
use super::dispatch::Context;
use super::{Response, proxy, read, respond, write};
use crate::auth::{Claims, ISSUER};
use crate::control::{namespace, scheduler};
use crate::object::{self, at, items, text, text_at};
use crate::registry::DeleteOptions;
use crate::resource::{ApiResource, Kind, NAMESPACES, PODS};
use crate::status::{ApiError, ApiResult, Cause};

/// Answers a request for a subresource.
///
/// # Errors
/// 404, 405, and those of the subresource.
pub async fn answer(
    context: &Context<'_>,
    api: &'static ApiResource,
    request: hyper::Request<Incoming>,
) -> ApiResult<Response> {
    let method = context.request.method.clone();
    match (api.kind, context.request.subresource.as_str(), &method) {
        (_, "status", &Method::GET) => read::get(context, api),
        (_, "status", &Method::PUT) => write::update(context, api, request.into_body()).await,
        (_, "status", &Method::PATCH) => write::patch(context, api, request.into_body()).await,
        (Kind::SigningRequest, "approval", &Method::GET) => read::get(context, api),
        (Kind::SigningRequest, "approval", &Method::PUT) => {
            write::update(context, api, request.into_body()).await
        }
        (Kind::SigningRequest, "approval", &Method::PATCH) => {
            write::patch(context, api, request.into_body()).await
        }
        (Kind::Pod, "binding", &Method::POST) => bindings(context, request.into_body()).await,
        (Kind::Pod, "eviction", &Method::POST) => evict(context, request.into_body()).await,
        (Kind::Pod, "log", &Method::GET) => proxy::log(context).await,
        (Kind::Pod, "exec" | "attach" | "portforward", &Method::GET | &Method::POST) => {
            proxy::connect(context, request).await
        }
        (Kind::Node, "proxy", _) => proxy::node(context, request).await,
        (Kind::ServiceAccount, "token", &Method::POST) => token(context, request.into_body()).await,
        (Kind::Namespace, "finalize", &Method::PUT) => finalize(context, request.into_body()).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// A `Binding`, by the subresource or by the collection.
///
/// # Errors
/// 404, 409, 422.
pub async fn bindings(context: &Context<'_>, incoming: Incoming) -> ApiResult<Response> {
    if context.request.method != Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    let mode = Mode::of(&context.request.query)?;
    let bytes = body::read(incoming).await?;
    let mut binding = body::parse(&context.headers, &bytes)?;
    body::checked("Binding", "Binding", "v1", &mut binding, mode.strictness)?;
    let name =
        if context.request.name.is_empty() { object::name(&binding) } else { context.request.name.as_str() };
    let node = text_at(&binding, &["target", "name"]);
    let kind = text_at(&binding, &["target", "kind"]);
    if node.is_empty() {
        return Err(ApiError::invalid("", "Binding", name, &[Cause::required("target.name", "")]));
    }
    if !matches!(kind, "" | "Node" | "Minion") {
        let cause = Cause::not_supported("target.kind", &kind.into(), &["Node", "<empty>"]);
        return Err(ApiError::invalid("", "Binding", name, &[cause]));
    }
    if !mode.dry_run {
        scheduler::bind(
            &context.app.registry,
            &context.request.namespace,
            name,
            object::uid(&binding),
            node,
        )?;
    }
    let body =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::json(StatusCode::CREATED, body.to_string()))
}

async fn evict(context: &Context<'_>, incoming: Incoming) -> ApiResult<Response> {
    let mode = Mode::of(&context.request.query)?;
    let bytes = body::read(incoming).await?;
    let eviction = body::parse(&context.headers, &bytes)?;
    let mut options: DeleteOptions = match eviction.get("deleteOptions") {
        Some(Value::Null) | None => DeleteOptions::default(),
        Some(given) => serde_json::from_value(given.clone())
            .map_err(|e| ApiError::bad_request(format!("DeleteOptions: {e}")))?,
    };
    if mode.dry_run {
        options.dry_run = vec!["All".into()];
    }
    let request = &context.request;
    context.app.registry.delete(PODS, &request.namespace, &request.name, &options)?;
    let body =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::json(StatusCode::CREATED, body.to_string()))
}

async fn finalize(context: &Context<'_>, incoming: Incoming) -> ApiResult<Response> {
    let mode = Mode::of(&context.request.query)?;
    let bytes = body::read(incoming).await?;
    let mut wanted = body::parse(&context.headers, &bytes)?;
    body::admit(NAMESPACES, &mut wanted, mode)?;
    let now = namespace::finalize_by_request(&context.app.registry, &context.request.name, &wanted)?;
    read::one(context, NAMESPACES, StatusCode::OK, now.to_string().as_bytes())
}

/// TokenRequest: a token for a service account, bound to a pod if asked for.
async fn token(context: &Context<'_>, incoming: Incoming) -> ApiResult<Response> {
    let mode = Mode::of(&context.request.query)?;
    let bytes = body::read(incoming).await?;
    let mut object = body::parse(&context.headers, &bytes)?;
    body::checked("TokenRequest", "TokenRequest", "authentication.k8s.io/v1", &mut object, mode.strictness)?;
    let registry = &context.app.registry;
    let (namespace, name) = (&context.request.namespace, &context.request.name);
    let account = registry.get(Kind::ServiceAccount.api(), namespace, name)?;
    let account = object::parse(&account);
    let spec = object::map_mut(&mut object, "spec");
    let seconds = match spec.get("expirationSeconds").and_then(Value::as_i64) {
        None => 3600,
        Some(s) if s < 600 => {
            let cause = Cause::invalid(
                "spec.expirationSeconds",
                &s.into(),
                "may not specify a duration less than 10 minutes",
            );
            return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &[cause]));
        }
        Some(s) => s.min(1 << 32),
    };
    spec.insert("expirationSeconds".into(), seconds.into());
    if items(&object["spec"], "audiences").is_empty() {
        object["spec"]["audiences"] = json!([ISSUER]);
    }
    let audiences =
        items(&object["spec"], "audiences").iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
    let (bound, node) = bound_to(context, &object["spec"]["boundObjectRef"])?;
    let claims =
        Claims { namespace, account: (name, object::uid(&account)), audiences, seconds, bound, node };
    let signed = context.app.tokens.sign(&claims);
    let (token, ends) = signed.ok_or_else(|| ApiError::internal("no randomness to sign a token"))?;
    object["status"] = json!({"token": token, "expirationTimestamp": object::time(ends)});
    object["kind"] = "TokenRequest".into();
    object["apiVersion"] = "authentication.k8s.io/v1".into();
    let created = account["metadata"]["creationTimestamp"].clone();
    object["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": created});
    Ok(respond::json(StatusCode::CREATED, object.to_string()))
}

type Bound = Option<(&'static str, String, String)>;

/// What the token shall live with, after a look whether that is so.
fn bound_to(context: &Context<'_>, reference: &Value) -> ApiResult<(Bound, Option<(String, String)>)> {
    let registry = &context.app.registry;
    let namespace = &context.request.namespace;
    if !reference.is_object() {
        if let Some(node) = context.user.node() {
            let why = format!("node \"{node}\" can only create tokens bound to a pod");
            return Err(ApiError::forbidden(Kind::ServiceAccount.api(), &context.request.name, &why));
        }
        return Ok((None, None));
    }
    let (name, uid) = (text(reference, "name"), text(reference, "uid"));
    let (word, kind) = match text(reference, "kind") {
        "Pod" => ("pod", Kind::Pod),
        "Secret" => ("secret", Kind::Secret),
        other => return Err(ApiError::bad_request(format!("cannot bind token to object of type {other}"))),
    };
    let found = object::parse(&registry.get(kind.api(), namespace, name)?);
    if !uid.is_empty() && object::uid(&found) != uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(kind.api(), name, &why));
    }
    let bound = Some((word, name.to_owned(), object::uid(&found).to_owned()));
    if kind == Kind::Secret {
        return Ok((bound, None));
    }
    let account = text_at(&found, &["spec", "serviceAccountName"]);
    if account != context.request.name {
        let message = format!(
            "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
            context.request.name
        );
        return Err(ApiError::bad_request(message));
    }
    let node_name = text_at(&found, &["spec", "nodeName"]);
    if let Some(asking) = context.user.node()
        && asking != node_name
    {
        let why =
            format!("node requested token bound to a pod scheduled on a different node \"{node_name}\"");
        return Err(ApiError::forbidden(Kind::ServiceAccount.api(), &context.request.name, &why));
    }
    let node = registry.find(Kind::Node, "", node_name)?;
    Ok((
        bound,
        node.map(|n| {
            (node_name.to_owned(), at(&n, &["metadata", "uid"]).as_str().unwrap_or_default().to_owned())
        }),
    ))
}
