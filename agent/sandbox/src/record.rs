//! The small files a supervisor keeps, each written whole or not at all.
//!
//! Owns: the write beside and rename. Never: decides what is in them (see `protocol`).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// A file that could not be written or read, by name.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct FileError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Replaces a file with the JSON of a value. A reader sees the old or the new content.
///
/// The run directory is on a tmpfs, so there is nothing to sync: it outlives any process, not a reboot.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let fail = |source: io::Error| FileError { path: path.to_owned(), source };
    let text = serde_json::to_vec(value).map_err(|error| fail(error.into()))?;
    let new = path.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).map_err(fail)
}

/// Reads a JSON file.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let fail = |source: io::Error| FileError { path: path.to_owned(), source };
    serde_json::from_slice(&fs::read(path).map_err(fail)?).map_err(|error| fail(error.into()))
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A container id: 256 random bits in hexadecimal, as other runtimes have it.
pub fn new_container_id() -> io::Result<String> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut id = String::with_capacity(64);
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            id.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    Ok(id)
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_start_ticks(stat: &str) -> Option<u64> {
    // The command name may hold spaces and parentheses; the last parenthesis ends it. Field 3 follows.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_ticks_survive_odd_names() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20";
        assert_eq!(parse_start_ticks(stat), Some(987_654));
        assert!(start_ticks(std::process::id() as i32).unwrap() > 0);
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        write_json(&path, &1).unwrap();
        write_json(&path, &vec![2]).unwrap();
        assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), [2]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn ids_are_64_digits_and_differ() {
        let (one, two) = (new_container_id().unwrap(), new_container_id().unwrap());
        assert!(one.len() == 64 && one.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(one, two);
    }
}
