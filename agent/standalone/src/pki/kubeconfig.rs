//! Writes kubeconfig files with the certificates inside.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Issued;

/// A kubeconfig for one user of one server.
pub fn kubeconfig(server: &str, ca_pem: &str, user: &str, issued: &Issued) -> String {
    let ca = STANDARD.encode(ca_pem);
    let cert = STANDARD.encode(&issued.cert_pem);
    let key = STANDARD.encode(&issued.key_pem);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: orlop
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: {user}
  user:
    client-certificate-data: {cert}
    client-key-data: {key}
contexts:
- name: {user}@orlop
  context:
    cluster: orlop
    user: {user}
current-context: {user}@orlop
"
    )
}
