//! The files of one container's log: `<n>.log`, and before it what was rotated away as `<n>.log.<time>`.
//!
//! Owns: finding, ordering and opening them while the writer rotates. Never: writes, removes, or interprets them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An open file and which one it is: its name may change under us, its inode does not.
#[derive(Debug)]
pub struct LogFile {
    /// Open for reading.
    pub file: File,
    /// Device and inode.
    pub identity: (u64, u64),
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        Ok(Self { file, identity: (meta.dev(), meta.ino()) })
    }
}

/// Every file of the log at `path`, oldest first, those that vanish in between left out.
pub fn open_all(path: &Path) -> io::Result<Vec<LogFile>> {
    // The current one is opened before the directory is read: if it is rotated in between, it is found under both
    // names and kept once; opened after, the file between the two moments would be missed.
    let current = found(LogFile::open(path))?;
    let mut files = Vec::new();
    for name in rotated(path)? {
        files.extend(found(LogFile::open(&name))?);
    }
    if let Some(current) = current
        && files.iter().all(|f| f.identity != current.identity)
    {
        files.push(current);
    }
    Ok(files)
}

/// The files that come after `last`, oldest first. When `last` itself is gone, all that are left came after it.
pub fn open_after(path: &Path, last: (u64, u64)) -> io::Result<Vec<LogFile>> {
    let mut files = open_all(path)?;
    if let Some(at) = files.iter().position(|f| f.identity == last) {
        files.drain(..=at);
    }
    Ok(files)
}

/// Names of rotated files, oldest first: their suffix is a time that sorts as text.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let is_rotated = |candidate: &OsStr| {
        let rest = candidate.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        let suffix = rest.and_then(|rest| rest.strip_prefix(b"."));
        suffix.is_some_and(|s| {
            s.first().is_some_and(u8::is_ascii_digit) && !s.ends_with(b".gz") && !s.ends_with(b".tmp")
        })
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if is_rotated(&entry.file_name()) {
            names.push(entry.path());
        }
    }
    names.sort();
    Ok(names)
}

fn found(opened: io::Result<LogFile>) -> io::Result<Option<LogFile>> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn texts(files: Vec<LogFile>) -> Vec<String> {
        let read = |mut f: LogFile| {
            let mut text = String::new();
            f.file.read_to_string(&mut text).map(|_| text)
        };
        files.into_iter().map(|f| read(f).expect("readable")).collect()
    }

    #[test]
    fn files_are_found_in_the_order_they_were_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.log");
        for (name, text) in [
            ("0.log", "d"),
            ("0.log.20260101-000002", "b"),
            ("0.log.20260101-000002-000001", "c"),
            ("0.log.20251231-000000", "a"),
            ("0.log.20251230-000000.gz", "no"),
            ("0.log.note", "no"),
            ("10.log", "no"),
        ] {
            fs::write(folder.path().join(name), text).expect("written");
        }
        assert_eq!(texts(open_all(&path).expect("open")), ["a", "b", "c", "d"]);
        let second = LogFile::open(&folder.path().join("0.log.20260101-000002")).expect("open").identity;
        assert_eq!(texts(open_after(&path, second).expect("open")), ["c", "d"]);
        fs::remove_file(folder.path().join("0.log.20251231-000000")).expect("removed");
        assert_eq!(
            texts(open_after(&path, (0, 0)).expect("open")),
            ["b", "c", "d"],
            "the last one read is gone"
        );
    }

    #[test]
    fn no_file_yet_is_an_empty_log() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(open_all(&folder.path().join("0.log")).expect("no error").is_empty());
    }
}
