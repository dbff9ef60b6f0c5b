//! SIGKILL at any moment: what the store shows afterwards is whole, and what was half-made is gone.
#![allow(clippy::unwrap_used)]

mod image_fixture;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use image_fixture::{Archive, Scene, TestImage, gzip, image, names, noise, skip_without_root};
use orlop::image::import::{Options, Source, import};
use orlop::image::store::Store;

const STORE: &str = "ORLOP_TEST_STORE";
const FILES: usize = 80;

fn test_image(n: u64) -> TestImage {
    let shared = Archive::default().directory("etc", 0o755).file("etc/shared", &noise(50_000, 0)).tar();
    let mut own = Archive::default();
    for i in 0..FILES {
        own = own.file(&format!("file-{i}"), &noise(20_000, n * 100 + i as u64));
    }
    image(&[shared, own.tar()], gzip)
}

/// Not a test by itself: the process that is killed. Imports and removes images for ever.
#[test]
fn child() {
    let Ok(root) = std::env::var(STORE) else { return };
    let store = Store::open(Path::new(&root)).unwrap();
    for n in (0..3).cycle() {
        let archive = test_image(n).oci_archive(&format!("localhost/x:{n}"));
        let mut stream = &archive[..];
        println!("import");
        let images = import(&store, Source::Stream(&mut stream), &Options::default(), &|_| {}).unwrap();
        println!("remove");
        if n != 1 {
            store.remove(&images[0].id).unwrap();
        }
    }
}

#[test]
fn a_killed_process_leaves_whole_images_and_no_rubbish() {
    if skip_without_root("a_killed_process_leaves_whole_images_and_no_rubbish") {
        return;
    }
    let scene = Scene::new();
    let root = scene.store.root();
    let mut seen_half_made = 0;
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(STORE, root)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different step each round, and a different moment within it.
        let steps = 1 + round as usize % 7;
        assert_eq!(
            lines.by_ref().filter(|l| matches!(l.as_deref(), Ok("import" | "remove"))).take(steps).count(),
            steps
        );
        let spins = noise(2, round);
        for _ in 0..u32::from(spins[0]) * 256 + u32::from(spins[1]) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        seen_half_made += usize::from(!names(&root.join("tmp")).is_empty());
        check_whole(root, round);
    }
    println!("{seen_half_made} of 20 kills hit a work folder");
    assert!(seen_half_made > 0, "some kills must have hit an operation in the middle");
}

fn check_whole(root: &Path, round: u64) {
    let store = Store::open(root).unwrap();
    assert_eq!(names(&root.join("tmp")), Vec::<String>::new(), "round {round}");
    for folder in [root.to_owned(), root.join("records")] {
        let torn: Vec<_> = names(&folder).into_iter().filter(|name| name.ends_with(".new")).collect();
        assert_eq!(torn, Vec::<String>::new(), "round {round}");
    }
    for layer in names(&root.join("layers")) {
        assert!(root.join("layers").join(&layer).join("layer.json").exists(), "round {round}: {layer}");
    }
    for image in store.list().unwrap() {
        let n: u64 = image.repo_tags[0].rsplit_once(':').unwrap().1.parse().unwrap();
        assert!(
            std::fs::read(image.layers[0].join("etc/shared")).unwrap() == noise(50_000, 0),
            "round {round}"
        );
        for i in 0..FILES {
            let content = std::fs::read(image.layers[1].join(format!("file-{i}"))).unwrap();
            assert!(content == noise(20_000, n * 100 + i as u64), "round {round}: file-{i} of {n}");
        }
        assert_eq!(store.resolve(&image.repo_tags[0]).unwrap(), Some(image), "round {round}");
    }
}
