//! What the files of a configMap, secret, downwardAPI or projected volume hold. Pure.
//!
//! Owns: the payload of a volume, keys laid out as paths, the rules for those paths. Never: reads an object or writes a
//! file. The rules are kubelet's (`pkg/volume/util/atomic_writer.go`, `pkg/volume/projected`).

use std::collections::BTreeMap;

use crate::pod::spec::KeyToPath;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub contents: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// The owner, where it is not root.
    pub owner: Option<u32>,
}

/// Every file of a volume by its path, relative and without `..`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payload(BTreeMap<String, File>);

/// Why a volume's content cannot be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// A path that would leave the volume or clash with its own bookkeeping.
    #[error("invalid path {0:?}: it must be relative, without \"..\", and not begin with \"..\"")]
    Path(String),
    /// A key named by `items` is not in the object.
    #[error("{object} references non-existent config key: {key}")]
    Key {
        /// `configmap "x"` or `secret "x"`.
        object: String,
        /// The key.
        key: String,
    },
}

impl Payload {
    /// Adds a file; one of the same path from an earlier source is replaced.
    pub fn insert(&mut self, path: &str, file: File) -> Result<(), PayloadError> {
        let bad = path.is_empty()
            || path.starts_with('/')
            || path.starts_with("..")
            || path.split('/').any(|part| part == ".." || part.len() > 255)
            || path.len() > 4096;
        if bad {
            return Err(PayloadError::Path(path.to_owned()));
        }
        let clean: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        self.0.insert(clean.join("/"), file);
        Ok(())
    }

    /// Adds the keys of an object: all of them, or those that `items` names at the paths it gives.
    pub fn insert_object(
        &mut self,
        object: &str,
        data: &BTreeMap<String, Vec<u8>>,
        items: &[KeyToPath],
        rules: ObjectRules,
    ) -> Result<(), PayloadError> {
        if items.is_empty() {
            for (key, contents) in data {
                let file = File { contents: contents.clone(), mode: rules.default_mode, owner: None };
                self.insert(key, file)?;
            }
            return Ok(());
        }
        for item in items {
            match data.get(&item.key) {
                Some(contents) => {
                    let mode = item.mode.unwrap_or(rules.default_mode);
                    self.insert(&item.path, File { contents: contents.clone(), mode, owner: None })?;
                }
                None if rules.optional => {}
                None => return Err(PayloadError::Key { object: object.to_owned(), key: item.key.clone() }),
            }
        }
        Ok(())
    }

    /// The files, by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.0.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// The first components of all paths: what a user sees in the volume's root.
    pub fn roots(&self) -> Vec<&str> {
        let mut roots: Vec<&str> = self.0.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
        roots.dedup();
        roots
    }
}

/// How keys become files.
#[derive(Debug, Clone, Copy)]
pub struct ObjectRules {
    /// `defaultMode`.
    pub default_mode: u32,
    /// Missing keys are no error.
    pub optional: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())])
    }

    fn item(key: &str, path: &str, mode: Option<u32>) -> KeyToPath {
        KeyToPath { key: key.into(), path: path.into(), mode }
    }

    const RULES: ObjectRules = ObjectRules { default_mode: 0o644, optional: false };

    #[test]
    fn without_items_every_key_is_a_file() {
        let mut payload = Payload::default();
        payload.insert_object("configmap \"c\"", &data(), &[], RULES).expect("laid out");
        assert_eq!(payload.files().map(|(path, _)| path).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn items_choose_paths_and_modes() {
        let mut payload = Payload::default();
        let items = [item("a", "deep//x", Some(0o400)), item("b", "deep/y", None)];
        payload.insert_object("configmap \"c\"", &data(), &items, RULES).expect("laid out");
        let modes: Vec<(&str, u32)> = payload.files().map(|(path, file)| (path, file.mode)).collect();
        assert_eq!(modes, [("deep/x", 0o400), ("deep/y", 0o644)]);
        assert_eq!(payload.roots(), ["deep"]);
    }

    #[test]
    fn a_missing_key_is_an_error_unless_optional() {
        let mut payload = Payload::default();
        let items = [item("nope", "x", None)];
        let error = payload.insert_object("configmap \"c\"", &data(), &items, RULES).expect_err("missing");
        assert_eq!(error.to_string(), "configmap \"c\" references non-existent config key: nope");
        let optional = ObjectRules { optional: true, ..RULES };
        payload.insert_object("configmap \"c\"", &data(), &items, optional).expect("optional");
        assert_eq!(payload, Payload::default());
    }

    #[test]
    fn paths_never_leave_the_volume() {
        for path in ["", "/etc/passwd", "../x", "a/../../b", "..data", "..x/y"] {
            let file = File { contents: vec![], mode: 0o644, owner: None };
            assert!(Payload::default().insert(path, file).is_err(), "{path:?}");
        }
    }
}
