//! Full disks, on small file systems of their own: an error that names the disk, and nothing left on it.
#![allow(clippy::unwrap_used)] // These are tests.

mod image_fixture;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use image_fixture::server::{Server, well_behaved};
use image_fixture::{Archive, Scene, gzip, image, mount_tmpfs, names, skip_without_root, with_own_mounts};
use orlop::image::import::{Options, Source, import};
use orlop::image::puller::Puller;
use orlop::image::registry::{Keyring, RegistryConfig};
use orlop::image::store::Store;

fn on_a_small_disk(test: impl FnOnce(&Scene, &Path) + Send + 'static) {
    with_own_mounts(|| {
        let scene = Scene::new();
        let disk = scene.dir.path().join("disk");
        fs::create_dir(&disk).unwrap();
        mount_tmpfs(&disk, "4m");
        test(&scene, &disk);
    });
}

fn assert_nothing_on(disk: &Path) {
    for folder in ["records", "layers", "tmp", "partial"] {
        assert_eq!(names(&disk.join("images").join(folder)), Vec::<String>::new(), "{folder}");
    }
}

#[test]
fn a_full_disk_during_an_import_leaves_nothing() {
    if skip_without_root("a_full_disk_during_an_import_leaves_nothing") {
        return;
    }
    on_a_small_disk(|scene, disk| {
        let store = Store::open(&disk.join("images")).unwrap();
        let archive = scene.dir.path().join("big.tar.gz");
        let tar = Archive::default().file("small", b"x").file("usr/big", &vec![0; 8 << 20]).tar();
        fs::write(&archive, gzip(&tar)).unwrap();
        let error =
            import(&store, Source::Path(&archive), &Options::default(), &|_| {}).unwrap_err().to_string();
        assert!(error.contains("usr/big") && error.contains("no space left"), "{error}");
        assert!(error.contains(disk.to_str().unwrap()), "{error}");
        assert_nothing_on(disk);
        let small = Archive::default().file("small", b"x").tar();
        let mut stream = &small[..];
        let options = Options { rootfs: true, ..Options::default() };
        assert_eq!(import(&store, Source::Stream(&mut stream), &options, &|_| {}).unwrap().len(), 1);
        assert_eq!(store.sweep_layers(Duration::ZERO, SystemTime::now()).unwrap().layers, 0);
        assert_eq!(store.candidates(&BTreeSet::new()).unwrap().len(), 1);
    });
}

#[test]
fn a_full_disk_during_a_pull_leaves_nothing() {
    if skip_without_root("a_full_disk_during_a_pull_leaves_nothing") {
        return;
    }
    on_a_small_disk(|_, disk| {
        // Whether blob or layer fills the disk must not depend on who is faster. So the blob of the first unpacks to
        // nothing for longer than there is room; that of the second is small and its layer is not.
        let nothing = gzip(b"").repeat((6 << 20) / gzip(b"").len());
        for (before, size, part) in [(nothing, 1, "partial"), (Vec::new(), 8 << 20, "usr/big")] {
            let store = Arc::new(Store::open(&disk.join("images")).unwrap());
            let small = Archive::default().file("small", b"x").tar();
            let big = Archive::default().file("usr/big", &vec![0; size]).tar();
            let pack = |tar: &[u8]| if tar == small { gzip(tar) } else { [&*before, &*gzip(tar)].concat() };
            let image = image(&[small.clone(), big], pack);
            let layers = disk.join("images/layers");
            let server = Server::start(move |asked| {
                // There is a whole layer that has to go again.
                while asked.path.ends_with(&image.layers[1].digest().to_string()) && names(&layers).is_empty()
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                well_behaved(&image, asked)
            });
            let puller = Puller::new(store, RegistryConfig::default());
            // Threads started from here see this thread's mounts.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let name = server.image("x:1");
            let keyring = Keyring::default();
            let error = runtime.block_on(puller.pull(&name, &keyring, Arc::new(|_| {}))).unwrap_err();
            assert!(error.is_disk_full(), "{error}");
            assert!(error.to_string().contains(disk.to_str().unwrap()), "{error}");
            assert!(error.to_string().contains(part), "{error}");
            drop(runtime);
            assert_nothing_on(disk);
        }
    });
}
