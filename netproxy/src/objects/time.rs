//! RFC 3339 timestamps, as the API server writes them, and milliseconds since the epoch.
//!
//! Owns: reading and writing the one shape Kubernetes uses (`2026-01-02T03:04:05Z`, with or without a fraction).
//! Never: reads a clock.

/// Milliseconds since the epoch, or nothing if the text has another shape.
pub(super) fn parse(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> { text.get(from..to)?.parse().ok() };
    let shape = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if bytes.last() != Some(&b'Z') || shape.iter().any(|&(at, mark)| bytes.get(at) != Some(&mark)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let fraction = match text.get(19..text.len() - 1)? {
        "" => 0,
        rest => {
            let digits = rest.strip_prefix('.')?;
            format!("{digits:0<3}").get(..3)?.parse::<i64>().ok()?
        }
    };
    // Days from the civil calendar, with the year starting in March so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 719_469;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    u64::try_from(seconds * 1000 + fraction).ok()
}

/// Milliseconds since the epoch as text, to the second.
pub fn rfc3339(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // The inverse of the calendar above.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::{parse, rfc3339};

    #[test]
    fn milliseconds_become_timestamps_and_back() {
        for text in
            ["1970-01-01T00:00:00Z", "2024-02-29T12:34:56Z", "1999-12-31T23:59:59Z", "2100-03-01T00:00:00Z"]
        {
            assert_eq!(rfc3339(parse(text).unwrap()), text);
        }
    }

    #[test]
    fn timestamps_become_milliseconds() {
        assert_eq!(parse("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse("2024-02-29T12:34:56Z"), Some(1_709_210_096_000));
        assert_eq!(parse("2026-11-21T03:49:17.25Z"), Some(1_795_232_957_250));
        for bad in ["", "Z", "yesterday", "2026-11-21", "2026-11-21T03:49:17+01:00", "2026/11/21T03:49:17Z"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
