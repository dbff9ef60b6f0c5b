//! Small files, each written whole or not at all.
//!
//! Owns: the write-aside-and-rename. Never: keeps a file open.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

/// Writes a file under a temporary name and renames it into place. Readable by its owner alone.
pub fn write_atomic(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let aside = path.with_file_name(name);
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside)?;
        file.write_all(contents)?;
        drop(file);
        fs::rename(&aside, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&aside);
        named("write", path, &error)
    })
}

/// As [`write_atomic`], and on the disk when it returns: for what a power cut may not take back.
pub fn write_durable(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let aside = path.with_file_name(name);
    let write = || {
        // Made afresh: a file that is there would keep its own mode.
        gone_is_fine(fs::remove_file(&aside))?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&aside);
        named("write", path, &error)
    })
}

/// As [`write_atomic`], of a value as JSON.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec(value)?, 0o600)
}

/// Reads a value written by [`write_json`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = fs::read(path).map_err(|error| named("read", path, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| named("read", path, &error.into()))
}

/// Removes a file; gone already is success.
pub fn remove_file(path: &Path) -> io::Result<()> {
    gone_is_fine(fs::remove_file(path)).map_err(|error| named("remove", path, &error))
}

/// Removes a directory with everything in it; gone already is success.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    gone_is_fine(fs::remove_dir_all(path)).map_err(|error| named("remove", path, &error))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
