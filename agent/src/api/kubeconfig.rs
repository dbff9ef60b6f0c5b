//! A kubeconfig file becomes [`Access`]: which server, whom to trust, who we are.
//!
//! Owns: the file's format and its errors, which name file and field. Never: connects; reads no token or client
//! certificate file (they are re-read while the daemon runs, see `tls` and `token`), only the certificate authority.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

/// Everything needed to talk to one API server as one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// `https://host:port[/prefix]`, without a slash at its end.
    pub server: String,
    /// Whose certificates the server may show.
    pub trust: Trust,
    /// Check the server's certificate for this name instead of the host in `server`.
    pub tls_server_name: Option<String>,
    /// Proxy for this cluster.
    pub proxy_url: Option<String>,
    /// Client certificate and key.
    pub certificate: Option<CertificateSource>,
    /// Bearer token.
    pub token: Option<TokenSource>,
    /// The context's namespace.
    pub namespace: Option<String>,
}

/// Whose certificates the server may show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The roots this machine trusts.
    System,
    /// This PEM bundle alone.
    Bundle(Vec<u8>),
    /// Anybody's: `insecure-skip-tls-verify`.
    Anybody,
}

/// PEM text or where to find it.
#[derive(Clone, PartialEq, Eq)]
pub enum PemSource {
    /// From the file itself (`...-data`).
    Inline(Vec<u8>),
    /// From another file, read again when it changes.
    File(PathBuf),
}

/// Without the text, which may be a private key: what is printed ends up in logs.
impl std::fmt::Debug for PemSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(pem) => write!(f, "Inline({} bytes)", pem.len()),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// A client certificate and its key; both may be in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSource {
    /// The certificate chain.
    pub certificate: PemSource,
    /// The private key.
    pub key: PemSource,
}

/// A bearer token or where to find it.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The token.
    Inline(String),
    /// Read again every few seconds, since service account tokens rotate.
    File(PathBuf),
}

/// Without the token.
impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// What is wrong with a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file cannot be read.
    #[error("kubeconfig {file}: {source}")]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML or JSON of this shape; the reason names the line.
    #[error("kubeconfig {file}: {reason}")]
    Malformed {
        /// Which file.
        file: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// A field is missing, wrong, or not supported.
    #[error("kubeconfig {file}: {field}: {reason}")]
    Field {
        /// Which file.
        file: PathBuf,
        /// Which field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a kubeconfig and follows its `current-context`.
pub fn load(file: &Path) -> Result<Access, KubeconfigError> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| KubeconfigError::Read { file: file.to_owned(), source })?;
    parse(&text, file)
}

/// Like [`load`], for text already read; `file` is for messages and for relative paths.
pub fn parse(text: &str, file: &Path) -> Result<Access, KubeconfigError> {
    let config: Config = serde_saphyr::from_str(text)
        .map_err(|e| KubeconfigError::Malformed { file: file.to_owned(), reason: e.to_string() })?;
    if config.kind.as_deref().is_some_and(|kind| kind != "Config") {
        let kind = config.kind.unwrap_or_default();
        return Err(field(file, "kind", format!("is {kind}, a kubeconfig says Config")));
    }
    let at = Resolver { file };
    let name = config.current_context.filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| field(file, "current-context", "is not set"))?;
    let context = config
        .contexts
        .into_iter()
        .find(|c| c.name == name)
        .map(|c| c.context)
        .ok_or_else(|| field(file, "current-context", format!("no context of the name {name}")))?;
    let cluster = config.clusters.into_iter().find(|c| c.name == context.cluster).map(|c| c.cluster);
    let cluster = cluster.ok_or_else(|| {
        field(
            file,
            format!("contexts[{name}].context.cluster"),
            format!("no cluster of the name {}", context.cluster),
        )
    })?;
    let mut access = at.cluster(&context.cluster, cluster)?;
    access.namespace = context.namespace;
    if let Some(user) = context.user.filter(|u| !u.is_empty()) {
        let found = config.users.into_iter().find(|u| u.name == user).map(|u| u.user);
        let found = found.ok_or_else(|| {
            field(file, format!("contexts[{name}].context.user"), format!("no user of the name {user}"))
        })?;
        (access.certificate, access.token) = at.user(&user, found)?;
    }
    Ok(access)
}

fn field(file: &Path, field: impl Into<String>, reason: impl Into<String>) -> KubeconfigError {
    KubeconfigError::Field { file: file.to_owned(), field: field.into(), reason: reason.into() }
}

/// Turns the file's words into sources, relative paths being relative to the file.
struct Resolver<'a> {
    file: &'a Path,
}

impl Resolver<'_> {
    fn cluster(&self, name: &str, cluster: Cluster) -> Result<Access, KubeconfigError> {
        let at = |f: &str| format!("clusters[{name}].cluster.{f}");
        let server = cluster.server.unwrap_or_default();
        if server.is_empty() {
            return Err(field(self.file, at("server"), "is not set"));
        }
        // A bare host and port means plain HTTP to kubectl and kubelet alike.
        let server = if server.contains("://") { server } else { format!("http://{server}") };
        if !server.starts_with("https://") && !server.starts_with("http://") {
            return Err(field(self.file, at("server"), format!("{server} is not an http or https address")));
        }
        let authority = self.pem(
            &at("certificate-authority"),
            cluster.certificate_authority,
            cluster.certificate_authority_data,
        )?;
        let trust = match (cluster.insecure_skip_tls_verify, authority) {
            (true, Some(_)) => {
                let reason = "is set together with a certificate authority; only one of them makes sense";
                return Err(field(self.file, at("insecure-skip-tls-verify"), reason));
            }
            (true, None) => Trust::Anybody,
            (false, None) => Trust::System,
            (false, Some(PemSource::Inline(pem))) => Trust::Bundle(pem),
            (false, Some(PemSource::File(path))) => Trust::Bundle(std::fs::read(&path).map_err(|e| {
                field(self.file, at("certificate-authority"), format!("{}: {e}", path.display()))
            })?),
        };
        Ok(Access {
            server: server.trim_end_matches('/').to_owned(),
            trust,
            tls_server_name: cluster.tls_server_name.filter(|n| !n.is_empty()),
            proxy_url: cluster.proxy_url.filter(|p| !p.is_empty()),
            certificate: None,
            token: None,
            namespace: None,
        })
    }

    fn user(
        &self,
        name: &str,
        user: User,
    ) -> Result<(Option<CertificateSource>, Option<TokenSource>), KubeconfigError> {
        let at = |f: &str| format!("users[{name}].user.{f}");
        for (present, f) in [
            (user.exec.is_some(), "exec"),
            (user.auth_provider.is_some(), "auth-provider"),
            (user.username.is_some() || user.password.is_some(), "username"),
            (user.impersonate.is_some(), "as"),
        ] {
            if present {
                let reason = "is not supported; use a client certificate, a token or a tokenFile";
                return Err(field(self.file, at(f), reason));
            }
        }
        let certificate =
            self.pem(&at("client-certificate"), user.client_certificate, user.client_certificate_data)?;
        let key = self.pem(&at("client-key"), user.client_key, user.client_key_data)?;
        let certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(CertificateSource { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(field(self.file, at("client-key"), "is not set, but client-certificate is"));
            }
            (None, Some(_)) => {
                return Err(field(self.file, at("client-certificate"), "is not set, but client-key is"));
            }
        };
        // As in client-go, a token file wins over a token.
        let token = match (user.token_file, user.token) {
            (Some(path), _) if !path.as_os_str().is_empty() => Some(TokenSource::File(self.path(path))),
            (_, Some(token)) if !token.is_empty() => Some(TokenSource::Inline(token)),
            _ => None,
        };
        Ok((certificate, token))
    }

    /// `...-data` wins over the file, as in client-go.
    fn pem(
        &self,
        name: &str,
        path: Option<PathBuf>,
        data: Option<String>,
    ) -> Result<Option<PemSource>, KubeconfigError> {
        if let Some(data) = data.filter(|d| !d.is_empty()) {
            let compact: String = data.split_whitespace().collect();
            let pem = BASE64
                .decode(compact)
                .map_err(|e| field(self.file, format!("{name}-data"), format!("is not base64: {e}")))?;
            return Ok(Some(PemSource::Inline(pem)));
        }
        let path = path.filter(|p| !p.as_os_str().is_empty());
        Ok(path.map(|p| PemSource::File(self.path(p))))
    }

    fn path(&self, path: PathBuf) -> PathBuf {
        match self.file.parent() {
            Some(folder) if path.is_relative() => folder.join(path),
            _ => path,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    kind: Option<String>,
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "
apiVersion: v1
kind: Config
current-context: main
contexts:
- name: main
  context: {cluster: home, user: node, namespace: apps}
clusters:
- name: home
  cluster:
    server: https://10.0.0.1:6443/
    certificate-authority-data: Q0E=
    tls-server-name: kubernetes
users:
- name: node
  user:
    client-certificate: pki/node.pem
    client-key: /etc/keys/node.pem
    tokenFile: token
";

    fn file() -> &'static Path {
        Path::new("/etc/orlop/kubelet.conf")
    }

    #[test]
    fn what_is_printed_for_people_holds_no_secret() {
        let key = PemSource::Inline(b"key".to_vec());
        let source = CertificateSource { certificate: PemSource::File("/c".into()), key };
        let printed = format!("{source:?} {:?}", TokenSource::Inline("s3cret".into()));
        assert!(!printed.contains("107, 101, 121") && !printed.contains("s3cret"), "{printed}");
        assert!(printed.contains("/c") && printed.contains("3 bytes"), "{printed}");
    }

    #[test]
    fn a_whole_file_is_understood() {
        let access = parse(WHOLE, file()).expect("valid");
        assert_eq!(
            access,
            Access {
                server: "https://10.0.0.1:6443".into(),
                trust: Trust::Bundle(b"CA".to_vec()),
                tls_server_name: Some("kubernetes".into()),
                proxy_url: None,
                certificate: Some(CertificateSource {
                    certificate: PemSource::File("/etc/orlop/pki/node.pem".into()),
                    key: PemSource::File("/etc/keys/node.pem".into()),
                }),
                token: Some(TokenSource::File("/etc/orlop/token".into())),
                namespace: Some("apps".into()),
            }
        );
    }

    #[test]
    fn json_is_understood_too() {
        let text = r#"{"current-context":"a","contexts":[{"name":"a","context":{"cluster":"c","user":"u"}}],
            "clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:8080"}}],
            "users":[{"name":"u","user":{"token":"secret"}}]}"#;
        let access = parse(text, file()).expect("valid");
        assert_eq!((access.token, access.trust), (Some(TokenSource::Inline("secret".into())), Trust::System));
    }

    #[test]
    fn every_error_names_the_file_and_the_field() {
        let table = [
            (
                "current-context: main\n",
                "",
                "kubeconfig /etc/orlop/kubelet.conf: current-context: is not set",
            ),
            (
                "current-context: main",
                "current-context: other",
                "kubeconfig /etc/orlop/kubelet.conf: current-context: no context of the name other",
            ),
            (
                "cluster: home",
                "cluster: away",
                "kubeconfig /etc/orlop/kubelet.conf: contexts[main].context.cluster: no cluster of the name away",
            ),
            (
                "user: node,",
                "user: me,",
                "kubeconfig /etc/orlop/kubelet.conf: contexts[main].context.user: no user of the name me",
            ),
            (
                "Q0E=",
                "'*'",
                "kubeconfig /etc/orlop/kubelet.conf: clusters[home].cluster.certificate-authority-data: is not base64: \
                 Invalid symbol 42, offset 0.",
            ),
            (
                "client-key: /etc/keys/node.pem",
                "x: y",
                "kubeconfig /etc/orlop/kubelet.conf: users[node].user.client-key: is not set, but client-certificate is",
            ),
            (
                "tokenFile: token",
                "exec: {command: login}",
                "kubeconfig /etc/orlop/kubelet.conf: users[node].user.exec: is not supported; use a client certificate, \
                 a token or a tokenFile",
            ),
            (
                "kind: Config",
                "kind: Pod",
                "kubeconfig /etc/orlop/kubelet.conf: kind: is Pod, a kubeconfig says Config",
            ),
            (
                "server: https://10.0.0.1:6443/",
                "server: ftp://x",
                "kubeconfig /etc/orlop/kubelet.conf: clusters[home].cluster.server: ftp://x is not an http or https address",
            ),
        ];
        for (from, to, wanted) in table {
            let error = parse(&WHOLE.replace(from, to), file()).expect_err(wanted);
            assert_eq!(error.to_string(), wanted);
        }
    }

    #[test]
    fn malformed_text_names_the_line() {
        let error = parse("clusters: [\n  {name: 1", file()).expect_err("malformed").to_string();
        assert!(error.starts_with("kubeconfig /etc/orlop/kubelet.conf: "), "{error}");
        assert!(error.contains("line"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("/nonexistent/kube.conf")).expect_err("missing").to_string();
        assert_eq!(error, "kubeconfig /nonexistent/kube.conf: No such file or directory (os error 2)");
    }

    #[test]
    fn a_missing_certificate_authority_is_named() {
        let text = WHOLE.replace("certificate-authority-data: Q0E=", "certificate-authority: gone.pem");
        let error = parse(&text, file()).expect_err("missing").to_string();
        assert!(
            error.contains("clusters[home].cluster.certificate-authority: /etc/orlop/gone.pem"),
            "{error}"
        );
    }
}
