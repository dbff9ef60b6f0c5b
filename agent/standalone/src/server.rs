//! Starts and ends the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::auth::{ClientCertificate, Tokens};
use crate::control;
use crate::http::{App, Listener, NodeClient, serve};
use crate::pki::{self, Issued, Pki, PkiError, Purpose};
use crate::registry::{Registry, Settings};
use crate::status::ApiError;
use crate::store::{Store, StoreError};

/// What becomes of a node's request for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Approval {
    /// It is approved if it is in order.
    #[default]
    Automatic,
    /// It waits for an administrator.
    Never,
    /// It is denied.
    Deny,
}

/// How certificates for nodes are issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signing {
    /// Who approves.
    pub approval: Approval,
    /// For how long they are valid; a request may ask for less (`--cluster-signing-duration`).
    pub duration: Duration,
}

impl Default for Signing {
    fn default() -> Self {
        Self { approval: Approval::Automatic, duration: Duration::from_secs(365 * 24 * 3600) }
    }
}

/// How the server is to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where objects, keys and certificates are kept. Made if it is not there, with mode 0700.
    pub data_dir: PathBuf,
    /// Where to listen. Port 0 takes any.
    pub listen: SocketAddr,
    /// The address under which nodes and pods reach the server. None takes that of `listen`, or 127.0.0.1 if it is unspecified.
    pub advertise: Option<IpAddr>,
    /// More names and addresses for the server's certificate.
    pub names: Vec<String>,
    /// From these networks each node gets a range for its pods: IPv4, IPv6 or both.
    pub cluster_cidrs: Vec<IpNet>,
    /// From these networks services get addresses; the first family is the preferred one.
    pub service_cidrs: Vec<IpNet>,
    /// Where to write the administrator's kubeconfig. None writes `admin.conf` into `data_dir`.
    pub admin_kubeconfig: Option<PathBuf>,
    /// How certificates for nodes are issued.
    pub signing: Signing,
}

impl Config {
    /// The usual networks, kubeadm's defaults for services and flannel's for pods, on port 6443 of all addresses.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let net = |a: [u8; 4], prefix| ipnet::Ipv4Net::new_assert(Ipv4Addr::from(a), prefix).into();
        Self {
            data_dir: data_dir.into(),
            listen: (Ipv4Addr::UNSPECIFIED, 6443).into(),
            advertise: None,
            names: Vec::new(),
            cluster_cidrs: vec![net([10, 244, 0, 0], 16)],
            service_cidrs: vec![net([10, 96, 0, 0], 12)],
            admin_kubeconfig: None,
            signing: Signing::default(),
        }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The socket.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// What is there from the start could not be made.
    #[error("bootstrap: {0}")]
    Bootstrap(String),
}

impl From<ApiError> for StartError {
    fn from(error: ApiError) -> Self {
        Self::Bootstrap(error.to_string())
    }
}

/// A running server. Dropped without `shutdown`, its tasks end and the last second of writes stays in the log.
pub struct Server {
    address: SocketAddr,
    url: String,
    pki: Arc<Pki>,
    admin: PathBuf,
    signing: Signing,
    registry: Arc<Registry>,
    ending: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts and listens. When this returns, requests are answered.
    ///
    /// # Errors
    /// When the directory, the database, a key or the socket cannot be used.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let tcp = TcpListener::bind(config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address =
            tcp.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let pki = Arc::new(Pki::open(&config.data_dir)?);
        let store = Store::open(&config.data_dir)?;
        let advertised = config.advertise.unwrap_or_else(|| {
            if address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address.ip() }
        });
        let settings = Settings {
            cluster_cidrs: config.cluster_cidrs.clone(),
            service_cidrs: config.service_cidrs.clone(),
            advertise: (advertised, address.port()),
            ca_pem: pki.ca_pem.clone(),
        };
        let ending = CancellationToken::new();
        let registry = Registry::new(store, settings, ending.clone())?;
        control::bootstrap::ensure(&registry)?;

        let names = server_names(&config, advertised, &registry);
        let certificate = pki.issue(&Purpose::Server { names: &names })?;
        let (tls, certificates) = tls_of(&pki, certificate)?;
        let client = pki.issue(&Purpose::Client {
            name: "kube-apiserver-kubelet-client",
            group: "system:masters",
            length: None,
        })?;
        let nodes =
            NodeClient::new(client.cert_der, client.key_der).map_err(|e| StartError::Tls(e.to_string()))?;
        let tokens = Tokens::new(&pki.token_key).map_err(|e| StartError::Tls(format!("sa.key: {e}")))?;
        let app = Arc::new(App { registry: Arc::clone(&registry), tokens, nodes });

        let url = format!("https://{}", SocketAddr::new(advertised, address.port()));
        let admin = config.admin_kubeconfig.clone().unwrap_or_else(|| config.data_dir.join("admin.conf"));
        write_admin(&pki, &url, &admin)?;
        // Offline commands make kubeconfigs for nodes that lead here.
        pki::write_atomically(&config.data_dir.join("url"), url.as_bytes(), 0o644)?;

        let signer = control::Signer { pki: Arc::clone(&pki), settings: config.signing };
        let tasks = vec![
            tokio::spawn(serve(Listener { tcp, tls, certificates }, app)),
            tokio::spawn(control::run(Arc::clone(&registry), signer)),
            tokio::spawn(flush(Arc::clone(&registry))),
        ];
        tracing::info!(%url, data_dir = %config.data_dir.display(), "API server listens");
        Ok(Self { address, url, pki, admin, signing: config.signing, registry, ending, tasks })
    }

    /// The URL under which nodes and clients reach the server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file with the administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// The certificate of the CA, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.pki.ca_pem
    }

    /// A new kubeconfig for a node: user `system:node:<name>`, group `system:nodes`.
    ///
    /// # Errors
    /// When the name makes no certificate.
    pub fn node_kubeconfig(&self, name: &str) -> Result<String, PkiError> {
        for_node(&self.pki, &self.url, name, self.signing.duration)
    }

    /// Ends: watches stop, connections finish, everything is made durable.
    pub async fn shutdown(mut self) {
        self.ending.cancel();
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::warn!(%error, "task of the API server");
            }
        }
        let registry = Arc::clone(&self.registry);
        let closed = tokio::task::spawn_blocking(move || registry.store.close()).await;
        match closed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "close the store"),
            Err(error) => tracing::error!(%error, "close the store"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

/// A kubeconfig for a node, made from the directory of a server that need not run.
///
/// # Errors
/// When the directory has no CA or no server ever ran there.
pub fn node_kubeconfig(data_dir: &Path, name: &str) -> Result<String, PkiError> {
    let path = data_dir.join("url");
    let url =
        std::fs::read_to_string(&path).map_err(|source| PkiError::File { what: "read", path, source })?;
    for_node(&Pki::open(data_dir)?, url.trim(), name, Signing::default().duration)
}

/// What `orlop join --discovery-token-ca-cert-hash` pins, from the directory of a server that need not run.
///
/// # Errors
/// When the directory has no CA.
pub fn ca_hash(data_dir: &Path) -> Result<String, PkiError> {
    Pki::open(data_dir)?.ca_hash()
}

fn for_node(pki: &Pki, url: &str, name: &str, length: Duration) -> Result<String, PkiError> {
    let user = format!("system:node:{name}");
    let purpose = Purpose::Client { name: &user, group: "system:nodes", length: Some(length) };
    let issued = pki.issue(&purpose)?;
    Ok(pki::kubeconfig(url, &pki.ca_pem, &user, &issued))
}

fn write_admin(pki: &Pki, url: &str, path: &Path) -> Result<(), PkiError> {
    let issued =
        pki.issue(&Purpose::Client { name: "kubernetes-admin", group: "system:masters", length: None })?;
    let text = pki::kubeconfig(url, &pki.ca_pem, "kubernetes-admin", &issued);
    pki::write_atomically(path, text.as_bytes(), 0o600)
}

fn server_names(config: &Config, advertised: IpAddr, registry: &Registry) -> Vec<String> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ]
    .iter()
    .map(|n| (*n).to_owned())
    .collect();
    names.extend(["127.0.0.1".to_owned(), "::1".to_owned(), advertised.to_string()]);
    names.extend(registry.allocator.api_server_address().map(|a| a.to_string()));
    if !config.listen.ip().is_unspecified() {
        names.push(config.listen.ip().to_string());
    }
    names.extend(config.names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

fn tls_of(
    pki: &Pki,
    issued: Issued,
) -> Result<(Arc<rustls::ServerConfig>, Arc<ClientCertificate>), StartError> {
    let tls = |e: &dyn std::fmt::Display| StartError::Tls(e.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ca = CertificateDer::from_pem_slice(pki.ca_pem.as_bytes()).map_err(|e| tls(&e))?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(|e| tls(&e))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|e| tls(&e))?;
    let certificates = Arc::new(ClientCertificate::new(verifier));
    let chain = vec![CertificateDer::from(issued.cert_der), ca];
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| tls(&e))?
        .with_client_cert_verifier(
            Arc::clone(&certificates) as Arc<dyn rustls::server::danger::ClientCertVerifier>
        )
        .with_single_cert(chain, PrivateKeyDer::Pkcs8(issued.key_der.into()))
        .map_err(|e| tls(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(config), certificates))
}

/// Makes writes durable in the background.
async fn flush(registry: Arc<Registry>) {
    loop {
        tokio::select! {
            () = registry.ending.cancelled() => return,
            // Cancel-safe: what was not flushed is flushed at the end.
            () = registry.store.wait_until_due() => {}
        }
        let store = Arc::clone(&registry);
        match tokio::task::spawn_blocking(move || store.store.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "writes are not durable"),
            Err(error) => tracing::error!(%error, "flush"),
        }
    }
}
