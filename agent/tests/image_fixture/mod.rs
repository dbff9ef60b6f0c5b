//! What the image tests share: archives written byte by byte, image layouts, a tiny HTTP server, a thread with mounts of
//! its own. Each test file uses a part of it.
#![allow(dead_code)]

pub mod server;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop::image::digest::Digest;
use orlop::image::import::{ImportError, Options, Source, import};
use orlop::image::manifest::Platform;
use orlop::image::store::{Image, Store};

/// Says why a test that needs root does not run. `true` means: return.
pub fn skip_without_root(test: &str) -> bool {
    let skip = !nix::unistd::geteuid().is_root();
    if skip {
        println!("SKIP {test}: needs root to set owners and make devices");
    }
    skip
}

/// A tar archive, written as a hostile hand would: nothing is checked.
#[derive(Clone, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    pax: Vec<u8>,
}

impl Archive {
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.member(b'0', name, "", content, 0o644)
    }

    pub fn file_with_mode(self, name: &str, content: &[u8], mode: u32) -> Self {
        self.member(b'0', name, "", content, mode)
    }

    pub fn directory(self, name: &str, mode: u32) -> Self {
        self.member(b'5', name, "", b"", mode)
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.member(b'2', name, target, b"", 0o777)
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.member(b'1', name, target, b"", 0o644)
    }

    pub fn device(self, kind: u8, name: &str) -> Self {
        self.member(kind, name, "", b"", 0o600)
    }

    /// Adds a PAX record to the next member.
    pub fn pax(mut self, key: &str, value: &[u8]) -> Self {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.pax.extend(format!("{length} {key}=").bytes());
        self.pax.extend(value);
        self.pax.push(b'\n');
        self
    }

    /// Adds a member of any type: owner 1000, group 1001, device 1:3, modified at 1,600,000,000.
    pub fn member(mut self, kind: u8, name: &str, link: &str, content: &[u8], mode: u32) -> Self {
        let pax = std::mem::take(&mut self.pax);
        if !pax.is_empty() {
            self = self.raw(b'x', "pax", "", &pax, 0o644);
        }
        self.raw(kind, name, link, content, mode)
    }

    fn raw(mut self, kind: u8, name: &str, link: &str, content: &[u8], mode: u32) -> Self {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_size(content.len() as u64);
        header.set_mtime(1_600_000_000);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn tar(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes no compressor makes smaller.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(step).flatten().take(length).collect()
}

/// A blob with its media type.
#[derive(Clone)]
pub struct Blob {
    pub media_type: &'static str,
    pub bytes: Vec<u8>,
}

impl Blob {
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    pub fn descriptor(&self) -> serde_json::Value {
        serde_json::json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len() })
    }
}

/// An image of the given layers: manifest, configuration, layers.
#[derive(Clone)]
pub struct TestImage {
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<Blob>,
}

/// Builds an image from tar streams; `pack` compresses them.
pub fn image(tars: &[Vec<u8>], pack: impl Fn(&[u8]) -> Vec<u8>) -> TestImage {
    let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let layers: Vec<Blob> = tars
        .iter()
        .map(|tar| Blob { media_type: "application/vnd.oci.image.layer.v1.tar+gzip", bytes: pack(tar) })
        .collect();
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux",
        "config": { "Cmd": ["/bin/sh"], "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    with_config(config.to_string().into_bytes(), layers)
}

pub fn with_config(config: Vec<u8>, layers: Vec<Blob>) -> TestImage {
    let config = Blob { media_type: "application/vnd.oci.image.config.v1+json", bytes: config };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(),
        "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
    });
    let manifest = Blob {
        media_type: "application/vnd.oci.image.manifest.v1+json",
        bytes: manifest.to_string().into_bytes(),
    };
    TestImage { manifest, config, layers }
}

impl TestImage {
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        [&self.manifest, &self.config].into_iter().chain(&self.layers)
    }

    /// An OCI layout archive with the image under a name.
    pub fn oci_archive(&self, name: &str) -> Vec<u8> {
        let mut entry = self.manifest.descriptor();
        entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
        let start = Archive::default()
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", index.as_bytes());
        let add = |archive: Archive, blob: &Blob| {
            archive.file(&format!("blobs/sha256/{}", blob.digest().hex()), &blob.bytes)
        };
        self.blobs().fold(start, add).tar()
    }
}

/// A store in a temporary folder, with a folder beside it that nothing may touch.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub store: Arc<Store>,
}

impl Scene {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/target"), "untouched").unwrap();
        let store = Arc::new(Store::open(&dir.path().join("images")).unwrap());
        Self { dir, store }
    }

    pub fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    pub fn import(&self, archive: &[u8]) -> Result<Vec<Image>, ImportError> {
        self.import_with(archive, &Options::default())
    }

    pub fn import_with(&self, archive: &[u8], options: &Options) -> Result<Vec<Image>, ImportError> {
        let mut stream = archive;
        import(&self.store, Source::Stream(&mut stream), options, &|_| {})
    }

    /// Imports a root file system and returns its only layer's directory.
    pub fn layer(&self, archive: &Archive) -> Result<PathBuf, ImportError> {
        let options = Options { rootfs: true, ..Options::default() };
        self.import_with(&archive.tar(), &options).map(|images| images[0].layers[0].clone())
    }

    /// Checks that the store holds nothing: no image, no layer, no work, no blob; and that outside nothing changed.
    pub fn assert_empty(&self, what: &str) {
        for folder in ["records", "layers", "tmp", "partial"] {
            let left = names(&self.store.root().join(folder));
            assert_eq!(left, Vec::<String>::new(), "{what}: left in {folder}");
        }
        self.assert_outside_untouched(what);
    }

    pub fn assert_outside_untouched(&self, what: &str) {
        assert_eq!(names(&self.outside()), ["target"], "{what}");
        assert_eq!(fs::read_to_string(self.outside().join("target")).unwrap(), "untouched", "{what}");
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Runs `test` on a thread in a mount namespace of its own; its mounts end with it.
pub fn with_own_mounts(test: impl FnOnce() + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn mount_tmpfs(at: &Path, size: &str) {
    use nix::mount::{MsFlags, mount};
    let options = format!("size={size},mode=755");
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(&*options)).unwrap();
}
