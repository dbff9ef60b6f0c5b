//! What `orlop proxy status`, `explain` and `verify` ask of the process that programs the services: one line of JSON each
//! way over a socket in the run directory that only root may open.
//!
//! Owns: the socket and both ends of its protocol. Never: changes anything.

use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use orlop_netproxy::Query;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::driver::{Handle, Question};

/// The socket's name in the run directory.
pub const SOCKET: &str = "proxy.sock";
/// The longest request.
const MAX_REQUEST: u64 = 4096;
/// Who says nothing for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a program waits for the answer: reading a large table back takes seconds.
const ANSWER: Duration = Duration::from_secs(120);

/// A question.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Counts.
    Status,
    /// What happens to a packet.
    Explain {
        /// `address:port[/protocol]`.
        to: String,
        /// Its source; none for the node itself.
        from: Option<IpAddr>,
        /// The interface it comes in by.
        interface: Option<String>,
    },
    /// Whether the kernel has what it should.
    Verify,
}

/// An answer, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// All is as it should be.
    Fine(String),
    /// The kernel differs from what it should have.
    Differs(String),
    /// There is no answer.
    Failed(String),
}

/// Asks the process that serves this run directory.
///
/// # Errors
/// Where none runs there.
pub fn ask(socket: &Path, request: &Request) -> anyhow::Result<Reply> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("{}: does `orlop run` or `orlop proxy run` run here?", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    writeln!(stream, "{}", serde_json::to_string(request)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("read the answer")?;
    serde_json::from_str(&line).context("understand the answer")
}

/// Serves until dropped. Without the socket the node works; only nobody can ask.
pub async fn serve(socket: PathBuf, proxy: Handle) {
    let listener = match listen(&socket) {
        Ok(listener) => listener,
        Err(error) => {
            return tracing::warn!(socket = %socket.display(), %error, "the proxy cannot be asked");
        }
    };
    let mut connections = JoinSet::new();
    loop {
        // Both arms are cancel-safe by tokio's word: a connection not taken now is taken next time.
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, proxy.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a question to the proxy could not be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

fn listen(socket: &Path) -> io::Result<tokio::net::UnixListener> {
    if UnixStream::connect(socket).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
    }
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = tokio::net::UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn converse(stream: tokio::net::UnixStream, proxy: Handle) {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(MAX_REQUEST));
    if !matches!(tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await, Ok(Ok(1..))) {
        return;
    }
    let reply = match serde_json::from_str(&line) {
        Ok(request) => answer(request, &proxy).await,
        Err(error) => Reply::Failed(format!("the question is not understood: {error}")),
    };
    let text = serde_json::to_string(&reply).unwrap_or_default() + "\n";
    // Who asked may have gone away.
    let _ = writer.write_all(text.as_bytes()).await;
}

async fn answer(request: Request, proxy: &Handle) -> Reply {
    let ended = || Reply::Failed("the proxy has ended".to_owned());
    match request {
        Request::Status => match proxy.ask(Question::Status).await {
            Some((status, _)) => Reply::Fine(status.to_string()),
            None => ended(),
        },
        Request::Explain { to, from, interface } => {
            let query = match to.parse::<Query>() {
                Ok(query) => Box::new(Query { source: from, interface, ..query }),
                Err(error) => return Reply::Failed(error),
            };
            match proxy.ask(|to| Question::Explain(query, to)).await {
                Some(Ok(explanation)) if explanation.agrees() => Reply::Fine(explanation.to_string()),
                Some(Ok(explanation)) => Reply::Differs(explanation.to_string()),
                Some(Err(error)) => Reply::Failed(error),
                None => ended(),
            }
        }
        Request::Verify => match proxy.ask(Question::Verify).await {
            Some(Ok((verification, no_nft))) => {
                let mut text = format!("{} elements in the kernel\n", verification.elements);
                if let Some(reason) = no_nft {
                    text += &format!("nft could not be asked: {reason}\n");
                }
                if verification.differences.is_empty() {
                    return Reply::Fine(text + "everything is as it should be\n");
                }
                text.extend(verification.differences.iter().map(|difference| format!("{difference}\n")));
                Reply::Differs(text)
            }
            Some(Err(error)) => Reply::Failed(error),
            None => ended(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::driver::Message;
    use super::*;

    #[tokio::test]
    async fn a_question_is_answered_and_nonsense_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("run").join(SOCKET);
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            while let Ok(Message::Question(Question::Status(to))) = messages.recv() {
                let status = orlop_netproxy::Status { services: 7, ..Default::default() };
                let _ = to.send((status, orlop_netproxy::Changes::default()));
            }
        });
        let listener = listen(&socket).expect("bound");
        assert!(listen(&socket).is_err(), "two cannot serve one node");
        let handle = Handle::new(sender);
        let asked = socket.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let wrong = Request::Explain { to: "web:80".to_owned(), from: None, interface: None };
            [ask(&asked, &Request::Status).expect("answered"), ask(&asked, &wrong).expect("answered")]
        });
        // The first connection was the second listener's question whether anybody is there.
        for _ in 0..3 {
            let (stream, _) = listener.accept().await.expect("a connection");
            converse(stream, handle.clone()).await;
        }
        let [status, wrong] = asking.await.expect("no panic");
        assert!(
            matches!(&status, Reply::Fine(text) if text.contains("services                 7")),
            "{status:?}"
        );
        assert!(matches!(&wrong, Reply::Failed(text) if text.contains("web:80")), "{wrong:?}");
    }
}
