//! The versions of the CNI specification this crate speaks.
//!
//! Owns: their order and what differs between them in the shape of a result.

use std::fmt;
use std::str::FromStr;

use super::error::{CniError, code};

/// One published version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `0.1.0`: one `ip4` and one `ip6`, no interfaces.
    V0_1,
    /// `0.2.0`: like `0.1.0`, with VERSION.
    V0_2,
    /// `0.3.0`: lists of interfaces and addresses, chaining.
    V0_3_0,
    /// `0.3.1`: `0.3.0` with an erratum.
    V0_3_1,
    /// `0.4.0`: CHECK, and `prevResult` on DEL.
    V0_4,
    /// `1.0.0`: addresses lose their `version` field.
    V1_0,
    /// `1.1.0`: GC, STATUS, more about interfaces and routes.
    V1_1,
}

const ALL: [Version; 7] = [
    Version::V0_1,
    Version::V0_2,
    Version::V0_3_0,
    Version::V0_3_1,
    Version::V0_4,
    Version::V1_0,
    Version::V1_1,
];

/// Every version spoken, oldest first.
#[must_use]
pub fn supported_versions() -> &'static [Version] {
    &ALL
}

impl Version {
    /// The newest version spoken.
    pub const LATEST: Self = Self::V1_1;

    /// The version as it is written in `cniVersion`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1 => "0.1.0",
            Self::V0_2 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4 => "0.4.0",
            Self::V1_0 => "1.0.0",
            Self::V1_1 => "1.1.0",
        }
    }

    /// Whether the verb CHECK exists in this version.
    #[must_use]
    pub fn has_check(self) -> bool {
        self >= Self::V0_4
    }

    /// Whether the verbs GC and STATUS exist in this version.
    #[must_use]
    pub fn has_gc(self) -> bool {
        self >= Self::V1_1
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = CniError;

    /// An empty string is `0.1.0`, as the reference library reads it.
    fn from_str(text: &str) -> Result<Self, CniError> {
        if text.is_empty() {
            return Ok(Self::V0_1);
        }
        ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| {
            CniError::new(code::INCOMPATIBLE_VERSION, format!("CNI version {text:?} is not supported"))
                .details(format!(
                    "supported: {}",
                    ALL.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", ")
                ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_back_and_are_ordered() {
        for pair in ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for version in ALL {
            assert_eq!(version.as_str().parse::<Version>().unwrap(), version);
        }
    }

    #[test]
    fn missing_version_is_the_oldest_and_an_unknown_one_is_an_incompatibility() {
        assert_eq!("".parse::<Version>().unwrap(), Version::V0_1);
        assert_eq!("2.0.0".parse::<Version>().unwrap_err().code, code::INCOMPATIBLE_VERSION);
    }
}
