//! Files in the form of Kubernetes' component configurations: YAML with `apiVersion` and `kind`.
//!
//! Owns: the errors, which name line and field, and the list of fields that are set and not obeyed. Never: knows what a field
//! means.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ConfigError;

/// What a file has to say of itself.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Its `apiVersion`.
    pub api_version: &'static str,
    /// Its `kind`.
    pub kind: &'static str,
    /// Fields, or parts of them by their path, that steer what is done in another way here or not at all, by design:
    /// nothing is lost by not obeying them.
    pub pointless: &'static [&'static str],
}

/// Reads the text of a file. Beside the fields comes the list of those that the file sets and `T` has not.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    file: &Path,
    form: &Form,
) -> Result<(T, Vec<String>), ConfigError> {
    let whole = untyped(text, file, form)?;
    let mut ignored = Vec::new();
    let config = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_ignored::deserialize(deserializer, |path| ignored.push(path_of(&path.to_string())))
    })
    .map_err(|error| malformed(text, file, &error))?;
    ignored.retain(|path| is_lost(path, &whole, form));
    Ok((config, ignored))
}

/// Reads the text of a file without asking what its fields are.
pub fn untyped(text: &str, file: &Path, form: &Form) -> Result<Value, ConfigError> {
    let whole = serde_saphyr::from_str(text).map_err(|error| malformed(text, file, &error))?;
    check_kind(&whole, file, form)?;
    Ok(whole)
}

/// Reads the text of a file by its types, and asks nothing else.
pub fn typed<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, ConfigError> {
    serde_saphyr::from_str(text).map_err(|error| malformed(text, file, &error))
}

/// Without the steps through optional fields, which are none of the file.
fn path_of(path: &str) -> String {
    path.split('.').filter(|part| *part != "?").collect::<Vec<_>>().join(".")
}

fn check_kind(whole: &Value, file: &Path, form: &Form) -> Result<(), ConfigError> {
    for (field, wanted) in [("kind", form.kind), ("apiVersion", form.api_version)] {
        let found = whole.get(field).and_then(Value::as_str).unwrap_or_default();
        if found != wanted {
            let reason = match found {
                "" => format!("is not set; this file must say `{field}: {wanted}`"),
                found => format!("is {found}; this file must say `{field}: {wanted}`"),
            };
            return Err(ConfigError::Field { file: file.to_owned(), field: field.to_owned(), reason });
        }
    }
    Ok(())
}

/// Names the line and the field on it, which the decoder alone knows by position only.
fn malformed(text: &str, file: &Path, error: &serde_saphyr::Error) -> ConfigError {
    let line = error.location().map(|l| l.line()).unwrap_or_default();
    let source = usize::try_from(line).ok().and_then(|n| n.checked_sub(1)).and_then(|n| text.lines().nth(n));
    let field =
        source.and_then(|l| l.split_once(':')).map(|(f, _)| f.trim_start_matches([' ', '-']).to_owned());
    let plain = error.without_snippet().to_string();
    // The decoder's text may go on with the position, which is told here in our own way.
    let reason =
        plain.split(" at line ").next().unwrap_or(&plain).trim_end_matches([',', ':', ' ']).to_owned();
    ConfigError::Malformed { file: file.to_owned(), line, field: field.unwrap_or_default(), reason }
}

/// Whether a field that is not obeyed would change something: zero values and fields without a point do not.
fn is_lost(path: &str, whole: &Value, form: &Form) -> bool {
    let parts: Vec<&str> = path.split('.').collect();
    let within = |pointless: &&str| {
        let named: Vec<&str> = pointless.split('.').collect();
        parts.starts_with(&named)
    };
    if form.pointless.iter().any(within) {
        return false;
    }
    let value = parts.iter().try_fold(whole, |value, part| match value {
        Value::Array(list) => list.get(part.parse::<usize>().ok()?),
        other => other.get(part),
    });
    !value.is_some_and(is_zero)
}

/// What says nothing: Go's zero values.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_zero),
    }
}
