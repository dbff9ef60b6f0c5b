//! Bytes in pieces of any size become lines. Owns: the buffer and its bound. Never: looks into a line.

/// Splits a stream at `\n`. A line may not be longer than the bound.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already handed out.
    taken: usize,
    /// Bytes from `taken` on known to hold no line end.
    searched: usize,
    bound: usize,
}

/// A line is longer than the bound; nothing sensible can follow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of more than {bound} bytes")]
pub struct TooLong {
    /// The bound.
    pub bound: usize,
}

/// A buffer that grew past this for one large line is given back.
const KEEP: usize = 64 * 1024;

impl Lines {
    /// Empty, for lines of at most `bound` bytes.
    pub fn new(bound: usize) -> Self {
        Self { buffer: Vec::new(), taken: 0, searched: 0, bound }
    }

    /// More bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > KEEP {
                self.buffer.shrink_to(KEEP);
            }
        } else if self.taken > 0 {
            self.buffer.drain(..self.taken);
        }
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let open = &self.buffer[self.taken..];
        match open[self.searched..].iter().position(|b| *b == b'\n') {
            Some(found) => {
                let length = self.searched + found;
                let start = self.taken;
                self.taken += length + 1;
                self.searched = 0;
                if length > self.bound {
                    self.too_long()
                } else {
                    Ok(Some(&self.buffer[start..start + length]))
                }
            }
            None => {
                self.searched = open.len();
                if open.len() > self.bound { self.too_long() } else { Ok(None) }
            }
        }
    }

    /// What follows the last line end: a line cut short by the end of the stream.
    #[cfg(test)]
    fn rest(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    fn too_long(&self) -> Result<Option<&[u8]>, TooLong> {
        Err(TooLong { bound: self.bound })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(pieces: &[Vec<u8>], bound: usize) -> Result<(Vec<Vec<u8>>, Vec<u8>), TooLong> {
        let mut lines = Lines::new(bound);
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(piece);
            while let Some(line) = lines.next_line()? {
                found.push(line.to_vec());
            }
        }
        Ok((found, lines.rest().to_vec()))
    }

    #[test]
    fn a_line_over_the_bound_is_an_error_with_and_without_its_end() {
        assert_eq!(split(&[b"12345\n".to_vec()], 4), Err(TooLong { bound: 4 }));
        assert_eq!(split(&[b"123".to_vec(), b"45".to_vec()], 4), Err(TooLong { bound: 4 }));
        assert_eq!(split(&[b"1234\n".to_vec()], 4), Ok((vec![b"1234".to_vec()], vec![])));
    }

    #[test]
    fn a_large_line_does_not_keep_its_buffer() {
        let mut lines = Lines::new(1 << 20);
        lines.push(&[vec![b'x'; 1 << 19], vec![b'\n']].concat());
        assert_eq!(lines.next_line().map(|l| l.map(<[u8]>::len)), Ok(Some(1 << 19)));
        lines.push(b"small\n");
        assert!(lines.buffer.capacity() <= KEEP);
        assert_eq!(lines.next_line(), Ok(Some(&b"small"[..])));
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_lines(text in "[ab\n]{0,200}", cuts in prop::collection::vec(1usize..20, 0..60)) {
            let bytes = text.as_bytes();
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts {
                let end = (at + cut).min(bytes.len());
                pieces.push(bytes[at..end].to_vec());
                at = end;
            }
            pieces.push(bytes[at..].to_vec());
            let (lines, rest) = split(&pieces, 1000).expect("short lines");
            let mut wanted: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            let wanted_rest = wanted.pop().expect("split gives at least one");
            prop_assert_eq!(lines, wanted);
            prop_assert_eq!(rest, wanted_rest);
        }
    }
}
