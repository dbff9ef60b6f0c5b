//! An error as a CNI plugin prints it on standard output.
//!
//! Owns: the well-known codes and the JSON shape.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::version::Version;

/// The error codes of the specification, and this plugin's own from 100 on.
pub mod code {
    /// The `cniVersion` of the configuration is not spoken.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported; `details` names it and its value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or gone; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// The configuration or a result is not the JSON it should be.
    pub const DECODE: u32 = 6;
    /// The configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// A passing condition; the runtime should try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD can not be served now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD can not be served now, and containers may have lost connectivity.
    pub const LIMITED: u32 = 51;
    /// The kernel refused a link, an address, a route or a rule.
    pub const KERNEL: u32 = 100;
    /// No address is free in a range.
    pub const NO_ADDRESS: u32 = 101;
    /// CHECK found something missing or different.
    pub const CHECK_FAILED: u32 = 102;
    /// Another program (a delegated plugin) failed without saying why in the agreed form.
    pub const DELEGATE: u32 = 103;
}

/// What went wrong: a code for programs, a message for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// One of [`code`]; other plugins have codes of their own from 100 on.
    #[serde(default)]
    pub code: u32,
    /// One line.
    #[serde(default)]
    pub msg: String,
    /// More, when there is more; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error without details.
    #[must_use]
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with these details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// A wrong configuration.
    #[must_use]
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_CONFIG, msg)
    }

    /// A file that could not be read or written; `what` says which and why it was touched.
    #[must_use]
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(code::IO, format!("{what}: {error}"))
    }

    /// The JSON a plugin prints.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut value = json!({"cniVersion": version.as_str(), "code": self.code, "msg": self.msg});
        if !self.details.is_empty() {
            value["details"] = Value::String(self.details.clone());
        }
        value
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.details.is_empty() {
            write!(f, "{} (CNI code {})", self.msg, self.code)
        } else {
            write!(f, "{}: {} (CNI code {})", self.msg, self.details, self.code)
        }
    }
}

impl std::error::Error for CniError {}
