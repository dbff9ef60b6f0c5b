//! Container logs: from what a program writes to files in the CRI format, rotated as they grow.
//!
//! Owns: splitting into lines ([`line`]), the files ([`file`]). Never: blocks or fails because of a full disk; a line
//! that cannot be written is counted and dropped, and the program goes on.
//!
//! ```text
//! pipe ─► Splitter (one for each stream) ─► entries ─► LogFile (one for each container) ─► <n>.log, <n>.log.<time>
//! ```

pub mod file;
pub mod line;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// Which of a program's two outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and everything a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Formats instants as RFC 3339 with nanoseconds, in UTC; the part that changes once a second is kept.
#[derive(Debug, Default)]
pub struct Clock {
    second: Option<u64>,
    prefix: String,
}

impl Clock {
    /// Appends an instant, such as `2026-11-21T03:53:11.000000042Z`.
    pub fn write(&mut self, at: SystemTime, out: &mut Vec<u8>) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            self.second = Some(since.as_secs());
            self.prefix = civil(since, "%Y-%m-%dT%H:%M:%S");
        }
        out.extend_from_slice(self.prefix.as_bytes());
        let mut digits = *b".000000000Z";
        let mut rest = since.subsec_nanos();
        for digit in digits[1..10].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits);
    }
}

fn civil(since_epoch: Duration, format: &str) -> String {
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_have_nine_digits_and_agree_with_jiff() {
        let mut clock = Clock::default();
        for nanos in
            [0u64, 42, 1_700_000_000_123_456_789, 1_700_000_000_999_999_999, 1_700_000_001_000_000_000]
        {
            let mut out = Vec::new();
            clock.write(UNIX_EPOCH + Duration::from_nanos(nanos), &mut out);
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text.len(), "2026-11-21T03:53:11.000000042Z".len());
            let parsed: Timestamp = text.parse().unwrap();
            assert_eq!(parsed.as_nanosecond(), i128::from(nanos), "{text}");
        }
    }
}
