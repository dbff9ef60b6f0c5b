//! Watch: changes as lines of JSON.
//!
//! Each watch reads the ring of its kind from the version it has seen; it is woken by a change, at its end, or for a bookmark.
//! An object that leaves a selector is DELETED for that watcher, one that enters it ADDED.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::dispatch::Context;
use super::read::{self, Form};
use super::{Response, respond};
use crate::object;
use crate::registry::Registry;
use crate::resource::ApiResource;
use crate::selector::Selector;
use crate::status::{ApiError, ApiResult};
use crate::store::{Change, Event, Slim};
use crate::table;

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Watches that set no end get one between half an hour and an hour, as `--min-request-timeout` has it.
const DEFAULT_END: Duration = Duration::from_secs(1800);

struct Watch {
    registry: Arc<Registry>,
    api: &'static ApiResource,
    namespace: String,
    selector: Selector,
    form: Form,
    /// Rows after the first carry no column definitions.
    headed: bool,
    seen: u64,
    pending: Option<Bytes>,
    changed: watch::Receiver<u64>,
    end: Instant,
    bookmark: Option<Instant>,
    over: bool,
}

/// Answers a watch.
///
/// # Errors
/// 400, 406.
pub fn answer(context: &Context<'_>, api: &'static ApiResource) -> ApiResult<Response> {
    let request = &context.request;
    let query = &request.query;
    let mut fields = query.get("fieldSelector").to_owned();
    if !request.name.is_empty() {
        let own = format!("metadata.name={}", request.name);
        fields = if fields.is_empty() { own } else { format!("{fields},{own}") };
    }
    let selector = Selector::parse(api, query.get("labelSelector"), &fields)?;
    let version = match query.get("resourceVersion") {
        "" | "0" => None,
        text => Some(
            text.parse::<u64>()
                .map_err(|_| ApiError::bad_request(format!("invalid resource version \"{text}\"")))?,
        ),
    };
    let bookmarks = query.is_true("allowWatchBookmarks");
    let initial = query.is_true("sendInitialEvents");
    if initial && (query.get("resourceVersionMatch") != "NotOlderThan" || !bookmarks) {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan \
                       and allowWatchBookmarks to true";
        return Err(ApiError::bad_request(message));
    }
    // Spread, so that watches that began together do not end together.
    let spread = Duration::from_millis(u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * 7000);
    let length =
        query.number("timeoutSeconds")?.filter(|s| *s > 0).map_or(DEFAULT_END + spread, Duration::from_secs);
    let now = Instant::now();
    let mut watch = Watch {
        registry: Arc::clone(&context.app.registry),
        api,
        namespace: request.namespace.clone(),
        selector,
        form: Form::of(context)?,
        headed: false,
        seen: 0,
        pending: None,
        changed: context.app.registry.store.subscribe(api.kind),
        end: now + length.min(Duration::from_secs(86_400)),
        bookmark: bookmarks.then(|| now + BOOKMARK_EVERY),
        over: false,
    };
    watch.changed.borrow_and_update();
    watch.begin(version, initial)?;
    let pieces = futures_util::stream::unfold(watch, |mut watch| async move {
        let piece = watch.next().await?;
        Some((Ok(piece), watch))
    });
    let mut response = http::Response::new(respond::stream(pieces));
    *response.status_mut() = StatusCode::OK;
    let media_type = match context.accept().split(',').next() {
        Some(first) if first.contains("as=Table") => "application/json;as=Table;v=v1;g=meta.k8s.io",
        _ => "application/json",
    };
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    Ok(response)
}

impl Watch {
    /// Where it starts: at a version, or with everything that is there.
    fn begin(&mut self, version: Option<u64>, initial: bool) -> ApiResult<()> {
        if let (Some(version), false) = (version, initial) {
            self.seen = version;
            return Ok(());
        }
        let namespace = (!self.namespace.is_empty()).then_some(self.namespace.as_str());
        let page = self.registry.store.list(self.api.kind, namespace, None, usize::MAX)?;
        self.seen = page.version;
        let mut out = Vec::new();
        for (_, bytes) in &page.items {
            if self.selector.is_empty() || self.selector.matches(self.api.kind, &Slim::of(bytes)) {
                self.push(&mut out, "ADDED", bytes);
            }
        }
        if initial {
            self.push_bookmark(&mut out, page.version, true);
        }
        self.pending = (!out.is_empty()).then(|| out.into());
        Ok(())
    }

    /// The next piece; none when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.pending.take() {
            return Some(piece);
        }
        let ending = self.registry.ending.clone();
        while !self.over {
            // Read before the changes: all changes up to it are in the ring.
            let newest = self.registry.store.version();
            if let Some(piece) = self.changes() {
                return Some(piece);
            }
            self.seen = self.seen.max(newest);
            let bookmark = self.bookmark;
            tokio::select! {
                () = ending.cancelled() => return None,
                () = tokio::time::sleep_until(self.end) => {
                    self.over = true;
                    return self.bookmark.map(|_| self.bookmark_now());
                }
                () = tokio::time::sleep_until(bookmark.unwrap_or(self.end)), if bookmark.is_some() => {
                    self.bookmark = Some(Instant::now() + BOOKMARK_EVERY);
                    return Some(self.bookmark_now());
                }
                // Cancel-safe: what was missed shows at the next look into the ring.
                changed = self.changed.changed() => if changed.is_err() { return None },
            }
        }
        None
    }

    fn bookmark_now(&mut self) -> Bytes {
        let mut out = Vec::new();
        self.push_bookmark(&mut out, self.seen, false);
        out.into()
    }

    /// The lines of what changed since the last look.
    fn changes(&mut self) -> Option<Bytes> {
        let events = match self.registry.store.since(self.api.kind, self.seen) {
            Ok(events) => events,
            Err(too_old) => {
                self.over = true;
                let message = format!("too old resource version: {} ({})", self.seen, too_old.oldest);
                let line = json!({"type": "ERROR", "object": ApiError::expired(message).body()});
                return Some(format!("{line}\n").into());
            }
        };
        let mut out = Vec::new();
        for event in events {
            self.seen = event.version;
            self.push_event(&mut out, &event);
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn push_event(&mut self, out: &mut Vec<u8>, event: &Event) {
        if !self.namespace.is_empty() && event.slim.namespace() != self.namespace {
            return;
        }
        let matches = |slim: &Slim| self.selector.matches(self.api.kind, slim);
        let now = event.change != Change::Deleted && matches(&event.slim);
        let before = event.before.as_ref().is_some_and(|(_, slim)| matches(slim));
        match (before, now) {
            (false, false) => {}
            (false, true) => self.push(out, "ADDED", &event.object),
            (true, true) => self.push(out, "MODIFIED", &event.object),
            (true, false) if event.change == Change::Deleted => self.push(out, "DELETED", &event.object),
            (true, false) => {
                // The last state that the watcher could see, with the version at which it left.
                let mut last =
                    event.before.as_ref().map(|(bytes, _)| object::parse(bytes)).unwrap_or_default();
                object::metadata(&mut last)
                    .insert("resourceVersion".into(), event.version.to_string().into());
                self.push(out, "DELETED", last.to_string().as_bytes());
            }
        }
    }

    fn push(&mut self, out: &mut Vec<u8>, kind: &str, stored: &[u8]) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        match self.form {
            Form::Table(include) => {
                let metadata =
                    json!({"resourceVersion": object::parse(stored)["metadata"]["resourceVersion"]});
                let mut rows = table::whole(self.api, &[stored], include, &metadata);
                self.strip_heading(&mut rows);
                out.extend_from_slice(rows.to_string().as_bytes());
            }
            Form::Object | Form::Metadata => read::push(out, self.api, stored, self.form),
        }
        out.extend_from_slice(b"}\n");
    }

    fn strip_heading(&mut self, rows: &mut Value) {
        if std::mem::replace(&mut self.headed, true) {
            rows["columnDefinitions"] = Value::Null;
        }
    }

    fn push_bookmark(&mut self, out: &mut Vec<u8>, version: u64, initial_end: bool) {
        let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Table(_) => {
                let row = json!({"cells": [], "object": {"kind": self.api.name, "apiVersion": self.api.api_version(), "metadata": metadata}});
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"resourceVersion": version.to_string()}, "columnDefinitions": null, "rows": [row]})
            }
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Object => {
                json!({"kind": self.api.name, "apiVersion": self.api.api_version(), "metadata": metadata})
            }
        };
        let line = json!({"type": "BOOKMARK", "object": object});
        out.extend_from_slice(format!("{line}\n").as_bytes());
    }
}
