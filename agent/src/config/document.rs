//! A KubeletConfiguration while it is put together: the file, then the drop-in files, then the flags, each value with where
//! it comes from.
//!
//! Owns: the order and the rules of merging, the origins, and what is said about fields that are not obeyed. Never: knows
//! what a value means (that is `kubelet` and `Config`).
//!
//! Drop-in files are those of `--config-dir` that end in `.conf`, in the order of their names, those of folders within
//! included. Each is merged as kubelet does it, by RFC 7396: maps key by key, everything else whole, null takes away.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::fields::{self, Class, FIELDS, Field};
use super::kubelet::{self, KubeletConfiguration};
use super::yaml::is_zero;
use super::{ConfigError, RunArgs, duration};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// `--config`.
    File(PathBuf),
    /// A file of `--config-dir`.
    DropIn(PathBuf),
    /// This flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(file) => write!(f, "file {}", file.display()),
            Origin::DropIn(file) => write!(f, "drop-in {}", file.display()),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A field that is set and has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Its path.
    pub field: String,
    /// Why, or what happens instead.
    pub says: &'static str,
}

/// One value that is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The names on the way to it.
    pub path: Vec<String>,
    /// The value.
    pub value: Value,
    /// Where it comes from.
    pub origin: Origin,
}

/// What the files say together.
#[derive(Debug, Clone)]
pub struct Document {
    whole: Value,
    origins: BTreeMap<Vec<String>, Origin>,
}

impl Default for Document {
    fn default() -> Self {
        let whole = json!({ "apiVersion": kubelet::API_VERSION, "kind": kubelet::KIND });
        Self { whole, origins: BTreeMap::new() }
    }
}

impl Document {
    /// Reads the files that the flags name.
    ///
    /// # Errors
    /// A file that cannot be read or understood, or a directory that is not there.
    pub fn read(args: &RunArgs) -> Result<Self, ConfigError> {
        let text = args.config.as_deref().map(text_of).transpose()?;
        Self::of(text.as_deref().unwrap_or_default(), args)
    }

    /// As [`Document::read`], where `--config` is not written yet and is going to say `text`.
    ///
    /// # Errors
    /// As there.
    pub fn of(text: &str, args: &RunArgs) -> Result<Self, ConfigError> {
        let mut document = Self::default();
        if let Some(file) = &args.config {
            document.add(text, file, &Origin::File(file.clone()))?;
        }
        if let Some(dir) = &args.config_dir {
            for file in drop_ins(dir)? {
                document.add(&text_of(&file)?, &file, &Origin::DropIn(file.clone()))?;
            }
        }
        Ok(document)
    }

    /// Merges the text of a file into what is there. A file that is wrong is named with the line.
    pub fn add(&mut self, text: &str, file: &Path, origin: &Origin) -> Result<(), ConfigError> {
        let patch = kubelet::untyped(text, file)?;
        // By their types, while the line of a mistake is still known. Null is no value of a type: it takes one away.
        if has_null(&patch) {
            let mut alone = Self::default();
            merge(&mut alone.whole, patch.clone(), &mut Vec::new(), origin, &mut alone.origins);
            alone.typed_as(file)?;
        } else {
            kubelet::parse(text, file)?;
        }
        let mut whole = std::mem::take(&mut self.whole);
        merge(&mut whole, patch, &mut Vec::new(), origin, &mut self.origins);
        self.whole = whole;
        Ok(())
    }

    /// The values by their types.
    pub fn typed(&self) -> Result<KubeletConfiguration, ConfigError> {
        self.typed_as(Path::new("(all files together)"))
    }

    fn typed_as(&self, file: &Path) -> Result<KubeletConfiguration, ConfigError> {
        let text = serde_saphyr::to_string(&self.whole).map_err(|error| ConfigError::Field {
            file: file.to_owned(),
            field: kubelet::KIND.to_owned(),
            reason: error.to_string(),
        })?;
        kubelet::parse(&text, file).map(|(typed, _)| typed)
    }

    /// The file that a field was last set in.
    pub fn file_of(&self, field: &str) -> Option<&Path> {
        let path: Vec<String> = field.split('.').map(str::to_owned).collect();
        self.origins.iter().rev().find(|(at, _)| at.starts_with(&path)).and_then(|(_, origin)| match origin {
            Origin::File(file) | Origin::DropIn(file) => Some(file.as_path()),
            Origin::Default | Origin::Flag(_) => None,
        })
    }

    /// What is set and not obeyed.
    ///
    /// # Errors
    /// Where not obeying it would be unsafe.
    pub fn judge(&self) -> Result<Vec<Notice>, ConfigError> {
        for field in FIELDS.iter().filter(|field| field.class == Class::Refused) {
            if self.value(field.path).is_some_and(|value| is_lost(field, value)) {
                return Err(ConfigError::Field {
                    file: self.file_of(field.path).unwrap_or(Path::new("(none)")).to_owned(),
                    field: field.path.to_owned(),
                    reason: format!("this node cannot obey it: {}", field.says),
                });
            }
        }
        Ok(notices(&self.whole))
    }

    fn value(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.whole, |value, part| value.get(part))
    }

    /// Every value in force, in the order of the table; maps that several files may have filled come key by key.
    pub fn effective(&self, args: &RunArgs) -> Vec<Setting> {
        let mut flags = flags(args);
        FIELDS.iter().flat_map(|field| self.in_force(field, flags.remove(field.path))).collect()
    }

    fn in_force(&self, field: &Field, flag: Option<(Value, &'static str)>) -> Vec<Setting> {
        let path: Vec<String> = field.path.split('.').map(str::to_owned).collect();
        if let Some((value, flag)) = flag {
            return vec![Setting { path, value, origin: Origin::Flag(flag) }];
        }
        let default = default_of(field);
        let set = self.value(field.path).filter(|value| field.zero_counts || !is_zero(value));
        let merged = field.path == "evictionHard"
            && self.value("mergeDefaultEvictionSettings") == Some(&Value::Bool(true));
        let mut settings = Vec::new();
        if set.is_none() || merged {
            // A map's keys each have an origin of their own.
            let given = set.and_then(Value::as_object);
            match default {
                Some(Value::Object(map)) => {
                    settings.extend(
                        map.into_iter().filter(|(key, _)| given.is_none_or(|g| !g.contains_key(key))).map(
                            |(key, value)| Setting { path: with(&path, key), value, origin: Origin::Default },
                        ),
                    );
                }
                Some(value) => {
                    settings.push(Setting { path: path.clone(), value, origin: Origin::Default });
                }
                None => {}
            }
        }
        match set {
            Some(Value::Object(map)) if !map.is_empty() => {
                settings.extend(map.iter().map(|(key, value)| {
                    let path = with(&path, key.clone());
                    let origin = self.origin(&path);
                    Setting { path, value: value.clone(), origin }
                }));
            }
            Some(value) => {
                let origin = self.origin(&path);
                settings.push(Setting { path, value: value.clone(), origin });
            }
            None => {}
        }
        settings
    }

    fn origin(&self, path: &[String]) -> Origin {
        let within = |at: &&Vec<String>| at.starts_with(path) || path.starts_with(at);
        self.origins
            .keys()
            .rev()
            .find(within)
            .and_then(|at| self.origins.get(at))
            .cloned()
            .unwrap_or(Origin::Default)
    }
}

/// The warnings that a document is worth, whether one file or all of them.
pub fn notices(whole: &Value) -> Vec<Notice> {
    let mut list = Vec::new();
    if let Value::Object(map) = whole {
        collect(map, "", &mut list);
    }
    list
}

fn collect(map: &Map<String, Value>, parent: &str, list: &mut Vec<Notice>) {
    for (name, value) in map {
        let path = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
        match (fields::of(&path), value) {
            (Some(field), value) => {
                if field.class == Class::Warned && is_lost(field, value) {
                    list.push(Notice { field: path, says: field.says });
                }
            }
            (None, Value::Object(inner)) if fields::is_parent(&path) => collect(inner, &path, list),
            (None, Value::Null) => {}
            (None, _) if matches!(path.as_str(), "apiVersion" | "kind") => {}
            (None, _) => list.push(Notice { field: path, says: UNKNOWN }),
        }
    }
}

const UNKNOWN: &str = "It is not a field of KubeletConfiguration v1beta1.";

/// Whether not obeying this value changes something: what is the default anyway does not.
fn is_lost(field: &Field, value: &Value) -> bool {
    if value.is_null() || (!field.zero_counts && is_zero(value)) {
        return false;
    }
    default_of(field).is_none_or(|default| !same(&default, value))
}

fn default_of(field: &Field) -> Option<Value> {
    serde_json::from_str(field.default).ok()
}

/// `5m` and `5m0s` are the same, and so are `0` and `"0"`.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::String(one), Value::String(other)) => {
            let (a, b) = (duration::parse(one), duration::parse(other));
            one.eq_ignore_ascii_case(other) || (a.is_some() && a == b)
        }
        _ => one == other,
    }
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.iter().any(has_null),
        Value::Object(map) => map.values().any(has_null),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn flags(args: &RunArgs) -> BTreeMap<&'static str, (Value, &'static str)> {
    let mut set = BTreeMap::new();
    if !args.register_with_taints.is_empty() {
        let taints = args
            .register_with_taints
            .iter()
            .map(|taint| json!({ "key": taint.key, "value": taint.value, "effect": taint.effect.as_str() }));
        set.insert("registerWithTaints", (taints.collect(), "--register-with-taints"));
    }
    if let Some(id) = &args.provider_id {
        set.insert("providerID", (json!(id), "--provider-id"));
    }
    if args.verbosity > 0 {
        set.insert("logging.verbosity", (json!(args.verbosity), "--v"));
    }
    set
}

fn with(path: &[String], key: String) -> Vec<String> {
    path.iter().cloned().chain([key]).collect()
}

fn merge(
    target: &mut Value,
    patch: Value,
    path: &mut Vec<String>,
    origin: &Origin,
    origins: &mut BTreeMap<Vec<String>, Origin>,
) {
    let Value::Object(patch) = patch else {
        origins.retain(|at, _| !at.starts_with(path));
        origins.insert(path.clone(), origin.clone());
        *target = patch;
        return;
    };
    if !target.is_object() || patch.is_empty() {
        origins.insert(path.clone(), origin.clone());
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        path.push(key.clone());
        if value.is_null() {
            origins.retain(|at, _| !at.starts_with(path));
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value, path, origin, origins);
        }
        path.pop();
    }
}

fn text_of(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })
}

/// The drop-in files of a directory, in the order in which they are merged.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { file: dir.to_owned(), source };
    let mut entries = std::fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() && !entry.is_symlink() {
            files.extend(drop_ins(&entry)?);
        } else if entry.extension().is_some_and(|end| end == "conf") {
            files.push(entry);
        }
    }
    Ok(files)
}
