//! Metadata: what the server fills in, what nobody may change, which names are allowed.

use serde_json::Value;

use crate::object::{self, at, metadata, text_at};
use crate::resource::{ApiResource, Kind};
use crate::status::Cause;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
     must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
     end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
     alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
     '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
     must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
     validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
     alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// Gives a new object its name, UID and time.
pub fn fill(object: &mut Value) {
    let meta = metadata(object);
    let prefix = meta.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
    if meta.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() && !prefix.is_empty() {
        let end = prefix.char_indices().nth(58).map_or(prefix.len(), |(i, _)| i);
        meta.insert("name".into(), format!("{}{}", &prefix[..end], object::name_suffix()).into());
    }
    for key in
        ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion"]
    {
        meta.remove(key);
    }
    meta.insert("uid".into(), object::new_uid().into());
    meta.insert("creationTimestamp".into(), object::now().into());
}

/// Puts back what an update must not change, and names what it tried to.
pub fn carry_over(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    let kept = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ];
    for key in kept {
        let before = at(old, &["metadata", key]).clone();
        let given = at(new, &["metadata", key]);
        if !given.is_null() && key == "uid" && *given != before {
            causes.push(Cause::invalid("metadata.uid", given, "field is immutable"));
        }
        if before.is_null() {
            metadata(new).remove(key);
        } else {
            metadata(new).insert(key.into(), before);
        }
    }
    metadata(new).remove("selfLink");
    // Who updates without a word about ownership leaves it as it is.
    if at(new, &["metadata", "managedFields"]).is_null() && !at(old, &["metadata", "managedFields"]).is_null()
    {
        metadata(new).insert("managedFields".into(), old["metadata"]["managedFields"].clone());
    }
    if object::is_terminating(old) {
        let before = object::items(&old["metadata"], "finalizers");
        let added: Vec<Value> = object::items(&new["metadata"], "finalizers")
            .iter()
            .filter(|f| !before.contains(f))
            .cloned()
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {}",
                Value::from(added)
            );
            causes.push(Cause::forbidden("metadata.finalizers", &detail));
        }
    }
}

/// Everything that is wrong with the metadata.
pub fn validate(api: &ApiResource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = object::name(object);
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Some(detail) = wrong_name(api.kind, name) {
        causes.push(Cause::invalid("metadata.name", &name.into(), &detail));
    }
    for (field, is_label) in [("labels", true), ("annotations", false)] {
        if let Some(map) = at(object, &["metadata", field]).as_object() {
            check_map(map, &format!("metadata.{field}"), is_label, &mut causes);
        }
    }
    for (i, owner) in object::items(&object["metadata"], "ownerReferences").iter().enumerate() {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if object::text(owner, key).is_empty() {
                let field = format!("metadata.ownerReferences[{i}].{key}");
                causes.push(Cause::invalid(field, &"".into(), "must not be empty"));
            }
        }
    }
    if object::items(&object["metadata"], "finalizers").iter().any(|f| !f.as_str().is_some_and(is_qualified))
    {
        let value = at(object, &["metadata", "finalizers"]);
        causes.push(Cause::invalid("metadata.finalizers", value, NAME_PART));
    }
    causes
}

fn wrong_name(kind: Kind, name: &str) -> Option<String> {
    let too_long = |max| format!("must be no more than {max} characters");
    match kind {
        Kind::Namespace if !is_dns_label(name) => {
            Some(if name.len() > 63 { too_long(63) } else { LABEL.into() })
        }
        Kind::Service if !is_1035(name) => {
            Some(if name.len() > 63 { too_long(63) } else { LABEL_1035.into() })
        }
        Kind::Namespace | Kind::Service => None,
        Kind::Event => {
            (name.contains('/') || name == "." || name == "..").then(|| "may not contain '/'".into())
        }
        _ if name.len() > 253 => Some(too_long(253)),
        _ if !is_dns_subdomain(name) => Some(SUBDOMAIN.into()),
        _ => None,
    }
}

fn check_map(map: &object::Object, path: &str, is_label: bool, causes: &mut Vec<Cause>) {
    for (key, value) in map {
        let checked = if is_label { key.clone() } else { key.to_lowercase() };
        if !is_qualified(&checked) {
            causes.push(Cause::invalid(path, &key.as_str().into(), NAME_PART));
        }
        if is_label && !value.as_str().is_some_and(is_label_value) {
            causes.push(Cause::invalid(path, value, LABEL_VALUE));
        }
    }
    let size: usize = map.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if !is_label && size > 256 * 1024 {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: path.into(),
            message: "Too long: may not be more than 262144 bytes".into(),
        });
    }
}

/// A name of at most 63 lower case letters, digits and dashes.
pub fn is_dns_label(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&c| inner(c) || c == b'-')
        && bytes.first().is_some_and(|&c| inner(c))
        && bytes.last().is_some_and(|&c| inner(c))
}

/// Labels of a domain, joined by dots, together at most 253 long.
pub fn is_dns_subdomain(name: &str) -> bool {
    let part = |p: &str| {
        let bytes = p.as_bytes();
        let inner = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        bytes.first().is_some_and(inner)
            && bytes.last().is_some_and(inner)
            && bytes.iter().all(|c| inner(c) || *c == b'-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

fn is_1035(name: &str) -> bool {
    is_dns_label(name) && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
}

fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_name_part(value)
}

fn is_name_part(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
}

fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name_part(name),
        None => is_name_part(key),
    }
}

/// Whether the pod was made by a node from a file.
pub fn is_mirror(object: &Value) -> bool {
    !text_at(object, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{PODS, SERVICES};
    use serde_json::json;

    #[test]
    fn names_are_checked_as_their_kind_wants() {
        let cases = [
            (PODS, "a", true),
            (PODS, "a.b-c", true),
            (PODS, "A", false),
            (PODS, "-a", false),
            (PODS, "a..b", false),
            (SERVICES, "a", true),
            (SERVICES, "1a", false),
            (SERVICES, "a.b", false),
        ];
        for (api, name, fine) in cases {
            let causes = validate(api, &json!({"metadata": {"name": name}}));
            assert_eq!(causes.is_empty(), fine, "{name}: {causes:?}");
        }
    }

    #[test]
    fn labels_and_annotations_are_checked() {
        let meta = |m: Value| validate(PODS, &json!({"metadata": m})).len();
        assert_eq!(meta(json!({"name": "a", "labels": {"k8s.io/app": "A_b.c", "e": ""}})), 0);
        assert_eq!(meta(json!({"name": "a", "labels": {"app": "not ok"}})), 1);
        assert_eq!(meta(json!({"name": "a", "labels": {"a b": "x"}})), 1);
        assert_eq!(meta(json!({"name": "a", "annotations": {"Any/Key": "any value"}})), 0);
    }

    #[test]
    fn an_update_cannot_change_what_the_server_owns() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "t", "generation": 2}});
        let mut new = json!({"metadata": {"name": "a", "generation": 9, "deletionTimestamp": "x"}});
        let mut causes = Vec::new();
        carry_over(&old, &mut new, &mut causes);
        assert_eq!(new, old);
        assert!(causes.is_empty());
        carry_over(&old, &mut json!({"metadata": {"uid": "v"}}), &mut causes);
        assert_eq!(causes.len(), 1);
    }
}
