//! A small API client that speaks from inside a network namespace.
//!
//! Owns: one thread in that namespace with a runtime of its own, on which every socket is made. Never: retries.

use std::fs::File;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use tokio::sync::mpsc;

/// Work on its way to the thread.
enum Job {
    /// One request, one answer.
    Request {
        method: reqwest::Method,
        path: String,
        content_type: &'static str,
        body: Option<String>,
        answer: std_mpsc::Sender<anyhow::Result<(u16, String)>>,
    },
    /// One request, an answer of many lines.
    Watch { path: String, lines: std_mpsc::Sender<String> },
}

/// A watch; ends when dropped or when the server ends it.
pub struct Watch {
    lines: std_mpsc::Receiver<String>,
}

impl Watch {
    /// Reads events until one is as wanted.
    pub fn until(&mut self, limit: Duration, mut wanted: impl FnMut(&Value) -> bool) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line =
                self.lines.recv_timeout(left).with_context(|| format!("no such event within {limit:?}"))?;
            if wanted(&serde_json::from_str(&line)?) {
                return Ok(());
            }
        }
    }
}

/// Speaks to one API server.
#[derive(Clone)]
pub struct Client {
    jobs: mpsc::UnboundedSender<Job>,
}

/// Where a server is and who we are for it.
pub struct Access {
    /// `https://...`
    pub server: String,
    /// PEM.
    pub ca: Vec<u8>,
    /// PEM, certificate and key.
    pub identity: Vec<u8>,
}

impl Access {
    /// Reads the current context of a kubeconfig that holds its certificates inline.
    pub fn from_kubeconfig(text: &str) -> anyhow::Result<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.trim().trim_start_matches("- ").strip_prefix(&format!("{name}:")))
                .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
                .with_context(|| format!("kubeconfig without {name}"))
        };
        let decoded = |name: &str| {
            use base64::Engine;
            let text = field(name)?;
            Ok::<_, anyhow::Error>(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let mut identity = decoded("client-certificate-data")?;
        identity.push(b'\n');
        identity.extend(decoded("client-key-data")?);
        Ok(Self { server: field("server")?, ca: decoded("certificate-authority-data")?, identity })
    }
}

impl Client {
    /// `netns` is a namespace file; `None` is our own.
    pub fn new(access: Access, netns: Option<File>) -> anyhow::Result<Self> {
        let (jobs, mut receiver) = mpsc::unbounded_channel::<Job>();
        let (ready, started) = std_mpsc::channel();
        std::thread::Builder::new().name("api-client".into()).spawn(move || {
            let result = (|| {
                if let Some(netns) = netns {
                    nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
                }
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let _ = rustls::crypto::ring::default_provider().install_default();
                let http = reqwest::Client::builder()
                    .tls_certs_only([reqwest::Certificate::from_pem(&access.ca)?])
                    .identity(reqwest::Identity::from_pem(&access.identity)?)
                    .timeout(Duration::from_secs(60))
                    .build()?;
                Ok::<_, anyhow::Error>((runtime, http))
            })();
            let (runtime, http) = match result {
                Ok(parts) => {
                    let _ = ready.send(Ok(()));
                    parts
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            runtime.block_on(async move {
                while let Some(job) = receiver.recv().await {
                    let (http, server) = (http.clone(), access.server.clone());
                    tokio::spawn(async move {
                        match job {
                            Job::Request { method, path, content_type, body, answer } => {
                                let url = format!("{server}{path}");
                                let _ = answer.send(send(&http, &url, method, content_type, body).await);
                            }
                            Job::Watch { path, lines } => {
                                let _ = read_lines(&http, &format!("{server}{path}"), &lines).await;
                            }
                        }
                    });
                }
            });
        })?;
        started.recv().context("the client's thread ended")??;
        Ok(Self { jobs })
    }

    /// Watches a collection from now on.
    pub fn watch(&self, path: &str) -> anyhow::Result<Watch> {
        let version = self.get(path)?["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let (lines, receiver) = std_mpsc::channel();
        let path = format!("{path}?watch=1&resourceVersion={version}");
        self.jobs.send(Job::Watch { path, lines }).map_err(|_| anyhow!("the client's thread ended"))?;
        Ok(Watch { lines: receiver })
    }

    /// Makes a request; the status code and the body, whatever the code.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &'static str,
        body: Option<String>,
    ) -> anyhow::Result<(u16, String)> {
        let (answer, receiver) = std_mpsc::channel();
        let job = Job::Request { method: method.parse()?, path: path.to_owned(), content_type, body, answer };
        self.jobs.send(job).map_err(|_| anyhow!("the client's thread ended"))?;
        receiver.recv().context("the client's thread ended")?
    }

    /// GET as JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.json("GET", path, None)
    }

    /// GET as JSON; `None` for 404.
    pub fn find(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let (code, body) = self.request("GET", path, "application/json", None)?;
        match code {
            404 => Ok(None),
            200..300 => Ok(Some(serde_json::from_str(&body)?)),
            _ => bail!("GET {path}: {code} {body}"),
        }
    }

    /// POST.
    pub fn create(&self, path: &str, object: &Value) -> anyhow::Result<Value> {
        self.json("POST", path, Some(object.to_string()))
    }

    /// DELETE; gone already is success.
    pub fn delete(&self, path: &str) -> anyhow::Result<()> {
        let (code, body) = self.request("DELETE", path, "application/json", None)?;
        if code == 404 || (200..300).contains(&code) { Ok(()) } else { bail!("DELETE {path}: {code} {body}") }
    }

    fn json(&self, method: &str, path: &str, body: Option<String>) -> anyhow::Result<Value> {
        let (code, body) = self.request(method, path, "application/json", body)?;
        if !(200..300).contains(&code) {
            bail!("{method} {path}: {code} {body}");
        }
        Ok(serde_json::from_str(&body)?)
    }

    /// Asks until `done` says so; fails with the last answer after `limit`.
    pub fn wait<T>(
        &self,
        path: &str,
        limit: Duration,
        mut done: impl FnMut(Option<&Value>) -> Option<T>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            let seen = self.find(path)?;
            if let Some(result) = done(seen.as_ref()) {
                return Ok(result);
            }
            if start.elapsed() > limit {
                bail!("{path} did not become as wanted within {limit:?}; it is {}", pretty(seen.as_ref()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn pretty(value: Option<&Value>) -> String {
    value.map_or_else(|| "absent".to_owned(), |value| serde_json::to_string_pretty(value).unwrap_or_default())
}

async fn send(
    http: &reqwest::Client,
    url: &str,
    method: reqwest::Method,
    content_type: &'static str,
    body: Option<String>,
) -> anyhow::Result<(u16, String)> {
    let mut request = http.request(method, url);
    if let Some(body) = body {
        request = request.header("Content-Type", content_type).body(body);
    }
    let response = request.send().await?;
    let code = response.status().as_u16();
    Ok((code, response.text().await?))
}

/// Until the server or the reader has had enough.
async fn read_lines(
    http: &reqwest::Client,
    url: &str,
    lines: &std_mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let mut response = http.get(url).timeout(Duration::from_secs(600)).send().await?;
    let mut rest = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            lines.send(String::from_utf8(line)?)?;
        }
    }
    Ok(())
}
