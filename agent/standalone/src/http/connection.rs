//! Accepts connections: TCP, TLS, HTTP/1.1 or HTTP/2.
//!
//! Owns: the listener and the tasks of its connections, all of which end with the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::{App, dispatch};
use crate::auth::{ClientCertificate, User};

/// A client that says nothing for so long while connecting is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A pause after accept failed, as when descriptors are used up: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket with what its connections need.
pub struct Listener {
    /// The socket.
    pub tcp: TcpListener,
    /// TLS of the server.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who a certificate is.
    pub certificates: Arc<ClientCertificate>,
}

/// Serves until the server ends, then lets connections finish.
pub async fn serve(listener: Listener, app: Arc<App>) {
    let ending = app.registry.ending.clone();
    let tracker = TaskTracker::new();
    let acceptor = TlsAcceptor::from(listener.tls);
    loop {
        let accepted = tokio::select! {
            () = ending.cancelled() => break,
            // Cancel-safe: a connection that was not returned stays in the backlog.
            accepted = listener.tcp.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let (acceptor, app, certificates) =
                    (acceptor.clone(), Arc::clone(&app), Arc::clone(&listener.certificates));
                tracker.spawn(connection(tcp, peer, acceptor, app, certificates));
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener.tcp);
    tracker.close();
    tracker.wait().await;
}

async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    app: Arc<App>,
    certificates: Arc<ClientCertificate>,
) {
    let _ = tcp.set_nodelay(true);
    let ending = app.registry.ending.clone();
    let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake");
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "TLS handshake took too long");
            return;
        }
    };
    let chain: Vec<CertificateDer<'static>> = tls
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|c| c.clone().into_owned())
        .collect();
    let user: Option<Arc<User>> = certificates.user(&chain).map(Arc::new);
    let presented = !chain.is_empty();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (app, user) = (Arc::clone(&app), user.clone());
        async move {
            Ok::<_, std::convert::Infallible>(
                dispatch::handle(&app, user.as_deref(), presented, request).await,
            )
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    // Watches of an idle client cost little, and a burst of requests is not held up.
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(Duration::from_secs(2), connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection");
    }
}
