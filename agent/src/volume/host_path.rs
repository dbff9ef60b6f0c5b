//! hostPath volumes: that the path is what it must be, or made so.
//!
//! Owns: the seven types of `hostPath.type`. Never: changes what is there already.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;

use super::VolumeError;
use crate::pod::spec::{HostPath, HostPathType};

/// Makes what is to be made, then checks.
pub fn check(host: &HostPath) -> Result<(), VolumeError> {
    let path = Path::new(&host.path);
    match host.kind {
        HostPathType::Unset => Ok(()),
        HostPathType::DirectoryOrCreate => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .map_err(|error| not(host, &error))?;
            expect(host, "a directory", |kind| kind.is_dir())
        }
        HostPathType::Directory => expect(host, "a directory", |kind| kind.is_dir()),
        HostPathType::FileOrCreate => {
            match File::create_new(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(not(host, &error)),
                Ok(_) | Err(_) => {}
            }
            expect(host, "a file", |kind| kind.is_file())
        }
        HostPathType::File => expect(host, "a file", |kind| kind.is_file()),
        HostPathType::Socket => expect(host, "a socket file", |kind| kind.is_socket()),
        HostPathType::CharDevice => expect(host, "a character device", |kind| kind.is_char_device()),
        HostPathType::BlockDevice => expect(host, "a block device", |kind| kind.is_block_device()),
    }
}

fn expect(
    host: &HostPath,
    wanted: &'static str,
    is: impl Fn(fs::FileType) -> bool,
) -> Result<(), VolumeError> {
    match fs::metadata(&host.path) {
        Ok(meta) if is(meta.file_type()) => Ok(()),
        Ok(_) | Err(_) => Err(VolumeError::HostPathType { path: host.path.clone(), wanted }),
    }
}

fn not(host: &HostPath, error: &io::Error) -> VolumeError {
    io::Error::new(error.kind(), format!("create {}: {error}", host.path)).into()
}
