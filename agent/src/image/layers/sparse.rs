//! Maps of sparse members: the old GNU header form and the PAX form 1.0. Pure but for reading the map.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::tar::{BLOCK, malformed};

/// More pieces than any real file has; a hostile map costs at most this many entries of memory.
const MOST_SEGMENTS: usize = 1 << 18;

/// Where the pieces of a sparse file go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sparse {
    /// Size of the file with its holes, in bytes.
    pub size: u64,
    /// Offset and length of each piece, ascending.
    pub segments: Vec<(u64, u64)>,
}

impl Sparse {
    /// Bytes of data the map describes.
    pub(super) fn data_len(&self) -> Option<u64> {
        self.segments.iter().try_fold(0u64, |sum, (_, length)| sum.checked_add(*length))
    }

    fn push(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let start = self.segments.last().map_or(0, |(o, l)| o + l);
        let end = offset.checked_add(length).filter(|end| *end <= self.size && offset >= start);
        if end.is_none() || self.segments.len() == MOST_SEGMENTS {
            return Err(malformed("a sparse map is out of order, too long, or beyond the end of its file"));
        }
        self.segments.push((offset, length));
        Ok(())
    }
}

/// The map of an old GNU sparse member (`S`), with its continuation blocks.
pub(super) fn from_gnu_header(
    header: &Header,
    mut next_block: impl FnMut() -> io::Result<[u8; BLOCK]>,
) -> io::Result<Sparse> {
    let gnu = header.as_gnu().ok_or_else(|| malformed("a sparse member without a GNU header"))?;
    let mut sparse = Sparse { size: gnu.real_size()?, segments: Vec::new() };
    take(&mut sparse, &gnu.sparse)?;
    let mut more = gnu.is_extended();
    while more {
        let mut block = GnuExtSparseHeader::new();
        block.as_mut_bytes().copy_from_slice(&next_block()?);
        take(&mut sparse, block.sparse())?;
        more = block.is_extended();
    }
    Ok(sparse)
}

fn take(sparse: &mut Sparse, headers: &[GnuSparseHeader]) -> io::Result<()> {
    for header in headers.iter().filter(|h| !h.is_empty()) {
        sparse.push(header.offset()?, header.length()?)?;
    }
    Ok(())
}

/// The map at the beginning of a PAX 1.0 sparse member's data: decimal numbers, one a line, padded to whole blocks.
pub(super) fn from_pax_data(size: u64, data: &mut impl Read) -> io::Result<Sparse> {
    let mut numbers = Numbers { data, block: [0; BLOCK], at: BLOCK };
    let count = numbers.next()?;
    let mut sparse = Sparse { size, segments: Vec::new() };
    for _ in 0..count {
        let (offset, length) = (numbers.next()?, numbers.next()?);
        sparse.push(offset, length)?;
    }
    Ok(sparse)
}

struct Numbers<'a, R> {
    data: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Numbers<'_, R> {
    fn next(&mut self) -> io::Result<u64> {
        let mut number = 0u64;
        for digits in 0..=20 {
            if self.at == BLOCK {
                self.data.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' if digits > 0 => return Ok(number),
                b'0'..=b'9' => {
                    number = number
                        .checked_mul(10)
                        .and_then(|n| n.checked_add(u64::from(byte - b'0')))
                        .ok_or_else(|| malformed("a number in a sparse map is too large"))?;
                }
                _ => break,
            }
        }
        Err(malformed("a sparse map is not made of numbers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_map_reads_across_blocks_and_checks_order() {
        let mut data = b"2\n0\n512\n4096\n10\n".to_vec();
        data.resize(BLOCK, 0);
        let sparse = from_pax_data(5000, &mut &data[..]).unwrap();
        assert_eq!(sparse.segments, [(0, 512), (4096, 10)]);
        assert_eq!(sparse.data_len(), Some(522));
        assert!(from_pax_data(4100, &mut &data[..]).is_err(), "beyond the end");
        let mut data = b"2\n4096\n10\n0\n512\n".to_vec();
        data.resize(BLOCK, 0);
        assert!(from_pax_data(5000, &mut &data[..]).is_err(), "descending");
        assert!(from_pax_data(5000, &mut &b"9999999999999999999999"[..]).is_err());
    }
}
