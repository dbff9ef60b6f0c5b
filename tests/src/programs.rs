//! Programs that a test writes and then runs. Other crates' tests include this file by its path.
//!
//! The kernel refuses to execute a file that anybody has open for writing (ETXTBSY), and a child forked by another
//! thread of the test holds what is open here until it executes its own program. So the writing is done by a process
//! that forks nothing. Never: opens such a file in the test's own process.

use std::io::{Error, Result, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes a program with the mode in octal.
pub fn write(path: &Path, content: impl AsRef<[u8]>, mode: &str) -> Result<()> {
    let mut install = Command::new("install");
    let mut child = install
        .args(["-m", mode, "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let sent = child.stdin.take().expect("piped").write_all(content.as_ref());
    let output = child.wait_with_output()?;
    if output.status.success() {
        return sent;
    }
    Err(Error::other(format!(
        "install {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}
