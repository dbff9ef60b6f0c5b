//! Decodes bodies of `application/vnd.kubernetes.protobuf` into JSON values. Clients written in Go send them; all of them read
//! JSON answers, so there is no encoder.
//!
//! The envelope is four bytes, then `runtime.Unknown`: type, raw object. Field numbers come from the schema.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Field, Fields, Type, fields, type_of};

const MAGIC: &[u8] = b"k8s\0";
/// No type of the API is nested deeper.
const MAX_DEPTH: u8 = 32;

enum Raw<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// Decodes an object with its `apiVersion` and `kind`.
///
/// # Errors
/// A sentence, when the bytes are no object of a type that is known.
pub fn decode(body: &[u8]) -> Result<Value, String> {
    let unknown = body.strip_prefix(MAGIC).ok_or("provided data does not appear to be a protobuf message")?;
    let (mut kind, mut version, mut raw) = (String::new(), String::new(), &[][..]);
    for (number, value) in read(unknown)? {
        match (number, value) {
            (1, Raw::Bytes(meta)) => {
                for (number, value) in read(meta)? {
                    match (number, value) {
                        (1, Raw::Bytes(text)) => version = string(text)?,
                        (2, Raw::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Raw::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (name, fields) = type_named(&version, &kind)
        .ok_or_else(|| format!("no kind \"{kind}\" is registered for version \"{version}\""))?;
    let mut object = message(raw, fields, MAX_DEPTH).map_err(|why| format!("{name}: {why}"))?;
    object.insert("kind".into(), kind.into());
    object.insert("apiVersion".into(), version.into());
    Ok(Value::Object(object))
}

fn type_named(version: &str, kind: &str) -> Option<(String, Fields)> {
    let prefix = match version.split('/').next().unwrap_or_default() {
        "events.k8s.io" => "events.",
        "discovery.k8s.io" => "discovery.",
        "certificates.k8s.io" => "certificates.",
        _ if kind == "DeleteOptions" => "meta.",
        _ => "",
    };
    let name = format!("{prefix}{kind}");
    fields(&name).map(|f| (name, f))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or("unexpected end")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("number too long".into())
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let length = usize::try_from(length).map_err(|_| "length too large")?;
    let (part, rest) = bytes.split_at_checked(length).ok_or("unexpected end")?;
    *bytes = rest;
    Ok(part)
}

fn read(mut bytes: &[u8]) -> Result<Vec<(u32, Raw<'_>)>, String> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = u32::try_from(tag >> 3).map_err(|_| "field number too large")?;
        let little = |part: &[u8]| part.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
        let raw = match tag & 7 {
            0 => Raw::Varint(varint(&mut bytes)?),
            1 => Raw::Fixed(little(take(&mut bytes, 8)?)),
            2 => {
                let length = varint(&mut bytes)?;
                Raw::Bytes(take(&mut bytes, length)?)
            }
            5 => Raw::Fixed(little(take(&mut bytes, 4)?)),
            other => return Err(format!("wire type {other}")),
        };
        out.push((number, raw));
    }
    Ok(out)
}

fn string(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "text is not UTF-8".into())
}

fn message(bytes: &[u8], fields: Fields, depth: u8) -> Result<Map<String, Value>, String> {
    let depth = depth.checked_sub(1).ok_or("nested too deep")?;
    let mut map = Map::new();
    for (number, raw) in read(bytes)? {
        if let Some(field) = fields.iter().find(|f| f.outer == 0 && f.number == number) {
            set(&mut map, field, &raw, depth)?;
        } else if let Raw::Bytes(inner) = raw
            && fields.iter().any(|f| f.outer == number)
        {
            // A Go struct that JSON inlines is a message of its own here.
            for (inner_number, raw) in read(inner)? {
                if let Some(field) = fields.iter().find(|f| f.outer == number && f.number == inner_number) {
                    set(&mut map, field, &raw, depth)?;
                }
            }
        }
    }
    Ok(map)
}

fn set(map: &mut Map<String, Value>, field: &Field, raw: &Raw<'_>, depth: u8) -> Result<(), String> {
    match field.kind {
        Type::List(code) => {
            let entry = map.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = entry {
                list.push(value(raw, type_of(code), depth)?);
            }
        }
        Type::Map(code) => {
            let entry = map.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let (Value::Object(items), Raw::Bytes(pair)) = (entry, raw) {
                let (key, item) = map_entry(pair, code, depth)?;
                items.insert(key, item);
            }
        }
        kind => {
            let decoded = value(raw, kind, depth)?;
            if !field.omits(&decoded) {
                map.insert(field.name.to_owned(), decoded);
            }
        }
    }
    Ok(())
}

fn map_entry(pair: &[u8], code: &'static str, depth: u8) -> Result<(String, Value), String> {
    let kind = type_of(code);
    let (mut key, mut item) = (String::new(), Value::Null);
    for (number, raw) in read(pair)? {
        match (number, raw) {
            (1, Raw::Bytes(text)) => key = string(text)?,
            (2, Raw::Bytes(inner)) if matches!(kind, Type::List(_)) => {
                // A list as the value of a map is a message with one repeated field.
                let Type::List(code) = kind else { continue };
                let items = read(inner)?;
                item = items
                    .iter()
                    .map(|(_, raw)| value(raw, type_of(code), depth))
                    .collect::<Result<Vec<_>, _>>()?
                    .into();
            }
            (2, raw) => item = value(&raw, kind, depth)?,
            _ => {}
        }
    }
    if item.is_null() {
        item = match kind {
            Type::List(_) => Value::Array(Vec::new()),
            _ => "".into(),
        };
    }
    Ok((key, item))
}

fn value(raw: &Raw<'_>, kind: Type, depth: u8) -> Result<Value, String> {
    match (kind, raw) {
        (Type::String, Raw::Bytes(bytes)) => Ok(string(bytes)?.into()),
        (Type::Bytes, Raw::Bytes(bytes)) => Ok(STANDARD.encode(bytes).into()),
        (Type::Integer, Raw::Varint(number)) => Ok(number.cast_signed().into()),
        (Type::Bool, Raw::Varint(number)) => Ok((*number != 0).into()),
        (Type::Number, Raw::Fixed(bits)) => Ok(f64::from_bits(*bits).into()),
        (Type::Time, Raw::Bytes(bytes)) => time(bytes),
        (Type::Quantity, Raw::Bytes(bytes)) => {
            let text = read(bytes)?.into_iter().find_map(|(n, raw)| match (n, raw) {
                (1, Raw::Bytes(text)) => Some(string(text)),
                _ => None,
            });
            Ok(text.transpose()?.unwrap_or_else(|| "0".into()).into())
        }
        (Type::IntOrString, Raw::Bytes(bytes)) => int_or_string(bytes),
        (Type::Any, Raw::Bytes(bytes)) => {
            let raw = read(bytes)?.into_iter().find_map(|(n, raw)| match (n, raw) {
                (1, Raw::Bytes(json)) => serde_json::from_slice(json).ok(),
                _ => None,
            });
            Ok(raw.unwrap_or(Value::Null))
        }
        (Type::Struct(name), Raw::Bytes(bytes)) => {
            let fields = fields(name).ok_or_else(|| format!("unknown type {name}"))?;
            Ok(Value::Object(message(bytes, fields, depth)?))
        }
        (kind, _) => Err(format!("wrong wire type for {kind:?}")),
    }
}

/// Seconds and nanoseconds since 1970; an empty message is no time.
fn time(bytes: &[u8]) -> Result<Value, String> {
    let (mut seconds, mut nanos) = (None, 0);
    for (number, raw) in read(bytes)? {
        match (number, raw) {
            (1, Raw::Varint(v)) => seconds = Some(v.cast_signed()),
            (2, Raw::Varint(v)) => nanos = i32::try_from(v.cast_signed()).unwrap_or(0),
            _ => {}
        }
    }
    let Some(seconds) = seconds else { return Ok(Value::Null) };
    let at = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
    let format = if nanos == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
    Ok(jiff::fmt::strtime::format(format, at).map_err(|e| e.to_string())?.into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0_i64, String::new());
    for (n, raw) in read(bytes)? {
        match (n, raw) {
            (1, Raw::Varint(kind)) => is_text = kind == 1,
            (2, Raw::Varint(v)) => number = v.cast_signed(),
            (3, Raw::Bytes(t)) => text = string(t)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn field(number: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(body.len()).unwrap()];
        out.extend_from_slice(body);
        out
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_config_map_is_decoded() {
        let meta = [
            field(1, b"a"),
            field(3, b""),
            field(8, b""),
            field(11, &[field(1, b"k"), field(2, b"v")].concat()),
        ]
        .concat();
        let data = field(2, &[field(1, b"x"), field(2, b"y")].concat());
        let body = envelope("v1", "ConfigMap", &[field(1, &meta), data].concat());
        let want = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"k": "v"}, "creationTimestamp": null}, "data": {"x": "y"}});
        assert_eq!(decode(&body).unwrap(), want);
    }

    #[test]
    fn inlined_structs_and_numbers_are_decoded() {
        // A pod with one container with a probe: httpGet stands in the inlined handler, the port is an IntOrString.
        let http = [field(1, b"/"), field(2, &[8, 0, 16, 80])].concat();
        let probe = [field(1, &field(2, &http)), vec![4 << 3, 10]].concat();
        // stdin (16) is false and left out; its tag takes two bytes.
        let container = [field(1, b"c"), field(10, &probe), vec![0x80, 0x01, 0]].concat();
        let body = envelope("v1", "Pod", &field(2, &field(2, &container)));
        assert_eq!(
            decode(&body).unwrap()["spec"]["containers"][0],
            json!({"name": "c", "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 10}})
        );
    }

    #[test]
    fn unknown_kinds_and_junk_are_refused() {
        assert!(decode(b"{}").is_err());
        assert!(
            decode(&envelope("apps/v1", "Deployment", b"")).unwrap_err().contains("no kind \"Deployment\"")
        );
        assert!(decode(&envelope("v1", "Pod", &[0xff])).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&envelope("v1", "Pod", &bytes[..bytes.len().min(100)]));
            let _ = decode(&[MAGIC, &bytes].concat());
        }
    }
}
