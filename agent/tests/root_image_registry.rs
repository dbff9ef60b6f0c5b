//! Pulls from Debian's docker-registry, with images pushed by skopeo: what real software does on the wire.
#![allow(clippy::unwrap_used)]

mod image_fixture;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use image_fixture::{Archive, Scene, TestImage, gzip, image, names, noise, skip_without_root};
use orlop::image::puller::{PullError, Puller};
use orlop::image::registry::{Keyring, RegistryConfig};
use orlop::image::store::Image;

/// `puller` with password `secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "puller:$2y$05$jQRWbC5YhLlhd3iN1bgV1eadkenxXNQ8bolnJhv.Ozw7rsltJo/qa\n";

fn skip(test: &str) -> bool {
    let missing = ["docker-registry", "skopeo"].into_iter().find(|program| {
        !["/usr/bin", "/usr/local/bin"].iter().any(|folder| Path::new(folder).join(program).exists())
    });
    if let Some(program) = missing {
        println!("SKIP {test}: needs {program} (Debian package of that name)");
    }
    missing.is_some() || skip_without_root(test)
}

/// A registry of its own port and folder, killed when dropped.
struct Registry {
    process: Child,
    dir: tempfile::TempDir,
    address: String,
    tls: bool,
}

impl Registry {
    fn start(auth: bool, tls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let storage = dir.path().join("storage");
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        if tls {
            let certified =
                rcgen::generate_simple_self_signed(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
            fs::write(dir.path().join("ca.pem"), certified.cert.pem()).unwrap();
            fs::write(dir.path().join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
            let path = dir.path().display();
            config += &format!("  tls:\n    certificate: {path}/ca.pem\n    key: {path}/key.pem\n");
        }
        if auth {
            fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
            config += &format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}/htpasswd\n",
                dir.path().display()
            );
        }
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, dir, address, tls };
        while std::net::TcpStream::connect(&registry.address).is_err() {
            std::thread::yield_now();
        }
        registry
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    fn push(&self, image: &TestImage, name: &str, options: &[&str]) {
        let archive = self.dir.path().join("push.tar");
        fs::write(&archive, image.oci_archive("localhost/push:1")).unwrap();
        let copied = Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false"])
            .args(options)
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{}", self.name(name)))
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }

    /// The file in which the registry keeps a blob.
    fn blob_file(&self, hex: &str) -> PathBuf {
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    fn config(&self) -> RegistryConfig {
        let authorities =
            if self.tls { vec![fs::read(self.dir.path().join("ca.pem")).unwrap()] } else { Vec::new() };
        RegistryConfig { authorities, ..RegistryConfig::default() }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn test_image() -> TestImage {
    let lower = Archive::default().directory("etc", 0o755).file("etc/a", b"1").tar();
    let upper = Archive::default().directory("usr", 0o755).file("usr/big", &noise(1_000_000, 5)).tar();
    image(&[lower, upper], gzip)
}

async fn pull(scene: &Scene, registry: &Registry, name: &str, keyring: &Keyring) -> Result<Image, PullError> {
    let puller = Puller::new(Arc::clone(&scene.store), registry.config());
    puller.pull(&registry.name(name), keyring, Arc::new(|_| {})).await
}

fn check(image: &Image) {
    assert_eq!(fs::read_to_string(image.layers[0].join("etc/a")).unwrap(), "1");
    assert!(fs::read(image.layers[1].join("usr/big")).unwrap() == noise(1_000_000, 5));
    assert_eq!(image.config.env, ["A=b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_image_is_pulled() {
    if skip("every_form_of_image_is_pulled") {
        return;
    }
    let registry = Registry::start(false, false);
    for (tag, options) in [
        ("oci", &["--format", "oci"][..]),
        ("schema2", &["--format", "v2s2"]),
        ("zstd", &["--format", "oci", "--dest-compress-format", "zstd", "--dest-compress"]),
    ] {
        registry.push(&test_image(), &format!("team/x:{tag}"), options);
        let scene = Scene::new();
        let image = pull(&scene, &registry, &format!("team/x:{tag}"), &Keyring::default()).await.unwrap();
        check(&image);
        assert_eq!(image.repo_tags, [registry.name(&format!("team/x:{tag}"))]);
        let digest = image.repo_digests[0].split_once('@').unwrap().1.to_owned();
        assert_eq!(image.status_id(), registry.name(&format!("team/x@{digest}")));
        scene.store.remove(&image.id).unwrap();
        scene.assert_empty(tag);
        let by_digest =
            pull(&scene, &registry, &format!("team/x@{digest}"), &Keyring::default()).await.unwrap();
        assert_eq!((by_digest.id, by_digest.repo_tags.len()), (image.id, 0), "{tag}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_tag_is_followed() {
    if skip("a_moved_tag_is_followed") {
        return;
    }
    let registry = Registry::start(false, false);
    let scene = Scene::new();
    registry.push(&test_image(), "x:latest", &[]);
    let first = pull(&scene, &registry, "x", &Keyring::default()).await.unwrap();
    let second = image(&[Archive::default().file("new", b"2").tar()], gzip);
    registry.push(&second, "x:latest", &[]);
    let moved = pull(&scene, &registry, "x", &Keyring::default()).await.unwrap();
    assert_ne!(moved.id, first.id);
    assert_eq!(scene.store.resolve(&registry.name("x")).unwrap().unwrap().id, moved.id);
    let old = scene.store.resolve(&first.repo_digests[0]).unwrap().unwrap();
    assert_eq!((old.id, old.repo_tags.len()), (first.id, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_and_certificates_are_asked_for() {
    if skip("passwords_and_certificates_are_asked_for") {
        return;
    }
    let registry = Registry::start(true, true);
    registry.push(&test_image(), "x:1", &["--dest-creds", "puller:secret"]);
    let keyring = |password: &str| {
        let auths =
            serde_json::json!({ registry.address.clone(): { "username": "puller", "password": password } });
        let mut keyring = Keyring::default();
        keyring.add_docker_config_json(serde_json::json!({ "auths": auths }).to_string().as_bytes()).unwrap();
        keyring
    };
    let scene = Scene::new();
    for wrong in [Keyring::default(), keyring("wrong")] {
        let error = pull(&scene, &registry, "x:1", &wrong).await.unwrap_err();
        assert!(error.to_string().contains("x:1: pull access denied"), "{error}");
        assert_eq!(error.reason(), "ErrImagePull");
    }
    let distrusting = Puller::new(Arc::clone(&scene.store), RegistryConfig::default());
    let error =
        distrusting.pull(&registry.name("x:1"), &keyring("secret"), Arc::new(|_| {})).await.unwrap_err();
    assert!(error.to_string().contains("TLS: "), "{error}");
    assert!(
        error.to_string().contains("nknownIssuer") || error.to_string().contains("certificate"),
        "{error}"
    );
    scene.assert_empty("refused pulls");
    check(&pull(&scene, &registry, "x:1", &keyring("secret")).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_blobs_are_refused() {
    if skip("damaged_blobs_are_refused") {
        return;
    }
    let registry = Registry::start(false, false);
    let test_image = test_image();
    registry.push(&test_image, "x:1", &[]);
    let scene = Scene::new();
    let big = test_image.layers[1].digest();
    let file = registry.blob_file(big.hex());
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[500_000] ^= 1;
    for (bytes, part) in [(flipped, big.to_string()), (good[..400_000].to_vec(), big.to_string())] {
        fs::write(&file, bytes).unwrap();
        let error = pull(&scene, &registry, "x:1", &Keyring::default()).await.unwrap_err().to_string();
        assert!(error.contains(&part), "{error}");
        assert_eq!(scene.store.list().unwrap(), []);
        assert_eq!(names(&scene.store.root().join("tmp")), Vec::<String>::new());
    }
    fs::write(&file, good).unwrap();
    check(&pull(&scene, &registry, "x:1", &Keyring::default()).await.unwrap());
    for (name, part) in [("x:none", "x:none: not found"), ("none:1", "none:1: not found")] {
        let error = pull(&scene, &registry, name, &Keyring::default()).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
