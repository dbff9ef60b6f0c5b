//! The log of writes that are not yet in the database: what a killed process has written is found here.
//!
//! Owns: the files `log.<n>` of the directory. One record holds one change of the store, however many objects it has:
//! `length u32 | checksum 8 bytes | ops`. A record that is cut off or does not match its checksum ends the replay.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::StoreError;

/// After so many bytes the database is brought up to date without waiting.
const LONG: u64 = 4 << 20;

/// One object written or removed.
#[derive(Debug, PartialEq)]
pub(super) struct Op {
    pub(super) version: u64,
    pub(super) key: String,
    pub(super) value: Option<Bytes>,
}

pub(super) struct Log {
    dir: PathBuf,
    number: u64,
    file: File,
    length: u64,
    /// Logs that were replaced and wait for the database.
    old: Vec<PathBuf>,
}

impl Log {
    /// Opens a new log behind the old ones and returns what those hold beyond `version`.
    pub(super) fn open(dir: &Path, version: u64) -> Result<(Self, Vec<Op>), StoreError> {
        let mut numbers = Vec::new();
        let entries = std::fs::read_dir(dir).map_err(|e| failed("read", dir, e))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            if let Some(number) =
                name.to_str().and_then(|n| n.strip_prefix("log.")).and_then(|n| n.parse().ok())
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        let mut ops = Vec::new();
        let mut old = Vec::new();
        for number in &numbers {
            let path = file_of(dir, *number);
            let mut bytes = Vec::new();
            File::open(&path)
                .and_then(|mut f| f.read_to_end(&mut bytes))
                .map_err(|e| failed("read", &path, e))?;
            ops.extend(decode(&bytes).into_iter().filter(|op| op.version > version));
            old.push(path);
        }
        let number = numbers.last().map_or(1, |n| n + 1);
        let file = create(&file_of(dir, number))?;
        Ok((Self { dir: dir.to_owned(), number, file, length: 0, old }, ops))
    }

    /// Writes one record. On an error the file is as before.
    pub(super) fn append<'a>(
        &mut self,
        ops: impl Iterator<Item = (u64, &'a str, Option<&'a Bytes>)>,
    ) -> Result<(), StoreError> {
        let record = encode(ops);
        if let Err(error) = self.file.write_all(&record) {
            let path = file_of(&self.dir, self.number);
            // A partial record would end a replay before the records that follow it.
            let _ = self.file.set_len(self.length);
            return Err(failed("write", &path, error));
        }
        self.length += record.len() as u64;
        Ok(())
    }

    pub(super) fn is_long(&self) -> bool {
        self.length > LONG
    }

    /// Goes on in a new file and returns those whose content must reach the database before they are removed.
    pub(super) fn rotate(&mut self) -> Result<Vec<PathBuf>, StoreError> {
        let number = self.number + 1;
        self.file = create(&file_of(&self.dir, number))?;
        self.old.push(file_of(&self.dir, self.number));
        self.number = number;
        self.length = 0;
        Ok(std::mem::take(&mut self.old))
    }

    /// Takes back files whose content did not reach the database.
    pub(super) fn keep(&mut self, paths: Vec<PathBuf>) {
        self.old.extend(paths);
    }
}

/// Removes a log; one that is gone is fine.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}

fn file_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("log.{number}"))
}

fn create(path: &Path) -> Result<File, StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path).map_err(|e| failed("create", path, e))
}

fn failed(what: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File { what, path: path.display().to_string(), source }
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let digest = ring::digest::digest(&ring::digest::SHA256, body);
    let mut sum = [0; 8];
    sum.copy_from_slice(&digest.as_ref()[..8]);
    sum
}

fn encode<'a>(ops: impl Iterator<Item = (u64, &'a str, Option<&'a Bytes>)>) -> Vec<u8> {
    let mut record = vec![0; 12];
    for (version, key, value) in ops {
        record.push(u8::from(value.is_some()));
        record.extend_from_slice(&version.to_le_bytes());
        let value = value.map_or(&[][..], |v| &v[..]);
        for part in [key.as_bytes(), value] {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            record.extend_from_slice(&length.to_le_bytes());
            record.extend_from_slice(part);
        }
    }
    let length = u32::try_from(record.len() - 12).unwrap_or(u32::MAX);
    let sum = checksum(&record[12..]);
    record[..4].copy_from_slice(&length.to_le_bytes());
    record[4..12].copy_from_slice(&sum);
    record
}

fn decode(mut bytes: &[u8]) -> Vec<Op> {
    let mut ops = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(12) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some((body, rest)) = rest.split_at_checked(length) else { break };
        if checksum(body) != head[4..12] {
            break;
        }
        let mut body = body;
        while let Some(op) = decode_op(&mut body) {
            ops.push(op);
        }
        bytes = rest;
    }
    ops
}

fn decode_op(body: &mut &[u8]) -> Option<Op> {
    let (head, rest) = body.split_at_checked(9)?;
    let version = u64::from_le_bytes(head[1..9].try_into().ok()?);
    *body = rest;
    let key = String::from_utf8(take(body)?.to_vec()).ok()?;
    let value = Bytes::copy_from_slice(take(body)?);
    Some(Op { version, key, value: (head[0] == 1).then_some(value) })
}

fn take<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = body.split_at_checked(4)?;
    let (part, rest) = rest.split_at_checked(u32::from_le_bytes(length.try_into().ok()?) as usize)?;
    *body = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(version: u64, key: &str, value: Option<&str>) -> Op {
        Op { version, key: key.into(), value: value.map(|v| Bytes::from(v.to_owned())) }
    }

    fn record(ops: &[Op]) -> Vec<u8> {
        encode(ops.iter().map(|o| (o.version, o.key.as_str(), o.value.as_ref())))
    }

    #[test]
    fn a_record_cut_off_or_damaged_ends_the_replay_before_it() {
        let first = record(&[op(1, "a", Some("x")), op(2, "b", None)]);
        let second = record(&[op(3, "c", Some(""))]);
        let whole = [&first[..], &second[..]].concat();
        let kept = vec![op(1, "a", Some("x")), op(2, "b", None)];
        assert_eq!(decode(&whole), [op(1, "a", Some("x")), op(2, "b", None), op(3, "c", Some(""))]);
        for cut in first.len()..whole.len() {
            assert_eq!(decode(&whole[..cut]), kept);
        }
        let mut damaged = whole;
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert_eq!(decode(&damaged), kept);
    }
}
