//! A registry small enough to misbehave on demand: HTTP/1.1 on loopback, one answer for each connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::{Blob, TestImage};

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What it gets.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

/// A server that runs until the process ends; a test has few of them.
pub struct Server {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { address, asked }
    }

    /// Everything asked so far, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Requests whose path contains `part`.
    pub fn asked_for(&self, part: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|a| a.path.contains(part)).collect()
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Asked>>, answer: &(impl Fn(&Asked) -> Answer + ?Sized)) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    let asked = Asked { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() };
    let head_only = asked.method == "HEAD";
    log.lock().unwrap().push(asked.clone());
    let answer = answer(&asked);
    let mut out = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    out.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    for (name, value) in &answer.headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    let mut stream = stream;
    let end = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
    // A client that has gone away is part of some tests.
    let _ = stream.write_all(out.as_bytes());
    if !head_only {
        let _ = stream.write_all(&answer.body[..end]);
    }
}

/// The answers of a well-behaved registry that has one image under every name and tag.
pub fn well_behaved(image: &TestImage, asked: &Asked) -> Answer {
    if asked.path == "/v2/" {
        return Answer::new(200, "{}");
    }
    let manifest = |blob: &Blob| {
        Answer::new(200, blob.bytes.clone())
            .header("Content-Type", blob.media_type)
            .header("Docker-Content-Digest", blob.digest().to_string())
    };
    if asked.path.contains("/manifests/") {
        return manifest(&image.manifest);
    }
    match image.blobs().find(|blob| asked.path.ends_with(&blob.digest().to_string())) {
        None => Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
        Some(blob) => ranged(&blob.bytes, asked),
    }
}

/// A body, or the rest of it from the offset of a `Range` header.
pub fn ranged(bytes: &[u8], asked: &Asked) -> Answer {
    let start = asked
        .header("range")
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match start {
        None => Answer::new(200, bytes),
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer::new(206, &bytes[start..]).header("Content-Range", range)
        }
    }
}
