//! What a join tells its user: one line for each phase, and what it waits for whenever that changes.
//!
//! Owns: the form of these lines, on standard output. Never: repeats a line while nothing changes.

use std::fmt::Display;
use std::io::Write;

/// Tells.
#[derive(Debug, Default)]
pub struct Progress {
    waiting_for: String,
}

impl Progress {
    /// A phase is over.
    pub fn phase(&mut self, name: &str, text: impl Display) {
        self.waiting_for.clear();
        // Who closes our output does not end the join.
        let _ = writeln!(std::io::stdout(), "{name:<14} {text}");
    }

    /// What is waited for; told once.
    pub fn waiting(&mut self, text: impl Display) {
        let text = text.to_string();
        if text != self.waiting_for {
            let _ = writeln!(std::io::stdout(), "{:<14} waiting: {text}", "");
            self.waiting_for = text;
        }
    }

    /// Something to know.
    pub fn note(&mut self, text: impl Display) {
        let _ = writeln!(std::io::stdout(), "{:<14} {text}", "");
    }
}
