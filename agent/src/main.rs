//! One file, several programs: the daemon and its commands, the supervisor of a pod, the CNI plugin.
//!
//! Owns: which of them this process is. Never: does any of their work.
//!
//! The choice comes first, before any runtime, thread or large allocation exists: a supervisor is a re-executed copy of
//! this file, and what it touches here it pays for in every pod.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    if name == OsStr::new("orlop-cni") {
        return orlop_cni::plugin::main();
    }
    if std::env::args_os().nth(1).as_deref() == Some(OsStr::new("sandbox")) {
        return orlop_sandbox::main(args.skip(1));
    }
    orlop::cli::main()
}
