//! Commands for a guest: a line out, a line back, over the machine's own serial port.
//!
//! Owns: the connection to that port. Never: runs two commands at once.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// How long one read may block: the deadline is looked at that often.
const PULSE: Duration = Duration::from_millis(200);

/// A guest that answers.
#[derive(Debug)]
pub struct Agent {
    reader: BufReader<UnixStream>,
    /// A line of which only a part has come.
    partial: Vec<u8>,
    count: u64,
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code.
    pub code: i32,
    /// Standard output and standard error.
    pub text: String,
}

impl Agent {
    /// Connects to the port of a machine that is starting.
    pub fn connect(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PULSE))?;
        Ok(Self { reader: BufReader::new(stream), partial: vec![], count: 0 })
    }

    /// Waits until the guest has booted so far that it takes commands. `None`: not within a pulse.
    pub fn ready(&mut self) -> anyhow::Result<bool> {
        Ok(self.line()?.is_some_and(|line| line.starts_with("ready ")))
    }

    /// Runs a script by bash in the guest.
    pub fn run(&mut self, script: &str, limit: Duration) -> anyhow::Result<Outcome> {
        self.send(script)?;
        let start = Instant::now();
        let wanted = format!("done {} ", self.count);
        while start.elapsed() < limit {
            let Some(line) = self.line()? else { continue };
            if let Some(text) = line.strip_prefix(&wanted) {
                return outcome(text);
            }
        }
        bail!("the guest did not end within {limit:?}: {script}")
    }

    /// Says what to run, and does not wait for it.
    pub fn send(&mut self, script: &str) -> anyhow::Result<()> {
        self.count += 1;
        let line = format!("{} {}\n", self.count, BASE64.encode(script));
        self.reader.get_mut().write_all(line.as_bytes()).context("the guest's port")
    }

    /// The next line, if one comes within a pulse.
    fn line(&mut self) -> anyhow::Result<Option<String>> {
        match self.reader.read_until(b'\n', &mut self.partial) {
            Ok(_) if self.partial.ends_with(b"\n") => {
                let line = String::from_utf8_lossy(&self.partial).trim().to_owned();
                self.partial.clear();
                Ok(Some(line))
            }
            Ok(_) => bail!("the guest's port is closed: the machine has ended"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error).context("the guest's port"),
        }
    }
}

fn outcome(text: &str) -> anyhow::Result<Outcome> {
    let text = String::from_utf8_lossy(&BASE64.decode(text)?).into_owned();
    let text = text.trim_end_matches('\n');
    let (text, code) = text.rsplit_once('\n').unwrap_or(("", text));
    // A command whose last line does not end runs into its code; no script of ours does that.
    Ok(Outcome {
        code: code.parse().with_context(|| format!("no exit code in {code:?}"))?,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_exit_code() {
        let of = |text: &str| outcome(&BASE64.encode(text)).expect("an outcome");
        assert_eq!(of("0\n"), Outcome { code: 0, text: String::new() });
        assert_eq!(of("a\nb\n3\n"), Outcome { code: 3, text: "a\nb".to_owned() });
        assert!(outcome(&BASE64.encode("a\n")).is_err());
    }
}
