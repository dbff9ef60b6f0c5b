//! The service that is the node, as systemd has it.
//!
//! Owns: calling systemctl. Never: waits for the node (the API server tells when it is Ready).

use std::path::Path;
use std::process::{Command, Stdio};

use super::failure::{Exit, Failure};

/// The unit of a node of a cluster.
pub const UNIT: &str = "orlop.service";
/// The unit of a node with an API server of its own.
pub const STANDALONE_UNIT: &str = "orlop-standalone.service";

/// The unit that pods live in; it starts nothing by itself.
const PODS_UNIT: &str = "orlop-pods.service";

/// Whether systemd runs this machine (sd_booted(3)).
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Enables the service, and starts it, or starts it anew with what has changed: pods go on.
///
/// # Errors
/// In systemctl's words.
pub fn enable_and_restart() -> Result<(), Failure> {
    let failed = |error: String| {
        Failure::new(Exit::Service, format!("{UNIT}: {error}"))
            .advise("is the unit installed (systemd/install)? See: systemctl status orlop")
    };
    for args in [&["enable", UNIT][..], &["--no-block", "restart", UNIT]] {
        systemctl(args).map_err(failed)?;
    }
    Ok(())
}

/// Ends and disables whichever unit of ours there is. None is success.
///
/// # Errors
/// In systemctl's words.
pub fn disable_and_stop() -> Result<Vec<&'static str>, String> {
    let mut ended = Vec::new();
    for unit in [UNIT, STANDALONE_UNIT] {
        // Both fail for a unit that is not there.
        let known = systemctl(&["is-active", "--quiet", unit]).is_ok()
            || systemctl(&["is-enabled", "--quiet", unit]).is_ok();
        if known {
            systemctl(&["disable", "--now", unit])?;
            ended.push(unit);
        }
    }
    Ok(ended)
}

/// Ends the unit that held the pods, once they are gone. None is success.
///
/// # Errors
/// In systemctl's words.
pub fn stop_pods_unit() -> Result<(), String> {
    match systemctl(&["is-active", "--quiet", PODS_UNIT]) {
        Ok(()) => systemctl(&["stop", PODS_UNIT]),
        Err(_) => Ok(()),
    }
}

fn systemctl(args: &[&str]) -> Result<(), String> {
    let output = Command::new("systemctl").args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("systemctl: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("systemctl {}: {}", args.join(" "), words.trim()))
}
