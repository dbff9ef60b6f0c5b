//! Cuts what a program writes into log entries. Pure.
//!
//! A line ends at a newline; one longer than [`MAX_LINE`] is cut into pieces tagged `P` (partial), the last of which is
//! tagged `F` (full). What is left without a newline when the stream ends is a `P`, so that a reader who joins the
//! pieces gets exactly the bytes that were written. This is the CRI log format as containerd and CRI-O write it.
//!
//! Guarantees: joined again, the entries are the input, whatever chunks it came in. Never keeps more than one piece.

/// The most bytes of a line in one entry.
pub const MAX_LINE: usize = 16 * 1024;

/// Whether an entry ends its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// `F`: the line ends here.
    Full,
    /// `P`: the line goes on in the stream's next entry.
    Partial,
}

impl Tag {
    /// As it is written.
    pub fn letter(self) -> u8 {
        match self {
            Tag::Full => b'F',
            Tag::Partial => b'P',
        }
    }
}

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// Takes the next bytes of the stream and gives every entry that is complete with them.
    pub fn feed(&mut self, mut bytes: &[u8], mut entry: impl FnMut(Tag, &[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            // A line of exactly MAX_LINE bytes is one entry: its newline may stand right behind the room.
            let newline = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            match newline {
                Some(end) => {
                    self.emit(Tag::Full, &bytes[..end], &mut entry);
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() > room => {
                    self.emit(Tag::Partial, &bytes[..room], &mut entry);
                    bytes = &bytes[room..];
                }
                None => {
                    self.pending.extend_from_slice(bytes);
                    return;
                }
            }
        }
    }

    /// The stream has ended: gives what is left.
    pub fn finish(&mut self, mut entry: impl FnMut(Tag, &[u8])) {
        if !self.pending.is_empty() {
            self.emit(Tag::Partial, &[], &mut entry);
        }
    }

    fn emit(&mut self, tag: Tag, rest: &[u8], entry: &mut impl FnMut(Tag, &[u8])) {
        if self.pending.is_empty() {
            return entry(tag, rest);
        }
        self.pending.extend_from_slice(rest);
        entry(tag, &self.pending);
        // An idle stream keeps no memory.
        self.pending = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<(Tag, Vec<u8>)> {
        let mut splitter = Splitter::default();
        let mut entries = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, |tag, line| entries.push((tag, line.to_vec())));
        }
        splitter.finish(|tag, line| entries.push((tag, line.to_vec())));
        entries
    }

    #[test]
    fn lines_end_at_newlines() {
        let full = |line: &str| (Tag::Full, line.as_bytes().to_vec());
        assert_eq!(split(&[b"a\nb", b"c\n", b"\n"]), [full("a"), full("bc"), full("")]);
        assert_eq!(split(&[b"no end"]), [(Tag::Partial, b"no end".to_vec())]);
        assert_eq!(split(&[]), []);
    }

    #[test]
    fn a_line_of_the_greatest_length_is_one_entry() {
        let line = vec![b'x'; MAX_LINE];
        assert_eq!(split(&[&line, b"\n"]), [(Tag::Full, line.clone())]);
        assert_eq!(split(&[&line, b"y\n"]), [(Tag::Partial, line.clone()), (Tag::Full, b"y".to_vec())]);
    }

    /// Bytes with few newlines, so that lines get longer than an entry.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            3 => proptest::collection::vec(any::<u8>(), 0..200),
            1 => (1usize..3 * MAX_LINE).prop_map(|n| vec![b'.'; n]),
            1 => (0usize..3).prop_map(|n| { let mut v = vec![b'x'; MAX_LINE - 1 + n]; v.push(b'\n'); v }),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn entries_joined_are_the_input(text in text(), cuts in proptest::collection::vec(1usize..20_000, 1..10)) {
            let (mut chunks, mut rest) = (Vec::new(), text.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk);
                rest = tail;
            }
            let entries = split(&chunks);
            prop_assert_eq!(&entries, &split(&[&text]), "chunks do not matter");
            let mut joined = Vec::new();
            for (tag, line) in &entries {
                prop_assert!(line.len() <= MAX_LINE);
                prop_assert!(!line.contains(&b'\n'));
                joined.extend_from_slice(line);
                if *tag == Tag::Full { joined.push(b'\n'); }
            }
            prop_assert_eq!(joined, text);
            // Only a piece of the greatest length, or the very last, goes on.
            for (at, (tag, line)) in entries.iter().enumerate() {
                prop_assert!(*tag == Tag::Full || line.len() == MAX_LINE || at + 1 == entries.len());
            }
        }
    }
}
