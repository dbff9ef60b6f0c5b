//! The store's promises, on a temporary folder.

use super::super::layers::Unpacked;
use super::*;

fn unpacked(content: &[u8]) -> Unpacked {
    let diff_id = Digest::of(content);
    Unpacked { blob: diff_id.clone(), blob_size: 1, diff_id, size: 10, entries: 1, implied: Vec::new() }
}

fn add_layer(store: &Store, content: &[u8]) -> Digest {
    let work = store.begin().unwrap();
    let directory = work.layer_directory().unwrap();
    fs::write(directory.join("file"), content).unwrap();
    let unpacked = unpacked(content);
    store.commit_layer(&work, &unpacked).unwrap();
    unpacked.diff_id
}

fn record(id: &[u8], tags: &[&str], layers: Vec<Digest>) -> Record {
    Record {
        id: Digest::of(id),
        tags: tags.iter().map(|t| t.parse::<Reference>().unwrap().to_string()).collect(),
        digests: BTreeSet::new(),
        size: 10,
        config: ImageConfig::default(),
        layers,
        folders: Vec::new(),
        tagged_at: 0,
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn an_image_is_found_by_every_name_it_has() {
    let (_dir, store) = store();
    let layer = add_layer(&store, b"l");
    let mut one = record(b"1", &["busybox:1"], vec![layer]);
    one.digests.insert(format!("docker.io/library/busybox@{}", Digest::of(b"m")));
    let image = store.commit(one).unwrap();
    let id = image.id.to_string();
    for name in [
        "busybox:1",
        "docker.io/library/busybox:1",
        &format!("busybox@{}", Digest::of(b"m")),
        &format!("busybox:other@{}", Digest::of(b"m")),
        &id,
        &id[7..],
        &id[7..20],
    ] {
        assert_eq!(store.resolve(name).unwrap().map(|i| i.id), Some(image.id.clone()), "{name}");
    }
    for name in ["busybox", "busybox:2", "other/busybox:1", &id[7..12], "", "Not A Name"] {
        assert_eq!(store.resolve(name).unwrap(), None, "{name}");
    }
}

#[test]
fn another_process_sees_a_change_at_once() {
    let (dir, store) = store();
    assert_eq!(store.resolve("x").unwrap(), None);
    let other = Store::open(dir.path()).unwrap();
    let layer = add_layer(&other, b"l");
    other.commit(record(b"1", &["x"], vec![layer.clone()])).unwrap();
    assert!(store.resolve("x").unwrap().is_some());
    other.commit(record(b"2", &["x"], vec![layer])).unwrap();
    assert_eq!(store.resolve("x").unwrap().unwrap().id, Digest::of(b"2"));
    assert_eq!(
        store.resolve(&Digest::of(b"1").to_string()).unwrap().unwrap().repo_tags,
        Vec::<String>::new()
    );
}

#[test]
fn an_image_without_its_layers_cannot_be_recorded_and_counts_as_absent() {
    let (dir, store) = store();
    let missing = record(b"1", &["x"], vec![Digest::of(b"nothing")]);
    assert!(matches!(store.commit(missing), Err(StoreError::MissingLayers { .. })));
    let layer = add_layer(&store, b"l");
    store.commit(record(b"1", &["x"], vec![layer.clone()])).unwrap();
    let folder = dir.path().join("layers").join(layer.file_name());
    fs::remove_file(folder.join("layer.json")).unwrap();
    assert_eq!(store.resolve("x").unwrap(), None);
    assert_eq!(store.list().unwrap(), []);
    add_layer(&store, b"l");
    assert!(store.resolve("x").unwrap().is_some(), "unpacking the layer again heals the image");
}

#[test]
fn removal_spares_shared_layers_and_held_images() {
    let (dir, store) = store();
    let (shared, own) = (add_layer(&store, b"shared"), add_layer(&store, b"own"));
    let one = store.commit(record(b"1", &["x:1"], vec![shared.clone(), own.clone()])).unwrap();
    store.commit(record(b"2", &["x:2"], vec![shared.clone()])).unwrap();
    store.hold(&one.id, "pod-1").unwrap();
    store.hold(&one.id, "pod-2").unwrap();
    let error = store.remove(&one.id).unwrap_err().to_string();
    assert!(error.contains("pod-1, pod-2"), "{error}");
    assert_eq!(Store::open(dir.path()).unwrap().holds().unwrap().len(), 2, "holds outlive the process");
    store.release(&one.id, "pod-1").unwrap();
    store.release(&one.id, "pod-2").unwrap();
    store.release(&one.id, "pod-2").unwrap();
    assert_eq!(store.remove(&one.id).unwrap(), 10);
    assert!(store.layer(&own).is_none() && store.layer(&shared).is_some());
    assert!(matches!(store.remove(&one.id), Err(StoreError::NotFound(_))));
    assert!(matches!(store.hold(&one.id, "pod-1"), Err(StoreError::NotFound(_))));
    assert!(matches!(store.hold(&one.id, "../x"), Err(StoreError::InvalidOwner(_))));
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
    let (dir, store) = store();
    fs::create_dir_all(dir.path().join("tmp/dead/layer/fs/etc")).unwrap();
    let living = store.begin().unwrap();
    let other = Store::open(dir.path()).unwrap();
    assert!(!dir.path().join("tmp/dead").exists());
    assert!(living.path().exists());
    let path = living.path().to_owned();
    drop(living);
    assert!(!path.exists());
    drop(other);
}

#[test]
fn a_torn_record_is_an_absent_image() {
    let (dir, store) = store();
    let layer = add_layer(&store, b"l");
    let image = store.commit(record(b"1", &["x"], vec![layer])).unwrap();
    fs::write(dir.path().join("records").join(format!("{}.json", image.id.file_name())), "{\"id\":").unwrap();
    let fresh = Store::open(dir.path()).unwrap();
    assert_eq!(fresh.resolve("x").unwrap(), None);
}

#[test]
fn orphaned_layers_and_blobs_go_when_old() {
    let (_dir, store) = store();
    let orphan = add_layer(&store, b"orphan");
    let work = store.begin().unwrap();
    let blob = Digest::of(b"blob");
    std::os::unix::fs::FileExt::write_all_at(store.partial(&blob, &work).unwrap().file(), b"12345", 0)
        .unwrap();
    let (now, hour) = (SystemTime::now(), std::time::Duration::from_secs(3600));
    assert_eq!(store.sweep_layers(hour, now).unwrap(), Reclaimed::default());
    assert_eq!(store.sweep_partial(hour, now).unwrap(), 0);
    assert_eq!(store.sweep_layers(hour, now + 2 * hour).unwrap(), Reclaimed { layers: 1, bytes: 10 });
    let busy = store.partial(&blob, &work).unwrap();
    assert_eq!(store.sweep_partial(hour, now + 2 * hour).unwrap(), 0, "someone writes it");
    let second = store.partial(&blob, &work).unwrap();
    assert!(second.path().starts_with(work.path()), "a second writer gets a file of its own");
    drop(busy);
    assert_eq!(store.sweep_partial(hour, now + 2 * hour).unwrap(), 5);
    assert!(store.layer(&orphan).is_none());
}

#[test]
fn untagging_leaves_the_other_names() {
    let (_dir, store) = store();
    let layer = add_layer(&store, b"l");
    store.commit(record(b"1", &["x:1", "x:2"], vec![layer])).unwrap();
    assert!(store.untag(&"x:1".parse().unwrap()).unwrap());
    assert_eq!(store.resolve("x:1").unwrap(), None);
    assert!(!store.untag(&"x:2".parse().unwrap()).unwrap());
    assert!(matches!(store.untag(&"x:2".parse().unwrap()), Err(StoreError::NotFound(_))));
}

#[test]
fn a_layer_that_lost_its_content_is_dropped_once_for_each_boot() {
    let (dir, store) = store();
    let (good, bad) = (add_layer(&store, b"good"), add_layer(&store, b"bad"));
    store.commit(record(b"1", &["x:1"], vec![good.clone()])).unwrap();
    store.commit(record(b"2", &["x:2"], vec![good, bad.clone()])).unwrap();
    assert_eq!(store.verify_after_boot("first").unwrap(), Vec::<String>::new());
    fs::write(store.layer(&bad).unwrap().join("file"), "").unwrap();
    assert_eq!(
        store.verify_after_boot("first").unwrap(),
        Vec::<String>::new(),
        "this boot has been looked at"
    );
    let next = Store::open(dir.path()).unwrap();
    assert_eq!(next.verify_after_boot("second").unwrap(), [bad.file_name()]);
    assert!(next.resolve("x:1").unwrap().is_some());
    assert_eq!(next.resolve("x:2").unwrap(), None, "to be pulled again");
    add_layer(&next, b"bad");
    assert!(next.resolve("x:2").unwrap().is_some());
}

#[test]
fn other_users_of_the_host_cannot_reach_into_images() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state/images");
    fs::create_dir_all(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&root).unwrap();
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_pod_that_is_gone_releases_every_image_it_held() {
    let (_dir, store) = store();
    let layer = add_layer(&store, b"l");
    let one = store.commit(record(b"1", &["x:1"], vec![layer.clone()])).unwrap();
    let two = store.commit(record(b"2", &["x:2"], vec![layer])).unwrap();
    for (id, owner) in [(&one.id, "a"), (&two.id, "a"), (&two.id, "b"), (&two.id, "b")] {
        store.hold(id, owner).unwrap();
    }
    assert_eq!(store.release_all("a").unwrap(), 2);
    assert_eq!(store.holds().unwrap(), [(two.id.clone(), "b".to_owned())]);
    store.remove(&one.id).unwrap();
    assert!(matches!(store.remove(&two.id), Err(StoreError::InUse { .. })));
    assert!(matches!(store.release_all("../x"), Err(StoreError::InvalidOwner(_))));
}

#[test]
fn changes_of_images_are_told() {
    let (_dir, store) = store();
    let mut changes = store.changes();
    assert!(!changes.has_changed().unwrap());
    let layer = add_layer(&store, b"l");
    let image = store.commit(record(b"1", &["x:1"], vec![layer])).unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    store.remove(&image.id).unwrap();
    assert!(changes.has_changed().unwrap());
}
