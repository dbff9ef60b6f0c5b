//! What a guest boots from, made once and kept under `target/guest`.
//!
//! Owns: that folder; one image for each version of the script that makes it. Never: installs anything on this machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

const SCRIPT: &str = include_str!("image.sh");
const AGENT: &str = include_str!("agent.sh");
/// What the script calls. All of it comes from Debian packages that the runner installs.
const TOOLS: [&str; 3] = ["mmdebstrap", "mkfs.ext4", "dpkg-deb"];

/// A root file system, a kernel and the program that runs them.
#[derive(Debug, Clone)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// Why there can be no image here, if so.
    pub fn cannot_be_made() -> Option<String> {
        if !cfg!(target_arch = "x86_64") {
            return Some("a guest needs an x86_64 host".to_owned());
        }
        if !Path::new("/dev/net/tun").exists() {
            return Some("a guest needs /dev/net/tun".to_owned());
        }
        let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| !in_path(tool)).collect();
        (!missing.is_empty()).then(|| format!("a guest needs {}", missing.join(", ")))
    }

    /// The image, made if it is not there yet.
    ///
    /// # Errors
    /// Where a package cannot be had, with the last words of what failed.
    pub fn open() -> anyhow::Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
        fs::create_dir_all(&folder)?;
        let folder = folder.canonicalize()?;
        let key = hex::encode(Sha256::new().chain_update(SCRIPT).chain_update(AGENT).finalize());
        let dir = folder.join(&key[..16]);
        // Two runs at once: the second waits for what the first makes.
        let _lock =
            nix::fcntl::Flock::lock(File::create(folder.join("lock"))?, nix::fcntl::FlockArg::LockExclusive)
                .map_err(|(_, errno)| errno)?;
        if !dir.exists() {
            make(&folder, &dir)?;
        }
        Ok(Self { dir })
    }

    /// The root file system, to be copied.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The machine's program, with its own libraries: nothing of it is installed.
    pub fn qemu(&self) -> Vec<String> {
        let base = self.dir.join("qemu").display().to_string();
        let library = format!("{base}/usr/lib/x86_64-linux-gnu");
        [
            "env".to_owned(),
            format!("QEMU_MODULE_DIR={library}/qemu"),
            format!("{base}/lib64/ld-linux-x86-64.so.2"),
            "--library-path".to_owned(),
            format!("{library}:{base}/lib/x86_64-linux-gnu:{library}/pulseaudio"),
            format!("{base}/usr/bin/qemu-system-x86_64"),
            "-L".to_owned(),
            format!("{base}/usr/share/qemu"),
            "-L".to_owned(),
            format!("{base}/usr/share/seabios"),
        ]
        .into()
    }
}

fn in_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).exists())
}

/// Makes the image beside its place, then moves it there whole.
fn make(folder: &Path, dir: &Path) -> anyhow::Result<()> {
    let part = tempfile::Builder::new().prefix("part-").tempdir_in(folder)?;
    let (script, agent) = (part.path().join("image.sh"), part.path().join("agent.sh"));
    fs::write(&script, SCRIPT)?;
    fs::write(&agent, AGENT)?;
    let log = part.path().join("log");
    let status = Command::new("sh")
        .args([&script, part.path(), &agent])
        .stdin(Stdio::null())
        .stdout(File::create(&log)?)
        .stderr(File::options().append(true).open(&log)?)
        .status()
        .context("sh")?;
    if !status.success() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().filter(|line| !line.is_empty()).take(3).collect();
        bail!("{status}: {}", last.into_iter().rev().collect::<Vec<_>>().join(" | "));
    }
    for made in ["root.ext4", "vmlinuz", "qemu/usr/bin/qemu-system-x86_64"] {
        ensure!(part.path().join(made).exists(), "the image has no {made}");
    }
    fs::rename(part.keep(), dir)?;
    Ok(())
}
