//! PAX extension records (`length key=value\n`), as POSIX.1-2001 and GNU tar define them. Pure.
//!
//! Values may hold any byte, newlines included, so records are cut by their length and never by line.

use std::io;

use super::tar::malformed;

/// What extension headers say about a member.
#[derive(Debug, Clone, Default)]
pub(super) struct Extensions {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<(i64, i64)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The size with holes of a sparse file whose map precedes its data (GNU format 1.0).
    pub sparse_size: Option<u64>,
}

impl Extensions {
    /// Lets what `other` says win.
    pub fn update(&mut self, other: Self) {
        let Self { path, link, size, uid, gid, mtime, xattrs, sparse_size } = other;
        self.path = path.or(self.path.take());
        self.link = link.or(self.link.take());
        self.size = size.or(self.size);
        self.uid = uid.or(self.uid);
        self.gid = gid.or(self.gid);
        self.mtime = mtime.or(self.mtime);
        self.xattrs.extend(xattrs);
        self.sparse_size = sparse_size.or(self.sparse_size);
    }
}

/// Reads the records of one extension header. Unknown keys are no error: POSIX wants them ignored.
pub(super) fn parse(mut bytes: &[u8]) -> io::Result<Extensions> {
    let mut ext = Extensions::default();
    let mut sparse_name = None;
    while !bytes.is_empty() && bytes[0] != 0 {
        let (key, value, rest) = record(bytes).ok_or_else(|| malformed("a PAX record is not well-formed"))?;
        bytes = rest;
        let number = || text(value)?.parse::<u64>().ok();
        let bad = || malformed(format!("the PAX value of {} is not usable", String::from_utf8_lossy(key)));
        match key {
            b"path" => ext.path = Some(value.to_vec()),
            b"linkpath" => ext.link = Some(value.to_vec()),
            b"size" => ext.size = Some(number().ok_or_else(bad)?),
            b"uid" => ext.uid = Some(number().and_then(|n| n.try_into().ok()).ok_or_else(bad)?),
            b"gid" => ext.gid = Some(number().and_then(|n| n.try_into().ok()).ok_or_else(bad)?),
            b"mtime" => ext.mtime = Some(text(value).and_then(time).ok_or_else(bad)?),
            b"GNU.sparse.name" => sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => ext.sparse_size = Some(number().ok_or_else(bad)?),
            b"GNU.sparse.major" if value != b"1" => return Err(old_sparse()),
            b"GNU.sparse.map" | b"GNU.sparse.numblocks" => return Err(old_sparse()),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    ext.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    ext.path = sparse_name.or(ext.path);
    Ok(ext)
}

fn old_sparse() -> io::Error {
    malformed("sparse files of GNU formats 0.0 and 0.1 are not supported")
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let length: usize = text(&bytes[..space])?.parse().ok()?;
    let record = bytes.get(space + 1..length)?;
    let (&last, record) = record.split_last()?;
    let equals = record.iter().position(|&b| b == b'=')?;
    (last == b'\n').then(|| (&record[..equals], &record[equals + 1..], &bytes[length..]))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Seconds with an optional fraction, possibly negative, as whole seconds and nanoseconds from 0 to 999,999,999.
fn time(text: &str) -> Option<(i64, i64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds =
        fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |n, d| n * 10 + i64::from(d - b'0'));
    if whole.starts_with('-') && nanoseconds > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds))
    } else {
        Some((seconds, nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_newlines_survive() {
        let ext = parse(b"29 SCHILY.xattr.user.x=a\n=\nb\n12 uid=1000\n").unwrap();
        assert_eq!(ext.xattrs, [(b"user.x".to_vec(), b"a\n=\nb".to_vec())]);
        assert_eq!(ext.uid, Some(1000));
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in
            [&b"5 a=b"[..], b"x a=b\n", b"99 a=b\n", b"6 a-b\n", b"2 a=b\n", b"0 a=b\n", b"12 uid=-100\n"]
        {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times_before_1970_round_down() {
        assert_eq!(time("1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("7"), Some((7, 0)));
        assert_eq!(time("1.x"), None);
    }
}
