//! A digest over what is in a layer's directory, without reading a file: enough to see what a power loss did.
//!
//! Owns: [`census`]. Files that lost their content keep their name and lose their size; files that vanished are missed; both
//! change the census. Never: follows a link, or says anything about content of the right size.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::super::digest::{Algorithm, Digest, DigestContext};

/// Names, kinds, modes, owners, sizes, times and devices of everything below `directory`.
///
/// # Errors
/// A directory that cannot be read.
pub fn census(directory: &Path) -> io::Result<Digest> {
    let mut context = DigestContext::new(Algorithm::Sha256);
    let mut waiting = vec![PathBuf::new()];
    while let Some(below) = waiting.pop() {
        let mut entries = fs::read_dir(directory.join(&below))?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let metadata = entry.metadata()?;
            let kind = metadata.file_type();
            let path = below.join(entry.file_name());
            context.update(path.as_os_str().as_bytes());
            // The size of a directory is the file system's affair.
            let size = if kind.is_dir() { 0 } else { metadata.size() };
            let device = if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 };
            let numbers = [
                u64::from(metadata.mode()),
                u64::from(metadata.uid()),
                u64::from(metadata.gid()),
                size,
                metadata.mtime().cast_unsigned(),
                device,
            ];
            // A name holds no NUL, so no name runs into the numbers of another.
            context.update(&[0]);
            numbers.iter().for_each(|n| context.update(&n.to_le_bytes()));
            if kind.is_dir() {
                waiting.push(path);
            }
        }
    }
    Ok(context.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_content_and_lost_files_show() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/b");
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(&file, "content").unwrap();
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        let whole = census(dir.path()).unwrap();
        assert_eq!(census(dir.path()).unwrap(), whole);
        fs::write(&file, "").unwrap();
        fs::File::options().write(true).open(&file).and_then(|f| f.set_modified(time)).unwrap();
        assert_ne!(census(dir.path()).unwrap(), whole, "emptied");
        fs::remove_file(&file).unwrap();
        assert_ne!(census(dir.path()).unwrap(), whole, "gone");
    }
}
