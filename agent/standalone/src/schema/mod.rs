//! The shape of every type that is served: field names, types, merge keys.
//!
//! Owns: a table read once from `types.txt`, one line for each type, each field as `name:type` and marks:
//! `s` string, `i` integer, `n` number, `b` boolean, `t` time, `q` quantity, `x` integer or string, `y` base64 bytes, `*` anything,
//! `[]T` list, `{}T` map, else the name of a type; `!key` merge key (`!` alone for lists of scalars), `+` retainKeys,
//! `@a,b` keys of a list map, `%` set, `~` atomic map, `=n` number in protobuf, `=n/m` number inside of the message m, `?` kept
//! when zero (a pointer, or not `omitempty`). The lines were drawn from the public types of Kubernetes 1.36.
//! Decoding through the typed structs of a client library would tell less (no merge keys) and cost a megabyte of code.

mod check;
mod protobuf;

use std::collections::HashMap;
use std::sync::OnceLock;

pub use check::{Strictness, check};
pub use protobuf::decode as decode_protobuf;

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Bool,
    /// RFC 3339.
    Time,
    /// A quantity: text or a number.
    Quantity,
    /// A number or a text.
    IntOrString,
    /// Base64.
    Bytes,
    /// Not looked at.
    Any,
    /// A list of the type written behind.
    List(&'static str),
    /// A map from strings to the type written behind.
    Map(&'static str),
    /// Another line of the table.
    Struct(&'static str),
}

/// One field of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// The key by which strategic merge patches match items; empty for lists of scalars that are merged.
    pub merge_key: Option<&'static str>,
    /// Whether a patch may list the keys to retain.
    pub retain_keys: bool,
    /// The keys by which server-side apply matches items, separated by commas.
    pub list_keys: Option<&'static str>,
    /// A list whose items are a set.
    pub set: bool,
    /// A map that is replaced as a whole by server-side apply.
    pub atomic: bool,
    /// Its number in protobuf.
    pub number: u32,
    /// The number of the message it stands in, which JSON leaves out; 0 for none.
    pub outer: u32,
    /// Whether a zero value is written.
    pub keep_zero: bool,
}

impl Field {
    /// Whether JSON has no place for this value: it is zero and the field is left out then.
    pub fn omits(&self, value: &serde_json::Value) -> bool {
        use serde_json::Value;
        let zero = match (self.kind, value) {
            (Type::Struct(_) | Type::Any | Type::IntOrString, _) => false,
            (_, Value::String(s)) => s.is_empty(),
            (_, Value::Number(n)) => n.as_f64() == Some(0.0),
            (_, Value::Bool(b)) => !b,
            (_, Value::Array(a)) => a.is_empty(),
            (_, Value::Object(o)) => o.is_empty(),
            (_, Value::Null) => true,
        };
        zero && !self.keep_zero
    }
}

/// What starts each mark of a field.
const MARKS: [char; 7] = ['!', '+', '@', '%', '~', '=', '?'];

/// The fields of a type, in the order of the table.
pub type Fields = &'static [Field];

static TYPES: OnceLock<HashMap<&'static str, Box<[Field]>>> = OnceLock::new();

/// The fields of a type; none if the table has no such type.
pub fn fields(name: &str) -> Option<Fields> {
    TYPES.get_or_init(read).get(name).map(AsRef::as_ref)
}

/// One field of a type.
pub fn field(type_name: &str, name: &str) -> Option<&'static Field> {
    fields(type_name)?.iter().find(|f| f.name == name)
}

/// What a type code says.
pub fn type_of(code: &'static str) -> Type {
    match code {
        "s" => Type::String,
        "i" => Type::Integer,
        "n" => Type::Number,
        "b" => Type::Bool,
        "t" => Type::Time,
        "q" => Type::Quantity,
        "x" => Type::IntOrString,
        "y" => Type::Bytes,
        "*" => Type::Any,
        other => {
            if let Some(item) = other.strip_prefix("[]") {
                Type::List(item)
            } else if let Some(item) = other.strip_prefix("{}") {
                Type::Map(item)
            } else {
                Type::Struct(other)
            }
        }
    }
}

fn read() -> HashMap<&'static str, Box<[Field]>> {
    let line = |line: &'static str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        (name, words.map(parse_field).collect())
    };
    include_str!("types.txt").lines().map(line).collect()
}

fn parse_field(word: &'static str) -> Field {
    let (name, rest) = word.split_once(':').unwrap_or((word, "*"));
    let end = rest.find(MARKS).unwrap_or(rest.len());
    let (code, mut marks) = rest.split_at(end);
    let mut field = Field {
        name,
        kind: type_of(code),
        merge_key: None,
        retain_keys: false,
        list_keys: None,
        set: false,
        atomic: false,
        number: 0,
        outer: 0,
        keep_zero: false,
    };
    while let Some(mark) = marks.chars().next() {
        let behind = &marks[1..];
        let end = behind.find(MARKS).unwrap_or(behind.len());
        let (value, next) = behind.split_at(end);
        match mark {
            '!' => field.merge_key = Some(value),
            '+' => field.retain_keys = true,
            '@' => field.list_keys = Some(value),
            '%' => field.set = true,
            '?' => field.keep_zero = true,
            '=' => {
                let (inner, outer) = value.split_once('/').unwrap_or((value, "0"));
                field.number = inner.parse().unwrap_or(0);
                field.outer = outer.parse().unwrap_or(0);
            }
            _ => field.atomic = true,
        }
        marks = next;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_that_is_named_is_there() {
        let all = TYPES.get_or_init(read);
        for (name, fields) in all {
            for field in fields {
                let mut kind = field.kind;
                while let Type::List(code) | Type::Map(code) = kind {
                    kind = type_of(code);
                }
                if let Type::Struct(inner) = kind {
                    assert!(all.contains_key(inner), "{name}.{} names {inner}", field.name);
                }
            }
        }
        for resource in &crate::resource::RESOURCES {
            assert!(all.contains_key(resource.schema), "{}", resource.schema);
        }
    }

    #[test]
    fn marks_are_read() {
        let ports = field("Container", "ports").unwrap();
        assert_eq!(ports.kind, Type::List("ContainerPort"));
        assert_eq!(ports.merge_key, Some("containerPort"));
        assert_eq!(ports.list_keys, Some("containerPort,protocol"));
        let volumes = field("PodSpec", "volumes").unwrap();
        assert!(volumes.retain_keys && volumes.merge_key == Some("name"));
        let finalizers = field("meta.ObjectMeta", "finalizers").unwrap();
        assert!(finalizers.set && finalizers.merge_key == Some(""));
        assert_eq!(field("PodSpec", "tolerations").unwrap().merge_key, None);
    }
}
