//! Carries requests on to a node's port 10250: logs, exec, attach, port-forward, `nodes/proxy`.
//!
//! Owns: the client certificate with which the server shows itself to nodes. As a real API server without
//! `--kubelet-certificate-authority`, it does not verify the certificate of the node, which signs its own.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::dispatch::Context;
use super::{Body, Response};
use crate::object::{self, at, items, text, text_at};
use crate::resource::{Kind, NODES, PODS};
use crate::status::{ApiError, ApiResult};

const CONNECT: Duration = Duration::from_secs(10);

/// The way to the nodes.
pub struct NodeClient {
    tls: TlsConnector,
}

impl NodeClient {
    /// Takes the server's client certificate.
    ///
    /// # Errors
    /// When TLS refuses it.
    pub fn new(cert: Vec<u8>, key: Vec<u8>) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = Arc::new(AnyServer(provider.signature_verification_algorithms));
        let key = PrivateKeyDer::Pkcs8(key.into());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(trust)
            .with_client_auth_cert(vec![CertificateDer::from(cert)], key)?;
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn send(
        &self,
        node: &Address,
        request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, String> {
        let dial = async {
            let target = (node.host.as_str(), node.port);
            let tcp = TcpStream::connect(target)
                .await
                .map_err(|e| format!("dial tcp {}:{}: {e}", node.host, node.port))?;
            let _ = tcp.set_nodelay(true);
            let name = ServerName::try_from(node.host.clone()).map_err(|e| format!("{}: {e}", node.host))?;
            self.tls.connect(name, tcp).await.map_err(|e| format!("tls: {e}"))
        };
        let tls = tokio::time::timeout(CONNECT, dial)
            .await
            .map_err(|_| format!("dial tcp {}:{}: timeout", node.host, node.port))??;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
        // Ends with the connection, which ends with the body or the upgraded stream.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a node");
            }
        });
        sender.send_request(request).await.map_err(|e| e.to_string())
    }
}

/// Accepts the certificate of any node, checks its signatures.
#[derive(Debug)]
struct AnyServer(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Where a node listens.
#[derive(Debug, PartialEq)]
struct Address {
    host: String,
    port: u16,
}

/// The first of InternalIP, ExternalIP, Hostname, as kubeadm sets `--kubelet-preferred-address-types`.
fn address_of(node: &Value) -> Option<Address> {
    let addresses = items(&node["status"], "addresses");
    let of = |kind: &str| {
        addresses.iter().find(|a| text(a, "type") == kind).map(|a| text(a, "address").to_owned())
    };
    let host = ["InternalIP", "ExternalIP", "Hostname"].into_iter().find_map(of)?;
    let port = at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).as_u64();
    Some(Address {
        host,
        port: port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(10250),
    })
}

fn address(context: &Context<'_>, name: &str) -> ApiResult<Address> {
    let node = object::parse(&context.app.registry.get(NODES, "", name)?);
    address_of(&node).ok_or_else(|| {
        ApiError::internal(format!("no preferred addresses found; known addresses: [] of node {name}"))
    })
}

/// The pod of the path and the container meant.
fn pod_and_container(context: &Context<'_>) -> ApiResult<(Value, String)> {
    let request = &context.request;
    let pod = object::parse(&context.app.registry.get(PODS, &request.namespace, &request.name)?);
    let names =
        |list: &str| items(&pod["spec"], list).iter().map(|c| text(c, "name").to_owned()).collect::<Vec<_>>();
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let asked = request.query.get("container").to_owned();
    let name = request.name.as_str();
    if asked.is_empty() {
        return match main.as_slice() {
            [only] => Ok((pod.clone(), only.clone())),
            _ => {
                let listed = main.join(" ");
                let mut message =
                    format!("a container name must be specified for pod {name}, choose one of: [{listed}]");
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(ApiError::bad_request(message))
            }
        };
    }
    if !main.iter().chain(&init).chain(&ephemeral).any(|n| *n == asked) {
        return Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}")));
    }
    Ok((pod.clone(), asked))
}

fn node_of(pod: &Value) -> ApiResult<&str> {
    let node = text_at(pod, &["spec", "nodeName"]);
    if node.is_empty() {
        let message = format!("pod {} does not have a host assigned", object::name(pod));
        return Err(ApiError::bad_request(message));
    }
    Ok(node)
}

fn unreachable(node: &Address, path: &str, why: &str) -> ApiError {
    ApiError::internal(format!("Get \"https://{}:{}{path}\": {why}", node.host, node.port))
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn builder(method: &Method, node: &Address, path: &str) -> http::request::Builder {
    http::Request::builder().method(method).uri(path).header(HOST, format!("{}:{}", node.host, node.port))
}

/// `pods/log`.
///
/// # Errors
/// 400, 404, 500 when the node cannot be reached, and what the node says.
pub async fn log(context: &Context<'_>) -> ApiResult<Response> {
    let (pod, container) = pod_and_container(context)?;
    let node = address(context, node_of(&pod)?)?;
    let query = &context.request.query;
    let mut pairs = Vec::new();
    for key in ["follow", "previous", "timestamps"] {
        if query.is_true(key) {
            pairs.push(format!("{key}=true"));
        }
    }
    for key in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        if !query.get(key).is_empty() {
            pairs.push(format!("{key}={}", encode(query.get(key))));
        }
    }
    let path = format!(
        "/containerLogs/{}/{}/{container}?{}",
        object::namespace(&pod),
        object::name(&pod),
        pairs.join("&")
    );
    let request = builder(&Method::GET, &node, &path).body(empty()).map_err(ApiError::internal)?;
    let response =
        context.app.nodes.send(&node, request).await.map_err(|why| unreachable(&node, &path, &why))?;
    let response = refused(response).await?;
    Ok(pass(response, "text/plain"))
}

/// The answer of a node, if it is a good one.
async fn refused(response: http::Response<Incoming>) -> ApiResult<http::Response<Incoming>> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let body =
        Limited::new(response.into_body(), 2048).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let message = String::from_utf8_lossy(&body).trim().to_owned();
    let reason = match status.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    Err(ApiError { code: status.as_u16(), reason, message, details: json!({}) })
}

fn pass(response: http::Response<Incoming>, media_type: &'static str) -> Response {
    let (parts, body) = response.into_parts();
    let mut out = http::Response::new(body.map_err(std::io::Error::other).boxed_unsync());
    *out.status_mut() = parts.status;
    let given = parts.headers.get(CONTENT_TYPE).cloned();
    out.headers_mut().insert(CONTENT_TYPE, given.unwrap_or_else(|| HeaderValue::from_static(media_type)));
    out
}

/// Percent-encodes a query value.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `pods/exec`, `pods/attach`, `pods/portforward`: the connection is handed on as it is.
///
/// # Errors
/// As for logs; 400 when the request asks for no upgrade.
pub async fn connect(context: &Context<'_>, request: hyper::Request<Incoming>) -> ApiResult<Response> {
    let sub = context.request.subresource.as_str();
    let query = &context.request.query;
    let (pod, path) = if sub == "portforward" {
        let found = context.app.registry.get(PODS, &context.request.namespace, &context.request.name)?;
        let ports: Vec<String> = query.all("ports").iter().map(|p| format!("port={}", encode(p))).collect();
        (
            object::parse(&found),
            format!(
                "/portForward/{}/{}?{}",
                context.request.namespace,
                context.request.name,
                ports.join("&")
            ),
        )
    } else {
        let (pod, container) = pod_and_container(context)?;
        let mut pairs: Vec<String> =
            query.all("command").iter().map(|c| format!("command={}", encode(c))).collect();
        for (key, short) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
            if query.is_true(key) {
                pairs.push(format!("{short}=1"));
            }
        }
        let path = format!(
            "/{sub}/{}/{}/{container}?{}",
            context.request.namespace,
            context.request.name,
            pairs.join("&")
        );
        (pod, path)
    };
    if !request.headers().contains_key(UPGRADE) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let node = address(context, node_of(&pod)?)?;
    upgrade(context, &node, &path, request).await
}

async fn upgrade(
    context: &Context<'_>,
    node: &Address,
    path: &str,
    mut request: hyper::Request<Incoming>,
) -> ApiResult<Response> {
    let mut out = builder(&request.method().clone(), node, path);
    for (name, value) in request.headers() {
        let text = name.as_str();
        let carried = name == UPGRADE
            || name == CONNECTION
            || text.starts_with("sec-websocket-")
            || text == "x-stream-protocol-version";
        if carried {
            out = out.header(name, value);
        }
    }
    let out = out.body(empty()).map_err(ApiError::internal)?;
    let response = context.app.nodes.send(node, out).await.map_err(|why| unreachable(node, path, &why))?;
    let mut response = refused(response).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(pass(response, "text/plain"));
    }
    let to_node = hyper::upgrade::on(&mut response);
    let to_client = hyper::upgrade::on(&mut request);
    let ending = context.app.registry.ending.clone();
    // Ends when either side closes, or with the server.
    tokio::spawn(async move {
        let (Ok(node), Ok(client)) = (to_node.await, to_client.await) else { return };
        let (mut node, mut client) = (TokioIo::new(node), TokioIo::new(client));
        tokio::select! {
            () = ending.cancelled() => {}
            result = tokio::io::copy_bidirectional(&mut node, &mut client) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "stream to a node");
                }
            }
        }
    });
    let mut answer = http::Response::new(empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}

/// `nodes/proxy`.
///
/// # Errors
/// 404, 500 when the node cannot be reached.
pub async fn node(context: &Context<'_>, request: hyper::Request<Incoming>) -> ApiResult<Response> {
    debug_assert_eq!(NODES.kind, Kind::Node);
    // A port after the name is allowed, as in `nodes/name:10250/proxy`.
    let name = context.request.name.split(':').next().unwrap_or_default();
    let node = address(context, name)?;
    let query = context.request.query.raw();
    let path = format!("/{}{}{query}", context.request.rest, if query.is_empty() { "" } else { "?" });
    if request.headers().contains_key(UPGRADE) {
        return upgrade(context, &node, &path, request).await;
    }
    let (parts, body) = request.into_parts();
    let mut out = builder(&parts.method, &node, &path);
    if let Some(media_type) = parts.headers.get(CONTENT_TYPE) {
        out = out.header(CONTENT_TYPE, media_type);
    }
    let out = out.body(body.map_err(std::io::Error::other).boxed_unsync()).map_err(ApiError::internal)?;
    let response = context.app.nodes.send(&node, out).await.map_err(|why| unreachable(&node, &path, &why))?;
    Ok(pass(response, "text/plain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_internal_address_is_preferred() {
        let node = json!({"status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}}}});
        assert_eq!(address_of(&node), Some(Address { host: "10.0.0.1".into(), port: 10251 }));
        let bare = json!({"status": {"addresses": [{"type": "Hostname", "address": "n"}]}});
        assert_eq!(address_of(&bare), Some(Address { host: "n".into(), port: 10250 }));
        assert_eq!(address_of(&json!({})), None);
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encode("sh -c 'a&b'"), "sh%20-c%20%27a%26b%27");
    }
}
