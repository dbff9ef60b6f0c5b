//! `/containerLogs/<namespace>/<pod>/<container>`: the query and the answer.
//!
//! Owns: the parameters of `PodLogOptions` as they stand in a URL, and kubelet's status codes. Never: reads files itself
//! (that is `logs`).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::lookup::{LogTarget, LookupError, PodLookup};
use crate::logs::entry::Stream;
use crate::logs::follow::{LogRequest, stream};
use crate::logs::print::Style;

/// What the query asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<u64>,
    limit_bytes: Option<u64>,
    since: Option<Duration>,
    since_time: Option<Timestamp>,
    stream: Option<Stream>,
}

/// Why a query is not understood.
#[derive(Debug, PartialEq, Eq)]
enum QueryError {
    /// 400.
    Malformed,
    /// 422.
    Invalid,
}

/// The handler.
pub async fn get<L: PodLookup>(
    State(lookup): State<Arc<L>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let options = match parse(query.as_deref().unwrap_or_default()) {
        Ok(options) => options,
        Err(QueryError::Malformed) => {
            return (StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#).into_response();
        }
        Err(QueryError::Invalid) => {
            return (StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#).into_response();
        }
    };
    let target = LogTarget { namespace, pod, container, previous: options.previous };
    let log = match lookup.log(&target) {
        Ok(log) => log,
        Err(error) => {
            let code = match error {
                LookupError::NoPod(_) | LookupError::NoContainer { .. } => StatusCode::NOT_FOUND,
                LookupError::NoLog(_) => StatusCode::BAD_REQUEST,
            };
            return (code, error.to_string()).into_response();
        }
    };
    let ago = options.since.map(|since| Timestamp::now() - since);
    let style = Style {
        timestamps: options.timestamps,
        since: options.since_time.or(ago),
        stream: options.stream,
        limit_bytes: options.limit_bytes,
    };
    let follow = log.ended.filter(|_| options.follow);
    let path = log.path.clone();
    match stream(LogRequest { path: log.path, tail: options.tail, style, follow }).await {
        Ok(pieces) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            (kind, Body::from_stream(pieces)).into_response()
        }
        Err(error) => {
            let LogTarget { container, pod, .. } = target;
            let text =
                format!("log {} of container \"{container}\" in pod \"{pod}\": {error}", path.display());
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

fn parse(query: &str) -> Result<Options, QueryError> {
    let mut options = Options::default();
    let mut stream_named = false;
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or(QueryError::Malformed)?;
        let number = || value.parse::<i64>().map_err(|_| QueryError::Malformed);
        let at_least = |least: i64| {
            let number = number()?;
            if number < least { Err(QueryError::Invalid) } else { Ok(number.unsigned_abs()) }
        };
        match name {
            "follow" => options.follow = truth(&value),
            "previous" => options.previous = truth(&value),
            "timestamps" => options.timestamps = truth(&value),
            "tail" if value == "all" => options.tail = None,
            "tailLines" | "tail" => options.tail = Some(at_least(0)?),
            "limitBytes" => options.limit_bytes = Some(at_least(1)?),
            "sinceSeconds" => options.since = Some(Duration::from_secs(at_least(1)?)),
            "sinceTime" if value.is_empty() => {}
            "sinceTime" => options.since_time = Some(value.parse().map_err(|_| QueryError::Malformed)?),
            "stream" => {
                options.stream = match value.as_str() {
                    "All" | "" => None,
                    "Stdout" => Some(Stream::Stdout),
                    "Stderr" => Some(Stream::Stderr),
                    _ => return Err(QueryError::Invalid),
                };
                stream_named = options.stream.is_some();
            }
            _ => {}
        }
    }
    let both_since = options.since.is_some() && options.since_time.is_some();
    if both_since || (stream_named && options.tail.is_some()) {
        return Err(QueryError::Invalid);
    }
    Ok(options)
}

/// As the API machinery reads booleans: everything but `false` and `0` is true, nothing at all included.
fn truth(value: &str) -> bool {
    !matches!(value, "false" | "0")
}

/// Percent-decoding, with `+` for a blank.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = tail;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_kubelet_reads_them() {
        let parsed =
            parse("follow=true&tailLines=5&timestamps=true&limitBytes=10&sinceSeconds=60&insecure=x")
                .expect("valid");
        let wanted = Options {
            follow: true,
            timestamps: true,
            tail: Some(5),
            limit_bytes: Some(10),
            since: Some(Duration::from_secs(60)),
            ..Options::default()
        };
        assert_eq!(parsed, wanted);
        let since = parse("sinceTime=2026-01-01T00%3A00%3A00%2B01:00").expect("valid").since_time;
        assert_eq!(since.map(|t| t.to_string()).as_deref(), Some("2025-12-31T23:00:00Z"));
        assert_eq!(parse("tail=all&follow").map(|o| (o.tail, o.follow)), Ok((None, true)));
        assert_eq!(parse("follow=false&previous=0"), Ok(Options::default()));
        assert_eq!(parse("stream=Stderr").map(|o| o.stream), Ok(Some(Stream::Stderr)));
    }

    #[test]
    fn bad_queries_have_kubelets_codes() {
        for query in ["tailLines=x", "sinceTime=yesterday", "limitBytes=%zz"] {
            assert_eq!(parse(query), Err(QueryError::Malformed), "{query}");
        }
        for query in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "stream=Both",
            "stream=Stdout&tailLines=1",
        ] {
            assert_eq!(parse(query), Err(QueryError::Invalid), "{query}");
        }
    }
}
