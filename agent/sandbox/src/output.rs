//! What a container writes, on its way from pipes or a terminal to the log.
//!
//! Owns: the reading ends and the log file of one container. Never: blocks; reads only what is there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::unistd::read;

use crate::log::file::LogFile;
use crate::log::line::Splitter;
use crate::log::{Clock, Stream};

/// Read at once.
const CHUNK: usize = 16 * 1024;
/// Read from one stream before others get their turn.
const TURN: usize = 4 * CHUNK;
/// Read from one stream when its container has ended: more than a pipe or a terminal can hold, so that everything
/// written before the end is in the log, and yet an end for a process that goes on writing.
const LAST_TURN: usize = 2 << 20;

/// The outputs of one container.
#[derive(Debug)]
pub struct Output {
    log: LogFile,
    sources: [Option<Source>; 2],
}

#[derive(Debug)]
struct Source {
    end: OwnedFd,
    splitter: Splitter,
}

/// What became of a stream after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is still open.
    Open,
    /// It has ended and is closed.
    Ended,
}

fn stream(index: usize) -> Stream {
    if index == 0 { Stream::Stdout } else { Stream::Stderr }
}

impl Output {
    /// Nothing but a log yet.
    pub fn new(log: LogFile) -> Self {
        Output { log, sources: [None, None] }
    }

    /// Adds the reading end of stdout (0; a terminal's master, too) or stderr (1). It must not block.
    pub fn add(&mut self, index: usize, end: OwnedFd) {
        self.sources[index] = Some(Source { end, splitter: Splitter::default() });
    }

    /// The reading end of a stream that is still open.
    pub fn end(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.sources[index].as_ref().map(|source| source.end.as_fd())
    }

    /// Copies what is there, within limits.
    pub fn pump(&mut self, index: usize, clock: &mut Clock) -> Turn {
        self.copy(index, TURN, clock)
    }

    /// Copies everything that is there: the container has ended. A stream that some other process still holds stays
    /// open.
    pub fn drain(&mut self, clock: &mut Clock) {
        for index in 0..self.sources.len() {
            self.copy(index, LAST_TURN, clock);
        }
    }

    /// How many entries could not be written since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        self.log.take_dropped()
    }

    fn copy(&mut self, index: usize, most: usize, clock: &mut Clock) -> Turn {
        let Some(source) = &mut self.sources[index] else { return Turn::Ended };
        let mut chunk = vec![0u8; CHUNK];
        let mut copied = 0;
        let turn = loop {
            if copied >= most {
                break Turn::Open;
            }
            match read(&source.end, &mut chunk) {
                Ok(0) => break Turn::Ended,
                Ok(count) => {
                    copied += count;
                    let (at, log) = (SystemTime::now(), &mut self.log);
                    source
                        .splitter
                        .feed(&chunk[..count], |tag, line| log.append(at, clock, stream(index), tag, line));
                }
                Err(Errno::EAGAIN) => break Turn::Open,
                Err(Errno::EINTR) => {}
                // EIO: nobody holds the terminal any more.
                Err(_) => break Turn::Ended,
            }
        };
        if turn == Turn::Ended {
            let (at, log) = (SystemTime::now(), &mut self.log);
            source.splitter.finish(|tag, line| log.append(at, clock, stream(index), tag, line));
            self.sources[index] = None;
        }
        self.log.flush();
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::pipe2;

    use super::*;
    use crate::log::file::Limits;

    fn reading_end() -> (OwnedFd, fs::File) {
        let (end, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (end, fs::File::from(writer))
    }

    #[test]
    fn both_streams_reach_the_log_and_the_end_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let log = LogFile::open(path.clone(), Limits { max_bytes: 1 << 20, max_files: 2 }).unwrap();
        let (mut output, mut clock) = (Output::new(log), Clock::default());
        let (out, mut out_writer) = reading_end();
        let (err, mut err_writer) = reading_end();
        output.add(0, out);
        output.add(1, err);
        out_writer.write_all(b"one\ntw").unwrap();
        assert_eq!(output.pump(0, &mut clock), Turn::Open);
        err_writer.write_all(b"bad\n").unwrap();
        out_writer.write_all(b"o\nrest").unwrap();
        drop(out_writer);
        output.drain(&mut clock);
        assert!(output.end(0).is_none(), "ended");
        assert!(output.end(1).is_some(), "held by another process");
        let text = fs::read_to_string(path).unwrap();
        let seen: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(seen, ["stdout F one", "stdout F two", "stdout P rest", "stderr F bad"]);
    }
}
