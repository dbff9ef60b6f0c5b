//! From a request to its response: who, what, may they, do it.

use http::header::{ACCEPT, AUTHORIZATION};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use super::request::{Endpoint, Request};
use super::{App, Response, discovery, openapi, read, respond, reviews, subresource, watch, write};
use crate::auth::{self, Decision, User};
use crate::status::{ApiError, ApiResult};

/// The version that the server says it is, and whose behaviour it follows.
pub const VERSION: (&str, &str) = ("1", "36");

/// Who asks, and how.
pub struct Context<'a> {
    /// What the answer is made from.
    pub app: &'a App,
    /// Who asks.
    pub user: User,
    /// What.
    pub request: Request,
    /// The headers.
    pub headers: http::HeaderMap,
}

impl Context<'_> {
    /// The header `Accept`.
    pub fn accept(&self) -> &str {
        self.headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*")
    }
}

/// Answers a request.
pub async fn handle(
    app: &App,
    certificate: Option<&User>,
    presented: bool,
    request: hyper::Request<Incoming>,
) -> Response {
    match answer(app, certificate, presented, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(code = error.code, %error, "refused");
            respond::error(&error)
        }
    }
}

async fn answer(
    app: &App,
    certificate: Option<&User>,
    presented: bool,
    request: hyper::Request<Incoming>,
) -> ApiResult<Response> {
    let understood = Request::parse(request.method(), request.uri());
    let authorization = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let anonymous = !presented && authorization.is_none();
    if anonymous && auth::anonymous_allowed(&understood.method, &understood.path) {
        return other(&understood, "*/*");
    }
    let attributes = understood.attributes();
    if anonymous && auth::bootstrap::is_cluster_info(&attributes) {
        let headers = request.headers().clone();
        return route(Context { app, user: User::anonymous(), request: understood, headers }, request).await;
    }
    let user = auth::authenticate(&app.registry, &app.tokens, certificate, authorization)?;
    if let Decision::Deny(why) = auth::authorize(&app.registry, &user, &attributes) {
        let mut error = ApiError::forbidden_text(attributes.refusal(&user, &why));
        error.details =
            json!({"name": attributes.name, "group": attributes.group, "kind": attributes.resource});
        return Err(error);
    }
    let headers = request.headers().clone();
    let context = Context { app, user, request: understood, headers };
    route(context, request).await
}

async fn route(context: Context<'_>, request: hyper::Request<Incoming>) -> ApiResult<Response> {
    match context.request.endpoint {
        Endpoint::Other => other_with_body(&context),
        Endpoint::Review(review) => reviews::answer(&context, review, request.into_body()).await,
        Endpoint::Bindings => subresource::bindings(&context, request.into_body()).await,
        Endpoint::Resource(api) if !context.request.subresource.is_empty() => {
            if api.subresource(&context.request.subresource).is_none() {
                return Err(ApiError::no_such_path());
            }
            subresource::answer(&context, api, request).await
        }
        Endpoint::Resource(api) => {
            let request_path = &context.request;
            if api.namespaced && request_path.namespace.is_empty() && !request_path.name.is_empty() {
                return Err(ApiError::no_such_path());
            }
            if !api.namespaced && !request_path.namespace.is_empty() {
                return Err(ApiError::no_such_path());
            }
            match (&context.request.method, context.request.name.is_empty()) {
                (&Method::GET | &Method::HEAD, true) if context.request.is_watch() => {
                    watch::answer(&context, api)
                }
                (&Method::GET | &Method::HEAD, false) if context.request.is_watch() => {
                    watch::answer(&context, api)
                }
                (&Method::GET | &Method::HEAD, true) => read::list(&context, api),
                (&Method::GET | &Method::HEAD, false) => read::get(&context, api),
                (&Method::POST, true) => write::create(&context, api, request.into_body()).await,
                (&Method::PUT, false) => write::update(&context, api, request.into_body()).await,
                (&Method::PATCH, false) => write::patch(&context, api, request.into_body()).await,
                (&Method::DELETE, false) => write::delete(&context, api, request.into_body()).await,
                (&Method::DELETE, true) => write::delete_many(&context, api, request.into_body()).await,
                _ => Err(ApiError::method_not_allowed()),
            }
        }
    }
}

fn other_with_body(context: &Context<'_>) -> ApiResult<Response> {
    let path = context.request.path.as_str();
    if path == "/openid/v1/jwks" && context.request.method == Method::GET {
        let keys = context.app.tokens.key_set().to_string();
        return Ok(respond::typed(StatusCode::OK, "application/jwk-set+json", keys));
    }
    other(&context.request, context.accept())
}

/// Paths that lead to no resource.
fn other(request: &Request, accept: &str) -> ApiResult<Response> {
    let path = request.path.trim_end_matches('/');
    if request.method != Method::GET && request.method != Method::HEAD {
        return Err(if path.starts_with("/api") {
            ApiError::no_such_path()
        } else {
            ApiError::method_not_allowed()
        });
    }
    match path {
        "/healthz" | "/livez" | "/readyz" => {
            let text = if request.query.get("verbose").is_empty() && !request.query.raw().contains("verbose")
            {
                "ok".to_owned()
            } else {
                format!("[+]ping ok\n[+]store ok\n{} check passed\n", path.trim_start_matches('/'))
            };
            Ok(respond::typed(StatusCode::OK, "text/plain; charset=utf-8", text))
        }
        "/healthz/ping" | "/livez/ping" | "/readyz/ping" => {
            Ok(respond::typed(StatusCode::OK, "text/plain; charset=utf-8", "ok"))
        }
        "/version" => Ok(respond::value(&json!({
            "major": VERSION.0, "minor": VERSION.1, "gitVersion": format!("v{}.{}.0+orlop", VERSION.0, VERSION.1),
            "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
            "compiler": "rustc", "platform": format!("linux/{}", arch()),
        }))),
        "/.well-known/openid-configuration" => Ok(respond::value(&json!({
            "issuer": auth::ISSUER, "jwks_uri": format!("{}/openid/v1/jwks", auth::ISSUER),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }))),
        _ if path.starts_with("/openapi") => openapi::answer(path),
        _ => discovery::answer(path, accept),
    }
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
