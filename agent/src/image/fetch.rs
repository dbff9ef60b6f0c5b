//! One layer from a registry to the store: downloaded and unpacked at the same time.
//!
//! The download appends to the blob's file; the unpacker follows behind in the same file. So the network never waits for the
//! disk to unpack, a broken connection goes on where it stopped, in this process or the next, and no blob is ever held in
//! memory. Owns: [`Feed`], what the two tell each other. Never: retries what the registry has refused.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio_util::task::TaskTracker;

use super::digest::Digest;
use super::layers::{Algorithms, LayerError, SourceLost, unpack};
use super::manifest::Blob;
use super::puller::PullError;
use super::registry::{Place, Registry, RegistryError};
use super::store::{Store, StoreError};
use crate::api::http::{HttpError, Response, StatusCode, header};

/// Bytes collected before they go to the file.
const WRITE_SIZE: usize = 256 * 1024;
/// Attempts without a single new byte before a download fails.
const MOST_ATTEMPTS: u32 = 4;

/// One layer to be had.
pub(super) struct Layer<'a> {
    pub place: Place<'a>,
    /// The threads of this pull, so that whoever fails can wait for their end.
    pub threads: &'a TaskTracker,
    pub blob: &'a Blob,
    pub diff_id: &'a Digest,
}

/// What has arrived of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Some(u64),
    All(u64),
    NoMore,
}

/// The writing end tells the reading end how far it may read. Dropping the writing end ends the reading.
struct Feed {
    arrival: Mutex<Arrival>,
    changed: Condvar,
}

impl Feed {
    fn set(&self, arrival: Arrival) {
        *self.arrival.lock().unwrap_or_else(PoisonError::into_inner) = arrival;
        self.changed.notify_all();
    }
}

/// Ends the reading when a pull is dropped in the middle.
struct FeedGuard(Arc<Feed>);

impl Drop for FeedGuard {
    fn drop(&mut self) {
        let mut arrival = self.0.arrival.lock().unwrap_or_else(PoisonError::into_inner);
        if let Arrival::Some(_) = *arrival {
            *arrival = Arrival::NoMore;
            self.0.changed.notify_all();
        }
    }
}

/// Reads a blob's file while it grows; blocks until there is more, or no more.
struct Follower {
    file: File,
    feed: Arc<Feed>,
    at: u64,
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut arrival = self.feed.arrival.lock().unwrap_or_else(PoisonError::into_inner);
        let until = loop {
            match *arrival {
                Arrival::Some(length) if length > self.at => break length,
                Arrival::Some(_) => {
                    arrival = self.feed.changed.wait(arrival).unwrap_or_else(PoisonError::into_inner);
                }
                Arrival::All(length) => break length,
                Arrival::NoMore => {
                    return Err(io::Error::other(SourceLost("the download ended early".into())));
                }
            }
        };
        drop(arrival);
        let want = usize::try_from(until - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..want], self.at)?;
        if n == 0 && want > 0 {
            return Err(io::Error::other(SourceLost("the blob's file was cut short".into())));
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Brings a layer into the store. `progress` is told the bytes that have arrived so far.
///
/// Cancel-safe: dropped in the middle it leaves the blob's file, with which the next attempt goes on.
pub(super) async fn layer(
    store: &Arc<Store>,
    registry: &Registry,
    layer: &Layer<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), PullError> {
    match once(store, registry, layer, progress).await {
        // What an earlier process had left of the blob may be what is wrong: power loss can leave zeros in a file.
        Err((PullError::Layer { .. } | PullError::Registry(RegistryError::WrongDigest { .. }), true)) => {
            once(store, registry, layer, progress).await.map_err(|(error, _)| error)
        }
        other => other.map_err(|(error, _)| error),
    }
}

/// One attempt. With an error comes whether it had begun with bytes from an earlier process.
async fn once(
    store: &Arc<Store>,
    registry: &Registry,
    layer: &Layer<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), (PullError, bool)> {
    let fresh = |error: StoreError| (PullError::from(error), false);
    let work = store.begin().map_err(fresh)?;
    let partial = Arc::new(store.partial(&layer.blob.digest, &work).map_err(fresh)?);
    let io = |cause| StoreError::Io { action: "use", path: partial.path().to_owned(), cause };
    let mut there = partial.file().metadata().map_err(|e| fresh(io(e)))?.len();
    if there > layer.blob.size {
        partial.file().set_len(0).map_err(|e| fresh(io(e)))?;
        there = 0;
    }
    let feed = Arc::new(Feed { arrival: Mutex::new(Arrival::Some(there)), changed: Condvar::new() });
    let guard = FeedGuard(Arc::clone(&feed));
    let follower = Follower {
        file: partial.file().try_clone().map_err(|e| fresh(io(e)))?,
        feed: Arc::clone(&feed),
        at: 0,
    };
    let unpacking = {
        let (store, blob, diff_id) = (Arc::clone(store), layer.blob.clone(), layer.diff_id.clone());
        layer.threads.spawn_blocking(move || unpack_and_commit(&store, &work, follower, &blob, &diff_id))
    };
    let downloading = download(registry, layer, &partial, &feed, progress);
    tokio::pin!(unpacking, downloading);
    // Either end may fail first: a corrupt layer ends the download, a dead registry ends the unpacking.
    let result = tokio::select! {
        unpacked = &mut unpacking => unpacked.unwrap_or_else(|e| Err(PullError::Panicked(e.to_string()))),
        downloaded = &mut downloading => match downloaded {
            Ok(()) => unpacking.await.unwrap_or_else(|e| Err(PullError::Panicked(e.to_string()))),
            Err(error) => {
                drop(guard);
                // Its own error would only say that there is no more to read.
                let _ = unpacking.await;
                Err(error)
            }
        },
    };
    let keep = result.as_ref().is_err_and(PullError::is_worth_resuming);
    if !keep && let Err(error) = partial.discard() {
        tracing::warn!(%error, "cannot remove a blob's file");
    }
    result.map_err(|error| (error, there > 0))
}

fn unpack_and_commit(
    store: &Store,
    work: &super::store::Work,
    follower: Follower,
    blob: &Blob,
    diff_id: &Digest,
) -> Result<(), PullError> {
    let algorithms = Algorithms { blob: blob.digest.algorithm(), diff_id: diff_id.algorithm() };
    let unpacked = unpack(follower, &work.layer_directory()?, algorithms);
    let unpacked = unpacked.map_err(|cause| PullError::Layer { layer: blob.digest.clone(), cause })?;
    let wrong = |what: &str, wanted: &Digest, found: &Digest| {
        let what = format!("layer {}{what}", blob.digest);
        PullError::Registry(RegistryError::WrongDigest { what, wanted: wanted.clone(), found: found.clone() })
    };
    if unpacked.blob != blob.digest {
        return Err(wrong("", &blob.digest, &unpacked.blob));
    }
    if unpacked.diff_id != *diff_id {
        return Err(wrong(", unpacked", diff_id, &unpacked.diff_id));
    }
    Ok(store.commit_layer(work, &unpacked)?)
}

/// Appends to the blob's file until it is complete, over as many connections as it takes while there is progress.
async fn download(
    registry: &Registry,
    layer: &Layer<'_>,
    partial: &Arc<super::store::Partial>,
    feed: &Feed,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), PullError> {
    let mut sink = Sink { partial: Arc::clone(partial), feed, progress, length: 0, pending: BytesMut::new() };
    sink.length = partial.file().metadata().map_err(|e| sink.failed(e))?.len();
    progress(sink.length);
    let mut fruitless = 0;
    while sink.length < layer.blob.size {
        let before = sink.length;
        let outcome = transfer(registry, layer, &mut sink).await;
        sink.flush().await?;
        let Err(error) = outcome else { break };
        fruitless = if sink.length > before { 0 } else { fruitless + 1 };
        if !error.is_transient() || fruitless == MOST_ATTEMPTS {
            return Err(error);
        }
        let pause = Duration::from_millis(250 << fruitless.min(5));
        tracing::info!(digest = %layer.blob.digest, %error, at = sink.length, "resuming a download");
        tokio::time::sleep(pause).await;
    }
    if sink.length != layer.blob.size {
        let what = format!("layer {}", layer.blob.digest);
        return Err(RegistryError::WrongSize { what, wanted: layer.blob.size, found: sink.length }.into());
    }
    feed.set(Arrival::All(sink.length));
    Ok(())
}

/// One connection's worth.
async fn transfer(registry: &Registry, layer: &Layer<'_>, sink: &mut Sink<'_>) -> Result<(), PullError> {
    let from = sink.length;
    let mut response = registry.blob(layer.place, &layer.blob.digest, from).await?;
    // A server without byte ranges sends everything again; what is known already is passed over.
    let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT {
        from - range_start(&response, from)?
    } else {
        from
    };
    while let Some(mut chunk) = response.chunk().await.map_err(RegistryError::from)? {
        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= passed as u64;
        let chunk = chunk.split_off(passed);
        sink.take(chunk, layer.blob).await?;
    }
    if sink.total() < layer.blob.size {
        let reason = format!("it ended after {} of {} bytes", sink.total(), layer.blob.size);
        return Err(RegistryError::Http(HttpError::Broken { url: response.url().to_owned(), reason }).into());
    }
    Ok(())
}

/// Where a partial answer begins; it may begin earlier than asked, never later.
fn range_start(response: &Response, asked: u64) -> Result<u64, PullError> {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
    let start = range.and_then(|r| r.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
    start.filter(|start| *start <= asked).ok_or_else(|| {
        let reason = format!("the range {:?} does not continue at byte {asked}", range.unwrap_or_default());
        RegistryError::Unusable { url: response.url().to_owned(), reason }.into()
    })
}

/// Collects pieces and appends them to the file off the async threads.
struct Sink<'a> {
    partial: Arc<super::store::Partial>,
    feed: &'a Feed,
    progress: &'a (dyn Fn(u64) + Sync),
    length: u64,
    pending: BytesMut,
}

impl Sink<'_> {
    fn total(&self) -> u64 {
        self.length + self.pending.len() as u64
    }

    async fn take(&mut self, chunk: Bytes, blob: &Blob) -> Result<(), PullError> {
        let total = self.total() + chunk.len() as u64;
        if total > blob.size {
            let what = format!("layer {}", blob.digest);
            return Err(RegistryError::WrongSize { what, wanted: blob.size, found: total }.into());
        }
        self.pending.extend_from_slice(&chunk);
        if self.pending.len() >= WRITE_SIZE { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), PullError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (bytes, partial, at) = (self.pending.split().freeze(), Arc::clone(&self.partial), self.length);
        let length = bytes.len() as u64;
        let written = tokio::task::spawn_blocking(move || partial.file().write_all_at(&bytes, at)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.failed(error)),
            Err(error) => return Err(PullError::Panicked(error.to_string())),
        }
        self.length += length;
        self.feed.set(Arrival::Some(self.length));
        (self.progress)(self.length);
        Ok(())
    }

    fn failed(&self, cause: io::Error) -> PullError {
        StoreError::Io { action: "write", path: self.partial.path().to_owned(), cause }.into()
    }
}

/// Whether an unpacking failed for what is in the archive, rather than for want of its bytes.
pub(super) fn is_content_fault(error: &LayerError) -> bool {
    !matches!(error, LayerError::Source(_))
}
