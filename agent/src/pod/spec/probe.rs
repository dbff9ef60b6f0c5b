//! Probes and lifecycle hooks: their full shape. Owns: decoding. Never: runs one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::{empty_is_none, is_default, seconds, seconds_option};

/// A liveness, readiness or startup probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ProbeWire", into = "ProbeWire")]
pub struct Probe {
    /// What is asked.
    pub handler: Handler,
    /// From the container's start to the first probe.
    pub initial_delay: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Between two probes.
    pub period: Duration,
    /// Successes in a row that count as success.
    pub success_threshold: u32,
    /// Failures in a row that count as failure.
    pub failure_threshold: u32,
    /// Instead of the pod's, when this probe makes the node stop the container.
    pub termination_grace_period: Option<Duration>,
}

/// What a probe or a hook does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handler {
    /// Run a program in the container.
    Exec(Vec<String>),
    /// An HTTP GET.
    HttpGet(HttpGet),
    /// Open a TCP connection.
    TcpSocket(TcpSocket),
    /// gRPC health check.
    Grpc(Grpc),
    /// Wait (hooks only).
    Sleep(Duration),
    /// A kind that this node does not know; always an error.
    Unknown,
}

/// `httpGet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Path and query.
    #[serde(default = "slash")]
    pub path: String,
    /// Where.
    pub port: PortRef,
    /// The pod's address when `None`.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "is_default")]
    pub host: Option<String>,
    /// With or without TLS.
    #[serde(default)]
    pub scheme: Scheme,
    /// Further headers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub http_headers: Vec<HttpHeader>,
}

/// One header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// `scheme`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    /// Plain.
    #[default]
    Http,
    /// TLS, whose certificate is not checked.
    Https,
}

/// `tcpSocket`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpSocket {
    /// Where.
    pub port: PortRef,
    /// The pod's address when `None`.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "is_default")]
    pub host: Option<String>,
}

/// `grpc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grpc {
    /// Where.
    pub port: u16,
    /// Name of the service in the request.
    #[serde(default, skip_serializing_if = "is_default")]
    pub service: String,
}

/// A port by number or by the name it has in `ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

/// `lifecycle` of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Lifecycle {
    /// Right after the start; the container is not `Running` before it ends.
    #[serde(skip_serializing_if = "is_default")]
    pub post_start: Option<Hook>,
    /// Before the stop signal, within the grace period.
    #[serde(skip_serializing_if = "is_default")]
    pub pre_stop: Option<Hook>,
    /// Instead of the image's stop signal: `SIGUSR1` and so on.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: Option<String>,
}

/// A lifecycle hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "HandlerWire", into = "HandlerWire")]
pub struct Hook(pub Handler);

#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct ExecWire {
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct SleepWire {
    #[serde(with = "seconds")]
    seconds: Duration,
}

#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HandlerWire {
    #[serde(skip_serializing_if = "is_default")]
    exec: Option<ExecWire>,
    #[serde(skip_serializing_if = "is_default")]
    http_get: Option<HttpGet>,
    #[serde(skip_serializing_if = "is_default")]
    tcp_socket: Option<TcpSocket>,
    #[serde(skip_serializing_if = "is_default")]
    grpc: Option<Grpc>,
    #[serde(skip_serializing_if = "is_default")]
    sleep: Option<SleepWire>,
}

impl From<HandlerWire> for Handler {
    fn from(wire: HandlerWire) -> Self {
        if let Some(v) = wire.exec {
            Handler::Exec(v.command)
        } else if let Some(v) = wire.http_get {
            Handler::HttpGet(v)
        } else if let Some(v) = wire.tcp_socket {
            Handler::TcpSocket(v)
        } else if let Some(v) = wire.grpc {
            Handler::Grpc(v)
        } else if let Some(v) = wire.sleep {
            Handler::Sleep(v.seconds)
        } else {
            Handler::Unknown
        }
    }
}

impl From<Handler> for HandlerWire {
    fn from(handler: Handler) -> Self {
        let mut wire = HandlerWire::default();
        match handler {
            Handler::Exec(command) => wire.exec = Some(ExecWire { command }),
            Handler::HttpGet(v) => wire.http_get = Some(v),
            Handler::TcpSocket(v) => wire.tcp_socket = Some(v),
            Handler::Grpc(v) => wire.grpc = Some(v),
            Handler::Sleep(seconds) => wire.sleep = Some(SleepWire { seconds }),
            Handler::Unknown => {}
        }
        wire
    }
}

impl From<HandlerWire> for Hook {
    fn from(wire: HandlerWire) -> Self {
        Hook(wire.into())
    }
}

impl From<Hook> for HandlerWire {
    fn from(hook: Hook) -> Self {
        hook.0.into()
    }
}

/// A probe as the API spells it: handler and numbers side by side. Written out rather than flattened, because a
/// flattened struct would hide unknown fields from the decoder.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProbeWire {
    #[serde(default, skip_serializing_if = "is_default")]
    exec: Option<ExecWire>,
    #[serde(default, skip_serializing_if = "is_default")]
    http_get: Option<HttpGet>,
    #[serde(default, skip_serializing_if = "is_default")]
    tcp_socket: Option<TcpSocket>,
    #[serde(default, skip_serializing_if = "is_default")]
    grpc: Option<Grpc>,
    #[serde(default, with = "seconds", skip_serializing_if = "is_default")]
    initial_delay_seconds: Duration,
    #[serde(default, with = "seconds")]
    timeout_seconds: Duration,
    #[serde(default, with = "seconds")]
    period_seconds: Duration,
    #[serde(default)]
    success_threshold: u32,
    #[serde(default)]
    failure_threshold: u32,
    #[serde(default, with = "seconds_option", skip_serializing_if = "is_default")]
    termination_grace_period_seconds: Option<Duration>,
}

impl From<ProbeWire> for Probe {
    /// Zero means "not set" for these fields, as for the API server.
    fn from(wire: ProbeWire) -> Self {
        let or = |value: Duration, seconds| {
            if value.is_zero() { Duration::from_secs(seconds) } else { value }
        };
        let handler = HandlerWire {
            exec: wire.exec,
            http_get: wire.http_get,
            tcp_socket: wire.tcp_socket,
            grpc: wire.grpc,
            sleep: None,
        };
        Probe {
            handler: handler.into(),
            initial_delay: wire.initial_delay_seconds,
            timeout: or(wire.timeout_seconds, 1),
            period: or(wire.period_seconds, 10),
            success_threshold: wire.success_threshold.max(1),
            failure_threshold: if wire.failure_threshold == 0 { 3 } else { wire.failure_threshold },
            termination_grace_period: wire.termination_grace_period_seconds,
        }
    }
}

impl From<Probe> for ProbeWire {
    fn from(probe: Probe) -> Self {
        let handler = HandlerWire::from(probe.handler);
        ProbeWire {
            exec: handler.exec,
            http_get: handler.http_get,
            tcp_socket: handler.tcp_socket,
            grpc: handler.grpc,
            initial_delay_seconds: probe.initial_delay,
            timeout_seconds: probe.timeout,
            period_seconds: probe.period,
            success_threshold: probe.success_threshold,
            failure_threshold: probe.failure_threshold,
            termination_grace_period_seconds: probe.termination_grace_period,
        }
    }
}

fn slash() -> String {
    "/".to_owned()
}
