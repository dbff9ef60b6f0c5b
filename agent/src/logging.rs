//! Where log lines go: the journal under systemd, readable text on standard error otherwise.
//!
//! Owns: the set-up, once, at the start of the daemon. Never: decides what is worth a line.

use std::io::IsTerminal;
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. `verbosity` is `--v` with kubelet's meaning: 0 to 3 inform, 4 to 6 debug, from 7 on trace.
pub fn start(verbosity: u8) {
    let level = match verbosity {
        0..=3 => LevelFilter::INFO,
        4..=6 => LevelFilter::DEBUG,
        7.. => LevelFilter::TRACE,
    };
    // The libraries' own chatter is not the node's log.
    let filter = Targets::new().with_default(LevelFilter::WARN).with_targets(
        ["orlop", "orlop_cni", "orlop_netproxy", "orlop_standalone"].map(|target| (target, level)),
    );
    if stderr_is_the_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        tracing_subscriber::registry().with(journal.with_field_prefix(None).with_filter(filter)).init();
        return;
    }
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_filter(filter);
    tracing_subscriber::registry().with(text).init();
}

/// systemd names the device and inode of the journal's stream in `JOURNAL_STREAM`; a redirected stderr differs.
fn stderr_is_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let path = format!("/proc/self/fd/{}", std::io::stderr().as_raw_fd());
    std::fs::metadata(path).is_ok_and(|meta| named == format!("{}:{}", meta.st_dev(), meta.st_ino()))
}
