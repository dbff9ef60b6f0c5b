//! Gives memory back once nothing has happened for a while.
//!
//! Owns: what counts as quiet. What a start, a burst of pods or a large list needed is not needed by a node that waits. Never:
//! looks at the clock while it is quiet: the next pod that comes or goes begins the count anew.

use std::time::Duration;

use orlop_sandbox::memory::{release_free_memory, release_program};

use crate::node::Registered;
use crate::pod::manager::Pods;

/// Longer than a pod takes to start from an image that is here.
const QUIET: Duration = Duration::from_secs(10);

/// Runs as long as the daemon.
pub async fn run(mut registered: Registered, mut pods: Pods) {
    if registered.wait_for(Option::is_some).await.is_err() {
        return;
    }
    loop {
        // Cancel-safe: a change that comes as the time is over is seen by the next wait.
        while let Ok(changed) = tokio::time::timeout(QUIET, pods.changed()).await {
            if !changed {
                return;
            }
        }
        release_free_memory();
        release_program();
        if !pods.changed().await {
            return;
        }
    }
}
