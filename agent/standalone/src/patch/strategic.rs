//! Strategic merge patch: lists of objects merge by the key that the schema names.
//!
//! Directives: `$patch: delete|replace|merge`, `$retainKeys`, `$deleteFromPrimitiveList/<field>`,
//! `$setElementOrder/<field>` (sig-api-machinery, "Strategic Merge Patch").

use serde_json::{Map, Value};

use crate::schema::{self, Field, Type, type_of};

const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Merges a patch into an object of a type.
///
/// # Errors
/// A sentence, when a directive is malformed or an item lacks its merge key.
pub fn merge(target: &mut Value, patch: &Value, type_name: &'static str) -> Result<(), String> {
    let Value::Object(patch) = patch else { return Err("the patch is no object".into()) };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return Ok(()) };
    merge_map(map, patch, Type::Struct(type_name))
}

fn field_of(kind: Type, name: &str) -> Option<Field> {
    match kind {
        Type::Struct(type_name) => schema::field(type_name, name).copied(),
        Type::Map(code) => Some(Field {
            name: "",
            kind: type_of(code),
            merge_key: None,
            retain_keys: false,
            list_keys: None,
            set: false,
            atomic: false,
            number: 0,
            outer: 0,
            keep_zero: true,
        }),
        _ => None,
    }
}

fn merge_map(target: &mut Map<String, Value>, patch: &Map<String, Value>, kind: Type) -> Result<(), String> {
    match patch.get("$patch").map(|p| p.as_str().unwrap_or("?")) {
        None | Some("merge") => {}
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("replace") => {
            *target =
                patch.iter().filter(|(k, _)| *k != "$patch").map(|(k, v)| (k.clone(), v.clone())).collect();
            return Ok(());
        }
        Some(other) => return Err(format!("unknown patch type found: {other}")),
    }
    if let Some(retain) = patch.get("$retainKeys") {
        let keep = retain.as_array().ok_or("$retainKeys must be a list")?;
        target.retain(|k, _| keep.iter().any(|v| v == k));
    }
    let original = originals_to_order(target, patch);
    for (key, value) in patch {
        if key == "$patch" || key == "$retainKeys" || key.starts_with(ORDER) {
            continue;
        }
        if let Some(name) = key.strip_prefix(DELETE_FROM) {
            delete_from(target, name, value)?;
        } else if value.is_null() {
            target.remove(key);
        } else {
            merge_field(target, key, value, field_of(kind, key))?;
        }
    }
    for (name, before) in original {
        let order = patch[&format!("{ORDER}{name}")].as_array().ok_or("$setElementOrder must hold a list")?;
        let key = field_of(kind, name).and_then(|f| f.merge_key).unwrap_or_default();
        if let Some(Value::Array(list)) = target.get_mut(name) {
            *list = in_order(std::mem::take(list), order, &before, key);
        }
    }
    Ok(())
}

fn originals_to_order<'p>(
    target: &Map<String, Value>,
    patch: &'p Map<String, Value>,
) -> Vec<(&'p str, Vec<Value>)> {
    let list = |name: &str| target.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    patch.keys().filter_map(|k| k.strip_prefix(ORDER)).map(|name| (name, list(name))).collect()
}

fn delete_from(target: &mut Map<String, Value>, name: &str, values: &Value) -> Result<(), String> {
    let gone = values.as_array().ok_or_else(|| format!("{DELETE_FROM}{name} must be a list"))?;
    if let Some(Value::Array(list)) = target.get_mut(name) {
        list.retain(|item| !gone.contains(item));
    }
    Ok(())
}

fn merge_field(
    target: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    field: Option<Field>,
) -> Result<(), String> {
    match (value, field) {
        (Value::Object(patch), field) => {
            let kind = field.map_or(Type::Any, |f| f.kind);
            let slot = target.entry(key).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            let Value::Object(map) = slot else { return Ok(()) };
            merge_map(map, patch, kind)
        }
        (Value::Array(patch), Some(Field { merge_key: Some(merge_key), kind: Type::List(code), .. })) => {
            let slot = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            if !slot.is_array() {
                *slot = Value::Array(Vec::new());
            }
            let Value::Array(list) = slot else { return Ok(()) };
            if merge_key.is_empty() {
                merge_scalars(list, patch);
                return Ok(());
            }
            merge_objects(list, patch, merge_key, type_of(code))
        }
        (other, _) => {
            target.insert(key.to_owned(), other.clone());
            Ok(())
        }
    }
}

fn merge_scalars(list: &mut Vec<Value>, patch: &[Value]) {
    for item in patch {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn merge_objects(list: &mut Vec<Value>, patch: &[Value], key: &str, kind: Type) -> Result<(), String> {
    if patch.iter().any(|item| item.get("$patch").is_some_and(|p| p == "replace")) {
        *list = patch.iter().filter(|item| item.get("$patch").is_none()).cloned().collect();
        return Ok(());
    }
    for item in patch {
        let Value::Object(fields) = item else {
            return Err(format!("an item of a list merged by {key} is no object"));
        };
        let Some(id) = fields.get(key) else {
            return Err(format!("map: {item} does not contain declared merge key: {key}"));
        };
        let found = list.iter().position(|have| have.get(key) == Some(id));
        if fields.get("$patch").is_some_and(|p| p == "delete") {
            list.retain(|have| have.get(key) != Some(id));
            continue;
        }
        let index = found.unwrap_or_else(|| {
            list.push(Value::Object(Map::new()));
            list.len() - 1
        });
        if let Some(Value::Object(map)) = list.get_mut(index) {
            merge_map(map, fields, kind)?;
        }
    }
    Ok(())
}

fn id<'a>(item: &'a Value, key: &str) -> &'a Value {
    if key.is_empty() { item } else { item.get(key).unwrap_or(&Value::Null) }
}

/// Items that the patch orders come in its order; items that only the server has keep their place relative to those that
/// were there before.
fn in_order(list: Vec<Value>, order: &[Value], before: &[Value], key: &str) -> Vec<Value> {
    let rank = |item: &Value| order.iter().position(|o| id(o, key) == id(item, key));
    let place = |item: &Value| before.iter().position(|b| id(b, key) == id(item, key));
    let (mut ordered, server_only): (Vec<Value>, Vec<Value>) =
        list.into_iter().partition(|i| rank(i).is_some());
    ordered.sort_by_key(|i| rank(i));
    let mut out = Vec::with_capacity(ordered.len() + server_only.len());
    let mut left = server_only.into_iter().peekable();
    for right in ordered {
        while let Some(next) = left.peek() {
            let first = matches!((place(next), place(&right)), (Some(l), Some(r)) if l <= r);
            if !first {
                break;
            }
            out.extend(left.next());
        }
        out.push(right);
    }
    out.extend(left);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(mut object: Value, patch: &Value, kind: &'static str) -> Value {
        merge(&mut object, patch, kind).unwrap();
        object
    }

    #[test]
    fn lists_merge_by_the_key_of_their_type() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}, {"name": "L", "value": "1"}]},
            {"name": "b", "image": "y"}]}});
        let patch = json!({"spec": {"containers": [
            {"name": "a", "env": [{"name": "K", "value": "2"}, {"name": "L", "$patch": "delete"}]},
            {"name": "c", "image": "z"}]}});
        assert_eq!(
            patched(pod, &patch, "Pod"),
            json!({"spec": {"containers": [
                {"name": "a", "image": "x", "env": [{"name": "K", "value": "2"}]},
                {"name": "b", "image": "y"}, {"name": "c", "image": "z"}]}})
        );
    }

    #[test]
    fn status_conditions_and_addresses_merge() {
        let pod = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "r"}], "podIPs": [{"ip": "1.1.1.1"}]}});
        let patch = json!({"status": {"$setElementOrder/conditions": [{"type": "Initialized"}, {"type": "Ready"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": null}, {"type": "Initialized", "status": "True"}],
            "podIPs": [{"ip": "1.1.1.1"}, {"ip": "fd00::1"}]}});
        assert_eq!(
            patched(pod, &patch, "Pod"),
            json!({"status": {"conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}],
                "podIPs": [{"ip": "1.1.1.1"}, {"ip": "fd00::1"}]}})
        );
    }

    #[test]
    fn directives_delete_replace_and_retain() {
        let cases = [
            (
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
                json!({"metadata": {"finalizers": ["b", "c"]}}),
            ),
            (
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}),
                json!({"metadata": {"labels": {"c": "3"}}}),
            ),
            (
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"a": null}}}),
                json!({"metadata": {"labels": {"b": "2"}}}),
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
            ),
            (
                json!({"spec": {"tolerations": [{"key": "a"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
            ),
            (
                json!({"spec": {"containers": [{"name": "a"}]}}),
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "b"}]}}),
                json!({"spec": {"containers": [{"name": "b"}]}}),
            ),
            (
                json!({"spec": {"nodeSelector": {"a": "1"}}}),
                json!({"spec": {"nodeSelector": {"$patch": "delete"}}}),
                json!({"spec": {"nodeSelector": {}}}),
            ),
        ];
        for (object, patch, want) in cases {
            assert_eq!(patched(object, &patch, "Pod"), want, "{patch}");
        }
    }

    #[test]
    fn items_only_the_server_has_keep_their_place() {
        let pod = json!({"spec": {"containers": [{"name": "s"}, {"name": "a"}, {"name": "b"}]}});
        let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "n"}],
            "containers": [{"name": "n", "image": "i"}]}});
        let names: Vec<_> = patched(pod, &patch, "Pod")["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["s", "b", "a", "n"]);
    }

    #[test]
    fn an_item_without_its_merge_key_is_refused() {
        let patch = json!({"spec": {"containers": [{"image": "x"}]}});
        assert!(merge(&mut json!({}), &patch, "Pod").unwrap_err().contains("merge key: name"));
    }
}
