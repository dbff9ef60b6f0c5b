//! OpenAPI v3, as much of it as `kubectl` asks for: which kinds exist, that the server validates fields itself, and the names
//! and types of fields for `kubectl explain`.
//!
//! Never: holds descriptions, or the merge keys of lists. `kubectl apply` computes its patch from the types it has built in.

use serde_json::{Map, Value, json};

use super::{Response, respond};
use crate::resource::{ApiResource, GROUPS, RESOURCES};
use crate::schema::{self, Type};
use crate::status::{ApiError, ApiResult};

/// Answers a path below `/openapi`.
///
/// # Errors
/// 404.
pub fn answer(path: &str) -> ApiResult<Response> {
    if path == "/openapi/v2" {
        return Ok(version_two());
    }
    match path.strip_prefix("/openapi/v3") {
        Some("") => Ok(respond::value(&index())),
        Some("/api/v1") => Ok(respond::value(&document(""))),
        Some(rest) => {
            let group = rest.strip_prefix("/apis/").and_then(|r| r.strip_suffix("/v1"));
            match group.filter(|g| GROUPS.contains(g)) {
                Some(group) => Ok(respond::value(&document(group))),
                None => Err(ApiError::no_such_path()),
            }
        }
        None => Err(ApiError::no_such_path()),
    }
}

/// A document without definitions, in the one format that `kubectl` reads: it then skips its own validation.
fn version_two() -> Response {
    let field = |number: u8, body: &[u8]| {
        let mut out = vec![number << 3 | 2, u8::try_from(body.len()).unwrap_or(0)];
        out.extend_from_slice(body);
        out
    };
    // gnostic's openapi.v2.Document: swagger, info (title, version), paths, definitions.
    let info = [field(1, b"Kubernetes"), field(2, b"v1.36.0")].concat();
    let document = [field(1, b"2.0"), field(2, &info), field(8, b""), field(9, b"")].concat();
    respond::typed(
        http::StatusCode::OK,
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        document,
    )
}

fn index() -> Value {
    let mut paths = Map::new();
    let url = |path: &str| json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"))});
    paths.insert("api/v1".into(), url("api/v1"));
    for group in GROUPS {
        let path = format!("apis/{group}/v1");
        paths.insert(path.clone(), url(&path));
    }
    json!({"paths": paths})
}

fn document(group: &str) -> Value {
    let mut paths = Map::new();
    for api in RESOURCES.iter().filter(|r| r.group == group) {
        let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
        let namespace = if api.namespaced { "/namespaces/{namespace}" } else { "" };
        paths.insert(format!("{root}{namespace}/{}", api.plural), json!({"post": operation(api, "post")}));
        let one = json!({"patch": operation(api, "patch"), "put": operation(api, "put"), "delete": operation(api, "delete")});
        paths.insert(format!("{root}{namespace}/{}/{{name}}", api.plural), one);
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths, "components": {"schemas": schemas(group)}})
}

fn full_name(type_name: &str) -> String {
    match type_name.split_once('.') {
        Some(("meta", name)) => format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"),
        Some((group, name)) => format!("io.k8s.api.{group}.v1.{name}"),
        None => format!("io.k8s.api.core.v1.{type_name}"),
    }
}

/// The types of a group's resources and all that they are made of.
fn schemas(group: &str) -> Map<String, Value> {
    let mut out = Map::new();
    let mut wanted: Vec<&'static str> = Vec::new();
    for api in RESOURCES.iter().filter(|r| r.group == group) {
        wanted.push(api.schema);
    }
    while let Some(name) = wanted.pop() {
        if out.contains_key(&full_name(name)) {
            continue;
        }
        let mut properties = Map::new();
        for field in schema::fields(name).unwrap_or_default() {
            properties.insert(field.name.to_owned(), property(field.kind, &mut wanted));
        }
        let mut schema = json!({"type": "object"});
        if let Some(api) = RESOURCES.iter().find(|r| r.schema == name && r.group == group) {
            for key in ["apiVersion", "kind"] {
                properties.insert(key.into(), json!({"type": "string"}));
            }
            let kind = json!({"group": api.group, "version": api.version, "kind": api.name});
            schema["x-kubernetes-group-version-kind"] = json!([kind]);
        }
        schema["properties"] = Value::Object(properties);
        out.insert(full_name(name), schema);
    }
    out
}

fn property(kind: Type, wanted: &mut Vec<&'static str>) -> Value {
    match kind {
        Type::String => json!({"type": "string"}),
        Type::Integer => json!({"type": "integer", "format": "int64"}),
        Type::Number => json!({"type": "number"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Time => json!({"type": "string", "format": "date-time"}),
        Type::Quantity => json!({"type": "string"}),
        Type::IntOrString => json!({"type": "string", "format": "int-or-string"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Any => json!({"type": "object"}),
        Type::List(code) => json!({"type": "array", "items": property(schema::type_of(code), wanted)}),
        Type::Map(code) => {
            json!({"type": "object", "additionalProperties": property(schema::type_of(code), wanted)})
        }
        Type::Struct(name) => {
            wanted.push(name);
            json!({"allOf": [{"$ref": format!("#/components/schemas/{}", full_name(name))}]})
        }
    }
}

fn operation(api: &ApiResource, action: &str) -> Value {
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let content = match action {
        "patch" => {
            json!({"application/json-patch+json": {}, "application/merge-patch+json": {}, "application/apply-patch+yaml": {}})
        }
        _ => json!({"application/json": {}}),
    };
    json!({
        "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
        "requestBody": {"content": content},
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": api.group, "version": api.version, "kind": api.name},
    })
}
