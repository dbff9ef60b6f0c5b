//! A network configuration list (`.conflist`) or a single plugin's configuration (`.conf`, `.json`) as one type.
//!
//! Owns: reading and checking the list's own fields.
//! Never: looks inside a plugin's configuration, except for `type` and `capabilities`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::names::valid_network_name;
use super::version::{Version, supported_versions};

/// A network: plugins run in order on ADD and in reverse order on DEL.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// The version spoken with the plugins: the newest of `cniVersion` and `cniVersions` that is known here.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// The plugins, at least one.
    pub plugins: Vec<PluginConf>,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// The program's name.
    pub kind: String,
    /// Capability arguments the plugin asks for, by name.
    pub capabilities: BTreeMap<String, bool>,
    /// The whole configuration as it was written.
    pub raw: Map<String, Value>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Not JSON, or a field has the wrong type.
    #[error("not a network configuration: {0}")]
    Decode(String),
    /// The network has no name, or one that is not allowed.
    #[error("network name {0:?} is not allowed")]
    Name(String),
    /// None of the versions is spoken here.
    #[error("none of the CNI versions {0} is supported")]
    Version(String),
    /// The list of plugins is empty.
    #[error("network {0:?} has no plugins")]
    NoPlugins(String),
    /// A plugin has no usable `type`.
    #[error("plugin {0} of the list has no usable \"type\"")]
    Kind(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawList {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "bool_or_text")]
    disable_check: bool,
    #[serde(default, rename = "disableGC", deserialize_with = "bool_or_text")]
    disable_gc: bool,
    #[serde(default)]
    plugins: Option<Vec<Map<String, Value>>>,
}

/// The reference library takes `"true"` and `"false"` as strings too.
fn bool_or_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(b) => Ok(b),
        Value::String(s) if s.eq_ignore_ascii_case("true") => Ok(true),
        Value::String(s) if s.is_empty() || s.eq_ignore_ascii_case("false") => Ok(false),
        other => Err(serde::de::Error::custom(format!("{other} is not true or false"))),
    }
}

impl NetworkList {
    /// Reads a list, or a single plugin's configuration as a list of one.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ListError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| ListError::Decode(e.to_string()))?;
        Self::from_value(value)
    }

    /// Like [`NetworkList::parse`], of a value already decoded.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn from_value(value: Value) -> Result<Self, ListError> {
        let raw = RawList::deserialize(&value).map_err(|e| ListError::Decode(e.to_string()))?;
        if !valid_network_name(&raw.name) {
            return Err(ListError::Name(raw.name));
        }
        let version = pick_version(&raw.cni_version, &raw.cni_versions)?;
        let plugins = match (raw.plugins, value) {
            (Some(plugins), _) => plugins,
            (None, Value::Object(single)) if single.contains_key("type") => vec![single],
            (None, _) => Vec::new(),
        };
        if plugins.is_empty() {
            return Err(ListError::NoPlugins(raw.name));
        }
        let plugins = plugins
            .into_iter()
            .enumerate()
            .map(|(i, p)| PluginConf::new(i, p))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            version,
            name: raw.name,
            disable_check: raw.disable_check,
            disable_gc: raw.disable_gc,
            plugins,
        })
    }
}

impl NetworkList {
    /// The list as JSON that reads back as this list.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let plugins: Vec<_> = self.plugins.iter().map(|p| Value::Object(p.raw.clone())).collect();
        serde_json::json!({
            "cniVersion": self.version.as_str(),
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "plugins": plugins,
        })
    }
}

impl PluginConf {
    fn new(position: usize, raw: Map<String, Value>) -> Result<Self, ListError> {
        let kind = raw.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
            return Err(ListError::Kind(position));
        }
        let capabilities = match raw.get("capabilities") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(v) => {
                BTreeMap::deserialize(v).map_err(|e| ListError::Decode(format!("capabilities: {e}")))?
            }
        };
        Ok(Self { kind, capabilities, raw })
    }
}

fn pick_version(one: &str, many: &[String]) -> Result<Version, ListError> {
    let all = many.iter().map(String::as_str).chain((many.is_empty() || !one.is_empty()).then_some(one));
    let known = supported_versions();
    let best = all.clone().filter_map(|v| v.parse::<Version>().ok()).filter(|v| known.contains(v)).max();
    best.ok_or_else(|| ListError::Version(all.collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_single_configuration_is_a_list_of_one() {
        let list =
            NetworkList::from_value(json!({"cniVersion": "0.4.0", "name": "n", "type": "ptp"})).unwrap();
        assert_eq!((list.plugins[0].kind.as_str(), list.version), ("ptp", Version::V0_4));
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        let list = json!({"cniVersion": "0.4.0", "cniVersions": ["1.1.0", "9.0.0"], "name": "n", "plugins": [{"type": "x"}]});
        assert_eq!(NetworkList::from_value(list).unwrap().version, Version::V1_1);
        let list = json!({"cniVersion": "9.0.0", "name": "n", "plugins": [{"type": "x"}]});
        assert_eq!(NetworkList::from_value(list).unwrap_err(), ListError::Version("9.0.0".into()));
    }

    #[test]
    fn unusable_lists_say_what_is_wrong() {
        let cases = [
            (json!({"plugins": [{"type": "x"}]}), ListError::Name(String::new())),
            (json!({"name": "a/b", "plugins": [{"type": "x"}]}), ListError::Name("a/b".into())),
            (json!({"name": "n"}), ListError::NoPlugins("n".into())),
            (json!({"name": "n", "plugins": []}), ListError::NoPlugins("n".into())),
            (json!({"name": "n", "plugins": [{"type": "x"}, {}]}), ListError::Kind(1)),
            (json!({"name": "n", "plugins": [{"type": "../sh"}]}), ListError::Kind(0)),
        ];
        for (value, error) in cases {
            assert_eq!(NetworkList::from_value(value).unwrap_err(), error);
        }
        assert!(matches!(NetworkList::parse(b"{"), Err(ListError::Decode(_))));
    }

    #[test]
    fn check_and_gc_can_be_switched_off_in_words() {
        let list =
            json!({"name": "n", "disableCheck": "true", "disableGC": true, "plugins": [{"type": "x"}]});
        let list = NetworkList::from_value(list).unwrap();
        assert!(list.disable_check && list.disable_gc);
    }
}
