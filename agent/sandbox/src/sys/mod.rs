//! The system calls that no safe wrapper offers, one small file for each subject.
//!
//! Owns: every `unsafe` block of the crate. Never: policy; a function here does one thing the kernel does.

pub mod bpf;
pub mod descriptor;
pub mod environment;
pub mod loopback;
pub mod memory;
pub mod mount;
pub mod privilege;
pub mod process;
