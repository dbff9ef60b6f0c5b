//! Writes a payload into a directory so that a reader sees all of the old content or all of the new.
//!
//! Owns: the layout that Kubernetes promises: every visible name is a link to `..data/<name>`, `..data` is a link to a
//! directory named by the time of the change, and the change is one rename. Never: decides what the content is.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::payload::Payload;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Brings `dir` to hold exactly `payload`. Says whether anything changed. `group` is the pod's `fsGroup`.
///
/// # Errors
/// Every error names the path it is about. The directory keeps its old content then.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> io::Result<bool> {
    let data = dir.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && holds(&data, payload) {
        return Ok(false);
    }
    let name = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = dir.join(&name);
    let filled = fill(&fresh, payload, group).and_then(|()| switch(dir, &name));
    if let Err(error) = filled {
        let _ = fs::remove_dir_all(&fresh);
        return Err(error);
    }
    link_roots(dir, payload)?;
    if let Some(old) = old
        && old != Path::new(&name)
    {
        remove_old(&dir.join(old))?;
    }
    Ok(true)
}

/// Whether the directory behind `..data` holds exactly these contents and modes.
fn holds(data: &Path, payload: &Payload) -> bool {
    let mut count = 0;
    for (path, file) in payload.files() {
        let path = data.join(path);
        let same = fs::read(&path).is_ok_and(|contents| contents == file.contents);
        if !same {
            return false;
        }
        count += 1;
    }
    count_files(data) == count
}

fn count_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => count_files(&entry.path()),
            Ok(_) | Err(_) => 1,
        })
        .sum()
}

fn fill(fresh: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    make_dir(fresh, group)?;
    for (path, file) in payload.files() {
        let target = fresh.join(path);
        for parent in missing_parents(fresh, &target) {
            make_dir(&parent, group)?;
        }
        fs::write(&target, &file.contents).map_err(|e| named("write", &target, &e))?;
        // fsGroup: the group may read (and, as kubelet does, the owner's bits are kept).
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        if group.is_some() || file.owner.is_some() {
            chown(&target, file.owner, group).map_err(|e| named("chown", &target, &e))?;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(mode))
            .map_err(|e| named("chmod", &target, &e))?;
    }
    Ok(())
}

fn missing_parents(root: &Path, target: &Path) -> Vec<PathBuf> {
    let mut parents: Vec<PathBuf> = target
        .ancestors()
        .skip(1)
        .take_while(|path| *path != root)
        .filter(|path| !path.exists())
        .map(Path::to_owned)
        .collect();
    parents.reverse();
    parents
}

fn make_dir(path: &Path, group: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path).map_err(|e| named("create", path, &e))?;
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    if group.is_some() {
        chown(path, None, group).map_err(|e| named("chown", path, &e))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| named("chmod", path, &e))
}

/// The moment of change.
fn switch(dir: &Path, name: &str) -> io::Result<()> {
    let (new, data) = (dir.join(DATA_NEW), dir.join(DATA));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named("remove", &new, &error)),
        Ok(()) | Err(_) => {}
    }
    symlink(name, &new).map_err(|e| named("link", &new, &e))?;
    fs::rename(&new, &data).map_err(|e| named("rename", &new, &e))
}

/// Makes the visible names that are missing and removes those that lead nowhere any more.
fn link_roots(dir: &Path, payload: &Payload) -> io::Result<()> {
    let roots = payload.roots();
    for root in &roots {
        let link = dir.join(root);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(root), &link).map_err(|e| named("link", &link, &e))?;
        }
    }
    for entry in fs::read_dir(dir).map_err(|e| named("read", dir, &e))?.flatten() {
        let name: OsString = entry.file_name();
        let text = name.to_string_lossy();
        if !text.starts_with("..") && !roots.contains(&text.as_ref()) {
            fs::remove_file(entry.path()).map_err(|e| named("remove", &entry.path(), &e))?;
        }
    }
    Ok(())
}

fn remove_old(old: &Path) -> io::Result<()> {
    match fs::remove_dir_all(old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named("remove", old, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let mut payload = Payload::default();
        for (path, contents) in files {
            let file = File { contents: contents.as_bytes().to_vec(), mode: 0o640, owner: None };
            payload.insert(path, file).expect("valid");
        }
        payload
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("read")
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_links_through_data() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/e", "2")]), None, at(1)).expect("written"));
        assert_eq!(fs::read_link(dir.path().join("a")).expect("link"), Path::new("..data/a"));
        assert_eq!(fs::read_to_string(dir.path().join("d/e")).expect("read"), "2");
        let mode = fs::metadata(dir.path().join("a")).expect("meta").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn the_same_content_changes_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        write(dir.path(), &payload(&[("a", "1")]), None, at(1)).expect("written");
        let before = fs::read_link(dir.path().join(DATA)).expect("link");
        assert!(!write(dir.path(), &payload(&[("a", "1")]), None, at(2)).expect("unchanged"));
        assert_eq!(fs::read_link(dir.path().join(DATA)).expect("link"), before);
    }

    #[test]
    fn a_change_replaces_the_directory_and_removes_stale_names() {
        let dir = tempfile::tempdir().expect("tempdir");
        write(dir.path(), &payload(&[("a", "1"), ("b", "2")]), None, at(1)).expect("written");
        assert!(write(dir.path(), &payload(&[("b", "3"), ("c", "4")]), None, at(2)).expect("written"));
        let left: Vec<String> = names(dir.path()).into_iter().filter(|n| !n.starts_with("..")).collect();
        assert_eq!(left, ["b", "c"]);
        assert_eq!(fs::read_to_string(dir.path().join("b")).expect("read"), "3");
        let generations = names(dir.path()).into_iter().filter(|n| n.starts_with("..19")).count();
        assert_eq!(generations, 1, "the old directory is gone");
    }

    #[test]
    fn a_removed_file_alone_is_a_change() {
        let dir = tempfile::tempdir().expect("tempdir");
        write(dir.path(), &payload(&[("a", "1"), ("b", "2")]), None, at(1)).expect("written");
        assert!(write(dir.path(), &payload(&[("a", "1")]), None, at(2)).expect("written"));
        assert!(!dir.path().join("b").exists());
    }
}
