//! List, then watch, and never stop: one resource of an API server as a stream of changes.
//!
//! Owns: the resource version to resume from, back-off, and when to list again. Never: keeps objects (whoever receives
//! the changes does), never gives up.
//!
//! ```text
//!        ┌────────── 410 Gone, or an event that is not understood ◄─────────┐
//!        ▼                                                                  │
//!      list ──► Synced(all) ──► watch from resourceVersion ──► Applied / Deleted
//!        ▲ │ error: back off         ▲ │ end after 5 to 10 minutes, or error: back off, resume
//!        └─┘                         └─┘
//! ```

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::backoff::{Backoff, random};
use super::client::Client;
use super::error::{ApiError, Status};
use super::lines::Lines;
use super::list::{self, Head, ObjectKey, Selection};
use super::path::Query;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// This is everything there is; what was known before and is not here is gone.
    Synced(Vec<T>),
    /// New or changed.
    Applied(T),
    /// Gone.
    Deleted(ObjectKey),
}

/// The longest event. etcd takes objects up to 1.5 MiB; JSON with escapes can be several times that.
const MAX_EVENT: usize = 16 << 20;
/// A watch that ends sooner than this without an event counts as a failure, else a server that closes every watch
/// at once would be asked without pause.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// Sends every change of the selected objects into `out`, until `out` is closed. Cancel-safe: dropping it loses nothing
/// but the watch.
///
/// `decode` gets the JSON of one object. An object it refuses is left out, with a warning.
pub async fn watch<T, D>(client: Client, selection: Selection, decode: D, out: mpsc::Sender<Change<T>>)
where
    D: Fn(&str) -> Result<T, String>,
{
    watch_with(client, selection, decode, out, Backoff::for_watch()).await;
}

/// Like [`watch`], with other delays.
pub async fn watch_with<T, D>(
    client: Client,
    selection: Selection,
    decode: D,
    out: mpsc::Sender<Change<T>>,
    backoff: Backoff,
) where
    D: Fn(&str) -> Result<T, String>,
{
    let mut watcher = Watcher { client, selection, decode, out, backoff, complaint: None };
    let out = watcher.out.clone();
    tokio::select! {
        // Nothing is half-done when the receiver is gone: nobody is left to tell.
        () = out.closed() => {}
        () = watcher.run() => {}
    }
}

struct Watcher<T, D> {
    client: Client,
    selection: Selection,
    decode: D,
    out: mpsc::Sender<Change<T>>,
    backoff: Backoff,
    /// The last error told, so that it is told once.
    complaint: Option<String>,
}

/// Why a watch ended, if not by an error.
enum End {
    /// The server's time for it was over.
    Expired,
    /// Nobody listens any more.
    Closed,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl<T, D> Watcher<T, D>
where
    D: Fn(&str) -> Result<T, String>,
{
    async fn run(&mut self) {
        loop {
            match list::list(&self.client, &self.selection, &self.decode).await {
                Ok((items, version)) => {
                    self.works();
                    if self.out.send(Change::Synced(items)).await.is_err() {
                        return;
                    }
                    if let End::Closed = self.follow(version).await {
                        return;
                    }
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Watches from `version`, again and again, until a list is needed.
    async fn follow(&mut self, mut version: String) -> End {
        loop {
            let started = Instant::now();
            let before = version.clone();
            match self.watch_once(&mut version).await {
                Ok(End::Closed) => return End::Closed,
                Ok(End::Expired) if version == before && started.elapsed() < TOO_SHORT => {
                    let reason = "the server ends the watch at once".to_owned();
                    self.pause(&ApiError::Transport(reason)).await;
                }
                Ok(End::Expired) => self.works(),
                Err(ApiError::Gone(reason)) => {
                    tracing::debug!(resource = self.selection.resource.plural, reason, "listing again");
                    return End::Expired;
                }
                Err(error @ ApiError::Decode { .. }) => {
                    self.pause(&error).await;
                    return End::Expired;
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn watch_once(&mut self, version: &mut String) -> Result<End, ApiError> {
        let seconds = 300 + (random() * 300.0) as u64;
        let query = Query::new()
            .with("watch", true)
            .with("allowWatchBookmarks", true)
            .with("timeoutSeconds", seconds)
            .with("resourceVersion", &*version);
        let path = self.selection.path(query);
        let mut pieces = self.client.stream(&path, Duration::from_secs(seconds + 30)).await?;
        let mut lines = Lines::new(MAX_EVENT);
        while let Some(piece) = pieces.next().await? {
            lines.push(&piece);
            while let Some(line) = lines.next_line().map_err(|e| self.misunderstood(&e))? {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let change = self.event(line, version)?;
                self.backoff.succeeded();
                if let Some(change) = change
                    && self.out.send(change).await.is_err()
                {
                    return Ok(End::Closed);
                }
            }
        }
        Ok(End::Expired)
    }

    /// Reads one event, and notes its resource version.
    fn event(&self, line: &[u8], version: &mut String) -> Result<Option<Change<T>>, ApiError> {
        let event: Event<'_> = serde_json::from_slice(line).map_err(|e| self.misunderstood(&e))?;
        if event.kind == "ERROR" {
            let status: Status =
                serde_json::from_str(event.object.get()).map_err(|e| self.misunderstood(&e))?;
            return Err(ApiError::from_status(status));
        }
        let head = Head::of(event.object).map_err(|e| self.misunderstood(&e))?;
        if !head.resource_version().is_empty() {
            head.resource_version().clone_into(version);
        }
        Ok(match &*event.kind {
            "ADDED" | "MODIFIED" => {
                list::decode_item(&self.selection.resource, event.object, &self.decode).map(Change::Applied)
            }
            "DELETED" => Some(Change::Deleted(head.key())),
            // Bookmarks carry only the version; kinds of events yet to be invented carry at least that.
            _ => None,
        })
    }

    fn misunderstood(&self, reason: &impl std::fmt::Display) -> ApiError {
        let path = format!("watch of {}", self.selection.resource.plural);
        ApiError::Decode { path, reason: reason.to_string() }
    }

    /// Waits after an error. An unreachable server is told by the client; any other reason is told here, once.
    async fn pause(&mut self, error: &ApiError) {
        if !matches!(error, ApiError::Transport(_)) {
            let text = error.to_string();
            if self.complaint.as_ref() != Some(&text) {
                tracing::warn!(resource = self.selection.resource.plural, %error, "watch fails; trying again until it works");
                self.complaint = Some(text);
            }
        }
        let delay = self.backoff.failed(Instant::now(), random());
        tokio::time::sleep(delay.max(error.retry_after().unwrap_or_default())).await;
    }

    fn works(&mut self) {
        self.backoff.succeeded();
        if self.complaint.take().is_some() {
            tracing::info!(resource = self.selection.resource.plural, "watch works again");
        }
    }
}
