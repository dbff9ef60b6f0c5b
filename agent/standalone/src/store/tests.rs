//! The store across restarts, kills and flushes.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn config_map(name: &str, text: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "data": {"k": text}})
}

fn put(store: &Store, name: &str, text: &str) {
    store.write::<_, StoreError>(|tx| tx.put(Kind::ConfigMap, config_map(name, text))).unwrap();
}

fn delete(store: &Store, name: &str) {
    store.write::<_, StoreError>(|tx| tx.delete(Kind::ConfigMap, "default", name)).unwrap();
}

fn content(store: &Store) -> Vec<(String, String)> {
    let page = store.list(Kind::ConfigMap, Some("default"), None, usize::MAX).unwrap();
    let text = |b: &Bytes| object::text_at(&object::parse(b), &["data", "k"]).to_owned();
    page.items.iter().map(|(k, b)| (k.rsplit('/').next().unwrap().to_owned(), text(b))).collect()
}

#[test]
fn a_killed_process_finds_everything_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "a", "1");
    put(&store, "b", "1");
    store.flush().unwrap();
    put(&store, "b", "2");
    delete(&store, "a");
    put(&store, "c", "1");
    let version = store.version();
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(content(&store), [("b".into(), "2".into()), ("c".into(), "1".into())]);
    assert!(store.version() > version, "versions given out before are old now");
    assert_eq!(store.count(Kind::ConfigMap), 2);
}

#[test]
fn a_database_that_was_opened_anew_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "a", "1");
    store.flush().unwrap();
    put(&store, "b", "1");
    store.disk.reopen();
    assert_eq!(content(&store).len(), 2);
    store.flush().unwrap();
    assert_eq!(content(&store).len(), 2);
}

#[test]
fn versions_never_go_back_whatever_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..4 {
        let store = Store::open(dir.path()).unwrap();
        assert!(store.version() >= last, "round {round}");
        put(&store, "a", "1");
        last = store.version();
        drop(store);
        // A power cut: the log never reached the disk.
        for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("log.") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

#[test]
fn a_closed_store_goes_on_with_its_versions() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "a", "1");
    let version = store.version();
    store.close().unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.version(), version);
    assert!(store.since(Kind::ConfigMap, version).unwrap().is_empty());
}

#[test]
fn a_failed_change_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let result: Result<(), StoreError> = store.write(|tx| {
        tx.put(Kind::ConfigMap, config_map("a", "1"))?;
        Err(StoreError::File { what: "test", path: String::new(), source: std::io::Error::other("no") })
    });
    assert!(result.is_err());
    assert!(content(&store).is_empty());
    assert_eq!(store.version(), 0);
}

#[test]
fn pages_follow_each_other_without_gap() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for i in 0..5 {
        put(&store, &format!("n{i}"), "1");
        if i == 2 {
            store.flush().unwrap();
        }
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = store.list(Kind::ConfigMap, None, after.as_deref(), 2).unwrap();
        seen.extend(page.items.iter().map(|(k, _)| k.clone()));
        after = seen.last().cloned();
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, (0..5).map(|i| format!("configmaps/default/n{i}")).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn overlay_and_database_read_as_one_map(steps in prop::collection::vec((0..4u8, 0..6u8, 0..100u8), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let mut model = BTreeMap::new();
        for (what, name, text) in steps {
            let name = format!("n{name}");
            match what {
                0 => { delete(&store, &name); model.remove(&name); }
                1 => store.flush().unwrap(),
                2 if text < 10 => { drop(store); store = Store::open(dir.path()).unwrap(); }
                _ => { put(&store, &name, &text.to_string()); model.insert(name, text.to_string()); }
            }
            prop_assert_eq!(content(&store), model.clone().into_iter().collect::<Vec<_>>());
        }
    }
}
