//! Whether the API server answers. Owns: saying so once when it goes away and once when it is back. Never: decides
//! anything; callers keep trying as if nothing had been said.

use std::sync::Mutex;
use std::time::Instant;

use super::error::ApiError;

/// What is known of the server's reachability.
#[derive(Debug)]
pub struct Outage {
    server: String,
    since: Mutex<Option<Instant>>,
}

impl Outage {
    /// Nothing is known yet.
    pub fn new(server: String) -> Self {
        Self { server, since: Mutex::new(None) }
    }

    /// A call got no answer. Returns whether this is news.
    pub fn failed(&self, error: &ApiError) -> bool {
        let mut since = self.since.lock().unwrap_or_else(|e| e.into_inner());
        let news = since.is_none();
        if news {
            *since = Some(Instant::now());
            tracing::warn!(server = %self.server, %error, "API server does not answer; trying again until it does");
        }
        news
    }

    /// A call got an answer, whatever it says. Returns whether this is news.
    pub fn answered(&self) -> bool {
        let ended = self.since.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(since) = ended {
            let seconds = since.elapsed().as_secs();
            tracing::info!(server = %self.server, seconds, "API server answers again");
        }
        ended.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_and_its_end_once() {
        let outage = Outage::new("https://api".into());
        let error = ApiError::Transport("Connection refused".into());
        assert!(!outage.answered());
        assert_eq!(
            [outage.failed(&error), outage.failed(&error), outage.failed(&error)],
            [true, false, false]
        );
        assert_eq!([outage.answered(), outage.answered()], [true, false]);
        assert!(outage.failed(&error));
    }
}
