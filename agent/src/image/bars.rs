//! Progress on standard error: bars on a terminal, one line for each step elsewhere.
//!
//! Owns: what is drawn. Reads: events of imports and pulls.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::cli::human_size;
use super::digest::Digest;
use super::{import, puller};

/// The progress display of one command.
pub(super) struct Bars {
    all: MultiProgress,
    terminal: bool,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
    head: ProgressBar,
}

impl Bars {
    /// For `orlop image pull`.
    pub fn for_pull(image: &str) -> Self {
        Self::new(&format!("Pulling {image}"))
    }

    /// For `orlop image import`.
    pub fn for_import(source: &str) -> Self {
        Self::new(&format!("Importing {source}"))
    }

    fn new(title: &str) -> Self {
        let terminal = io::stderr().is_terminal();
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let head =
            all.add(ProgressBar::no_length().with_style(style("{msg}")).with_message(title.to_owned()));
        let bars = Self { all, terminal, layers: Mutex::default(), head };
        bars.head.tick();
        bars.line(title);
        bars
    }

    /// Shows what a pull does.
    pub fn pull(&self, event: puller::Progress) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            puller::Progress::Resolved(digest) => self.line(&format!("digest: {digest}")),
            puller::Progress::Layer(digest, size) => {
                self.line(&format!("{}: {}", digest.short(), human_size(size)));
                let bar = ProgressBar::new(size)
                    .with_style(style("  {prefix} {bar:32} {bytes:>11} / {total_bytes} {bytes_per_sec}"))
                    .with_prefix(digest.short().to_owned());
                layers.insert(digest, self.all.add(bar));
            }
            puller::Progress::Arrived(digest, bytes) => {
                if let Some(bar) = layers.get(&digest) {
                    bar.set_position(bytes);
                }
            }
            puller::Progress::Done(digest) => {
                if let Some(bar) = layers.remove(&digest) {
                    bar.finish();
                    self.line(&format!("{}: done", digest.short()));
                }
            }
        }
    }

    /// Shows what an import does.
    pub fn import(&self, event: &import::Progress) {
        match event {
            import::Progress::Reading => {}
            import::Progress::Layers(count) => self.line(&format!("layers to unpack: {count}")),
            import::Progress::Read(bytes) => {
                self.head.set_style(style("{msg} {spinner} {bytes}"));
                self.head.inc(*bytes);
            }
            import::Progress::Layer(digest) => self.line(&format!("layer {}: done", digest.short())),
        }
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        self.head.finish_and_clear();
        // A terminal that went away is no reason to fail.
        let _ = self.all.clear();
    }

    fn line(&self, text: &str) {
        if !self.terminal {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
