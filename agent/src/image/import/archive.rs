//! A tar archive whose members are read by name, without unpacking it.
//!
//! Owns: the file and a table of where each member's bytes are. Names of members are only ever looked up in that table.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::digest::{Digest, DigestContext};
use super::super::layers::decompress::Decoder;
use super::super::layers::tar::{Kind, Member, TarReader, printable};
use super::super::store::StoreError;
use super::{ImportError, file_in};

/// Manifests, indexes and configurations are far smaller.
const LONGEST_DOCUMENT: u64 = 8 << 20;
/// Image archives have a handful of members for each layer; root file systems are not kept in the table.
const MOST_MEMBERS: usize = 100_000;
const BUFFER: usize = 256 * 1024;

/// What an archive is, judged by its top-level names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// OCI image layout.
    Oci,
    /// `docker save`.
    Docker,
    /// Anything else.
    RootFs,
}

/// A member to be used as a layer.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    /// Its name in the archive.
    pub name: String,
    /// What its bytes must hash to, where the archive says.
    pub digest: Option<Digest>,
    offset: u64,
    size: u64,
}

enum Place {
    Data { offset: u64, size: u64 },
    Link(String),
}

/// An archive that has been looked through.
pub(super) struct Archive {
    file: File,
    what: String,
    compressed: bool,
    members: HashMap<String, Place>,
}

/// Copies a stream into a file, since an archive is read more than once.
pub(super) fn spool(stream: &mut dyn Read, folder: &Path) -> Result<File, ImportError> {
    let (mut file, path) = file_in(folder, "spool")?;
    io::copy(stream, &mut file).map_err(|cause| StoreError::Io {
        action: "copy standard input to",
        path,
        cause,
    })?;
    Ok(file)
}

impl Archive {
    /// Reads all headers. Names that lead out of the archive are refused here, before anything is made of them.
    pub fn scan(file: File, what: String, rootfs: bool) -> Result<(Self, Layout), ImportError> {
        let mut archive = Self { file, what, compressed: false, members: HashMap::new() };
        let mut reader = archive.decoded()?;
        archive.compressed = !reader.is_plain();
        let mut tar = TarReader::new(&mut reader);
        let mut any = false;
        while let Some(member) = tar.next_member().map_err(|e| archive.malformed(&e, any))? {
            any = true;
            let name = member_name(&member).ok_or_else(|| ImportError::Malformed {
                what: archive.what.clone(),
                reason: format!("entry {:?}: its name leads out of the archive", member.display_name()),
            })?;
            if archive.members.len() < MOST_MEMBERS {
                archive.remember(name, &member);
            }
        }
        if !any {
            let reason = "it is an empty archive".to_owned();
            return Err(ImportError::Malformed { what: archive.what, reason });
        }
        let has = |name| archive.members.contains_key(name);
        let layout = if rootfs {
            Layout::RootFs
        } else if has("index.json") && has("oci-layout") {
            Layout::Oci
        } else if has("manifest.json") {
            Layout::Docker
        } else {
            Layout::RootFs
        };
        Ok((archive, layout))
    }

    /// Makes sure that members can be read at their offsets: a compressed archive is decompressed into `folder`.
    pub fn seekable(self, folder: &Path) -> Result<Self, ImportError> {
        if !self.compressed {
            return Ok(self);
        }
        let (mut file, path) = file_in(folder, "archive.tar")?;
        let mut reader = self.decoded()?;
        io::copy(&mut reader, &mut file).map_err(|cause| StoreError::Io {
            action: "decompress to",
            path,
            cause,
        })?;
        Ok(Self { file, compressed: false, ..self })
    }

    /// What the archive is called in messages.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The bytes of the archive file from the start, as they are.
    pub fn raw(&self) -> Result<impl Read, ImportError> {
        let mut file = self.file.try_clone().map_err(|e| self.unreadable(e))?;
        file.seek(SeekFrom::Start(0)).map_err(|e| self.unreadable(e))?;
        Ok(file)
    }

    /// A member as a layer.
    pub fn blob(&self, name: &str, digest: Option<Digest>) -> Result<Blob, ImportError> {
        let (offset, size) = self.place(name)?;
        Ok(Blob { name: name.to_owned(), digest, offset, size })
    }

    /// A layer's bytes.
    pub fn reader(&self, blob: &Blob) -> impl Read + '_ {
        let span = Span { file: &self.file, at: blob.offset, end: blob.offset.saturating_add(blob.size) };
        BufReader::with_capacity(BUFFER, span)
    }

    /// The whole of a small member, checked if its digest is known.
    pub fn document(&self, name: &str, digest: Option<&Digest>) -> Result<Vec<u8>, ImportError> {
        let blob = self.blob(name, None)?;
        if blob.size > LONGEST_DOCUMENT {
            let reason = format!("its {} bytes are too many for a manifest or configuration", blob.size);
            return Err(ImportError::Malformed { what: self.member(name), reason });
        }
        let mut bytes = Vec::new();
        self.reader(&blob).read_to_end(&mut bytes).map_err(|e| self.unreadable(e))?;
        if let Some(wanted) = digest {
            let mut context = DigestContext::new(wanted.algorithm());
            context.update(&bytes);
            let found = context.finish();
            if found != *wanted {
                return Err(ImportError::WrongDigest {
                    what: self.member(name),
                    wanted: wanted.clone(),
                    found,
                });
            }
        }
        Ok(bytes)
    }

    /// A member's name for messages.
    pub fn member(&self, name: &str) -> String {
        format!("{name} in {}", self.what)
    }

    fn decoded(&self) -> Result<Decoder<impl Read + use<>>, ImportError> {
        let mut file = self.file.try_clone().map_err(|e| self.unreadable(e))?;
        file.seek(SeekFrom::Start(0)).map_err(|e| self.unreadable(e))?;
        Decoder::new(file).map_err(|e| self.unreadable(e))
    }

    fn remember(&mut self, name: String, member: &Member) {
        let place = match member.kind {
            Kind::File if member.sparse.is_none() => Place::Data { offset: member.offset, size: member.size },
            // Old docker archives share layers between images by links.
            Kind::Symlink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                match clean(format!("{folder}/{}", String::from_utf8_lossy(&member.link)).as_bytes()) {
                    Some(target) => Place::Link(target),
                    None => return,
                }
            }
            Kind::HardLink => match clean(&member.link) {
                Some(target) => Place::Link(target),
                None => return,
            },
            Kind::File | Kind::Char | Kind::Block | Kind::Directory | Kind::Fifo => return,
        };
        self.members.insert(name, place);
    }

    fn place(&self, name: &str) -> Result<(u64, u64), ImportError> {
        let mut at = name;
        for _ in 0..8 {
            match self.members.get(at) {
                Some(Place::Data { offset, size }) => return Ok((*offset, *size)),
                Some(Place::Link(target)) => at = target,
                None => break,
            }
        }
        let name: String = name.chars().take(200).collect();
        Err(ImportError::Malformed { what: self.what.clone(), reason: format!("it has no file {name:?}") })
    }

    fn malformed(&self, error: &io::Error, begun: bool) -> ImportError {
        // Before the first member it is rather another kind of file than a damaged archive.
        let reason = if begun {
            error.to_string()
        } else {
            format!("not a tar archive, plain, gzip or zstd: {error}")
        };
        ImportError::Malformed { what: self.what.clone(), reason }
    }

    fn unreadable(&self, cause: io::Error) -> ImportError {
        ImportError::Read { what: self.what.clone(), cause }
    }
}

fn member_name(member: &Member) -> Option<String> {
    clean(&member.path)
}

/// A name without `.`, `..` and empty components; `None` if it leads out, or holds a NUL byte.
fn clean(name: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            _ if part.contains(&0) => return None,
            _ => parts.push(printable(part)),
        }
    }
    Some(parts.join("/"))
}

struct Span<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Span<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
