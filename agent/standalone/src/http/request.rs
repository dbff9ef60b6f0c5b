//! Understands a request: path, query, verb.

use std::collections::HashMap;

use http::Method;

use crate::auth::Attributes;
use crate::resource::{self, ApiResource, Review};
use crate::status::{ApiError, ApiResult};

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Endpoint {
    /// A stored resource.
    Resource(&'static ApiResource),
    /// A review.
    Review(&'static Review),
    /// The collection `bindings`.
    Bindings,
    /// Something else: discovery, health, version.
    Other,
}

/// A request, understood.
#[derive(Debug, Clone)]
pub struct Request {
    /// The HTTP method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// What it leads to.
    pub endpoint: Endpoint,
    /// The namespace of the path, or an empty string.
    pub namespace: String,
    /// The name of the path, or an empty string.
    pub name: String,
    /// The subresource, or an empty string.
    pub subresource: String,
    /// What follows the subresource, for proxies.
    pub rest: String,
    /// The query.
    pub query: Query,
    group: String,
    resource: String,
}

/// The query parameters; of those given twice, all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    pairs: HashMap<String, Vec<String>>,
    raw: String,
}

impl Query {
    /// Parses the part after the question mark.
    pub fn parse(raw: &str) -> Self {
        let mut pairs: HashMap<String, Vec<String>> = HashMap::new();
        for pair in raw.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.entry(decode(key, true)).or_default().push(decode(value, true));
        }
        Self { pairs, raw: raw.to_owned() }
    }

    /// The first value, or an empty string.
    pub fn get(&self, key: &str) -> &str {
        self.pairs.get(key).and_then(|v| v.first()).map_or("", String::as_str)
    }

    /// Whether the value is `true` or `1`.
    pub fn is_true(&self, key: &str) -> bool {
        matches!(self.get(key), "true" | "1" | "True" | "TRUE")
    }

    /// All values.
    pub fn all(&self, key: &str) -> &[String] {
        self.pairs.get(key).map_or(&[], Vec::as_slice)
    }

    /// A number.
    ///
    /// # Errors
    /// 400 when there is a value and it is none.
    pub fn number(&self, key: &str) -> ApiResult<Option<u64>> {
        let text = self.get(key);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("invalid value \"{text}\" for parameter {key}")))
    }

    /// As it was given.
    pub fn raw(&self) -> &str {
        &self.raw
    }
}

fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| char::from(b).to_digit(16);
        match bytes[i] {
            b'%' if i + 2 < bytes.len() || i + 2 == bytes.len() - 1 => {
                if let (Some(high), Some(low)) =
                    (bytes.get(i + 1).copied().and_then(hex), bytes.get(i + 2).copied().and_then(hex))
                {
                    out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                    i += 3;
                    continue;
                }
                out.push(b'%');
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Request {
    /// Understands method and URI.
    pub fn parse(method: &Method, uri: &http::Uri) -> Self {
        let path = uri.path().to_owned();
        let mut request = Self {
            method: method.clone(),
            endpoint: Endpoint::Other,
            namespace: String::new(),
            name: String::new(),
            subresource: String::new(),
            rest: String::new(),
            query: Query::parse(uri.query().unwrap_or_default()),
            group: String::new(),
            resource: String::new(),
            path,
        };
        let parts: Vec<String> =
            request.path.split('/').filter(|p| !p.is_empty()).map(|p| decode(p, false)).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return request,
        };
        if rest.is_empty() {
            return request;
        }
        request.group = group.to_owned();
        request.locate(group, version, rest);
        request
    }

    fn locate(&mut self, group: &str, version: &str, parts: &[&str]) {
        let parts = match parts {
            ["namespaces", namespace, resource, rest @ ..] if !matches!(*resource, "status" | "finalize") => {
                self.namespace = (*namespace).to_owned();
                [&[*resource], rest].concat()
            }
            other => other.to_vec(),
        };
        let [resource, rest @ ..] = parts.as_slice() else { return };
        self.resource = (*resource).to_owned();
        if let Some(name) = rest.first() {
            self.name = (*name).to_owned();
        }
        if let Some(sub) = rest.get(1) {
            self.subresource = (*sub).to_owned();
        }
        self.rest = rest.get(2..).unwrap_or_default().join("/");
        self.endpoint = if let Some(api) = resource::find(group, version, resource) {
            Endpoint::Resource(api)
        } else if let Some(review) =
            resource::REVIEWS.iter().find(|r| r.group == group && r.plural == *resource && version == "v1")
        {
            Endpoint::Review(review)
        } else if group.is_empty() && version == "v1" && *resource == "bindings" {
            Endpoint::Bindings
        } else {
            Endpoint::Other
        };
    }

    /// Whether it asks for a watch.
    pub fn is_watch(&self) -> bool {
        self.method == Method::GET && self.query.is_true("watch")
    }

    /// The verb of the authorization API.
    pub fn verb(&self) -> &'static str {
        if self.resource.is_empty() {
            return match self.method {
                Method::POST => "post",
                Method::PUT => "put",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "get",
            };
        }
        match (&self.method, self.name.is_empty()) {
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, false) => "delete",
            (&Method::DELETE, true) => "deletecollection",
            (_, _) if self.is_watch() && self.subresource.is_empty() => "watch",
            (_, false) => "get",
            (_, true) => "list",
        }
    }

    /// What is asked, in the words of the authorization API.
    pub fn attributes(&self) -> Attributes {
        // A namespace is in itself.
        let namespace =
            if self.resource == "namespaces" { self.name.clone() } else { self.namespace.clone() };
        Attributes {
            verb: self.verb().into(),
            group: self.group.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            namespace,
            name: self.name.clone(),
            path: self.path.clone(),
            field_selector: self.query.get("fieldSelector").to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(method: &Method, uri: &str) -> Request {
        Request::parse(method, &uri.parse().unwrap())
    }

    #[test]
    fn paths_lead_to_resources() {
        let cases = [
            (Method::GET, "/api/v1/pods", "list pods//", ""),
            (Method::GET, "/api/v1/namespaces/d/pods/p", "get pods/d/p", ""),
            (Method::GET, "/api/v1/namespaces/d/pods?watch=1", "watch pods/d/", ""),
            (Method::PATCH, "/api/v1/namespaces/d/pods/p/status", "patch pods/d/p", "status"),
            (Method::GET, "/api/v1/namespaces/d", "get namespaces//d", ""),
            (Method::PUT, "/api/v1/namespaces/d/finalize", "update namespaces//d", "finalize"),
            (Method::DELETE, "/api/v1/nodes", "deletecollection nodes//", ""),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n",
                "update leases/kube-node-lease/n",
                "",
            ),
            (Method::GET, "/apis/apps/v1/deployments", "list deployments//", ""),
            (Method::GET, "/apis", "get //", ""),
        ];
        for (method, uri, want, sub) in cases {
            let r = parsed(&method, uri);
            assert_eq!(format!("{} {}/{}/{}", r.verb(), r.resource, r.namespace, r.name), want, "{uri}");
            assert_eq!(r.subresource, sub);
        }
        assert_eq!(parsed(&Method::GET, "/apis/apps/v1/deployments").endpoint, Endpoint::Other);
    }

    #[test]
    fn queries_are_decoded() {
        let q = Query::parse("labelSelector=a%3Db%2Cc+in+(d)&watch=true&command=a&command=b&bad=%zz%4");
        assert_eq!(q.get("labelSelector"), "a=b,c in (d)");
        assert!(q.is_true("watch"));
        assert_eq!(q.all("command"), ["a", "b"]);
        assert_eq!(q.get("bad"), "%zz%4");
        assert!(q.number("watch").is_err());
    }
}
