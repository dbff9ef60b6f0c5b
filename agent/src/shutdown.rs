//! The end of the daemon: the first signal asks every task to finish, a second one does not wait.
//!
//! Owns: the signals and the token they cancel. Never: stops a pod; pods outlive the daemon.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels the returned token at SIGTERM or SIGINT; the second of them ends the process at once with exit code 130.
pub fn on_signals() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    tokio::spawn(async move {
        for round in 0_u8.. {
            // Cancel-safe: a signal stream keeps what it has not delivered.
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if round > 0 {
                tracing::warn!(signal = name, "second signal: ending at once");
                std::process::exit(130);
            }
            tracing::info!(signal = name, "stopping; pods keep running");
            cancelled.cancel();
        }
    });
    Ok(token)
}
