//! Image archives: OCI layouts and `docker save`, good and bad.

#![allow(clippy::unwrap_used)]

mod image_fixture;

use std::fs;
use std::os::unix::fs::MetadataExt;

use image_fixture::{Archive, Scene, TestImage, gzip, image, noise, skip_without_root, with_config};
use orlop::image::digest::Digest;
use orlop::image::import::Options;
use orlop::image::manifest::Platform;
use orlop::image::store::Image;

fn two_layers() -> TestImage {
    let lower = Archive::default().directory("etc", 0o755).file("etc/a", b"1").tar();
    let upper = Archive::default().directory("etc", 0o755).file("etc/b", &noise(200_000, 3)).tar();
    image(&[lower, upper], gzip)
}

#[test]
fn oci_archives_come_in_plain_and_compressed() {
    if skip_without_root("oci_archives_come_in_plain_and_compressed") {
        return;
    }
    let plain = two_layers().oci_archive("localhost/x:1");
    for archive in [plain.clone(), gzip(&plain), zstd::stream::encode_all(&plain[..], 3).unwrap()] {
        let scene = Scene::new();
        let images = scene.import(&archive).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].repo_tags, ["localhost/x:1"]);
        assert_eq!(images[0].repo_digests, [format!("localhost/x@{}", two_layers().manifest.digest())]);
        assert_eq!(images[0].id, two_layers().config.digest());
        assert_eq!(images[0].config.cmd, ["/bin/sh"]);
        assert_eq!(images[0].layers.len(), 2);
        assert!(images[0].layers[0].join("etc/a").exists() && images[0].layers[1].join("etc/b").exists());
        assert_eq!(scene.store.resolve("localhost/x:1").unwrap().as_ref(), Some(&images[0]));
    }
}

#[test]
fn the_name_can_be_given_instead() {
    if skip_without_root("the_name_can_be_given_instead") {
        return;
    }
    let scene = Scene::new();
    let options = Options {
        tags: vec!["mine:2".parse().unwrap(), "other/mine".parse().unwrap()],
        ..Options::default()
    };
    let images = scene.import_with(&two_layers().oci_archive("localhost/x:1"), &options).unwrap();
    assert_eq!(images[0].repo_tags, ["docker.io/library/mine:2", "docker.io/other/mine:latest"]);
    assert_eq!(scene.store.resolve("localhost/x:1").unwrap(), None);
}

#[test]
fn docker_archives_share_layers_by_links() {
    if skip_without_root("docker_archives_share_layers_by_links") {
        return;
    }
    let test_image = two_layers();
    let tars: Vec<Vec<u8>> = test_image
        .layers
        .iter()
        .map(|l| {
            std::io::Read::bytes(flate2::read::GzDecoder::new(&l.bytes[..])).map(Result::unwrap).collect()
        })
        .collect();
    let config_name = format!("{}.json", test_image.config.digest().hex());
    let manifest = serde_json::json!([
        { "Config": config_name, "RepoTags": ["x:1", "x:2"], "Layers": ["one/layer.tar", "two/layer.tar"] },
        { "Config": config_name, "RepoTags": null, "Layers": ["three/layer.tar", "two/layer.tar"] },
    ]);
    let archive = Archive::default()
        .file(&config_name[..], &test_image.config.bytes)
        .file("one/layer.tar", &tars[0])
        .file("two/layer.tar", &tars[1])
        .symlink("three/layer.tar", "../one/layer.tar")
        .file("manifest.json", manifest.to_string().as_bytes());
    let scene = Scene::new();
    let images = scene.import(&archive.tar()).unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(images[0].repo_tags, ["docker.io/library/x:1", "docker.io/library/x:2"]);
    assert_eq!(images[0].id, images[1].id);
    let named = Options { tags: vec!["y".parse().unwrap()], ..Options::default() };
    let error = Scene::new().import_with(&archive.tar(), &named).unwrap_err().to_string();
    assert!(error.contains("2 images"), "{error}");
}

#[test]
fn corrupt_archives_are_refused_and_leave_nothing() {
    if skip_without_root("corrupt_archives_are_refused_and_leave_nothing") {
        return;
    }
    let good = two_layers();
    let mut wrong_layer = good.clone();
    let last = wrong_layer.layers[1].bytes.len() - 20;
    wrong_layer.layers[1].bytes[last] ^= 0xff;
    // The same names with other content: the archive keeps the digests of the good one.
    let forged = |name: &str, bytes: &[u8]| {
        let mut archive = Archive::default().file("oci-layout", b"{}").file("index.json", &index(&good));
        for blob in good.blobs() {
            let path = format!("blobs/sha256/{}", blob.digest().hex());
            let content = if path.ends_with(name) { bytes } else { &blob.bytes[..] };
            archive = archive.file(&path, content);
        }
        archive.tar()
    };
    let layer = good.layers[1].digest();
    let config = good.config.digest();
    let other_diff = with_config(
        serde_json::json!({"architecture": Platform::host().architecture, "os": "linux", "rootfs": {"type": "layers",
            "diff_ids": [Digest::of(b"1"), Digest::of(b"2")]}})
        .to_string()
        .into_bytes(),
        good.layers.clone(),
    );
    let one_diff = with_config(
        serde_json::json!({"architecture": Platform::host().architecture, "os": "linux", "rootfs": {"type": "layers",
            "diff_ids": [Digest::of(b"1")]}})
        .to_string()
        .into_bytes(),
        good.layers.clone(),
    );
    let foreign = String::from_utf8(good.config.bytes.clone())
        .unwrap()
        .replace(&Platform::host().architecture, "s390x");
    let foreign = with_config(foreign.into_bytes(), good.layers.clone());
    let escaping = [good.oci_archive("x/y:1")[..].to_vec()].concat();
    let escaping =
        [Archive::default().file("../../etc/cron.d/x", b"x").tar()[..1024].to_vec(), escaping].concat();
    for (archive, reason) in [
        (forged(layer.hex(), &wrong_layer.layers[1].bytes), layer.hex()),
        (forged(layer.hex(), &good.layers[1].bytes[..5000]), layer.hex()),
        (forged(config.hex(), b"{}"), "digest"),
        (forged(good.manifest.digest().hex(), &other_diff.manifest.bytes), "digest"),
        (other_diff.oci_archive("x/y:1"), "has digest"),
        (one_diff.oci_archive("x/y:1"), "lists 1 layers where the manifest has 2"),
        (escaping, "leads out of the archive"),
        (foreign.oci_archive("x/y:1"), "there are: linux/s390x"),
        (
            Archive::default().file("oci-layout", b"{}").file("index.json", b"{}").tar(),
            "not an image manifest",
        ),
        (
            Archive::default().file("oci-layout", b"{}").file("index.json", &index(&good)).tar(),
            "it has no file",
        ),
        (Archive::default().file("manifest.json", b"{}").tar(), "not a list of images"),
        (Archive::default().file("manifest.json", b"[]").tar(), "names no image"),
        (Archive::default().symlink("manifest.json", "manifest.json").tar(), "it has no file"),
        (
            Archive::default().file("manifest.json", br#"[{"Config":"/etc/passwd","Layers":[]}]"#).tar(),
            "it has no file \"/etc/passwd\"",
        ),
    ] {
        let scene = Scene::new();
        let error = scene.import(&archive).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(error.contains("standard input") || error.contains("layer "), "names the thing: {error}");
        scene.assert_empty(reason);
    }
}

#[test]
fn directories_an_archive_leaves_out_keep_owner_and_mode_of_the_layer_below() {
    if skip_without_root("directories_an_archive_leaves_out_keep_owner_and_mode_of_the_layer_below") {
        return;
    }
    let scene = Scene::new();
    let upper =
        Archive::default().file("tmp/file", b"x").symlink("home/app/link", "/x").file("new/file", b"x").tar();
    let lower = |mode| {
        Archive::default().directory("tmp", mode).directory("home", 0o755).directory("home/app", 0o700).tar()
    };
    let stack = |mode| {
        scene.import(&image(&[lower(mode), upper.clone()], gzip).oci_archive("x/y:1")).unwrap().remove(0)
    };
    let (sticky, plain) = (stack(0o1777), stack(0o750));
    for (image, mode) in [(&sticky, 0o1777), (&plain, 0o750)] {
        let attributes = |path: &str| {
            let metadata = image.layers[1].join(path).metadata().unwrap();
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
        };
        assert_eq!(attributes("tmp"), (mode, 1000, 1001));
        assert_eq!(attributes("home"), (0o755, 1000, 1001));
        assert_eq!(attributes("home/app"), (0o700, 1000, 1001));
        assert_eq!(attributes("new"), (0o755, 0, 0));
        assert_eq!(attributes("."), (0o755, 0, 0));
        assert_eq!(fs::read(image.layers[1].join("tmp/file")).unwrap(), b"x");
        assert_eq!(scene.store.resolve(&image.id.to_string()).unwrap().unwrap().layers, image.layers);
    }
    let inode = |image: &Image| image.layers[1].join("tmp/file").metadata().unwrap().ino();
    assert_eq!(inode(&sticky), inode(&plain), "copies share their files");
    assert_eq!(stack(0o1777).layers, sticky.layers, "and are made once");
    scene.store.remove(&plain.id).unwrap();
    assert!(sticky.layers[1].join("tmp/file").exists());
    scene.store.remove(&sticky.id).unwrap();
    scene.assert_empty("settled copies");
}

fn index(image: &TestImage) -> Vec<u8> {
    serde_json::json!({ "schemaVersion": 2, "manifests": [image.manifest.descriptor()] })
        .to_string()
        .into_bytes()
}

#[test]
fn an_image_for_another_machine_is_refused() {
    if skip_without_root("an_image_for_another_machine_is_refused") {
        return;
    }
    let good = two_layers();
    let mut entry = good.manifest.descriptor();
    entry["platform"] = serde_json::json!({ "os": "linux", "architecture": "mips" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let archive = Archive::default().file("oci-layout", b"{}").file("index.json", index.as_bytes()).tar();
    let scene = Scene::new();
    let error = scene.import(&archive).unwrap_err().to_string();
    assert!(error.contains("there are: linux/mips"), "{error}");
    scene.assert_empty("platform");
    let missing = scene.dir.path().join("none.tar");
    let source = orlop::image::import::Source::Path(&missing);
    let error = orlop::image::import::import(&scene.store, source, &Options::default(), &|_| {}).unwrap_err();
    assert!(error.to_string().contains("none.tar"), "{error}");
    assert_eq!(fs::read_dir(scene.store.root().join("tmp")).unwrap().count(), 0);
}
