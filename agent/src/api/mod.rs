//! Everything that speaks HTTP to another machine.
//!
//! Architecture invariant: no other folder of this crate names the HTTP client library.

pub mod http;
