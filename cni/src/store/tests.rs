//! Tests of the address store: what it gives out, and what it survives.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::range::Range;
use super::*;

fn ranges(subnets: &[&str]) -> Vec<RangeSet> {
    subnets.iter().map(|s| vec![Range::new(s.parse().unwrap(), None, None, None).unwrap()]).collect()
}

fn owner(n: usize) -> Owner {
    Owner::new(&format!("c{n}"), "eth0")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn lease(store: &mut Store, n: usize, sets: &[RangeSet]) -> String {
    store.lease(&owner(n), sets, &[]).unwrap()[0].address.to_string()
}

#[test]
fn addresses_go_round_before_a_released_one_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::new(dir.path(), "n");
    let sets = ranges(&["10.0.0.0/29"]);
    assert_eq!(lease(&mut store, 1, &sets), "10.0.0.2");
    assert_eq!(lease(&mut store, 2, &sets), "10.0.0.3");
    store.release(&[owner(2)]).unwrap();
    store.release(&[owner(1)]).unwrap();
    let next: Vec<_> = (3..8).map(|n| lease(&mut store, n, &sets)).collect();
    assert_eq!(next, ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.2"]);
    let full = store.lease(&owner(9), &sets, &[]).unwrap_err();
    assert_eq!(full.to_string(), "no address is free in 10.0.0.1-10.0.0.6");
    assert!(store.has_free(&sets).is_err());
}

#[test]
fn one_address_of_each_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::new(dir.path(), "n");
    let sets = ranges(&["10.0.0.0/24", "fd00::/64"]);
    let got = store.lease(&owner(1), &sets, &[]).unwrap();
    assert_eq!(got.iter().map(|l| l.address).collect::<Vec<_>>(), [ip("10.0.0.2"), ip("fd00::2")]);
    assert_eq!(store.addresses(&owner(1)).unwrap().unwrap().len(), 2);
    assert_eq!(store.addresses(&owner(2)).unwrap(), None);
}

#[test]
fn ranges_of_a_set_are_used_one_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::new(dir.path(), "n");
    let sets = vec![ranges(&["10.0.0.0/30", "10.0.1.0/30"]).concat()];
    assert_eq!(
        (lease(&mut store, 1, &sets), lease(&mut store, 2, &sets)),
        ("10.0.0.2".into(), "10.0.1.2".into())
    );
    store.release(&[owner(1)]).unwrap();
    assert_eq!(lease(&mut store, 3, &sets), "10.0.0.2");
}

#[test]
fn requested_addresses_are_given_or_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::new(dir.path(), "n");
    let sets = ranges(&["10.0.0.0/24", "fd00::/64"]);
    let got = store.lease(&owner(1), &sets, &[ip("fd00::99")]).unwrap();
    assert_eq!(got.iter().map(|l| l.address).collect::<Vec<_>>(), [ip("10.0.0.2"), ip("fd00::99")]);
    assert!(matches!(store.lease(&owner(2), &sets, &[ip("fd00::99")]), Err(StoreError::Taken(_))));
    assert!(matches!(store.lease(&owner(2), &sets, &[ip("10.9.0.1")]), Err(StoreError::OutOfRange(_))));
    assert!(matches!(store.lease(&owner(2), &sets, &[ip("10.0.0.1")]), Err(StoreError::OutOfRange(_))));
    assert!(matches!(store.lease(&owner(1), &sets, &[]), Err(StoreError::AlreadyLeased { .. })));
    assert_eq!(store.owners().unwrap().len(), 1, "a refused request leases nothing");
}

#[test]
fn two_processes_see_each_other_s_leases() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Store::new(dir.path(), "n"), Store::new(dir.path(), "n"));
    let sets = ranges(&["10.0.0.0/24"]);
    let mut seen = HashSet::new();
    for n in 0..100 {
        let store = if n % 3 == 0 { &mut a } else { &mut b };
        assert!(seen.insert(lease(store, n, &sets)));
    }
    b.release(&[owner(0)]).unwrap();
    assert_eq!(a.addresses(&owner(0)).unwrap(), None);
    assert_eq!(Store::new(dir.path(), "n").owners().unwrap().len(), 99);
}

#[test]
fn a_torn_line_is_cut_off_and_a_damaged_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ranges(&["10.0.0.0/24"]);
    lease(&mut Store::new(dir.path(), "n"), 1, &sets);
    let path = dir.path().join("networks/n/leases");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"A 0 10.0.0.3 c2"].concat()).unwrap();
    let mut store = Store::new(dir.path(), "n");
    assert_eq!(store.owners().unwrap().len(), 1);
    assert_eq!(lease(&mut store, 2, &sets), "10.0.0.3");

    let mut damaged = fs::read(&path).unwrap();
    damaged[whole.len() - 3] ^= 1;
    fs::write(&path, damaged).unwrap();
    let error = Store::new(dir.path(), "n").owners().unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn a_log_of_another_boot_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ranges(&["10.0.0.0/24"]);
    lease(&mut Store::new(dir.path(), "n"), 1, &sets);
    let path = dir.path().join("networks/n/leases");
    let old: String =
        [Record::Boot("another".into()), Record::Leased { set: 0, address: ip("10.0.0.2"), owner: owner(1) }]
            .iter()
            .map(Record::line)
            .collect();
    fs::write(&path, old).unwrap();
    assert_eq!(Store::new(dir.path(), "n").owners().unwrap(), []);
}

#[test]
fn the_log_stays_small_and_others_follow_when_it_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ranges(&["10.0.0.0/28"]);
    let (mut a, mut b) = (Store::new(dir.path(), "n"), Store::new(dir.path(), "n"));
    lease(&mut b, 0, &sets);
    for n in 1..2000 {
        lease(&mut a, n, &sets);
        a.release(&[owner(n)]).unwrap();
    }
    let size = fs::metadata(dir.path().join("networks/n/leases")).unwrap().len();
    assert!(size < 64 * 1024, "{size}");
    let (mut left, mut right) = (b.owners().unwrap(), a.owners().unwrap());
    left.sort();
    right.sort();
    assert_eq!((left.len(), left), (1, right));
}

#[test]
fn work_for_an_empty_store_runs_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::new(dir.path(), "n");
    let mut ran = 0;
    assert!(store.while_empty(|| ran += 1).unwrap());
    store.attach(&owner(1)).unwrap();
    assert!(!store.while_empty(|| ran += 1).unwrap());
    assert_eq!(ran, 1);
}

proptest! {
    #[test]
    fn any_history_read_from_the_log_is_the_state_in_memory(steps in prop::collection::vec((any::<bool>(), 0_usize..12), 0..80)) {
        let dir = tempfile::tempdir().unwrap();
        let sets = ranges(&["10.0.0.0/29", "fd00::/125"]);
        let mut store = Store::new(dir.path(), "n");
        for (add, n) in steps {
            if add {
                let _ = store.lease(&owner(n), &sets, &[]);
            } else {
                store.release(&[owner(n)]).unwrap();
            }
            let mut all: Vec<_> = store.owners().unwrap().into_iter().flat_map(|(_, a)| a).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), count, "an address has two owners");
        }
        let mut other = Store::new(dir.path(), "n");
        other.owners().unwrap();
        prop_assert_eq!(&other.state, &store.state);
        store.rewrite().unwrap();
        other.owners().unwrap();
        let (a, b) = (store.state.resting().collect::<Vec<_>>(), other.state.resting().collect::<Vec<_>>());
        prop_assert_eq!(a, b);
    }
}
