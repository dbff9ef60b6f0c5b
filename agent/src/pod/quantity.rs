//! Kubernetes resource quantities (`100m`, `1.5Gi`, `2e3`), exactly, without floating point.
//!
//! Owns: parsing, rounding to millicores and bytes, canonical text. Never: knows which resource it measures.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a quantity was written, which decides how it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
enum Form {
    /// `n u m k M G T P E` and no suffix.
    #[default]
    Decimal,
    /// `Ki Mi Gi Ti Pi Ei`.
    Binary,
    /// `e3`, `E3`.
    Exponent,
}

/// An amount, held in billionths.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "String")]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a quantity: {why}")]
pub struct QuantityError {
    text: String,
    why: &'static str,
}

/// A quantity in JSON or YAML: a string, or a bare number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Integer(i64),
    Float(f64),
    String(String),
}

const NANO: i128 = 1_000_000_000;

/// Suffixes with the factor in billionths.
const SUFFIXES: [(&str, i128, Form); 16] = [
    ("", NANO, Form::Decimal),
    ("n", 1, Form::Decimal),
    ("u", 1_000, Form::Decimal),
    ("m", 1_000_000, Form::Decimal),
    ("k", NANO * 1_000, Form::Decimal),
    ("M", NANO * 1_000_000, Form::Decimal),
    ("G", NANO * 1_000_000_000, Form::Decimal),
    ("T", NANO * 1_000_000_000_000, Form::Decimal),
    ("P", NANO * 1_000_000_000_000_000, Form::Decimal),
    ("E", NANO * 1_000_000_000_000_000_000, Form::Decimal),
    ("Ki", NANO << 10, Form::Binary),
    ("Mi", NANO << 20, Form::Binary),
    ("Gi", NANO << 30, Form::Binary),
    ("Ti", NANO << 40, Form::Binary),
    ("Pi", NANO << 50, Form::Binary),
    ("Ei", NANO << 60, Form::Binary),
];

impl Quantity {
    /// Whole units, such as bytes.
    pub const fn from_units(units: u64) -> Self {
        Self { nanos: units as i128 * NANO, form: Form::Decimal }
    }

    /// Bytes, written with binary suffixes where they divide.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { nanos: bytes as i128 * NANO, form: Form::Binary }
    }

    /// Thousandths, such as millicores.
    pub const fn from_millis(millis: u64) -> Self {
        Self { nanos: millis as i128 * (NANO / 1_000), form: Form::Decimal }
    }

    /// Nothing at all.
    pub const fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Rounded up to thousandths (millicores of a CPU quantity); negative is 0.
    pub fn millis(&self) -> u64 {
        self.ceil_div(NANO / 1_000)
    }

    /// Rounded up to whole units (bytes, cores, pods); negative is 0.
    pub fn units(&self) -> u64 {
        self.ceil_div(NANO)
    }

    /// How often `divisor` goes into it, rounded up, as `resourceFieldRef` asks for. A zero divisor counts as 1.
    pub fn divided_by(&self, divisor: &Quantity) -> u64 {
        self.ceil_div(if divisor.nanos > 0 { divisor.nanos } else { NANO })
    }

    /// The sum, clamped at the largest representable amount.
    #[must_use]
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let form = if self.is_zero() { other.form } else { self.form };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), form }
    }

    fn ceil_div(&self, unit: i128) -> u64 {
        if self.nanos <= 0 {
            return 0;
        }
        let whole = self.nanos / unit + i128::from(self.nanos % unit != 0);
        u64::try_from(whole).unwrap_or(u64::MAX)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos).then(self.form.cmp(&other.form))
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let fail = |why| QuantityError { text: text.chars().take(64).collect(), why };
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(fail("it does not begin with a number"));
        }
        let (factor, shift, form) = scale(suffix).ok_or_else(|| fail("unknown suffix"))?;
        let nanos = nanos(whole, fraction, factor, shift).ok_or_else(|| fail("too large"))?;
        Ok(Self { nanos: if negative { -nanos } else { nanos }, form })
    }
}

/// The factor in billionths, a decimal exponent on top of it, and the form.
fn scale(suffix: &str) -> Option<(i128, i32, Form)> {
    if let Some((_, factor, form)) = SUFFIXES.iter().find(|(s, ..)| *s == suffix) {
        return Some((*factor, 0, *form));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (exponent.abs() <= 18).then_some((NANO, exponent, Form::Exponent))
}

/// `whole.fraction * factor * 10^shift`, rounded up to a billionth as the API server does; `None` beyond 2^63 units.
fn nanos(whole: &str, fraction: &str, factor: i128, shift: i32) -> Option<i128> {
    // Digits that cannot matter after rounding are folded into one sticky digit, which keeps the arithmetic in 128 bits.
    let (kept, sticky) = fraction.split_at(fraction.len().min(9));
    let sticky = sticky.bytes().any(|b| b != b'0');
    let digits = format!("{whole}{kept}");
    let mantissa: i128 = match digits.trim_start_matches('0') {
        "" => 0,
        text if text.len() > 28 => return None,
        text => text.parse().ok()?,
    };
    let power = shift - i32::try_from(kept.len()).ok()?;
    let scaled = mantissa.checked_mul(factor)?;
    let ten = 10i128.checked_pow(power.unsigned_abs())?;
    let value = if power >= 0 {
        scaled.checked_mul(ten)?
    } else {
        scaled / ten + i128::from(scaled % ten != 0 || sticky)
    };
    (value <= i128::from(i64::MAX) * NANO).then_some(value)
}

impl TryFrom<Text> for Quantity {
    type Error = QuantityError;

    fn try_from(text: Text) -> Result<Self, QuantityError> {
        match text {
            Text::Integer(n) => n.to_string().parse(),
            Text::Float(n) => n.to_string().parse(),
            Text::String(s) => s.parse(),
        }
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> String {
        quantity.to_string()
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that divides.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.form == Form::Binary && self.nanos % (NANO << 10) == 0 {
            let best = SUFFIXES[10..].iter().rev().find(|(_, factor, _)| self.nanos % factor == 0);
            if let Some((suffix, factor, _)) = best {
                return write!(f, "{}{suffix}", self.nanos / factor);
            }
        }
        let best = SUFFIXES[..10]
            .iter()
            .filter(|(_, factor, _)| self.nanos % factor == 0)
            .max_by_key(|(_, factor, _)| *factor);
        match best {
            Some((suffix, factor, _)) => write!(f, "{}{suffix}", self.nanos / factor),
            None => write!(f, "{}n", self.nanos),
        }
    }
}

impl fmt::Debug for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn texts_become_exact_amounts() {
        let cases: [(&str, u64, u64); 15] = [
            ("1", 1_000, 1),
            ("100m", 100, 1),
            ("0.1", 100, 1),
            ("1.5", 1_500, 2),
            ("250u", 1, 1),
            ("1Ki", 1_024_000, 1024),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("2e3", 2_000_000, 2000),
            ("2E3", 2_000_000, 2000),
            ("5e-1", 500, 1),
            ("1E", u64::MAX, 1_000_000_000_000_000_000),
            (".5", 500, 1),
            ("3.", 3_000, 3),
            ("-1", 0, 0),
            ("0.0000000001", 1, 1),
        ];
        for (text, millis, units) in cases {
            assert_eq!((q(text).millis(), q(text).units()), (millis, units), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_text() {
        for text in ["", "-", "m", "1.2.3", "1KB", "1 Gi", "1e", "1e99", "ten", "9223372036854775808E"] {
            let error = text.parse::<Quantity>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn text_is_canonical_and_comes_back_the_same() {
        let cases = [
            ("1024Mi", "1Gi"),
            ("1500m", "1500m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1000k", "1M"),
            ("1.5Gi", "1536Mi"),
            ("500Ki", "500Ki"),
            ("0", "0"),
            ("1e3", "1k"),
        ];
        for (text, canonical) in cases {
            assert_eq!(q(text).to_string(), canonical);
            assert_eq!(q(canonical).to_string(), canonical);
        }
    }

    #[test]
    fn a_division_rounds_up() {
        assert_eq!(q("1500m").divided_by(&q("1")), 2);
        assert_eq!(q("1500m").divided_by(&q("1m")), 1500);
        assert_eq!(q("64Mi").divided_by(&q("1Mi")), 64);
        assert_eq!(q("64Mi").divided_by(&q("0")), 67_108_864);
    }
}
