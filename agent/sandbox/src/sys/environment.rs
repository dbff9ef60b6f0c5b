//! This process's own environment.
//!
//! Owns: taking variables out of it. Never: puts one in.
#![allow(unsafe_code)] // Reason: the environment is a global of the C library, without a lock for foreign readers.

/// What asks Rust's runtime and its error types for a backtrace.
const BACKTRACE: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];

/// Asks for no backtraces, in a program that ends at a panic: what is shipped has no tables for unwinding, and libgcc ends a
/// process that asks for a backtrace without them. Its names are stripped anyway.
///
/// # Caveats
/// The calling process must have a single thread.
pub fn ask_for_no_backtraces() {
    if cfg!(panic = "abort") {
        for name in BACKTRACE {
            // SAFETY: nobody else reads or writes the environment, since there is no other thread.
            unsafe { std::env::remove_var(name) };
        }
    }
}
