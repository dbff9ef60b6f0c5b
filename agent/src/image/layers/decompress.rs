//! Layers arrive as gzip, zstd or plain tar. The first bytes say which, whatever the media type claims.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Small on purpose: several layers may be on their way at once.
const BUFFER: usize = 64 * 1024;

/// A decompressing reader.
pub enum Decoder<R: Read> {
    /// No compression.
    Plain(BufReader<R>),
    /// gzip, one or several members.
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    /// zstd, one or several frames.
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes and picks the decoder.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn new(inner: R) -> io::Result<Self> {
        let mut inner = BufReader::with_capacity(BUFFER, inner);
        // A stream shorter than a magic number is no compressed one; a short first read is not expected of our sources,
        // which are files.
        let start = inner.fill_buf()?;
        if start.starts_with(&[0x1f, 0x8b]) {
            Ok(Self::Gzip(Box::new(MultiGzDecoder::new(inner))))
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_frame(start) {
            Ok(Self::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(inner)?)))
        } else {
            Ok(Self::Plain(inner))
        }
    }

    /// Whether the bytes are passed on as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

/// zstd streams may begin with frames that carry no data: `5? 2a 4d 18`.
fn is_skippable_frame(start: &[u8]) -> bool {
    start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18]
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn decoded(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_form_is_recognised() {
        assert_eq!(decoded(b"plain").unwrap(), b"plain");
        assert_eq!(decoded(b"").unwrap(), b"");
        assert_eq!(decoded(&gzip(b"one")).unwrap(), b"one");
        assert_eq!(decoded(&[gzip(b"one"), gzip(b"two")].concat()).unwrap(), b"onetwo");
        let zstd = zstd::stream::encode_all(&b"three"[..], 3).unwrap();
        assert_eq!(decoded(&zstd).unwrap(), b"three");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &zstd].concat();
        assert_eq!(decoded(&skippable).unwrap(), b"three");
    }

    #[test]
    fn truncated_streams_are_errors() {
        let text = vec![7; 5000];
        let gz = gzip(&text);
        assert!(decoded(&gz[..gz.len() - 4]).is_err());
        let zstd = zstd::stream::encode_all(&text[..], 3).unwrap();
        assert!(decoded(&zstd[..zstd.len() - 1]).is_err());
    }
}
