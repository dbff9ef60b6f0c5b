//! Durations as Go writes them (`1h30m`, `1.5s`, `100ms`). Owns: parsing. Never: negative ones.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A `metav1.Duration` of a configuration file. Zero means "not set" in most fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// The duration, or `default` where the file says nothing or zero.
    pub fn or(self, default: Duration) -> Duration {
        if self.0.is_zero() { default } else { self.0 }
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        if text.is_empty() {
            return Ok(Self::default());
        }
        parse(&text).map(GoDuration).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not a duration such as 30s or 1h30m"))
        })
    }
}

/// Parses what Go's `time.ParseDuration` takes, except negative durations.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|n| *n > 0)?;
        let amount: f64 = rest[..number].parse().ok()?;
        rest = &rest[number..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += amount * seconds;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let table: &[(&str, Option<u64>)] = &[
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1_500)),
            ("100ms", Some(100)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("2m0.5s", Some(120_500)),
            ("", None),
            ("10", None),
            ("-5s", None),
            ("s", None),
            ("1d", None),
            ("1.2.3s", None),
            ("999999999999999999999h", None),
        ];
        for (text, millis) in table {
            assert_eq!(parse(text).map(|d| d.as_millis()), millis.map(u128::from), "{text}");
        }
    }
}
