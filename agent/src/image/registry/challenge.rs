//! `WWW-Authenticate` (RFC 9110, section 11.6.1) as registries send it. Pure.

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from `realm` (distribution specification, "Token Authentication").
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges of all headers, in order. What is not understood is left out.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    headers.flat_map(challenges).collect()
}

fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for item in items(header) {
        let name_end = item.find(|c: char| !is_token(c)).unwrap_or(item.len());
        let (word, after) = item.split_at(name_end);
        match after.trim_start().strip_prefix('=') {
            // `name=value` belongs to the scheme before it.
            Some(value) => {
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_ascii_lowercase(), unquote(value.trim())));
                }
            }
            // `Scheme` alone, or `Scheme name=value`.
            None => {
                let parameter = after
                    .trim()
                    .split_once('=')
                    .map(|(n, v)| (n.trim().to_ascii_lowercase(), unquote(v.trim())));
                found.push((word.to_ascii_lowercase(), parameter.into_iter().collect()));
            }
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, &parameters)).collect()
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let get = |name| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") })
        }
        _ => None,
    }
}

/// Cuts at commas outside of quotes.
fn items(header: &str) -> Vec<&str> {
    let (mut items, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, c) in header.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                items.push(header[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    items.push(header[start..].trim());
    items.retain(|item| !item.is_empty());
    items
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"') else { return value.to_owned() };
    let (mut out, mut escaped) = (String::new(), false);
    for c in inner.chars() {
        match c {
            _ if escaped => {
                out.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => break,
            _ => out.push(c),
        }
    }
    out
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn headers_seen_in_the_wild_are_read() {
        for (header, wanted) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (
                r#"bearer Realm = "https://x/t" , error="invalid_token""#,
                vec![bearer("https://x/t", None, None)],
            ),
            (r#"Basic realm="Registry, \"inner\"""#, vec![Challenge::Basic]),
            (
                r#"Basic realm="a", Bearer realm="https://b""#,
                vec![Challenge::Basic, bearer("https://b", None, None)],
            ),
            ("Negotiate", vec![]),
            (r#"Bearer service="x""#, vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse([header].into_iter()), wanted, "{header}");
        }
    }
}
