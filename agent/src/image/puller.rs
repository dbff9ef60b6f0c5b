//! Pulling images into the store: the daemon's and the command line's one way to do it.
//!
//! Owns: which layers are under way in this process, and how many at once. Pulls share layers, not answers: each asks the
//! registry with its own credentials, so nobody gets an image by another's rights, and a layer two pulls need is fetched once.
//! Dropping a pull's future cancels it; what has arrived is kept for the next one. Connections, tokens and trusted
//! certificates live as long as a pull does: an idle daemon holds none.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::try_join_all;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::config::parse_config;
use super::digest::Digest;
use super::fetch;
use super::layers::LayerError;
use super::manifest::{Blob, Platform};
use super::reference::{InvalidImageName, Reference};
pub use super::registry::RegistryConfig;
use super::registry::{Credential, Keyring, Place, Registry, RegistryError, Resolved};
use super::store::{Image, Record, Store, StoreError};

/// Layers of one pull at once.
const PER_PULL: usize = 3;
/// Layers of all pulls at once. A pull never has more than its own share, so a small image is not behind a large one.
const IN_ALL: usize = 8;
/// How often a pull starts over because a removal elsewhere took a layer from under it.
const MOST_ROUNDS: u32 = 3;

/// What a pull does, as it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The name stands for this manifest or index.
    Resolved(Digest),
    /// A layer that is not here yet, and its size in bytes.
    Layer(Digest, u64),
    /// So many bytes of the layer have arrived.
    Arrived(Digest, u64),
    /// The layer is whole.
    Done(Digest),
}

/// Where progress goes.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name cannot be parsed.
    #[error(transparent)]
    InvalidName(#[from] InvalidImageName),
    /// The registry did not give the image.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer cannot be unpacked.
    #[error("layer {layer}: {cause}")]
    Layer {
        /// Which layer.
        layer: Digest,
        /// Why.
        cause: LayerError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread ended without an answer: a defect of this program.
    #[error("a pull thread failed: {0}")]
    Panicked(String),
}

impl PullError {
    /// The reason the kubelet shows for a container that waits because of this.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName(_) => "InvalidImageName",
            Self::Registry(error) if error.is_unavailable() => "RegistryUnavailable",
            Self::Registry(_) | Self::Layer { .. } | Self::Store(_) | Self::Panicked(_) => "ErrImagePull",
        }
    }

    /// Whether the cause is a full disk.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Layer { cause, .. } => matches!(cause, LayerError::DiskFull { .. }),
            Self::Store(error) => error.is_disk_full(),
            Self::InvalidName(_) | Self::Registry(_) | Self::Panicked(_) => false,
        }
    }

    /// Whether the same pull may well succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Registry(error) if error.is_transient())
    }

    /// Whether what has arrived of a layer is of use to the next attempt.
    pub(super) fn is_worth_resuming(&self) -> bool {
        match self {
            Self::Registry(error) => !matches!(
                error,
                RegistryError::WrongDigest { .. }
                    | RegistryError::WrongSize { .. }
                    | RegistryError::Unusable { .. }
            ),
            Self::Layer { cause, .. } => !fetch::is_content_fault(cause),
            Self::InvalidName(_) | Self::Store(_) | Self::Panicked(_) => false,
        }
    }
}

/// Pulls images into one store.
pub struct Puller {
    store: Arc<Store>,
    config: RegistryConfig,
    platform: Platform,
    under_way: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    slots: Semaphore,
    registry: Mutex<Weak<Registry>>,
}

impl Puller {
    /// Pulls into `store`.
    #[must_use]
    pub fn new(store: Arc<Store>, config: RegistryConfig) -> Self {
        Self {
            store,
            config,
            platform: Platform::host(),
            under_way: Mutex::default(),
            slots: Semaphore::new(IN_ALL),
            registry: Mutex::new(Weak::new()),
        }
    }

    /// Pulls an image, or finds that what its name stands for is here already.
    ///
    /// Each fitting credential is tried in turn; without any, the registry is asked anonymously. Cancelled by dropping.
    ///
    /// # Errors
    /// See [`PullError`]. With several credentials, the error of the last one that was tried.
    pub async fn pull(
        &self,
        name: &str,
        keyring: &Keyring,
        progress: ProgressSink,
    ) -> Result<Image, PullError> {
        let reference: Reference = name.parse()?;
        let registry = self.registry();
        let mut credentials: Vec<Option<Credential>> =
            keyring.lookup(&reference).into_iter().map(Some).collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut last = None;
        for credential in &credentials {
            let place = Place { reference: &reference, credential: credential.as_ref() };
            match self.pull_as(&registry, place, &progress).await {
                Err(PullError::Registry(
                    error @ (RegistryError::Unauthorized { .. } | RegistryError::NotFound { .. }),
                )) => last = Some(error),
                other => return other,
            }
        }
        Err(last.map_or_else(|| PullError::Panicked("no credential was tried".into()), PullError::Registry))
    }

    async fn pull_as(
        &self,
        registry: &Registry,
        place: Place<'_>,
        progress: &ProgressSink,
    ) -> Result<Image, PullError> {
        if let Some(image) = self.already_here(registry, place).await? {
            return Ok(image);
        }
        let resolved = registry.resolve(place, &self.platform).await?;
        progress(Progress::Resolved(resolved.digest.clone()));
        let json = registry.config(place, &resolved.manifest.config).await?;
        let unusable = |reason| RegistryError::Config { image: place.reference.to_string(), reason };
        let config = parse_config(&json).map_err(unusable)?;
        let other_machine = |cause| RegistryError::Manifest { image: place.reference.to_string(), cause };
        self.platform.accept(&config.platform).map_err(other_machine)?;
        let layers = &resolved.manifest.layers;
        if config.diff_ids.len() != layers.len() {
            let reason =
                format!("it lists {} layers where the manifest has {}", config.diff_ids.len(), layers.len());
            return Err(unusable(reason).into());
        }
        let mut round = 0;
        loop {
            round += 1;
            let outcome = match self.layers(registry, place, &config.diff_ids, layers, progress).await {
                Ok(()) => self.commit(place, &resolved, &config).await,
                Err(error) => Err(error),
            };
            match outcome {
                Err(PullError::Store(StoreError::MissingLayers { .. })) if round < MOST_ROUNDS => {}
                Err(error) if error.is_disk_full() => {
                    // Layers without their image only take up the room that is missing.
                    let diff_ids = config.diff_ids.clone();
                    if let Err(error) = self.blocking(move |store| store.drop_unused(&diff_ids)).await {
                        tracing::warn!(%error, "cannot remove the layers of a pull that filled the disk");
                    }
                    return Err(error);
                }
                other => return other,
            }
        }
    }

    /// Whether the name stood for an image that is whole here, and still does. Only then a question without an answer's
    /// body is worth its time; whatever is wrong shows better in the answer to the next one.
    async fn already_here(&self, registry: &Registry, place: Place<'_>) -> Result<Option<Image>, PullError> {
        let Some(image) = self.store.resolve(&place.reference.to_string())? else { return Ok(None) };
        let Ok(Some(digest)) = registry.digest(place).await else { return Ok(None) };
        if !image.repo_digests.contains(&place.reference.repo_digest(&digest)) {
            return Ok(None);
        }
        self.store.touch(&image.id)?;
        Ok(Some(image))
    }

    async fn layers(
        &self,
        registry: &Registry,
        place: Place<'_>,
        diff_ids: &[Digest],
        blobs: &[Blob],
        progress: &ProgressSink,
    ) -> Result<(), PullError> {
        let mut seen = BTreeSet::new();
        let wanted: Vec<_> =
            diff_ids.iter().zip(blobs).filter(|(diff_id, _)| seen.insert(*diff_id)).collect();
        for (diff_id, blob) in &wanted {
            if self.store.layer(diff_id).is_none() {
                progress(Progress::Layer(blob.digest.clone(), blob.size));
            }
        }
        let (share, threads) = (Semaphore::new(PER_PULL), TaskTracker::new());
        let each = wanted.into_iter().map(|(diff_id, blob)| {
            let layer = fetch::Layer { place, threads: &threads, blob, diff_id };
            self.layer(registry, layer, &share, progress)
        });
        let outcome = try_join_all(each).await.map(drop);
        // The first error has cancelled the other layers; their threads clean up before the pull is over.
        threads.close();
        threads.wait().await;
        outcome
    }

    async fn layer(
        &self,
        registry: &Registry,
        layer: fetch::Layer<'_>,
        share: &Semaphore,
        progress: &ProgressSink,
    ) -> Result<(), PullError> {
        let closed = |_| PullError::Panicked("the layer semaphore is closed".into());
        let _share = share.acquire().await.map_err(closed)?;
        // Whoever else pulls this layer is waited for; then it is either here, or it is our turn.
        let turn = self.turn(layer.diff_id);
        let _turn = turn.lock().await;
        if self.store.layer(layer.diff_id).is_none() {
            let _slot = self.slots.acquire().await.map_err(closed)?;
            let arrived = |bytes| progress(Progress::Arrived(layer.blob.digest.clone(), bytes));
            fetch::layer(&self.store, registry, &layer, &arrived).await?;
        }
        progress(Progress::Done(layer.blob.digest.clone()));
        Ok(())
    }

    async fn commit(
        &self,
        place: Place<'_>,
        resolved: &Resolved,
        config: &super::config::ParsedConfig,
    ) -> Result<Image, PullError> {
        let size = config.diff_ids.iter().filter_map(|d| self.store.layer_mark(d)).map(|m| m.size).sum();
        let record = Record {
            id: resolved.manifest.config.digest.clone(),
            tags: place.reference.repo_tag().into_iter().collect(),
            digests: [place.reference.repo_digest(&resolved.digest)].into(),
            size,
            config: config.config.clone(),
            layers: config.diff_ids.clone(),
            folders: Vec::new(),
            tagged_at: 0,
        };
        self.blocking(move |store| store.commit(record)).await
    }

    /// Does what waits for the disk or for a lock on a thread where waiting is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, PullError> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        Ok(done.map_err(|e| PullError::Panicked(e.to_string()))??)
    }

    fn turn(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = under_way.get(diff_id).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        under_way.insert(diff_id.clone(), Arc::downgrade(&turn));
        turn
    }

    /// The client all present pulls share.
    fn registry(&self) -> Arc<Registry> {
        let mut shared = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = shared.upgrade() {
            return registry;
        }
        let registry = Arc::new(Registry::new(self.config.clone()));
        *shared = Arc::downgrade(&registry);
        registry
    }
}
