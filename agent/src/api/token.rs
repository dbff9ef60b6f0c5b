//! The bearer token of this node. Owns: reading a token file again while it lives. Never: asks for tokens.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::kubeconfig::TokenSource;

/// How old a token read from a file may get; the kubelet that writes such files rotates them well ahead.
const FRESH: Duration = Duration::from_secs(10);

/// A token, inline or in a file.
#[derive(Debug)]
pub enum BearerToken {
    /// Never changes.
    Inline(String),
    /// Read again every few seconds.
    File {
        /// Where.
        path: PathBuf,
        /// What was read and when.
        cached: Mutex<Option<(Instant, String)>>,
    },
}

impl BearerToken {
    /// Nothing is read yet.
    pub fn new(source: TokenSource) -> Self {
        match source {
            TokenSource::Inline(token) => Self::Inline(token),
            TokenSource::File(path) => Self::File { path, cached: Mutex::default() },
        }
    }

    /// The token to send now. When the file cannot be read, the last token read is used as long as there is one.
    pub fn get(&self, now: Instant) -> Result<String, String> {
        let (path, cached) = match self {
            BearerToken::Inline(token) => return Ok(token.clone()),
            BearerToken::File { path, cached } => (path, cached),
        };
        let mut cached = cached.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((read_at, token)) = &*cached
            && now.duration_since(*read_at) < FRESH
        {
            return Ok(token.clone());
        }
        let text = std::fs::read_to_string(path).map_err(|e| format!("tokenFile {}: {e}", path.display()));
        match (text, &*cached) {
            (Ok(text), _) if !text.trim().is_empty() => {
                let token = text.trim().to_owned();
                *cached = Some((now, token.clone()));
                Ok(token)
            }
            (_, Some((_, old))) => Ok(old.clone()),
            (Ok(_), None) => Err(format!("tokenFile {}: is empty", path.display())),
            (Err(error), None) => Err(error),
        }
    }

    /// The server did not accept the token: read the file again next time.
    pub fn refused(&self) {
        match self {
            BearerToken::Inline(_) => {}
            BearerToken::File { cached, .. } => *cached.lock().unwrap_or_else(|e| e.into_inner()) = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_read_again_after_a_while_or_a_refusal() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        std::fs::write(&path, "one\n").expect("written");
        let token = BearerToken::new(TokenSource::File(path.clone()));
        let start = Instant::now();
        assert_eq!(token.get(start).as_deref(), Ok("one"));
        std::fs::write(&path, "two").expect("written");
        assert_eq!(token.get(start + Duration::from_secs(1)).as_deref(), Ok("one"));
        assert_eq!(token.get(start + FRESH).as_deref(), Ok("two"));
        std::fs::write(&path, "three").expect("written");
        token.refused();
        assert_eq!(token.get(start + FRESH).as_deref(), Ok("three"));
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(token.get(start + 3 * FRESH).as_deref(), Ok("three"));
    }

    #[test]
    fn a_missing_token_file_is_named() {
        let token = BearerToken::new(TokenSource::File("/nonexistent/token".into()));
        let error = token.get(Instant::now()).expect_err("missing");
        assert_eq!(error, "tokenFile /nonexistent/token: No such file or directory (os error 2)");
    }
}
