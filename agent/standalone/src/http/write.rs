//! Create, update, patch, delete.

use http::StatusCode;
use hyper::body::Incoming;
use serde_json::Value;

use super::body::{self, Mode};
use super::dispatch::Context;
use super::{Response, events_v1, read, respond};
use crate::auth;
use crate::object;
use crate::patch::{self, Format};
use crate::registry::{DeleteOptions, Deleted, Target, WriteOptions};
use crate::resource::{ApiResource, Kind};
use crate::selector::Selector;
use crate::status::{ApiError, ApiResult, Cause, deleted};
use crate::store::Slim;
use crate::strategy::{self, Part};

fn options(mode: Mode) -> WriteOptions {
    WriteOptions { dry_run: mode.dry_run }
}

/// What depends on who creates: NodeRestriction, and the name that a signing request carries.
fn admit_new(context: &Context<'_>, api: &ApiResource, new: &mut Value) -> ApiResult<()> {
    if api.kind == Kind::SigningRequest {
        strategy::stamp_signing_request(&context.user.info(), new);
    }
    restrict(context, api, &Value::Null, new)
}

/// NodeRestriction looks at what a node sends.
fn restrict(context: &Context<'_>, api: &ApiResource, old: &Value, new: &Value) -> ApiResult<()> {
    let Some(name) = context.user.node() else { return Ok(()) };
    auth::restrict(name, &context.request.attributes(), old, new)
        .map_err(|why| ApiError::forbidden(api, object::name(new), &why))
}

fn finish(mut response: Response, warnings: &[String]) -> Response {
    for warning in warnings {
        respond::warn(&mut response, warning);
    }
    response
}

/// POST.
///
/// # Errors
/// Everything that can be wrong with an object.
pub async fn create(context: &Context<'_>, api: &'static ApiResource, body: Incoming) -> ApiResult<Response> {
    let mode = Mode::of(&context.request.query)?;
    let bytes = body::read(body).await?;
    let mut object = body::parse(&context.headers, &bytes)?;
    drop(bytes);
    let warnings = body::admit(api, &mut object, mode)?;
    if events_v1::applies(api) {
        events_v1::to_stored(&mut object);
    }
    admit_new(context, api, &mut object)?;
    let stored = context.app.registry.create(api, &context.request.namespace, object, options(mode))?;
    Ok(finish(read::one(context, api, StatusCode::CREATED, &stored)?, &warnings))
}

fn target<'a>(context: &'a Context<'_>, api: &'static ApiResource) -> Target<'a> {
    let request = &context.request;
    let part = match request.subresource.as_str() {
        "status" => Part::Status,
        "approval" => Part::Approval,
        _ => Part::Main,
    };
    Target { api, namespace: &request.namespace, name: &request.name, part }
}

/// PUT, of the object or of its status.
///
/// # Errors
/// Everything that can be wrong with an object.
pub async fn update(context: &Context<'_>, api: &'static ApiResource, body: Incoming) -> ApiResult<Response> {
    let mode = Mode::of(&context.request.query)?;
    let bytes = body::read(body).await?;
    let mut object = body::parse(&context.headers, &bytes)?;
    drop(bytes);
    let warnings = body::admit(api, &mut object, mode)?;
    if events_v1::applies(api) {
        events_v1::to_stored(&mut object);
    }
    if api.namespaced && object::namespace(&object).is_empty() {
        object::metadata(&mut object).insert("namespace".into(), context.request.namespace.as_str().into());
    }
    let registry = &context.app.registry;
    let mut object = Some(object);
    let updated =
        registry.update(target(context, api), options(mode), |_| Ok(object.take().unwrap_or_default()));
    let (status, stored) = match (updated, object) {
        // These kinds may be made by an update (`AllowCreateOnUpdate`).
        (Err(error), Some(mut new)) if error.code == 404 && creates_on_update(api.kind) => {
            admit_new(context, api, &mut new)?;
            (StatusCode::CREATED, registry.create(api, &context.request.namespace, new, options(mode))?)
        }
        (updated, _) => (StatusCode::OK, updated?),
    };
    Ok(finish(read::one(context, api, status, &stored)?, &warnings))
}

fn creates_on_update(kind: Kind) -> bool {
    matches!(kind, Kind::Lease | Kind::Service | Kind::Event)
}

/// PATCH, of the object or of its status.
///
/// # Errors
/// Everything that can be wrong with a patch or an object.
pub async fn patch(context: &Context<'_>, api: &'static ApiResource, body: Incoming) -> ApiResult<Response> {
    let format = Format::of(body::media_type(&context.headers))?;
    let mode = Mode::of(&context.request.query)?;
    let bytes = body::read(body).await?;
    if format == Format::Apply {
        return apply(context, api, mode, &bytes);
    }
    let patch = body::parse_json(&bytes)?;
    drop(bytes);
    let mut warnings = Vec::new();
    let change = |old: &Value| {
        let mut shown = old.clone();
        if events_v1::applies(api) {
            events_v1::from_stored(&mut shown);
        }
        object::object_of(&mut shown).insert("kind".into(), api.name.into());
        object::object_of(&mut shown).insert("apiVersion".into(), api.api_version().into());
        let mut new = patch::apply(format, &shown, &patch, api.schema)?;
        warnings = body::admit(api, &mut new, mode)?;
        if events_v1::applies(api) {
            events_v1::to_stored(&mut new);
        }
        restrict(context, api, old, &new)?;
        Ok(new)
    };
    let stored = context.app.registry.update(target(context, api), options(mode), change)?;
    Ok(finish(read::one(context, api, StatusCode::OK, &stored)?, &warnings))
}

/// PATCH with an apply configuration: creates what is not there.
fn apply(context: &Context<'_>, api: &'static ApiResource, mode: Mode, bytes: &[u8]) -> ApiResult<Response> {
    let query = &context.request.query;
    let manager = query.get("fieldManager");
    if manager.is_empty() {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", &[cause]));
    }
    if events_v1::applies(api) {
        return Err(ApiError::unsupported_media("application/merge-patch+json"));
    }
    let mut config = body::parse_yaml(bytes)?;
    let warnings = body::admit(api, &mut config, mode)?;
    if !object::items(&config["metadata"], "managedFields").is_empty() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let (api_version, now) = (api.api_version(), object::now());
    let force = query.is_true("force");
    let applier = patch::Applier {
        manager,
        force,
        status: !context.request.subresource.is_empty(),
        type_name: api.schema,
        api_version: &api_version,
        now: &now,
    };
    let registry = &context.app.registry;
    let request = &context.request;
    let updated = registry.update(target(context, api), options(mode), |old| {
        let new = patch::server_side(applier, old, &config)?;
        restrict(context, api, old, &new)?;
        Ok(new)
    });
    let (status, stored) = match updated {
        Err(error) if error.code == 404 && request.subresource.is_empty() => {
            let mut new = patch::server_side(applier, &Value::Null, &config)?;
            object::metadata(&mut new).insert("name".into(), request.name.as_str().into());
            admit_new(context, api, &mut new)?;
            (StatusCode::CREATED, registry.create(api, &request.namespace, new, options(mode))?)
        }
        other => (StatusCode::OK, other?),
    };
    Ok(finish(read::one(context, api, status, &stored)?, &warnings))
}

/// The options of a deletion, from the body or the query.
async fn delete_options(context: &Context<'_>, body: Incoming) -> ApiResult<DeleteOptions> {
    let bytes = body::read(body).await?;
    let mut options: DeleteOptions = if bytes.is_empty() {
        DeleteOptions::default()
    } else {
        serde_json::from_value(body::parse(&context.headers, &bytes)?)
            .map_err(|e| ApiError::bad_request(format!("DeleteOptions: {e}")))?
    };
    let query = &context.request.query;
    if options.grace_period_seconds.is_none() && !query.get("gracePeriodSeconds").is_empty() {
        let text = query.get("gracePeriodSeconds");
        let seconds = text
            .parse()
            .map_err(|_| ApiError::bad_request(format!("invalid gracePeriodSeconds \"{text}\"")))?;
        options.grace_period_seconds = Some(seconds);
    }
    let policy = options.propagation_policy.get_or_insert_with(|| query.get("propagationPolicy").to_owned());
    if !matches!(policy.as_str(), "" | "Orphan" | "Background" | "Foreground") {
        return Err(ApiError::bad_request(format!("invalid propagationPolicy \"{policy}\"")));
    }
    if Mode::of(query)?.dry_run {
        options.dry_run = vec!["All".into()];
    }
    Ok(options)
}

/// DELETE of one.
///
/// # Errors
/// 403, 404, 409.
pub async fn delete(context: &Context<'_>, api: &'static ApiResource, body: Incoming) -> ApiResult<Response> {
    let options = delete_options(context, body).await?;
    let request = &context.request;
    let outcome = context.app.registry.delete(api, &request.namespace, &request.name, &options)?;
    let stored = match outcome {
        // These kinds answer with a status once they are gone.
        Deleted::Gone(bytes) if !matches!(api.kind, Kind::Pod | Kind::Service | Kind::ServiceAccount) => {
            let uid = object::uid(&object::parse(&bytes)).to_owned();
            return Ok(respond::value(&deleted(api, &request.name, &uid)));
        }
        Deleted::Gone(bytes) | Deleted::Terminating(bytes) => bytes,
    };
    read::one(context, api, StatusCode::OK, &stored)
}

/// DELETE of many.
///
/// # Errors
/// 400, and the first error of one of them.
pub async fn delete_many(
    context: &Context<'_>,
    api: &'static ApiResource,
    body: Incoming,
) -> ApiResult<Response> {
    if !api.verbs().contains(&"deletecollection") {
        return Err(ApiError::method_not_allowed());
    }
    let options = delete_options(context, body).await?;
    let request = &context.request;
    let query = &request.query;
    let selector = Selector::parse(api, query.get("labelSelector"), query.get("fieldSelector"))?;
    let namespace = (!request.namespace.is_empty()).then_some(request.namespace.as_str());
    let registry = &context.app.registry;
    let page = registry.store.list(api.kind, namespace, None, usize::MAX)?;
    let mut items = Vec::new();
    for (_, bytes) in page.items {
        let slim = Slim::of(&bytes);
        if !selector.matches(api.kind, &slim) {
            continue;
        }
        match registry.delete(api, slim.namespace(), slim.name(), &options) {
            Ok(Deleted::Gone(bytes) | Deleted::Terminating(bytes)) => items.push(read::shown(api, &bytes)),
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let version = registry.store.version().to_string();
    Ok(respond::value(&serde_json::json!({
        "kind": format!("{}List", api.name), "apiVersion": api.api_version(), "metadata": {"resourceVersion": version}, "items": items,
    })))
}
