//! Reading tar streams: ustar, PAX and GNU headers, old and new sparse files.
//!
//! Owns: [`TarReader`] and [`Member`]. Field decoding is the `tar` crate's; the walk over the headers is ours because an
//! archive is hostile until proven otherwise: extension headers are bounded here, so that a header that claims
//! gigabytes costs an error and no memory. Never: touches a file system.

use std::io::{self, Read};

use tar::Header;

use super::pax::{self, Extensions};
use super::sparse::{self, Sparse};

pub(super) const BLOCK: usize = 512;
/// No real name, link target or set of extended attributes comes near this.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, sparse or not.
    File,
    /// Another name of an earlier member.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One member's metadata, extension headers applied.
#[derive(Debug, Clone)]
pub struct Member {
    /// What it is.
    pub kind: Kind,
    /// The name as it stands in the archive.
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds since 1970.
    pub mtime: (i64, i64),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, unfiltered.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of data in the archive (for a sparse file: without its holes).
    pub size: u64,
    /// Where the data of a sparse file belongs.
    pub sparse: Option<Sparse>,
    /// Offset of the data in the archive, in bytes.
    pub offset: u64,
}

impl Member {
    /// The name for messages: printable and of bounded length.
    #[must_use]
    pub fn display_name(&self) -> String {
        printable(&self.path)
    }
}

/// A name from an archive made fit for messages and logs.
#[must_use]
pub fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut out: String = text.chars().take(300).flat_map(char::escape_debug).collect();
    if text.chars().nth(300).is_some() {
        out.push('…');
    }
    out
}

/// Walks over a tar stream.
pub struct TarReader<R> {
    inner: R,
    position: u64,
    unread: u64,
    padding: u64,
    globals: Extensions,
}

impl<R: Read> TarReader<R> {
    /// Starts at the first header.
    pub fn new(inner: R) -> Self {
        Self { inner, position: 0, unread: 0, padding: 0, globals: Extensions::default() }
    }

    /// Goes to the next member, skipping what is unread of the present one. `None` at the end of the archive.
    ///
    /// # Errors
    /// Those of the stream, and `InvalidData` with a reason for anything that is not a well-formed archive.
    pub fn next_member(&mut self) -> io::Result<Option<Member>> {
        let mut local = Extensions::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size()?;
            match header.as_bytes()[156] {
                b'L' => long_path = Some(trim_nul(self.extension(size)?)),
                b'K' => long_link = Some(trim_nul(self.extension(size)?)),
                b'x' => local = pax::parse(&self.extension(size)?)?,
                b'g' => {
                    let globals = pax::parse(&self.extension(size)?)?;
                    self.globals.update(globals);
                }
                // A volume label carries nothing.
                b'V' => self.begin_data(0),
                kind => {
                    let mut extensions = self.globals.clone();
                    extensions.update(local);
                    let mut member = member(&header, kind, extensions)?;
                    if let Some(path) = long_path {
                        member.path = path;
                    }
                    if let Some(link) = long_link {
                        member.link = link;
                    }
                    return self.begin(&header, member).map(Some);
                }
            }
        }
    }

    /// The data of the present member.
    pub fn data(&mut self) -> Data<'_, R> {
        Data { reader: self }
    }

    fn begin(&mut self, header: &Header, mut member: Member) -> io::Result<Member> {
        if header.as_bytes()[156] == b'S' {
            let sparse = sparse::from_gnu_header(header, || self.block())?;
            self.begin_data(member.size);
            member.sparse = Some(sparse);
        } else if let Some(real_size) = member.sparse.as_ref().map(|s| s.size) {
            self.begin_data(member.size);
            let before = self.unread;
            let sparse = sparse::from_pax_data(real_size, &mut self.data())?;
            member.size -= before - self.unread;
            member.sparse = Some(sparse);
        } else {
            self.begin_data(member.size);
        }
        if let Some(sparse) = &member.sparse
            && sparse.data_len() != Some(member.size)
        {
            return Err(malformed(format!(
                "{}: its sparse map does not fit its data",
                member.display_name()
            )));
        }
        member.offset = self.position;
        Ok(member)
    }

    /// `size` comes from the archive; one that no stream can hold is cut, and found out as a truncated archive.
    fn begin_data(&mut self, size: u64) {
        self.unread = size.min(u64::MAX - BLOCK as u64);
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > LONGEST_EXTENSION {
            return Err(malformed(format!("an extension header of {size} bytes")));
        }
        self.begin_data(size);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        self.data().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let rest = self.unread + self.padding;
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())?;
        // The padding of the last member may be missing: some writers end there.
        if skipped < self.unread {
            return Err(truncated());
        }
        self.position += skipped;
        (self.unread, self.padding) = (0, 0);
        Ok(())
    }

    fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.inner.read_exact(&mut block).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => truncated(),
            _ => e,
        })?;
        self.position += BLOCK as u64;
        Ok(block)
    }

    /// The next header; `None` at the end-of-archive mark or where the stream ends between two members.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(truncated()),
                n => filled += n,
            }
        }
        self.position += BLOCK as u64;
        if block.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let (mut unsigned, mut signed) = (0u32, 0i64);
        for (i, &b) in block.iter().enumerate() {
            let b = if (148..156).contains(&i) { b' ' } else { b };
            unsigned += u32::from(b);
            signed += i64::from(b.cast_signed());
        }
        let stated = header.cksum().map_err(|_| malformed("not a tar header: its checksum is no number"))?;
        if stated != unsigned && i64::from(stated) != signed {
            return Err(malformed("not a tar header: its checksum is wrong"));
        }
        Ok(Some(header))
    }
}

/// The data of one member as a reader; a stream that ends early is an error.
pub struct Data<'a, R> {
    reader: &'a mut TarReader<R>,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.reader.unread).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.reader.inner.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(truncated());
        }
        self.reader.unread -= n as u64;
        self.reader.position += n as u64;
        Ok(n)
    }
}

fn member(header: &Header, type_flag: u8, mut ext: Extensions) -> io::Result<Member> {
    let header_path = header.path_bytes();
    let kind = match type_flag {
        b'0' | 0 | b'7' if ext.path.as_deref().unwrap_or(&header_path).ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => {
            let name = printable(&header_path);
            return Err(malformed(format!(
                "{name}: members of type {:?} are not supported",
                char::from(other)
            )));
        }
    };
    let old = header.as_old();
    let id = |field: &[u8], value: io::Result<u64>| number(field, value).and_then(|v| u32::try_from(v).ok());
    let bad = |what: &str| malformed(format!("{}: its {what} is not usable", printable(&header_path)));
    let size = match ext.size {
        Some(size) => size,
        None => header.entry_size()?,
    };
    let device = match kind {
        Kind::Char | Kind::Block => (
            header.device_major()?.ok_or_else(|| bad("device number"))?,
            header.device_minor()?.ok_or_else(|| bad("device number"))?,
        ),
        Kind::File | Kind::HardLink | Kind::Symlink | Kind::Directory | Kind::Fifo => (0, 0),
    };
    Ok(Member {
        kind,
        link: ext.link.take().unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
        path: ext.path.take().unwrap_or_else(|| header_path.clone().into_owned()),
        mode: number(&old.mode, header.mode().map(u64::from)).ok_or_else(|| bad("mode"))? as u32 & 0o7777,
        uid: ext.uid.or_else(|| id(&old.uid, header.uid())).ok_or_else(|| bad("owner"))?,
        gid: ext.gid.or_else(|| id(&old.gid, header.gid())).ok_or_else(|| bad("group"))?,
        mtime: ext
            .mtime
            .unwrap_or_else(|| (header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), 0)),
        device,
        xattrs: ext.xattrs,
        // As every reader does: only files have data, whatever the header of a link or directory says.
        size: if kind == Kind::File { size } else { 0 },
        sparse: ext.sparse_size.map(|size| Sparse { size, segments: Vec::new() }),
        offset: 0,
    })
}

/// A numeric field; blank is zero, as other readers have it.
fn number(field: &[u8], value: io::Result<u64>) -> Option<u64> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) { Some(0) } else { value.ok() }
}

fn trim_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    bytes
}

pub(super) fn malformed(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of a member")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn walk(bytes: &[u8]) -> io::Result<Vec<(Member, Vec<u8>)>> {
        let mut reader = TarReader::new(bytes);
        let mut members = Vec::new();
        while let Some(member) = reader.next_member()? {
            let mut data = Vec::new();
            reader.data().read_to_end(&mut data)?;
            members.push((member, data));
        }
        Ok(members)
    }

    fn archive(name: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        builder.append_pax_extensions([("mtime", &b"10.5"[..])]).unwrap();
        builder.append_data(&mut header, name, content).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn what_the_tar_crate_writes_is_read() {
        for length in [1, 99, 100, 101, 255, 300] {
            let name = "n".repeat(length);
            let members = walk(&archive(&name, b"content")).unwrap();
            let (member, data) = &members[0];
            assert_eq!((&member.path[..], &data[..]), (name.as_bytes(), &b"content"[..]));
            assert_eq!(
                (member.mode, member.uid, member.gid, member.mtime),
                (0o4755, 7, 8, (10, 500_000_000))
            );
            assert_eq!(members.len(), 1);
        }
    }

    #[test]
    fn impossible_sizes_are_truncated_archives() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("size", &b"18446744073709551615"[..])]).unwrap();
        let mut header = Header::new_gnu();
        header.set_size(1);
        builder.append_data(&mut header, "x", &b"y"[..]).unwrap();
        let error = walk(&builder.into_inner().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    }

    proptest! {
        #[test]
        fn no_archive_makes_the_reader_panic_or_grow(
            content in prop::collection::vec(any::<u8>(), 0..2000),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            kind in prop::sample::select(b"01234567SLKxgV\0".to_vec()),
        ) {
            let mut bytes = archive("some/name", &content);
            // The member's own header follows the extension's two blocks; the checksum is set right afterwards.
            bytes[1024 + 156] = kind;
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let mut header = Header::from_byte_slice(&bytes[1024..1536]).clone();
            header.set_cksum();
            bytes[1024..1536].copy_from_slice(header.as_bytes());
            if let Ok(members) = walk(&bytes) {
                prop_assert!(members.iter().map(|(_, data)| data.len()).sum::<usize>() <= bytes.len());
            }
        }
    }
}
