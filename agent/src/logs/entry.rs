//! One entry of a container's log file: `<RFC 3339 time> <stdout|stderr> <P|F> <text>` (the CRI log format). Pure.
//!
//! Owns: the form. Never: joins pieces (that is `print`).

use jiff::Timestamp;

/// Which of a program's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// An entry, borrowed from the file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// As it is written.
    pub time: &'a str,
    /// Where it came from.
    pub stream: Stream,
    /// The line goes on in the stream's next entry.
    pub partial: bool,
    /// The text, without a newline.
    pub text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads a line of the file, without its newline. `None` for what is not an entry: half of one after a full disk.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let (time, rest) = word(line)?;
        let (stream, rest) = word(rest)?;
        // The tags may be joined by colons; only the first one matters so far.
        let (tag, text) = word(rest).unwrap_or((rest, &[]));
        let stream = match stream {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let partial = match tag.split(|b| *b == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        let time = std::str::from_utf8(time).ok().filter(|t| t.len() >= 20)?;
        Some(Entry { time, stream, partial, text })
    }

    /// The moment.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == b' ')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let entry = Entry::parse(b"2026-01-01T00:00:00.123456789Z stderr P hello  world ").expect("an entry");
        assert_eq!((entry.stream, entry.partial, entry.text), (Stream::Stderr, true, &b"hello  world "[..]));
        assert_eq!(
            entry.timestamp().map(|t| t.to_string()).as_deref(),
            Some("2026-01-01T00:00:00.123456789Z")
        );
        let empty = Entry::parse(b"2026-01-01T00:00:00.123456789+01:00 stdout F ").expect("an entry");
        assert_eq!((empty.partial, empty.text), (false, &b""[..]));
        assert!(Entry::parse(b"2026-01-01T00:00:00.123456789Z stdout F:x y").is_some());
    }

    #[test]
    fn what_is_not_an_entry_is_none() {
        for line in [
            &b""[..],
            b"stdout F x",
            b"2026-01-01T00:00:00Z stdfoo F x",
            b"2026-01-01T00:00:00Z stdout X x",
            b"x y F z",
        ] {
            assert_eq!(Entry::parse(line), None, "{}", String::from_utf8_lossy(line));
        }
    }
}
