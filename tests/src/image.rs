//! An image made of Debian's busybox, as a root file system archive for `orlop image import`.
//!
//! Owns: the archive. Never: talks to a registry.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The name that tests give it.
pub const BUSYBOX: &str = "localhost/busybox:test";

/// The applets that tests use.
const APPLETS: [&str; 34] = [
    "sh", "cat", "cp", "cut", "date", "dd", "echo", "env", "false", "find", "grep", "head", "hostname",
    "httpd", "id", "ip", "kill", "ls", "mkdir", "mount", "nc", "nslookup", "ping", "ps", "rm", "sed", "seq",
    "sleep", "stat", "tail", "true", "wc", "wget", "yes",
];

/// Writes the archive into `dir`.
pub fn busybox_archive(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("busybox.tar");
    let mut tar = tar::Builder::new(File::create(&path)?);
    for name in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "www/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        owned_by_root(&mut header);
        header.set_mode(if name == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        tar.append_data(&mut header, name, std::io::empty())?;
    }
    tar.append_path_with_name("/bin/busybox", "bin/busybox").context("busybox-static is not installed")?;
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        owned_by_root(&mut header);
        header.set_mode(0o777);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    for (name, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/:/bin/false\n"),
        ("etc/group", "root:x:0:\nweb:x:33:\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        owned_by_root(&mut header);
        header.set_mode(0o644);
        header.set_size(u64::try_from(text.len())?);
        tar.append_data(&mut header, name, text.as_bytes())?;
    }
    tar.finish()?;
    Ok(path)
}

/// Every numeric field of a header has to say something.
fn owned_by_root(header: &mut tar::Header) {
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
}
