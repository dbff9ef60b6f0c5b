//! The log files of one container: `<n>.log`, and what was rotated away as `<n>.log.<YYYYMMDD-HHMMSS>`.
//!
//! The writer itself rotates, before a write that would take the file over its size: there is no moment at which a
//! file is larger, and no second program that has to be told. Owns: those files. Never: blocks the program; what a
//! full disk refuses is dropped and counted.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::line::Tag;
use super::{Clock, Stream, civil};

/// How much is gathered before it is written, when more comes at once.
const BATCH: usize = 64 * 1024;

/// When to rotate, and how much to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes in a file. A single entry longer than this gets a file of its own.
    pub max_bytes: u64,
    /// The most files, the current one included.
    pub max_files: u32,
}

/// A container's log, open for writing.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limits: Limits,
    file: File,
    length: u64,
    batch: Vec<u8>,
    /// A failed write may have left half an entry behind.
    torn: bool,
    dropped: u64,
}

impl LogFile {
    /// Opens the file, or goes on with the one that is there.
    pub fn open(path: PathBuf, limits: Limits) -> io::Result<Self> {
        let file = open_append(&path)?;
        let length = file.metadata()?.len();
        Ok(LogFile { path, limits, file, length, batch: Vec::new(), torn: false, dropped: 0 })
    }

    /// Appends one entry; it may wait in the batch until [`LogFile::flush`].
    pub fn append(&mut self, at: SystemTime, clock: &mut Clock, stream: Stream, tag: Tag, line: &[u8]) {
        let start = self.batch.len();
        clock.write(at, &mut self.batch);
        self.batch.push(b' ');
        self.batch.extend_from_slice(stream.name().as_bytes());
        self.batch.extend_from_slice(&[b' ', tag.letter(), b' ']);
        self.batch.extend_from_slice(line);
        self.batch.push(b'\n');

        if self.length + self.batch.len() as u64 > self.limits.max_bytes && self.length + start as u64 > 0 {
            let entry = self.batch.split_off(start);
            self.write_batch();
            self.rotate(at);
            self.batch = entry;
        } else if self.batch.len() >= BATCH {
            self.write_batch();
        }
    }

    /// Writes what waits and frees its memory. Call it when nothing more is there to be read at the moment.
    pub fn flush(&mut self) {
        self.write_batch();
        self.batch = Vec::new();
    }

    /// How many entries could not be written since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Where the current file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.torn {
            // Ends the torn entry, so that only that one is unreadable.
            match self.file.write(b"\n") {
                Ok(1) => {
                    self.torn = false;
                    self.length += 1;
                }
                _ => return self.drop_from(0),
            }
        }
        let mut written = 0;
        while written < self.batch.len() {
            match self.file.write(&self.batch[written..]) {
                Ok(0) => return self.drop_from(written),
                Ok(count) => {
                    written += count;
                    self.length += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.drop_from(written),
            }
        }
        self.batch.clear();
    }

    fn drop_from(&mut self, written: usize) {
        let at_line_start = written == 0 || self.batch[written - 1] == b'\n';
        self.torn |= !at_line_start;
        self.dropped += self.batch[written..].iter().filter(|byte| **byte == b'\n').count() as u64;
        self.batch.clear();
    }

    fn rotate(&mut self, at: SystemTime) {
        let old = self.rotated_name(at);
        match fs::rename(&self.path, &old) {
            Ok(()) => {}
            // Somebody removed the file: there is nothing to keep.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Not even a rename works (read-only, no space for a name): the size holds all the same.
            Err(_) => return self.start_over(),
        }
        match open_append(&self.path) {
            Ok(file) => {
                self.file = file;
                self.length = 0;
                self.torn = false;
            }
            Err(_) => self.start_over(),
        }
        self.remove_oldest();
    }

    /// The last way to keep the size: what the descriptor refers to is emptied.
    fn start_over(&mut self) {
        if self.file.set_len(0).is_ok() {
            self.length = 0;
            self.torn = false;
        }
    }

    /// A name that sorts behind those of all rotated files: by time, and numbered where a second has more than one, or
    /// where the clock was set back.
    fn rotated_name(&self, at: SystemTime) -> PathBuf {
        let stamp = civil(at.duration_since(UNIX_EPOCH).unwrap_or_default(), "%Y%m%d-%H%M%S");
        let last = self.rotated().pop().and_then(|last| Rotation::of(&last, &self.path));
        let mut name = OsString::from(self.path.as_os_str());
        name.push(".");
        match last {
            Some(last) if last.stamp >= stamp => {
                name.push(format!("{}-{:06}", last.stamp, last.number.saturating_add(1)));
            }
            _ => name.push(stamp),
        }
        PathBuf::from(name)
    }

    /// The rotated files, oldest first.
    fn rotated(&self) -> Vec<PathBuf> {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Vec::new();
        };
        let is_rotated = |candidate: &OsStr| {
            let rest = candidate.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
            rest.is_some_and(|rest| rest.starts_with(b".") && rest.get(1).is_some_and(u8::is_ascii_digit))
        };
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> =
            entries.filter(|entry| is_rotated(&entry.file_name())).map(|entry| entry.path()).collect();
        files.sort();
        files
    }

    fn remove_oldest(&self) {
        let files = self.rotated();
        let keep = (self.limits.max_files as usize).saturating_sub(1);
        for old in &files[..files.len().saturating_sub(keep)] {
            // Gone already, or tried again at the next rotation.
            let _ = fs::remove_file(old);
        }
    }
}

/// What the name of a rotated file says.
struct Rotation {
    /// `YYYYMMDD-HHMMSS`
    stamp: String,
    /// 0 if there is none.
    number: u32,
}

impl Rotation {
    fn of(rotated: &Path, log: &Path) -> Option<Self> {
        let rest = rotated.to_str()?.strip_prefix(log.to_str()?)?.strip_prefix('.')?;
        let stamp = rest.get(..15).filter(|stamp| stamp.bytes().all(|b| b.is_ascii_digit() || b == b'-'))?;
        let number = rest.get(16..).and_then(|number| number.parse().ok()).unwrap_or(0);
        Some(Rotation { stamp: stamp.to_owned(), number })
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn log(directory: &Path, max_bytes: u64, max_files: u32) -> LogFile {
        LogFile::open(directory.join("0.log"), Limits { max_bytes, max_files }).unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn entries_have_the_cri_form() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, mut clock) = (log(directory.path(), 1 << 20, 5), Clock::default());
        log.append(at(0), &mut clock, Stream::Stdout, Tag::Full, b"hello");
        log.append(at(1), &mut clock, Stream::Stderr, Tag::Partial, b"half");
        log.flush();
        assert_eq!(
            fs::read_to_string(log.path()).unwrap(),
            "2023-11-14T22:13:20.000000000Z stdout F hello\n2023-11-14T22:13:21.000000000Z stderr P half\n"
        );
    }

    #[test]
    fn an_open_file_is_continued() {
        let directory = tempfile::tempdir().unwrap();
        let mut clock = Clock::default();
        for _ in 0..2 {
            let mut log = log(directory.path(), 102, 5);
            log.append(at(0), &mut clock, Stream::Stdout, Tag::Full, b"0123456789");
            log.flush();
        }
        assert_eq!(names(directory.path()), ["0.log"], "102 bytes fit");
        assert_eq!(fs::metadata(directory.path().join("0.log")).unwrap().len(), 102);
    }

    #[test]
    fn rotated_files_are_named_by_time_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, mut clock) = (log(directory.path(), 50, 4), Clock::default());
        for (second, line) in [(0, "a"), (0, "b"), (0, "c"), (0, "d"), (5, "e"), (9, "f")] {
            log.append(at(second), &mut clock, Stream::Stdout, Tag::Full, line.as_bytes());
        }
        log.flush();
        // a was rotated when b came and is the oldest; e went when f came at second 9.
        assert_eq!(
            names(directory.path()),
            ["0.log", "0.log.20231114-221320-000002", "0.log.20231114-221325", "0.log.20231114-221329"]
        );
        assert!(
            fs::read_to_string(directory.path().join("0.log.20231114-221325")).unwrap().ends_with("F d\n")
        );
        assert!(fs::read_to_string(log.path()).unwrap().ends_with("F f\n"));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_turn_the_order_around() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, mut clock) = (log(directory.path(), 50, 3), Clock::default());
        for (second, line) in [(9, "a"), (9, "b"), (3, "c"), (4, "d")] {
            log.append(at(second), &mut clock, Stream::Stdout, Tag::Full, line.as_bytes());
        }
        log.flush();
        let left = ["0.log", "0.log.20231114-221329-000001", "0.log.20231114-221329-000002"];
        assert_eq!(names(directory.path()), left);
        assert!(fs::read_to_string(directory.path().join(left[2])).unwrap().ends_with("F c\n"));
    }

    #[test]
    fn other_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["10.log", "0.log.note", "0.logs.1", "0.log.gz"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let (mut log, mut clock) = (log(directory.path(), 50, 1), Clock::default());
        for _ in 0..5 {
            log.append(at(0), &mut clock, Stream::Stdout, Tag::Full, b"x");
        }
        assert_eq!(names(directory.path()), ["0.log", "0.log.gz", "0.log.note", "0.logs.1", "10.log"]);
    }

    #[test]
    fn a_removed_directory_does_not_make_the_file_grow() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("c");
        fs::create_dir(&inner).unwrap();
        let (mut log, mut clock) = (log(&inner, 200, 2), Clock::default());
        fs::remove_dir_all(&inner).ok();
        for _ in 0..100 {
            log.append(at(0), &mut clock, Stream::Stdout, Tag::Full, b"line");
            log.flush();
        }
        assert!(log.file.metadata().unwrap().len() <= 200);
    }

    #[test]
    fn a_full_disk_drops_and_counts() {
        let Ok(file) = OpenOptions::new().append(true).open("/dev/full") else { return };
        let directory = tempfile::tempdir().unwrap();
        let (mut log, mut clock) = (log(directory.path(), 1 << 20, 2), Clock::default());
        let good = std::mem::replace(&mut log.file, file);
        for _ in 0..3 {
            log.append(at(0), &mut clock, Stream::Stdout, Tag::Full, b"lost");
        }
        log.flush();
        assert_eq!((log.take_dropped(), log.take_dropped()), (3, 0));
        log.file = good;
        log.append(at(0), &mut clock, Stream::Stdout, Tag::Full, b"kept");
        log.flush();
        assert!(fs::read_to_string(log.path()).unwrap().ends_with("stdout F kept\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn no_file_is_too_large_and_the_newest_entries_are_there(
            max_bytes in 110u64..2000, // the longest entry has 104 bytes
            max_files in 1u32..5,
            lines in proptest::collection::vec((0usize..60, 0u64..2, any::<bool>()), 1..120),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let (mut log, mut clock) = (log(directory.path(), max_bytes, max_files), Clock::default());
            let mut second = 0;
            for (number, (length, pause, flush)) in lines.iter().enumerate() {
                second += pause;
                let line = format!("{number}:{}", "x".repeat(*length));
                log.append(at(second), &mut clock, Stream::Stdout, Tag::Full, line.as_bytes());
                if *flush { log.flush(); }
            }
            log.flush();
            let mut files = log.rotated();
            prop_assert!(files.len() < max_files as usize);
            files.push(log.path().to_owned());
            let mut seen = Vec::new();
            for file in &files {
                let text = fs::read_to_string(file).unwrap();
                prop_assert!(text.len() as u64 <= max_bytes);
                for line in text.lines() {
                    let content = line.splitn(4, ' ').nth(3).unwrap();
                    seen.push(content.split(':').next().unwrap().parse::<usize>().unwrap());
                }
            }
            // What is left is the unbroken tail of what was written, in order.
            let expected: Vec<usize> = (lines.len() - seen.len()..lines.len()).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
