//! From entries to what a person reads: pieces joined to lines, times in front, one or both streams. Pure.
//!
//! Owns: lines whose end has not come yet. Guarantees: a line is never torn by a line of the other stream, unless it is
//! longer than [`HOLD`] while the other stream says as much. Never: keeps more than [`JOIN`] of a line.

use jiff::Timestamp;

use super::entry::{Entry, Stream};

/// A longer line is handed on in pieces.
const JOIN: usize = 256 * 1024;
/// So much of the other stream waits for the end of a line that is being handed on in pieces.
const HOLD: usize = 1024 * 1024;

/// What to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Style {
    /// Put each line's time in front of it.
    pub timestamps: bool,
    /// Only entries not older than this.
    pub since: Option<Timestamp>,
    /// Only this stream.
    pub stream: Option<Stream>,
    /// Not more bytes than this.
    pub limit_bytes: Option<u64>,
}

/// Turns entries into output.
#[derive(Debug)]
pub struct Printer {
    style: Style,
    left: u64,
    open: [Line; 2],
    /// The stream whose line has been begun on the output and not ended.
    begun: Option<Stream>,
    held: Vec<u8>,
}

/// A line whose end has not come.
#[derive(Debug, Default)]
struct Line {
    started: bool,
    bytes: Vec<u8>,
}

impl Printer {
    /// Nothing printed yet.
    pub fn new(style: Style) -> Self {
        let left = style.limit_bytes.unwrap_or(u64::MAX);
        Self { style, left, open: Default::default(), begun: None, held: Vec::new() }
    }

    /// The limit is reached; nothing more will come.
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Prints one entry to `out`, now or when its line ends.
    pub fn entry(&mut self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        if self.is_done() || self.style.stream.is_some_and(|s| s != entry.stream) || self.is_too_old(entry) {
            return;
        }
        let line = &mut self.open[entry.stream as usize];
        if !line.started {
            line.started = true;
            if self.style.timestamps {
                line.bytes.extend_from_slice(entry.time.as_bytes());
                line.bytes.push(b' ');
            }
        }
        line.bytes.extend_from_slice(entry.text);
        if !entry.partial {
            line.bytes.push(b'\n');
            let bytes = std::mem::take(&mut line.bytes);
            line.started = false;
            self.finish_line(entry.stream, &bytes, out);
        } else if line.bytes.len() > JOIN && self.begun.is_none_or(|s| s == entry.stream) {
            let bytes = std::mem::take(&mut line.bytes);
            self.begun = Some(entry.stream);
            self.put(&bytes, out);
        }
    }

    /// The log has ended: what has no newline is printed without one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        // The line begun on the output goes first, then those that waited for it.
        if let Some(stream) = self.begun.take() {
            let rest = std::mem::take(&mut self.open[stream as usize].bytes);
            self.put(&rest, out);
        }
        let held = std::mem::take(&mut self.held);
        self.put(&held, out);
        for line in [0, 1] {
            let rest = std::mem::take(&mut self.open[line].bytes);
            self.put(&rest, out);
        }
    }

    fn finish_line(&mut self, stream: Stream, bytes: &[u8], out: &mut Vec<u8>) {
        match self.begun {
            Some(begun) if begun != stream => {
                self.held.extend_from_slice(bytes);
                if self.held.len() > HOLD {
                    self.begun = None;
                    self.put(b"\n", out);
                    self.release(out);
                }
            }
            _ => {
                self.begun = None;
                self.put(bytes, out);
                self.release(out);
            }
        }
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.put(&held, out);
        }
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        out.extend_from_slice(&bytes[..room]);
        self.left -= room as u64;
    }

    fn is_too_old(&self, entry: &Entry<'_>) -> bool {
        match (self.style.since, self.style.since.and_then(|_| entry.timestamp())) {
            (Some(since), Some(at)) => at < since,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(style: Style, entries: &[(&str, Stream, bool, &str)]) -> String {
        let mut printer = Printer::new(style);
        let mut out = Vec::new();
        for (time, stream, partial, text) in entries {
            printer
                .entry(&Entry { time, stream: *stream, partial: *partial, text: text.as_bytes() }, &mut out);
        }
        printer.finish(&mut out);
        String::from_utf8(out).expect("text")
    }

    const T1: &str = "2026-01-01T00:00:01.000000000Z";
    const T2: &str = "2026-01-01T00:00:02.000000000Z";
    use Stream::{Stderr, Stdout};

    #[test]
    fn pieces_are_joined_and_streams_do_not_tear_each_other() {
        let entries = [
            (T1, Stdout, true, "out"),
            (T1, Stderr, false, "err"),
            (T2, Stdout, false, "put"),
            (T2, Stdout, true, "no newline"),
        ];
        assert_eq!(print(Style::default(), &entries), "err\noutput\nno newline");
        let stamped = print(Style { timestamps: true, ..Style::default() }, &entries);
        assert_eq!(stamped, format!("{T1} err\n{T1} output\n{T2} no newline"));
    }

    #[test]
    fn old_entries_and_the_other_stream_are_left_out() {
        let entries = [(T1, Stdout, false, "a"), (T2, Stdout, false, "b"), (T2, Stderr, false, "c")];
        let since = T2.parse().ok();
        assert_eq!(print(Style { since, ..Style::default() }, &entries), "b\nc\n");
        assert_eq!(print(Style { stream: Some(Stderr), ..Style::default() }, &entries), "c\n");
    }

    #[test]
    fn the_limit_cuts_where_it_falls() {
        let entries = [(T1, Stdout, false, "abc"), (T2, Stdout, false, "def")];
        assert_eq!(print(Style { limit_bytes: Some(6), ..Style::default() }, &entries), "abc\nde");
        assert_eq!(print(Style { limit_bytes: Some(0), ..Style::default() }, &entries), "");
    }

    #[test]
    fn an_endless_line_is_handed_on_in_pieces() {
        let mut printer = Printer::new(Style::default());
        let mut out = Vec::new();
        let piece = vec![b'x'; 16 * 1024];
        let entry = |stream, partial, text| Entry { time: T1, stream, partial, text };
        for _ in 0..100 {
            printer.entry(&entry(Stdout, true, &piece), &mut out);
            assert!(printer.open[0].bytes.len() <= JOIN + piece.len());
        }
        printer.entry(&entry(Stderr, false, b"waits"), &mut out);
        assert!(!out.contains(&b'w'));
        printer.entry(&entry(Stdout, false, b"end"), &mut out);
        assert_eq!(out.len(), 100 * piece.len() + "end\nwaits\n".len());
        assert!(out.ends_with(b"end\nwaits\n"));
    }
}
