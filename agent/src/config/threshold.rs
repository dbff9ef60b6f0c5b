//! Eviction thresholds: an amount or a share. Owns: parsing, and what a share is of a capacity. Never: measures.

use serde::{Deserialize, Deserializer};

use crate::pod::quantity::Quantity;

/// A value of `evictionHard`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// Bytes, inodes or processes.
    Amount(u64),
    /// 0 to 1.
    Share(f64),
}

impl Threshold {
    /// The amount, given the capacity that a share is of.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Threshold::Amount(amount) => amount,
            Threshold::Share(share) => (capacity as f64 * share) as u64,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.parse().ok()?;
                (0.0..=100.0).contains(&percent).then_some(Threshold::Share(percent / 100.0))
            }
            None => text.parse::<Quantity>().ok().map(|q| Threshold::Amount(q.units())),
        }
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is neither an amount such as 100Mi nor a share such as 10%"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_amounts_or_shares() {
        assert_eq!(Threshold::parse("100Mi"), Some(Threshold::Amount(100 << 20)));
        assert_eq!(Threshold::parse("10%"), Some(Threshold::Share(0.1)));
        assert_eq!(Threshold::parse("101%"), None);
        assert_eq!(Threshold::parse("ten"), None);
        assert_eq!(Threshold::Share(0.1).of(1000), 100);
        assert_eq!(Threshold::Amount(7).of(1000), 7);
    }
}
