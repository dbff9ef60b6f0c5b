//! One file, several programs: the daemon and its commands, the supervisor of a pod, the holder of the
//! pods' cgroup, the CNI plugin.
//!
//! Owns: which of them this process is. Never: does any of their work.
//!
//! The choice comes first, before any runtime, thread or large allocation exists: a supervisor is a re-executed copy of
//! this file, and what it touches here it pays for in every pod.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    orlop_sandbox::environment::ask_for_no_backtraces();
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    if name == OsStr::new("orlop-cni") {
        return orlop_cni::plugin::main();
    }
    let first = std::env::args_os().nth(1).unwrap_or_default();
    match first.to_str() {
        Some("sandbox") => orlop_sandbox::main(args.skip(1)),
        Some("hold-pods") => orlop_sandbox::holder::main(args.skip(1)),
        _ => orlop::cli::main(),
    }
}
