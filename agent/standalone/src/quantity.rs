//! Quantities (`100m`, `1Gi`): just enough to compare and to add them.

/// The value in thousandths, rounded up; none if the text is no quantity.
pub fn parse(text: &str) -> Option<i128> {
    let text = text.trim();
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (number, factor) = match suffix {
        "" => (number, (1000, 1)),
        "n" => (number, (1, 1_000_000)),
        "u" => (number, (1, 1000)),
        "m" => (number, (1, 1)),
        "k" => (number, (1000_i128.pow(2), 1)),
        "M" => (number, (1000_i128.pow(3), 1)),
        "G" => (number, (1000_i128.pow(4), 1)),
        "T" => (number, (1000_i128.pow(5), 1)),
        "P" => (number, (1000_i128.pow(6), 1)),
        "E" => (number, (1000_i128.pow(7), 1)),
        "Ki" => (number, (1000 << 10, 1)),
        "Mi" => (number, (1000 << 20, 1)),
        "Gi" => (number, (1000 << 30, 1)),
        "Ti" => (number, (1000 << 40, 1)),
        "Pi" => (number, (1000 << 50, 1)),
        "Ei" => (number, (1000 << 60, 1)),
        exponent => (number, power(exponent)?),
    };
    scaled(number, factor)
}

fn power(suffix: &str) -> Option<(i128, i128)> {
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    if !(-18..=18).contains(&exponent) {
        return None;
    }
    let ten = 10_i128.pow(exponent.unsigned_abs());
    Some(if exponent < 0 { (1000, ten) } else { (1000 * ten, 1) })
}

fn scaled(number: &str, (up, down): (i128, i128)) -> Option<i128> {
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && part.is_empty() || part.len() > 9 {
        return None;
    }
    let all: i128 = format!("{whole}{part}").parse().ok()?;
    let divisor = 10_i128.pow(u32::try_from(part.len()).ok()?) * down;
    let value = all.checked_mul(up)?;
    let rounded = value / divisor + i128::from(value % divisor != 0);
    Some(if negative { -rounded } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_thousandths() {
        let cases = [
            ("100m", Some(100)),
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("1.5Gi", Some((1000 * 3) << 29)),
            ("1k", Some(1_000_000)),
            ("2e3", Some(2_000_000)),
            ("1u", Some(1)),
            ("-1", Some(-1000)),
            ("", None),
            (".", None),
            ("1Q", None),
            ("much", None),
            ("1..2", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
