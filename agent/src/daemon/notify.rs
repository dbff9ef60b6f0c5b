//! What systemd is told: ready, alive, stopping. Does nothing where nobody listens.
//!
//! Owns: the watchdog's beat. Never: says alive while the runtime is stuck (the beat is a task on it).

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon is up. `status` is shown by `systemctl status`.
pub fn ready(status: &str) {
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What it does now, for `systemctl status`.
pub fn status(status: &str) {
    let _ = sd_notify::notify(&[NotifyState::Status(status)]);
}

/// The daemon ends; pods go on.
pub fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
}

/// Beats twice in each interval that the unit's `WatchdogSec` asks for. Ends at once without one.
pub async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval((interval / 2).max(Duration::from_millis(100)));
    loop {
        beat.tick().await;
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}
