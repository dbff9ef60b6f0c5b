//! Discovery: which groups, versions and resources there are, in the old and in the aggregated form (KEP 3352).

use http::StatusCode;
use serde_json::{Value, json};

use super::{Response, respond};
use crate::resource::{GROUPS, RESOURCES, REVIEWS, Subresource};
use crate::status::{ApiError, ApiResult};

/// Answers a path below `/api` or `/apis`.
///
/// # Errors
/// 404.
pub fn answer(path: &str, accept: &str) -> ApiResult<Response> {
    let aggregated = accept
        .split(',')
        .find(|a| a.contains("as=APIGroupDiscoveryList") && a.contains("g=apidiscovery.k8s.io"));
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match (parts.as_slice(), aggregated) {
        (["api"] | ["apis"], Some(format)) => Ok(aggregate(parts[0] == "api", format)),
        (["api"], None) => Ok(respond::value(&json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        }))),
        (["apis"], None) => {
            let groups: Vec<Value> = GROUPS.iter().map(|g| group(g)).collect();
            Ok(respond::value(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})))
        }
        (["api", "v1"], _) => Ok(respond::value(&resource_list(""))),
        (["apis", name], _) if GROUPS.contains(name) => {
            let mut group = group(name);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Ok(respond::value(&group))
        }
        (["apis", name, "v1"], _) if GROUPS.contains(name) => Ok(respond::value(&resource_list(name))),
        ([], _) => Ok(respond::value(
            &json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}),
        )),
        _ => Err(ApiError::no_such_path()),
    }
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn group_version(group: &str) -> String {
    if group.is_empty() { "v1".into() } else { format!("{group}/v1") }
}

fn resource_list(group: &str) -> Value {
    let mut list = Vec::new();
    if group.is_empty() {
        list.push(json!({"name": "bindings", "singularName": "binding", "namespaced": true, "kind": "Binding", "verbs": ["create"]}));
    }
    for api in RESOURCES.iter().filter(|r| r.group == group) {
        let mut entry = json!({
            "name": api.plural, "singularName": api.singular, "namespaced": api.namespaced, "kind": api.name, "verbs": api.verbs(),
        });
        if !api.short.is_empty() {
            entry["shortNames"] = api.short.into();
        }
        if !api.categories.is_empty() {
            entry["categories"] = api.categories.into();
        }
        list.push(entry);
        for sub in api.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", api.plural, sub.name), "singularName": "", "namespaced": api.namespaced,
                "kind": sub.kind, "verbs": sub.verbs,
            });
            if !sub.group.is_empty() {
                entry["group"] = sub.group.into();
                entry["version"] = sub.version.into();
            }
            list.push(entry);
        }
    }
    for review in REVIEWS.iter().filter(|r| r.group == group) {
        list.push(json!({
            "name": review.plural, "singularName": review.singular, "namespaced": review.namespaced,
            "kind": review.name, "verbs": ["create"],
        }));
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group), "resources": list})
}

fn aggregate(core: bool, format: &str) -> Response {
    let beta = format.contains("v=v2beta1");
    let version = if beta { "v2beta1" } else { "v2" };
    let groups: Vec<&str> = if core { vec![""] } else { GROUPS.to_vec() };
    let items: Vec<Value> = groups
        .into_iter()
        .map(|group| {
            let metadata = if group.is_empty() { json!({"creationTimestamp": null}) } else { json!({"name": group, "creationTimestamp": null}) };
            json!({"metadata": metadata, "versions": [{"version": "v1", "resources": aggregated(group), "freshness": "Current"}]})
        })
        .collect();
    let body = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items,
    });
    let media_type = if beta {
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
    } else {
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    };
    respond::typed(StatusCode::OK, media_type, body.to_string())
}

fn scope(namespaced: bool) -> &'static str {
    if namespaced { "Namespaced" } else { "Cluster" }
}

fn aggregated(group: &str) -> Vec<Value> {
    let kind = |group: &str, kind: &str| json!({"group": group, "version": "v1", "kind": kind});
    let mut out = Vec::new();
    if group.is_empty() {
        out.push(json!({"resource": "bindings", "responseKind": kind("", "Binding"), "scope": "Namespaced",
            "singularResource": "binding", "verbs": ["create"]}));
    }
    for api in RESOURCES.iter().filter(|r| r.group == group) {
        let mut entry = json!({
            "resource": api.plural, "responseKind": kind(group, api.name), "scope": scope(api.namespaced),
            "singularResource": api.singular, "verbs": api.verbs(),
        });
        if !api.short.is_empty() {
            entry["shortNames"] = api.short.into();
        }
        if !api.categories.is_empty() {
            entry["categories"] = api.categories.into();
        }
        let sub = |s: &Subresource| json!({"subresource": s.name, "responseKind": kind(s.group, s.kind), "verbs": s.verbs});
        if !api.subresources.is_empty() {
            entry["subresources"] = api.subresources.iter().map(sub).collect::<Vec<_>>().into();
        }
        out.push(entry);
    }
    for review in REVIEWS.iter().filter(|r| r.group == group) {
        out.push(json!({
            "resource": review.plural, "responseKind": kind(group, review.name), "scope": scope(review.namespaced),
            "singularResource": review.singular, "verbs": ["create"],
        }));
    }
    out
}
