//! Server-side apply (KEP 555): each applier owns the fields it set, and what it no longer sets goes.
//!
//! Ownership is kept in `metadata.managedFields` as FieldsV1 trees. Only appliers are tracked: an update by other means changes
//! values and takes no ownership, so it never causes a conflict.

use serde_json::{Map, Value, json};

use crate::object::{self, items, text};
use crate::schema::{self, Field, Type, type_of};
use crate::status::{ApiError, ApiResult};

/// Who applies, and how.
#[derive(Debug, Clone, Copy)]
pub struct Applier<'a> {
    /// `fieldManager`.
    pub manager: &'a str,
    /// `force`: take over what others own.
    pub force: bool,
    /// Whether the status is applied and not the rest.
    pub status: bool,
    /// The resource's type in the schema.
    pub type_name: &'static str,
    /// The resource's `apiVersion`.
    pub api_version: &'a str,
    /// The present time, as objects spell it.
    pub now: &'a str,
}

/// The object that results from applying a configuration to the present object (an empty one if there is none).
///
/// # Errors
/// 409, when others own a field that would change and it is not forced.
pub fn apply(applier: Applier<'_>, live: &Value, config: &Value) -> ApiResult<Value> {
    let root = Type::Struct(applier.type_name);
    let mut config = config.clone();
    let other_part = if applier.status { "spec" } else { "status" };
    for key in [other_part, "kind", "apiVersion"] {
        object::remove(&mut config, key);
    }
    object::metadata(&mut config).remove("managedFields");
    let mut owned = tree(&config, root);
    strip_identity(&mut owned);
    let mut managers: Vec<Value> = items(&live["metadata"], "managedFields").to_vec();
    let mine = |m: &Value| text(m, "manager") == applier.manager && text(m, "operation") == "Apply";
    let before =
        managers.iter().find(|m| mine(m)).map(|m| m["fieldsV1"].clone()).unwrap_or_else(|| json!({}));
    let own_version = managers.iter().position(mine);
    let others: Vec<usize> = (0..managers.len()).filter(|i| Some(*i) != own_version).collect();
    let mut conflicts = Vec::new();
    for &i in &others {
        let mut paths = Vec::new();
        clashes(&owned, &managers[i]["fieldsV1"], (live, &config), root, &mut paths);
        if applier.force {
            give_up(&mut managers[i]["fieldsV1"], &owned, live, &config, root);
        } else {
            conflicts.extend(paths.into_iter().map(|path| (text(&managers[i], "manager").to_owned(), path)));
        }
    }
    if !conflicts.is_empty() {
        return Err(conflict(&conflicts, applier.api_version));
    }
    let mut result = live.clone();
    merge(&mut result, &config, root);
    let kept: Vec<&Value> =
        std::iter::once(&owned).chain(others.iter().map(|&i| &managers[i]["fieldsV1"])).collect();
    prune(&mut result, &before, &kept, root);
    if before != owned {
        managers.retain(|m| !mine(m));
        managers.push(
            json!({"manager": applier.manager, "operation": "Apply", "apiVersion": applier.api_version,
            "time": applier.now, "fieldsType": "FieldsV1", "fieldsV1": owned}),
        );
    }
    managers.retain(|m| m["fieldsV1"].as_object().is_none_or(|f| !f.is_empty()));
    object::metadata(&mut result).insert("managedFields".into(), managers.into());
    Ok(result)
}

fn conflict(conflicts: &[(String, String)], version: &str) -> ApiError {
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(manager, path)| {
            json!({"reason": "FieldManagerConflict", "message": format!("conflict with \"{manager}\" using {version}"), "field": path})
        })
        .collect();
    let plural = if conflicts.len() == 1 { "conflict" } else { "conflicts" };
    let lines: Vec<String> = conflicts
        .iter()
        .map(|(manager, path)| format!("conflict with \"{manager}\" using {version}: {path}"))
        .collect();
    let message = format!("Apply failed with {} {plural}: {}", conflicts.len(), lines.join("\n"));
    ApiError { code: 409, reason: "Conflict", message, details: json!({"causes": causes}) }
}

/// Name and namespace belong to nobody.
fn strip_identity(owned: &mut Value) {
    if let Some(meta) = owned.get_mut("f:metadata").and_then(Value::as_object_mut) {
        meta.remove("f:name");
        meta.remove("f:namespace");
        if meta.is_empty() {
            object::remove(owned, "f:metadata");
        }
    }
}

/// How a field's content is owned.
enum Shape {
    /// As a whole.
    Atomic,
    /// Field by field.
    Fields(Type),
    /// Item by item, under these keys.
    Keyed(&'static str, Type),
    /// Value by value.
    Set,
}

fn shape(field: &Field) -> Shape {
    match field.kind {
        _ if field.atomic => Shape::Atomic,
        Type::Struct(_) | Type::Map(_) => Shape::Fields(field.kind),
        Type::List(code) => match field.list_keys {
            Some(keys) if !keys.is_empty() => Shape::Keyed(keys, type_of(code)),
            _ if field.set => Shape::Set,
            _ => Shape::Atomic,
        },
        _ => Shape::Atomic,
    }
}

fn shape_of(kind: Type, name: &str) -> Shape {
    match kind {
        Type::Struct(type_name) => schema::field(type_name, name).map_or(Shape::Atomic, shape),
        Type::Map(code) => match type_of(code) {
            inner @ (Type::Struct(_) | Type::Map(_)) => Shape::Fields(inner),
            _ => Shape::Atomic,
        },
        _ => Shape::Atomic,
    }
}

/// The name of an item of a keyed list in a tree: `k:{"name":"a"}`.
fn item_key(item: &Value, keys: &str) -> String {
    let mut id = Map::new();
    for key in keys.split(',') {
        let fallback = if key == "protocol" { "TCP".into() } else { Value::Null };
        id.insert(key.to_owned(), item.get(key).cloned().unwrap_or(fallback));
    }
    format!("k:{}", Value::Object(id))
}

/// The tree of the fields that a value sets.
fn tree(value: &Value, kind: Type) -> Value {
    let mut out = Map::new();
    for (name, item) in value.as_object().into_iter().flatten() {
        let inner = match (shape_of(kind, name), item) {
            (Shape::Fields(kind), Value::Object(map)) if !map.is_empty() => tree(item, kind),
            (Shape::Keyed(keys, kind), Value::Array(list)) if !list.is_empty() => {
                let one = |item: &Value| {
                    let mut inner = tree(item, kind);
                    object::object_of(&mut inner).insert(".".into(), json!({}));
                    (item_key(item, keys), inner)
                };
                Value::Object(list.iter().map(one).collect())
            }
            (Shape::Set, Value::Array(list)) => {
                Value::Object(list.iter().map(|v| (format!("v:{v}"), json!({}))).collect())
            }
            _ => json!({}),
        };
        out.insert(format!("f:{name}"), inner);
    }
    Value::Object(out)
}

fn find<'a>(list: &'a Value, key: &str, keys: &str) -> &'a Value {
    list.as_array().into_iter().flatten().find(|i| item_key(i, keys) == key).unwrap_or(&Value::Null)
}

/// Walks what two trees have in common and calls `leaf` where both own a value that would change.
struct Walk<'a> {
    leaf: &'a mut dyn FnMut(&[String]),
    path: Vec<String>,
}

impl Walk<'_> {
    fn common(&mut self, mine: &Value, theirs: &Value, (live, config): (&Value, &Value), kind: Type) {
        for (key, inner) in mine.as_object().into_iter().flatten() {
            let Some(other) = theirs.get(key) else { continue };
            let Some(name) = key.strip_prefix("f:") else { continue };
            let (was, will) = (&live[name], &config[name]);
            self.path.push(key.clone());
            let both_inner = !is_leaf(inner) && !is_leaf(other);
            match shape_of(kind, name) {
                Shape::Fields(kind) if both_inner => self.common(inner, other, (was, will), kind),
                Shape::Keyed(keys, kind) if both_inner => {
                    for (id, inner) in inner.as_object().into_iter().flatten() {
                        let Some(other) = other.get(id) else { continue };
                        self.path.push(id.clone());
                        self.common(inner, other, (find(was, id, keys), find(will, id, keys)), kind);
                        self.path.pop();
                    }
                }
                Shape::Set => {}
                _ if was != will => (self.leaf)(&self.path),
                _ => {}
            }
            self.path.pop();
        }
    }
}

fn is_leaf(tree: &Value) -> bool {
    tree.as_object().is_none_or(Map::is_empty)
}

/// The contested fields, as `.spec.containers[name="a"].image`.
fn clashes(mine: &Value, theirs: &Value, values: (&Value, &Value), kind: Type, out: &mut Vec<String>) {
    let mut leaf = |path: &[String]| {
        let mut shown = String::new();
        for part in path {
            match part.split_once(':') {
                Some(("f", name)) => shown.push_str(&format!(".{name}")),
                Some((_, id)) => shown.push_str(&format!("[{}]", shown_key(id))),
                None => {}
            }
        }
        out.push(shown);
    };
    let mut walk = Walk { leaf: &mut leaf, path: Vec::new() };
    walk.common(mine, theirs, values, kind);
}

/// `{"name":"a"}` as `name="a"`.
fn shown_key(id: &str) -> String {
    let keys: Map<String, Value> = serde_json::from_str(id).unwrap_or_default();
    keys.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// Takes the contested fields away from another owner.
fn give_up(theirs: &mut Value, mine: &Value, live: &Value, config: &Value, kind: Type) {
    let mut paths = Vec::new();
    let mut walk = Walk { leaf: &mut |path| paths.push(path.to_vec()), path: Vec::new() };
    walk.common(mine, theirs, (live, config), kind);
    for path in paths {
        remove_path(theirs, &path);
    }
}

fn remove_path(tree: &mut Value, path: &[String]) {
    let [first, rest @ ..] = path else { return };
    let Some(map) = tree.as_object_mut() else { return };
    if rest.is_empty() {
        map.remove(first);
    } else if let Some(inner) = map.get_mut(first) {
        remove_path(inner, rest);
        if is_leaf(inner) {
            map.remove(first);
        }
    }
}

/// Puts what the configuration says into the object.
fn merge(live: &mut Value, config: &Value, kind: Type) {
    let map = object::object_of(live);
    for (name, item) in config.as_object().into_iter().flatten() {
        match (shape_of(kind, name), item) {
            (Shape::Fields(kind), Value::Object(_)) => {
                merge(map.entry(name).or_insert_with(|| json!({})), item, kind)
            }
            (Shape::Keyed(keys, kind), Value::Array(wanted)) => {
                let slot = map.entry(name).or_insert_with(|| json!([]));
                merge_keyed(slot, wanted, keys, kind);
            }
            (Shape::Set, Value::Array(wanted)) => {
                let slot = map.entry(name).or_insert_with(|| json!([]));
                let have = slot.as_array().cloned().unwrap_or_default();
                let more = wanted.iter().filter(|w| !have.contains(w)).cloned();
                *slot = have.iter().cloned().chain(more).collect::<Vec<_>>().into();
            }
            _ => {
                map.insert(name.clone(), item.clone());
            }
        }
    }
}

fn merge_keyed(slot: &mut Value, wanted: &[Value], keys: &str, kind: Type) {
    let mut have = slot.as_array().cloned().unwrap_or_default();
    for item in wanted {
        let id = item_key(item, keys);
        match have.iter_mut().find(|h| item_key(h, keys) == id) {
            Some(found) => merge(found, item, kind),
            None => have.push(item.clone()),
        }
    }
    *slot = have.into();
}

/// Removes what this applier owned, and neither it nor anyone else owns now.
fn prune(value: &mut Value, before: &Value, kept: &[&Value], kind: Type) {
    for (key, inner) in before.as_object().into_iter().flatten() {
        let Some(name) = key.strip_prefix("f:") else { continue };
        let still: Vec<&Value> = kept.iter().filter_map(|k| k.get(key)).collect();
        if still.is_empty() {
            object::remove(value, name);
            continue;
        }
        let Some(item) = value.get_mut(name) else { continue };
        match shape_of(kind, name) {
            Shape::Fields(kind) if !is_leaf(inner) => prune(item, inner, &still, kind),
            Shape::Keyed(keys, kind) => prune_keyed(item, inner, &still, (keys, kind)),
            Shape::Set => {
                if let Value::Array(list) = item {
                    let gone = |v: &Value| {
                        let id = format!("v:{v}");
                        inner.get(&id).is_some() && still.iter().all(|s| s.get(&id).is_none())
                    };
                    list.retain(|v| !gone(v));
                }
            }
            _ => {}
        }
    }
}

fn prune_keyed(list: &mut Value, before: &Value, kept: &[&Value], (keys, kind): (&str, Type)) {
    let Value::Array(list) = list else { return };
    list.retain_mut(|item| {
        let id = item_key(item, keys);
        let Some(inner) = before.get(&id) else { return true };
        let still: Vec<&Value> = kept.iter().filter_map(|k| k.get(&id)).collect();
        if still.is_empty() {
            return false;
        }
        prune(item, inner, &still, kind);
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(manager: &str, force: bool, live: &Value, config: &Value) -> ApiResult<Value> {
        let applier = Applier {
            manager,
            force,
            status: false,
            type_name: "Pod",
            api_version: "v1",
            now: "2026-01-01T00:00:00Z",
        };
        apply(applier, live, config)
    }

    fn bare(value: &Value) -> Value {
        let mut value = value.clone();
        object::metadata(&mut value).remove("managedFields");
        value
    }

    #[test]
    fn what_is_no_longer_applied_goes_and_what_others_set_stays() {
        let first = json!({"metadata": {"name": "p", "labels": {"a": "1", "b": "1"}},
            "spec": {"containers": [{"name": "c", "image": "x"}, {"name": "d", "image": "y"}]}});
        let mut live = applied("one", false, &json!({}), &first).unwrap();
        live["metadata"]["labels"]["other"] = "1".into();
        live["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
        let second = json!({"metadata": {"name": "p", "labels": {"a": "2"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
        let live = applied("one", false, &live, &second).unwrap();
        assert_eq!(
            bare(&live),
            json!({"metadata": {"name": "p", "labels": {"a": "2", "other": "1"}},
                "spec": {"containers": [{"name": "c", "image": "x", "imagePullPolicy": "Always"}]}})
        );
        assert_eq!(items(&live["metadata"], "managedFields").len(), 1);
    }

    #[test]
    fn a_field_of_another_applier_conflicts_unless_forced() {
        let config = |image: &str| json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": image}]}});
        let live = applied("one", false, &json!({}), &config("x")).unwrap();
        assert!(applied("two", false, &live, &config("x")).is_ok(), "the same value is shared");
        let error = applied("two", false, &live, &config("y")).unwrap_err();
        assert_eq!(
            error.message,
            "Apply failed with 1 conflict: conflict with \"one\" using v1: .spec.containers[name=\"c\"].image"
        );
        let forced = applied("two", true, &live, &config("y")).unwrap();
        assert_eq!(forced["spec"]["containers"][0]["image"], "y");
        assert!(applied("one", false, &forced, &json!({"metadata": {"name": "p"}})).is_ok());
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let config = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}],
            "tolerations": [{"key": "a"}], "nodeSelector": {"a": "b"}}});
        let live = applied("one", false, &json!({}), &config).unwrap();
        assert_eq!(applied("one", false, &live, &config).unwrap(), live);
    }
}
