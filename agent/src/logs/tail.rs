//! Where the last so many lines begin. Reads backwards, so that the cost follows the answer and not the log.
//!
//! Owns: the search. Never: prints.

use std::io;
use std::os::unix::fs::FileExt;

use super::entry::{Entry, Stream};
use super::files::LogFile;

const BLOCK: usize = 64 * 1024;
/// How far behind the last line's beginning an earlier piece of the other stream's line is looked for.
const LOOK_BEHIND: usize = 1024 * 1024;

/// Entries of a stream before this place are not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Index into the files.
    pub file: usize,
    /// Byte offset of the entry.
    pub offset: u64,
}

/// Where each stream begins to be shown, for the last `lines` lines of both together.
pub fn start_of_tail(files: &[LogFile], lines: u64) -> io::Result<[Place; 2]> {
    let mut end = Place { file: files.len(), offset: 0 };
    if let Some(last) = files.last() {
        end = Place { file: files.len() - 1, offset: last.file.metadata()?.len() };
    }
    let mut search = Search {
        wanted: lines,
        counted: 0,
        start: [end; 2],
        seen: [false; 2],
        open: [false; 2],
        behind: None,
    };
    for (index, file) in files.iter().enumerate().rev() {
        let mut entries = Backwards::new(file)?;
        while let Some((offset, line)) = entries.previous()? {
            if search.step(Place { file: index, offset }, &line) {
                return Ok(search.start);
            }
        }
    }
    Ok(search.start)
}

struct Search {
    wanted: u64,
    counted: u64,
    start: [Place; 2],
    /// An entry of this stream has been met.
    seen: [bool; 2],
    /// The line of this stream that was counted last may have earlier pieces.
    open: [bool; 2],
    /// Bytes gone through since the lines were complete.
    behind: Option<usize>,
}

impl Search {
    /// Takes the next earlier entry. Returns whether the search is over.
    fn step(&mut self, place: Place, line: &[u8]) -> bool {
        if self.wanted == 0 {
            return true;
        }
        if let Some(behind) = &mut self.behind {
            *behind += line.len();
            if *behind > LOOK_BEHIND {
                return true;
            }
        }
        let Some(entry) = Entry::parse(line) else { return false };
        let stream = match entry.stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        };
        // Going backwards, a line begins at its end: an entry tagged F, or the stream's last entry whatever its tag.
        let new_line = !entry.partial || !self.seen[stream];
        self.seen[stream] = true;
        if new_line {
            if self.counted == self.wanted {
                self.open[stream] = false;
                self.behind.get_or_insert(0);
                // The entry belongs to a line too many; the other stream's last line may still want pieces.
                return self.open == [false, false];
            }
            self.counted += 1;
            self.open[stream] = true;
        }
        if self.open[stream] {
            self.start[stream] = place;
        }
        false
    }
}

/// The lines of a file from its end to its beginning.
struct Backwards<'a> {
    file: &'a LogFile,
    /// Bytes from `at` on that are not handed out yet.
    buffer: Vec<u8>,
    at: u64,
}

impl<'a> Backwards<'a> {
    fn new(file: &'a LogFile) -> io::Result<Self> {
        Ok(Self { file, buffer: Vec::new(), at: file.file.metadata()?.len() })
    }

    /// The line before, with its offset and without its newline.
    fn previous(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        loop {
            let body = self.buffer.len().saturating_sub(usize::from(self.buffer.last() == Some(&b'\n')));
            if let Some(newline) = self.buffer[..body].iter().rposition(|b| *b == b'\n') {
                let line = self.buffer[newline + 1..body].to_vec();
                self.buffer.truncate(newline + 1);
                return Ok(Some((self.at + newline as u64 + 1, line)));
            }
            if self.at == 0 {
                let mut line = std::mem::take(&mut self.buffer);
                line.truncate(body);
                return Ok((body > 0).then_some((0, line)));
            }
            self.read_before()?;
        }
    }

    fn read_before(&mut self) -> io::Result<()> {
        let size = BLOCK.min(usize::try_from(self.at).unwrap_or(BLOCK));
        let mut block = vec![0; size];
        self.at -= size as u64;
        self.file.file.read_exact_at(&mut block, self.at)?;
        block.extend_from_slice(&self.buffer);
        self.buffer = block;
        Ok(())
    }
}
