//! The node's first certificate, asked for with the bootstrap credentials.
//!
//! Owns: the key until its request is signed (joining again asks with the same one), and what each refusal means. Never:
//! makes the request itself (`api::csr` does), rotates (the daemon does).

use std::fs;
use std::time::Duration;

use super::args::Places;
use super::discovery::Found;
use super::failure::{Exit, Failure};
use super::files::{Writes, unwritten};
use super::progress::Progress;
use super::settings::Timeouts;
use crate::api::client::Client;
use crate::api::csr::{self, CLIENT_SIGNER, CsrError, Wanted};
use crate::api::error::ApiError;
use crate::host::files::{remove_file, write_durable};

/// Between two attempts at a server that does not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Gets it: the text of the file with certificate and key.
///
/// # Errors
/// Denied, not approved in time, not accepted, or a key that cannot be kept.
pub async fn obtain(
    found: &Found,
    node: &str,
    places: &Places,
    timeouts: &Timeouts,
    progress: &mut Progress,
) -> Result<String, Failure> {
    let client = Client::new(&found.bootstrap).map_err(|error| Failure::new(Exit::Cluster, error))?;
    let key = key(places)?;
    let user = format!("system:node:{node}");
    let wanted = Wanted { signer: CLIENT_SIGNER, user: &user, names: Vec::new() };
    let request = csr::request(&wanted, &key).map_err(|error| Failure::new(Exit::Failed, error))?;
    let approve = format!("kubectl certificate approve {}", request.name);
    let mut posted = false;
    let asking = async {
        loop {
            let tell = |how_far| match how_far {
                csr::Progress::Posted => posted = true,
                csr::Progress::Undecided => {
                    let name = &request.name;
                    progress
                        .waiting(format!("certificate signing request {name} to be approved ({approve})"));
                }
            };
            match csr::obtain(&client, &request, tell).await {
                Err(CsrError::Api(error)) if error.is_transient() => {
                    progress.waiting(format!("the API server: {error}"));
                    tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
                }
                other => return other,
            }
        }
    };
    let result = tokio::time::timeout(timeouts.tls_bootstrap, asking).await;
    let certificate = match result {
        Ok(Ok(certificate)) => certificate,
        Ok(Err(error)) => {
            if !is_worth_asking_again(&error) {
                // The next join asks with another key, which makes another request.
                let _ = remove_file(&places.pending_key());
            }
            return Err(refused(error, node));
        }
        Err(_) if !posted => {
            let what = "the API server does not take the certificate signing request in time";
            return Err(Failure::new(Exit::Unreachable, what).advise("join again"));
        }
        Err(_) => {
            let what = format!("certificate signing request {} was not approved in time", request.name);
            return Err(Failure::new(Exit::NotApproved, what)
                .advise(format!("{approve}, then join again: it goes on from there")));
        }
    };
    String::from_utf8(certificate)
        .map(|pem| format!("{}\n{key}", pem.trim_end()))
        .map_err(|_| Failure::new(Exit::Failed, "the certificate that came is not PEM"))
}

/// The key of an earlier join, or a new one.
fn key(places: &Places) -> Result<String, Failure> {
    let path = places.pending_key();
    if let Ok(kept) = fs::read_to_string(&path)
        && csr::request(&Wanted { signer: CLIENT_SIGNER, user: "node", names: Vec::new() }, &kept).is_ok()
    {
        return Ok(kept);
    }
    let key = csr::new_key().map_err(|error| Failure::new(Exit::Failed, error))?;
    // Its directory stays if the join is interrupted, as the key does.
    let mut writes = Writes::default();
    writes.dir(&places.root_dir.join("pki"), 0o700)?;
    write_durable(&path, key.as_bytes(), 0o600).map_err(|error| unwritten("", &error))?;
    writes.keep();
    Ok(key)
}

fn is_worth_asking_again(error: &CsrError) -> bool {
    match error {
        CsrError::Api(error) => error.is_transient(),
        CsrError::Make(_) | CsrError::Denied { .. } | CsrError::Failed { .. } | CsrError::Deleted(_) => false,
    }
}

fn refused(error: CsrError, node: &str) -> Failure {
    match error {
        CsrError::Denied { .. } | CsrError::Failed { .. } => Failure::new(Exit::Denied, error)
            .advise("ask who looks after the cluster; joining again makes a new request"),
        CsrError::Deleted(_) => Failure::new(Exit::NotApproved, error).advise("join again"),
        CsrError::Api(ApiError::Unauthorized(_)) => {
            Failure::new(Exit::Token, "the cluster does not accept the bootstrap credentials (any more)")
                .advise("get a new token: kubeadm token create --print-join-command")
        }
        CsrError::Api(ApiError::Forbidden(message)) => Failure::new(Exit::Cluster, message)
            .advise("the token's groups may not ask for node certificates: kubeadm init phase bootstrap-token allows it"),
        CsrError::Api(error) if error.is_transient() => {
            Failure::new(Exit::Unreachable, error).advise("join again: it goes on from there")
        }
        CsrError::Api(error) => {
            Failure::new(Exit::Cluster, format!("the request of node {node} is not taken: {error}"))
        }
        CsrError::Make(error) => Failure::new(Exit::Failed, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_exit_code() {
        let denied = CsrError::Denied { name: "c".into(), message: "no".into() };
        assert!(!is_worth_asking_again(&denied));
        assert_eq!(refused(denied, "n").exit, Exit::Denied);
        for (error, exit) in [
            (ApiError::Unauthorized("x".into()), Exit::Token),
            (ApiError::Forbidden("x".into()), Exit::Cluster),
            (ApiError::Transport("x".into()), Exit::Unreachable),
            (ApiError::Invalid("x".into()), Exit::Cluster),
        ] {
            assert_eq!(refused(CsrError::Api(error), "n").exit, exit);
        }
    }

    #[test]
    fn an_interrupted_join_asks_with_the_same_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let places = Places {
            etc_dir: dir.path().join("etc"),
            root_dir: dir.path().join("root"),
            run_dir: dir.path().join("run"),
        };
        let first = key(&places).expect("a key");
        assert_eq!(key(&places).expect("a key"), first);
        fs::write(places.pending_key(), "half a k").expect("written");
        assert_ne!(key(&places).expect("a key"), first);
    }
}
