//! Room for images: unused ones go while the disk is fuller than the configuration allows.
//!
//! Owns: the period, what is in use beside what the store knows to be held, the log of what went. The words and the order
//! are kubelet's: `imageGCHighThresholdPercent`, `imageGCLowThresholdPercent`, `imageMinimumGCAge`, `imageMaximumGCAge`.
//! Nothing announces how full a disk is, so this looks every five minutes, as kubelet does. Never: removes an image that a
//! pod of this node names or holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::Images;
use crate::image::digest::Digest;
use crate::image::store::{Store, StoreError, plan_removal};
use crate::pod::manager::Pods;

const PERIOD: Duration = Duration::from_secs(300);
/// Unfinished layers and blobs are looked for once in so many periods: daily.
const SWEEP_EVERY: u32 = 288;
/// A pull that was not tried again for so long is not resumed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Runs until the daemon ends.
pub async fn run(store: Arc<Store>, limits: Images, pods: Pods) {
    let mut period = tokio::time::interval(PERIOD);
    let mut round = 0_u32;
    loop {
        period.tick().await;
        let named: BTreeSet<String> = pods
            .all()
            .values()
            .flat_map(|handle| {
                let pod = handle.pod();
                pod.containers().map(|(_, container)| container.image.clone()).collect::<Vec<_>>()
            })
            .collect();
        let (store, limits) = (Arc::clone(&store), limits.clone());
        let sweep = round.is_multiple_of(SWEEP_EVERY);
        let collected = tokio::task::spawn_blocking(move || collect(&store, &limits, &named, sweep)).await;
        match collected {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot collect unused images"),
            Err(error) => tracing::error!(%error, "the collection of images failed"),
        }
        round = round.wrapping_add(1);
    }
}

fn collect(store: &Store, limits: &Images, named: &BTreeSet<String>, sweep: bool) -> Result<(), StoreError> {
    let now = SystemTime::now();
    if sweep {
        let layers = store.sweep_layers(ABANDONED, now)?;
        let bytes = layers.bytes + store.sweep_partial(ABANDONED, now)?;
        if bytes > 0 {
            tracing::info!(layers = layers.layers, bytes, "removed what unfinished pulls had left");
        }
    }
    let mut in_use = BTreeSet::new();
    for name in named {
        in_use.extend(store.resolve(name)?.map(|image| image.id));
    }
    if let Some(age) = limits.maximum_age {
        let aged = plan_removal(&store.candidates(&in_use)?, u64::MAX, age, now);
        remove(store, &aged, "unused for longer than imageMaximumGCAge");
    }
    let Some(disk) = Disk::of(store) else { return Ok(()) };
    let wanted = disk.to_free(limits);
    if wanted == 0 {
        return Ok(());
    }
    let candidates = store.candidates(&in_use)?;
    let chosen = plan_removal(&candidates, wanted, limits.minimum_age, now);
    let freed = remove(store, &chosen, "the disk is fuller than imageGCHighThresholdPercent");
    if freed < wanted {
        let held = candidates.iter().filter(|candidate| candidate.in_use);
        let held_bytes: u64 = held.clone().map(|candidate| candidate.size).sum();
        tracing::warn!(
            used_percent = disk.used_percent(),
            wanted,
            freed,
            images_in_use = held.count(),
            held_bytes,
            "the disk of the images stays fuller than it should: the other images are in use or too young"
        );
    }
    Ok(())
}

/// Removes images one by one; one that came into use meanwhile, or is gone, stays so. Returns the bytes freed.
fn remove(store: &Store, chosen: &[Digest], why: &'static str) -> u64 {
    let mut freed = 0;
    for id in chosen {
        match store.remove(id) {
            Ok(bytes) => {
                freed += bytes;
                tracing::info!(%id, bytes, why, "removed an image");
            }
            Err(StoreError::NotFound(_) | StoreError::InUse { .. }) => {}
            Err(error) => tracing::warn!(%id, %error, "cannot remove an image"),
        }
    }
    freed
}

/// The file system of the store, in bytes.
#[derive(Debug, Clone, Copy)]
struct Disk {
    capacity: u64,
    available: u64,
}

impl Disk {
    fn of(store: &Store) -> Option<Self> {
        match nix::sys::statvfs::statvfs(store.root()) {
            Ok(stat) => Some(Self {
                capacity: stat.blocks() * stat.fragment_size(),
                available: stat.blocks_available() * stat.fragment_size(),
            }),
            Err(errno) => {
                tracing::warn!(path = %store.root().display(), %errno, "cannot see how full the disk is");
                None
            }
        }
    }

    /// Whole percents, as kubelet counts them.
    fn used_percent(self) -> u64 {
        100_u64.saturating_sub(percent(self.available, self.capacity))
    }

    /// How many bytes have to go; 0 below the high threshold.
    fn to_free(self, limits: &Images) -> u64 {
        if self.capacity == 0 || self.used_percent() < u64::from(limits.high_percent) {
            return 0;
        }
        let free = u128::from(self.capacity) * u128::from(100 - limits.low_percent.min(100)) / 100;
        u64::try_from(free).unwrap_or(u64::MAX).saturating_sub(self.available)
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(high_percent: u8, low_percent: u8) -> Images {
        Images {
            parallel_pulls: None,
            minimum_age: Duration::ZERO,
            maximum_age: None,
            high_percent,
            low_percent,
            plain_http: vec![],
        }
    }

    #[test]
    fn nothing_goes_below_the_high_threshold_and_above_it_down_to_the_low_one() {
        let disk = |available| Disk { capacity: 1000, available };
        assert_eq!(disk(160).to_free(&limits(85, 80)), 0);
        assert_eq!(disk(150).to_free(&limits(85, 80)), 50);
        assert_eq!(disk(0).to_free(&limits(85, 80)), 200);
        assert_eq!(disk(0).to_free(&limits(100, 80)), 200);
        assert_eq!(disk(999).to_free(&limits(1, 0)), 1);
        assert_eq!(Disk { capacity: 0, available: 0 }.to_free(&limits(85, 80)), 0);
    }

    #[test]
    fn aged_and_unnamed_images_go_and_named_ones_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        for name in ["one", "two"] {
            commit(&store, name);
        }
        let aged = Images { maximum_age: Some(Duration::from_nanos(1)), ..limits(100, 0) };
        let named = BTreeSet::from(["localhost/one:1".to_owned()]);
        collect(&store, &aged, &named, true).expect("collected");
        let left: Vec<_> =
            store.list().expect("a list").into_iter().flat_map(|image| image.repo_tags).collect();
        assert_eq!(left, ["localhost/one:1"]);
    }

    fn commit(store: &Store, name: &str) {
        let record = crate::image::store::Record {
            id: Digest::of(name.as_bytes()),
            tags: [format!("localhost/{name}:1")].into(),
            digests: BTreeSet::new(),
            size: 1,
            config: crate::image::config::ImageConfig::default(),
            layers: vec![],
            folders: vec![],
            tagged_at: 0,
        };
        store.commit(record).expect("committed");
    }
}
