//! Reads a log from its oldest file on, across rotations, as far as it has been written.
//!
//! Owns: the place reached. Guarantees: every entry once and in order, also when the writer rotates, empties or removes
//! files meanwhile (what was removed before it was read is lost). Never: waits (that is `follow`).

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::entry::{Entry, Stream};
use super::files::{self, LogFile};
use super::print::{Printer, Style};
use super::tail::{Place, start_of_tail};

const CHUNK: usize = 32 * 1024;
/// Output of about this size is handed on before more is read.
const BATCH: usize = 64 * 1024;
/// A line this long is not an entry of any log; it is passed over.
const MAX_ENTRY: usize = 1024 * 1024;

/// A log being read.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// The file being read, and those after it.
    files: VecDeque<LogFile>,
    /// Index of the first of `files` among all files ever opened.
    index: usize,
    offset: u64,
    /// Bytes behind the last whole line, which begins at `offset - carry.len()`.
    carry: Vec<u8>,
    /// The line being read is too long, and passed over up to its end.
    passing: bool,
    start: [Place; 2],
    printer: Printer,
}

/// How far a call of [`LogReader::read`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// There may be more right away.
    More,
    /// Everything written so far has been read.
    End,
    /// Nothing more will be printed, whatever is written: the byte limit is reached.
    Limit,
}

impl LogReader {
    /// Opens the log whose current file is `path`. With `tail`, only that many last lines are shown.
    pub fn open(path: PathBuf, tail: Option<u64>, style: Style) -> io::Result<Self> {
        let files = files::open_all(&path)?;
        let start = match tail {
            None => Default::default(),
            Some(lines) => start_of_tail(&files, lines)?,
        };
        let first = start[0].min(start[1]);
        let mut reader = Self {
            path,
            files: files.into(),
            index: 0,
            offset: 0,
            carry: Vec::new(),
            passing: false,
            start,
            printer: Printer::new(style),
        };
        while reader.index < first.file && reader.files.len() > 1 {
            reader.files.pop_front();
            reader.index += 1;
        }
        if reader.index == first.file {
            reader.offset = first.offset;
        }
        Ok(reader)
    }

    /// There is no file of this log at all.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Reads on, adding output to `out` until it is a good batch.
    pub fn read(&mut self, out: &mut Vec<u8>) -> io::Result<Reached> {
        let mut chunk = vec![0; CHUNK];
        let enough = out.len() + BATCH;
        while out.len() < enough {
            if self.printer.is_done() {
                return Ok(Reached::Limit);
            }
            let Some(current) = self.files.front() else {
                self.files.extend(files::open_all(&self.path)?);
                if self.files.is_empty() {
                    return Ok(Reached::End);
                }
                continue;
            };
            let count = current.file.read_at(&mut chunk, self.offset)?;
            if count > 0 {
                self.offset += count as u64;
                self.take(&chunk[..count], out);
            } else if current.file.metadata()?.len() < self.offset {
                self.begin_again();
            } else if !self.next_file()? {
                return Ok(Reached::End);
            }
        }
        Ok(Reached::More)
    }

    /// Nothing more will be written: prints what has no end.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let rest = std::mem::take(&mut self.carry);
        self.line(self.offset - rest.len() as u64, &rest, out);
        self.printer.finish(out);
    }

    /// The writer emptied the file, since it could do nothing else.
    fn begin_again(&mut self) {
        self.offset = 0;
        self.carry.clear();
        self.passing = false;
    }

    /// Goes on to the file after the current one, if the current one will not grow any more.
    fn next_file(&mut self) -> io::Result<bool> {
        if self.files.len() < 2 {
            let Some(current) = self.files.front() else { return Ok(false) };
            let newer = files::open_after(&self.path, current.identity)?;
            if newer.is_empty() {
                return Ok(false);
            }
            self.files.extend(newer);
            // The writer may have added to the current file after it was read and before it was rotated: once more.
            if self.files[0].file.metadata()?.len() > self.offset {
                return Ok(true);
            }
        }
        self.files.pop_front();
        self.index += 1;
        self.begin_again();
        Ok(true)
    }

    fn take(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        let mut start = self.offset - chunk.len() as u64;
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            let end = start + piece.len() as u64;
            let Some(body) = piece.strip_suffix(b"\n") else {
                self.keep(piece);
                break;
            };
            if std::mem::take(&mut self.passing) {
                self.carry.clear();
            } else if self.carry.is_empty() {
                self.line(start, body, out);
            } else {
                self.carry.extend_from_slice(body);
                let line = std::mem::take(&mut self.carry);
                self.line(end - 1 - line.len() as u64, &line, out);
            }
            start = end;
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        if self.passing {
            return;
        }
        self.carry.extend_from_slice(piece);
        if self.carry.len() > MAX_ENTRY {
            self.carry = Vec::new();
            self.passing = true;
        }
    }

    fn line(&mut self, offset: u64, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = Entry::parse(line) else { return };
        let place = Place { file: self.index, offset };
        let start = match entry.stream {
            Stream::Stdout => self.start[0],
            Stream::Stderr => self.start[1],
        };
        if place >= start {
            self.printer.entry(&entry, out);
        }
    }
}
