//! Holds a request's object against the schema: unknown fields, wrong types, null entries.
//!
//! Field validation (KEP 2885): `Strict` refuses unknown fields, `Warn` names them in a header, `Ignore` drops them. In
//! each case they are dropped from what is stored, as decoding into a struct would do.

use serde_json::Value;

use super::{Type, fields, type_of};

/// What to do about unknown fields (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Drop them.
    Ignore,
    /// Drop them and say so in a `Warning` header.
    Warn,
    /// Refuse the request.
    Strict,
}

/// The paths of fields that the type does not have.
pub type Unknown = Vec<String>;

/// Checks an object against a type, drops what the type does not have, null values, and zeros that JSON leaves out.
///
/// # Errors
/// A sentence about the first value of a wrong type.
pub fn check(object: &mut Value, type_name: &'static str) -> Result<Unknown, String> {
    let mut unknown = Vec::new();
    check_struct(object, type_name, "", &mut unknown)?;
    Ok(unknown)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn check_struct(
    value: &mut Value,
    type_name: &'static str,
    path: &str,
    out: &mut Unknown,
) -> Result<(), String> {
    let Some(fields) = fields(type_name) else { return Ok(()) };
    let Value::Object(map) = value else { return Err(wrong(value, path, type_name)) };
    let mut drop = Vec::new();
    for (key, item) in map.iter_mut() {
        if path.is_empty() && (key == "apiVersion" || key == "kind") {
            continue;
        }
        match fields.iter().find(|f| f.name == key) {
            Some(_) if item.is_null() => drop.push(key.clone()),
            Some(field) => {
                check_value(item, field.kind, &join(path, key), out)?;
                if field.omits(item) {
                    drop.push(key.clone());
                }
            }
            None => {
                out.push(join(path, key));
                drop.push(key.clone());
            }
        }
    }
    for key in drop {
        map.remove(&key);
    }
    Ok(())
}

fn check_value(value: &mut Value, kind: Type, path: &str, out: &mut Unknown) -> Result<(), String> {
    let fits = match kind {
        Type::String => value.is_string(),
        Type::Integer => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0),
        Type::Number => value.is_number(),
        Type::Bool => value.is_boolean(),
        Type::Time => value.as_str().is_some_and(|s| s.parse::<jiff::Timestamp>().is_ok()),
        Type::Quantity => match &*value {
            Value::String(s) => crate::quantity::parse(s).is_some(),
            other => other.is_number(),
        },
        Type::IntOrString => value.is_string() || value.is_i64(),
        Type::Bytes => value.as_str().is_some_and(is_base64),
        Type::Any => true,
        Type::Struct(name) => return check_struct(value, name, path, out),
        Type::List(code) => return check_list(value, code, path, out),
        Type::Map(code) => return check_map(value, code, path, out),
    };
    if !fits {
        return Err(wrong(value, path, &format!("{kind:?}").to_lowercase()));
    }
    normalize(value, kind);
    Ok(())
}

/// Quantities and whole numbers written in another form.
fn normalize(value: &mut Value, kind: Type) {
    match kind {
        Type::Quantity if value.is_number() => *value = Value::String(value.to_string()),
        Type::Integer if value.is_f64() =>
        {
            #[allow(clippy::cast_possible_truncation)]
            if let Some(number) = value.as_f64() {
                *value = Value::from(number as i64);
            }
        }
        _ => {}
    }
}

fn check_list(value: &mut Value, code: &'static str, path: &str, out: &mut Unknown) -> Result<(), String> {
    let Value::Array(list) = value else { return Err(wrong(value, path, "list")) };
    let kind = type_of(code);
    for (i, item) in list.iter_mut().enumerate() {
        check_value(item, kind, &format!("{path}[{i}]"), out)?;
    }
    Ok(())
}

fn check_map(value: &mut Value, code: &'static str, path: &str, out: &mut Unknown) -> Result<(), String> {
    let Value::Object(map) = value else { return Err(wrong(value, path, "map")) };
    let kind = type_of(code);
    for (key, item) in map.iter_mut() {
        if item.is_null() && matches!(kind, Type::String | Type::Bytes) {
            *item = Value::String(String::new());
        }
        check_value(item, kind, &join(path, key), out)?;
    }
    Ok(())
}

fn is_base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text.replace(['\n', '\r'], "")).is_ok()
}

fn wrong(value: &Value, path: &str, want: &str) -> String {
    let have = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(s) => {
            return format!("json: cannot unmarshal string {s:?} into field {path} of type {want}");
        }
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    format!("json: cannot unmarshal {have} into field {path} of type {want}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_are_named_by_path_and_dropped() {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "nope": 1,
            "spec": {"containers": [{"name": "a", "imagee": "x", "tty": null}]}});
        assert_eq!(check(&mut pod, "Pod").unwrap(), ["nope", "spec.containers[0].imagee"]);
        assert_eq!(pod, json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a"}]}}));
    }

    #[test]
    fn wrong_types_are_refused() {
        for (spec, field) in [
            (json!({"containers": {}}), "spec.containers"),
            (json!({"hostNetwork": "yes"}), "spec.hostNetwork"),
            (
                json!({"containers": [{"ports": [{"containerPort": "80"}]}]}),
                "spec.containers[0].ports[0].containerPort",
            ),
            (
                json!({"containers": [{"resources": {"limits": {"cpu": "much"}}}]}),
                "spec.containers[0].resources.limits.cpu",
            ),
        ] {
            let error = check(&mut json!({"spec": spec}), "Pod").unwrap_err();
            assert!(error.contains(&format!("field {field} of")), "{error}");
        }
    }

    #[test]
    fn quantities_may_be_numbers() {
        let mut pod = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 2}}}]}});
        check(&mut pod, "Pod").unwrap();
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"], json!("2"));
    }
}
