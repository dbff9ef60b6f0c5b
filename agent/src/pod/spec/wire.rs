//! Small pieces of the API's spelling that several types need. Owns: serde adapters. Never: holds meaning of its own.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// For `skip_serializing_if`: what the decoder would put there anyway.
pub(in crate::pod) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `true`, as a default.
pub(super) fn yes() -> bool {
    true
}

/// For `skip_serializing_if` beside [`yes`].
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn is_true(value: &bool) -> bool {
    *value
}

/// An empty text is the same as none.
pub(super) fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|e| serde::de::Error::custom(format!("`{text}`: {e}"))),
    }
}

/// A `Duration` as whole seconds; negative is zero.
pub(super) mod seconds {
    use super::*;

    pub(in crate::pod::spec) fn serialize<S: Serializer>(
        value: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_secs())
    }

    pub(in crate::pod::spec) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let seconds = i64::deserialize(deserializer)?;
        Ok(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }
}

/// The same for a field that may be absent.
pub(super) mod seconds_option {
    use super::*;

    pub(in crate::pod::spec) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(duration) => serializer.serialize_some(&duration.as_secs()),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::pod::spec) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<i64>::deserialize(deserializer)?;
        Ok(seconds.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0))))
    }
}
