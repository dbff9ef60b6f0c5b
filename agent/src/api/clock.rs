//! How far the API server's clock is from this machine's, from the `Date` of its answers.
//!
//! Owns: saying so once when they are far apart, and once when they agree again. Never: decides anything.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

/// Certificates, leases and tokens bear less, but `Date` has whole seconds and answers take time.
const FAR: SignedDuration = SignedDuration::from_secs(60);

/// What is known.
#[derive(Debug)]
pub struct Clock {
    /// Seconds that the server is ahead; the smallest number as long as nothing is known.
    ahead: AtomicI64,
    told: AtomicBool,
}

impl Default for Clock {
    fn default() -> Self {
        Self { ahead: AtomicI64::new(i64::MIN), told: AtomicBool::new(false) }
    }
}

impl Clock {
    /// An answer came with this `Date`. Returns whether the clocks are far apart.
    pub fn heard(&self, date: &str, now: Timestamp) -> bool {
        let Ok(there) = jiff::fmt::rfc2822::parse(date) else { return self.told.load(Ordering::Relaxed) };
        let ahead = there.timestamp().duration_since(now);
        self.ahead.store(ahead.as_secs(), Ordering::Relaxed);
        let far = ahead.abs() > FAR;
        if self.told.swap(far, Ordering::Relaxed) != far {
            let (here, there) = (now, there.timestamp());
            if far {
                tracing::error!(%here, %there, "the clock of this machine and that of the API server are far apart: set it");
            } else {
                tracing::info!("the clock of this machine agrees with that of the API server again");
            }
        }
        far
    }

    /// How far the server is ahead, if it said.
    pub fn ahead(&self) -> Option<SignedDuration> {
        let seconds = self.ahead.load(Ordering::Relaxed);
        (seconds != i64::MIN).then(|| SignedDuration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_far_apart_are_noticed() {
        let clock = Clock::default();
        let now: Timestamp = "2026-11-06T08:49:37Z".parse().expect("a time");
        assert_eq!(clock.ahead(), None);
        assert!(!clock.heard("Fri, 06 Nov 2026 08:49:40 GMT", now));
        assert_eq!(clock.ahead(), Some(SignedDuration::from_secs(3)));
        assert!(clock.heard("Fri, 06 Nov 2026 09:49:37 GMT", now));
        assert_eq!(clock.ahead(), Some(SignedDuration::from_hours(1)));
        assert!(clock.heard("nonsense", now), "what was known stays");
        assert!(!clock.heard("Fri, 06 Nov 2026 08:49:37 GMT", now));
    }
}
