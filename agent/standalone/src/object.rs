//! Reading and writing untyped objects: metadata, times, names.
//!
//! An object is a `serde_json::Value` while a request lasts and bytes for the rest of its life; there are no typed caches.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::resource::ApiResource;

/// A JSON object.
pub type Object = Map<String, Value>;

/// The string at a key, or an empty one.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The string at a path of keys, or an empty one.
pub fn text_at<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The value at a path of keys, or null.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(value, |v, key| v.get(key).unwrap_or(&Value::Null))
}

/// The items at a key; empty if there is no list.
pub fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The items at a key, to change; empty if there is no list.
pub fn items_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut [Value] {
    value.get_mut(key).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// The list at a key, made if it is not there.
pub fn list_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let entry = object_of(value).entry(key).or_insert_with(|| Value::Array(Vec::new()));
    if !entry.is_array() {
        *entry = Value::Array(Vec::new());
    }
    entry.as_array_mut().expect("it was just made a list")
}

/// The object at a key, made if it is not there.
pub fn map_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut Object {
    object_of(object_of(value).entry(key).or_insert_with(|| Value::Object(Map::new())))
}

/// The value as an object; anything else becomes an empty one.
pub fn object_of(value: &mut Value) -> &mut Object {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made an object")
}

/// Sets a key that is absent, null or an empty string.
pub fn default(value: &mut Value, key: &str, fallback: impl Into<Value>) {
    let map = object_of(value);
    match map.get(key) {
        None | Some(Value::Null) => {
            map.insert(key.to_owned(), fallback.into());
        }
        Some(Value::String(s)) if s.is_empty() => {
            map.insert(key.to_owned(), fallback.into());
        }
        Some(_) => {}
    }
}

/// Removes a key.
pub fn remove(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut().and_then(|m| m.remove(key))
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text_at(object, &["metadata", "name"])
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    text_at(object, &["metadata", "namespace"])
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text_at(object, &["metadata", "uid"])
}

/// The metadata, made if it is not there.
pub fn metadata(object: &mut Value) -> &mut Object {
    map_mut(object, "metadata")
}

/// Whether the deletion of the object has begun.
pub fn is_terminating(object: &Value) -> bool {
    !text_at(object, &["metadata", "deletionTimestamp"]).is_empty()
}

/// `metadata.finalizers` has at least one entry.
pub fn has_finalizers(object: &Value) -> bool {
    at(object, &["metadata", "finalizers"]).as_array().is_some_and(|f| !f.is_empty())
}

/// Raises `metadata.generation` by one.
pub fn bump_generation(object: &mut Value) {
    let now = at(object, &["metadata", "generation"]).as_i64().unwrap_or(0);
    metadata(object).insert("generation".into(), (now + 1).into());
}

/// The time in the format of `metav1.Time`: whole seconds, UTC.
pub fn time(at: Timestamp) -> String {
    jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%SZ", at).unwrap_or_default()
}

/// The present second, as objects spell it.
pub fn now() -> String {
    time(Timestamp::now())
}

/// The time that a string spells, if it does.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// A new UID.
pub fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The five letters and digits that `generateName` appends; vowels and look-alikes are left out, as Kubernetes does.
pub fn name_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    let bytes = random.as_bytes();
    (0..5).map(|i| char::from(ALPHABET[usize::from(bytes[i]) % ALPHABET.len()])).collect()
}

/// Appends a stored object with `kind` and `apiVersion` put in front.
pub fn push_with_type(out: &mut Vec<u8>, api: &ApiResource, stored: &[u8]) {
    out.extend_from_slice(b"{\"kind\":\"");
    out.extend_from_slice(api.name.as_bytes());
    out.extend_from_slice(b"\",\"apiVersion\":\"");
    out.extend_from_slice(api.api_version().as_bytes());
    out.extend_from_slice(b"\"");
    if stored.len() > 2 {
        out.push(b',');
    }
    out.extend_from_slice(stored.get(1..).unwrap_or(b"}"));
}

/// The object of stored bytes. What this process wrote itself always parses.
pub fn parse(stored: &[u8]) -> Value {
    serde_json::from_slice(stored).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::PODS;
    use serde_json::json;

    #[test]
    fn the_type_stands_in_front_of_the_stored_fields() {
        let mut bytes = Vec::new();
        push_with_type(&mut bytes, PODS, br#"{"metadata":{"name":"a"}}"#);
        assert_eq!(&bytes[..], br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#);
    }

    #[test]
    fn times_have_whole_seconds() {
        let at = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
        assert_eq!(time(at), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn defaults_fill_what_is_empty_and_leave_what_is_set() {
        let mut v = json!({"a": "", "b": "x", "c": null, "d": 0});
        for key in ["a", "b", "c", "d", "e"] {
            default(&mut v, key, "new");
        }
        assert_eq!(v, json!({"a": "new", "b": "x", "c": "new", "d": 0, "e": "new"}));
    }
}
