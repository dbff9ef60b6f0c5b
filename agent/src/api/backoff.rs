//! How long to wait before the next try. Owns: the delays. Never: sleeps, never reads a clock.

use std::time::{Duration, Instant};

/// Exponential back-off with jitter. Delays double from `base` up to `cap`; each is stretched by a random part of
/// itself; after `reset` without a failure it begins anew.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    reset: Duration,
    next: Duration,
    last_failure: Option<Instant>,
}

impl Backoff {
    /// For a watch, as client-go's reflector waits: 800 ms doubling to 30 s, anew after 2 minutes.
    pub fn for_watch() -> Self {
        Self::new(Duration::from_millis(800), Duration::from_secs(30), Duration::from_secs(120))
    }

    /// Delays from `base` to `cap`.
    pub fn new(base: Duration, cap: Duration, reset: Duration) -> Self {
        Self { base, cap, reset, next: base, last_failure: None }
    }

    /// The delay after a failure at `now`; `random` in 0..1 decides the jitter: the delay is between the plain one and
    /// its double, and never above the cap.
    pub fn failed(&mut self, now: Instant, random: f64) -> Duration {
        if self.last_failure.is_some_and(|last| now.duration_since(last) > self.reset) {
            self.next = self.base;
        }
        self.last_failure = Some(now);
        let plain = self.next;
        self.next = (plain * 2).min(self.cap);
        plain.mul_f64(1.0 + random.clamp(0.0, 1.0)).min(self.cap)
    }

    /// Begin anew.
    pub fn succeeded(&mut self) {
        self.next = self.base;
        self.last_failure = None;
    }
}

/// A random number in 0..1, for jitter.
pub fn random() -> f64 {
    use ring::rand::SecureRandom;
    let mut bytes = [0u8; 4];
    // Without randomness there is no jitter; nothing else depends on it.
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_cap() {
        let mut backoff = Backoff::for_watch();
        let now = Instant::now();
        let delays: Vec<u128> = (0..8).map(|_| backoff.failed(now, 0.0).as_millis()).collect();
        assert_eq!(delays, [800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
    }

    #[test]
    fn jitter_stretches_up_to_the_double_and_not_over_the_cap() {
        let mut backoff = Backoff::for_watch();
        let now = Instant::now();
        assert_eq!(backoff.failed(now, 0.5).as_millis(), 1200);
        for _ in 0..10 {
            assert!(backoff.failed(now, 1.0) <= Duration::from_secs(30));
        }
    }

    #[test]
    fn a_long_quiet_time_or_a_success_begins_anew() {
        let mut backoff = Backoff::for_watch();
        let now = Instant::now();
        for _ in 0..5 {
            backoff.failed(now, 0.0);
        }
        assert_eq!(backoff.failed(now + Duration::from_secs(121), 0.0).as_millis(), 800);
        backoff.failed(now + Duration::from_secs(121), 0.0);
        backoff.succeeded();
        assert_eq!(backoff.failed(now + Duration::from_secs(122), 0.0).as_millis(), 800);
    }

    #[test]
    fn random_numbers_are_in_range() {
        for _ in 0..1000 {
            assert!((0.0..1.0).contains(&random()));
        }
    }
}
