//! The directory of network configurations.
//!
//! Owns: which file counts: the first by name, of `.conflist`, `.conf` and `.json` files, that can be used. Files before
//! it that can not be used are logged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::spec::{ListError, NetworkList};

/// Why there is no usable configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The directory holds no configuration.
    #[error("no network configuration found in {0}")]
    Nothing(PathBuf),
    /// There are files, and the first is this bad; so are all others.
    #[error("{file}: {error}", file = .file.display())]
    Unusable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        error: ListError,
    },
    /// The directory or a file in it could not be read.
    #[error("read {path}: {error}", path = .path.display())]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        error: String,
    },
}

/// Loads the network of a directory.
///
/// # Errors
/// See [`LoadError`].
pub fn load_directory(dir: &Path) -> Result<NetworkList, LoadError> {
    let unreadable =
        |path: &Path, e: &io::Error| LoadError::Read { path: path.to_owned(), error: e.to_string() };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(LoadError::Nothing(dir.to_owned())),
        Err(e) => return Err(unreadable(dir, &e)),
    };
    let paths = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unreadable(dir, &e))?;
    let mut files: Vec<PathBuf> = paths.into_iter().filter(|p| is_configuration(p)).collect();
    files.sort();
    let mut first = None;
    for file in files {
        let loaded = match fs::read(&file) {
            Ok(bytes) => {
                NetworkList::parse(&bytes).map_err(|error| LoadError::Unusable { file: file.clone(), error })
            }
            Err(e) => Err(unreadable(&file, &e)),
        };
        match loaded {
            Ok(list) => return Ok(list),
            Err(error) => {
                tracing::warn!(%error, "skipping a network configuration");
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| LoadError::Nothing(dir.to_owned())))
}

fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[(&str, &str)]) -> Result<String, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        load_directory(dir.path()).map(|l| l.name)
    }

    fn conf(name: &str) -> String {
        format!(r#"{{"name": "{name}", "type": "x"}}"#)
    }

    #[test]
    fn the_first_usable_file_by_name_counts() {
        let (a, b) = (conf("a"), conf("b"));
        assert_eq!(names(&[("20.conflist", &a), ("10.conf", &b)]).unwrap(), "b");
        assert_eq!(names(&[("20.conflist", &a), ("10.conf", "{"), ("05.txt", "x")]).unwrap(), "a");
    }

    #[test]
    fn nothing_and_nothing_usable_are_different() {
        assert!(matches!(names(&[("readme", "x")]), Err(LoadError::Nothing(_))));
        assert!(matches!(load_directory(Path::new("/nonexistent")), Err(LoadError::Nothing(_))));
        let error = names(&[("10.conflist", r#"{"name": "n"}"#), ("20.conf", "{")]).unwrap_err();
        assert!(error.to_string().ends_with("10.conflist: network \"n\" has no plugins"), "{error}");
    }
}
