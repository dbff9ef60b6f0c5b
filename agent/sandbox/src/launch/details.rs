//! `libcontainer` says the interesting half of an error only in its log. This passes the first such line on.
//!
//! Owns: a `tracing` subscriber that is installed in helpers alone, and inherited by the processes they make; there the
//! errors happen. Never: writes more than one line, or anything but errors.

use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::report::{Report, send};

struct FirstError {
    channel: OwnedFd,
    said: AtomicBool,
}

/// Starts passing on to the report channel. Call it once in a helper.
pub fn install(channel: OwnedFd) {
    // Fails only if there is a subscriber already, and then it does the same.
    let _ = tracing::subscriber::set_global_default(FirstError::new(channel));
}

impl FirstError {
    fn new(channel: OwnedFd) -> Self {
        FirstError { channel, said: AtomicBool::new(false) }
    }
}

impl Subscriber for FirstError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        // Later errors are only the first one's consequences on the way up.
        if !self.said.swap(true, Ordering::Relaxed) {
            let mut line = Line::default();
            event.record(&mut line);
            // Nobody listens any more: then nobody needs to know.
            let _ = send(self.channel.as_fd(), &Report::Detail(line.message + &line.fields), None);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Received, channel, receive};
    use super::*;

    #[test]
    fn the_first_error_is_passed_on_with_its_fields() {
        let (ours, theirs) = channel().unwrap();
        tracing::subscriber::with_default(FirstError::new(theirs), || {
            tracing::warn!("not this");
            tracing::error!(path = "/x", "failed to mount");
            tracing::error!("a consequence");
        });
        let Received::Report(report, None) = receive(&ours) else { panic!() };
        assert_eq!(report, Report::Detail("failed to mount path=\"/x\"".to_owned()));
        assert!(matches!(receive(&ours), Received::End));
    }
}
