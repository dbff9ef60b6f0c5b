//! A real registry inside a node's network namespace, with images pushed by skopeo.
//!
//! Owns: the registry's process, which ends when dropped, and its folder below the node's. Never: pulls.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::node::Node;

/// Who may pull where the registry asks.
pub const USER: &str = "puller";
/// With which password.
pub const PASSWORD: &str = "secret";
/// Both, as `htpasswd -B` writes them.
const HTPASSWD: &str = "puller:$2y$05$jQRWbC5YhLlhd3iN1bgV1eadkenxXNQ8bolnJhv.Ozw7rsltJo/qa\n";

/// Why registries cannot be tested here, if they cannot.
pub fn cannot_run() -> Option<String> {
    let missing = ["docker-registry", "skopeo"].into_iter().find(|program| {
        !["/usr/bin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
    });
    missing.map(|program| format!("needs {program} (Debian package of that name)"))
}

/// A registry on the node's loopback.
pub struct Registry {
    process: Child,
    dir: PathBuf,
    address: String,
    auth: bool,
}

impl Registry {
    /// Starts one on a port of the node's loopback, with or without passwords.
    pub fn start(node: &Node, port: u16, auth: bool) -> anyhow::Result<Self> {
        let dir = node.dir().join(format!("registry-{port}"));
        fs::create_dir_all(&dir)?;
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.join("storage").display()
        );
        if auth {
            fs::write(dir.join("htpasswd"), HTPASSWD)?;
            config += &format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                dir.join("htpasswd").display()
            );
        }
        fs::write(dir.join("config.yml"), config)?;
        let log = File::create(dir.join("log"))?;
        let process = node
            .command()
            .args(["docker-registry", "serve"])
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry")?;
        let registry = Self { process, dir, address, auth };
        let start = Instant::now();
        while node.run_inside(&["/bin/busybox", "nc", "-w", "5", "127.0.0.1", &port.to_string()]).is_err() {
            let log = fs::read_to_string(registry.dir.join("log")).unwrap_or_default();
            ensure!(start.elapsed() < Duration::from_secs(20), "the registry does not listen: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// `127.0.0.1:<port>/<name>`.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Pushes an image under a name without the registry; `sha256:...` of its manifest.
    pub fn push(&self, node: &Node, image: &TestImage, name: &str) -> anyhow::Result<String> {
        let archive = self.dir.join("push.tar");
        image.write(&archive)?;
        let digest = self.dir.join("digest");
        let mut command = node.command();
        command.args(["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", "--digestfile"]);
        command.arg(&digest);
        if self.auth {
            command.arg(format!("--dest-creds={USER}:{PASSWORD}"));
        }
        let pushed = command
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://{}", self.name(name)))
            .stdin(Stdio::null())
            .output()
            .context("run skopeo")?;
        ensure!(pushed.status.success(), "skopeo: {}", String::from_utf8_lossy(&pushed.stderr));
        Ok(fs::read_to_string(&digest)?.trim().to_owned())
    }

    /// The files in which the registry keeps its blobs, largest first.
    pub fn blob_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = vec![];
        for group in fs::read_dir(self.dir.join("storage/docker/registry/v2/blobs/sha256"))? {
            for blob in fs::read_dir(group?.path())? {
                let file = blob?.path().join("data");
                found.push((fs::metadata(&file)?.len(), file));
            }
        }
        found.sort();
        Ok(found.into_iter().rev().map(|(_, file)| file).collect())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An image to push: busybox, and a layer with what sets it apart.
pub struct TestImage {
    version: String,
    noise: usize,
}

impl TestImage {
    /// `/version` holds `version`.
    pub fn new(version: &str) -> Self {
        Self { version: version.to_owned(), noise: 0 }
    }

    /// With so many bytes that do not compress.
    #[must_use]
    pub fn with_noise(mut self, bytes: usize) -> Self {
        self.noise = bytes;
        self
    }

    /// Writes it as `docker save` does.
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let dir = path.parent().context("a path in a folder")?;
        let lower = fs::read(crate::image::busybox_archive(dir)?)?;
        let mut upper = tar::Builder::new(vec![]);
        append(&mut upper, "version", format!("{}\n", self.version).as_bytes())?;
        if self.noise > 0 {
            append(&mut upper, "noise", &noise(self.noise))?;
        }
        let layers = [lower, upper.into_inner()?];
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| format!("sha256:{}", hex::encode(Sha256::digest(layer)))).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "cat /version; exec sleep 1000000"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [], "Layers": ["lower.tar", "upper.tar"]}]);
        let mut archive = tar::Builder::new(File::create(path)?);
        append(&mut archive, "config.json", config.to_string().as_bytes())?;
        append(&mut archive, "lower.tar", &layers[0])?;
        append(&mut archive, "upper.tar", &layers[1])?;
        append(&mut archive, "manifest.json", manifest.to_string().as_bytes())?;
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_mode(0o644);
    header.set_size(u64::try_from(content.len())?);
    tar.append_data(&mut header, name, content)?;
    Ok(())
}

/// Bytes that do not compress, the same each time (xorshift).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A pull secret for a registry.
pub fn pull_secret(name: &str, registry: &str, password: &str) -> Value {
    let config = json!({"auths": {registry: {"username": USER, "password": password}}});
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config.to_string()},
    })
}
