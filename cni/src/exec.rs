//! Running another CNI plugin as a process.
//!
//! Owns: the child from start to end. A plugin that outlives its time is killed with its whole process group, and
//! one that prints more than is reasonable is cut short.
//! Never: interprets the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::spec::CniError;

/// More than any plugin has to say.
const OUTPUT_BYTES: u64 = 4 * 1024 * 1024;
/// How long output may still come after the exit.
const AFTER_EXIT: Duration = Duration::from_secs(1);
/// How much of what a plugin wrote goes into an error.
const QUOTE_BYTES: usize = 512;

/// Why a plugin run as a process gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The program is in none of the directories.
    #[error("not found in {}", paths(.0))]
    NotFound(Vec<PathBuf>),
    /// It could not be started.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// It took too long and was killed.
    #[error("did not end within {} s and was killed", .0.as_secs_f32())]
    TimedOut(Duration),
    /// It said what is wrong, as the specification wants it.
    #[error(transparent)]
    Said(CniError),
    /// It failed without saying why in the agreed form.
    #[error("failed ({status}){}", quote(.output))]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// It succeeded but its output is not JSON.
    #[error("printed something that is not JSON: {error}{}", quote(.output))]
    Garbage {
        /// Where the JSON went wrong.
        error: String,
        /// The beginning of what it wrote.
        output: String,
    },
}

fn paths(all: &[PathBuf]) -> String {
    all.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":")
}

fn quote(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// Finds the program `name` in `dirs`.
///
/// # Errors
/// [`ExecError::NotFound`].
pub fn find(name: &str, dirs: &[PathBuf]) -> Result<PathBuf, ExecError> {
    let mut candidates = dirs.iter().map(|dir| dir.join(name));
    candidates.find(|path| path.is_file()).ok_or_else(|| ExecError::NotFound(dirs.to_vec()))
}

/// Runs `program` with `input` on its standard input and returns the JSON it prints, `Null` for none.
///
/// The environment is the caller's with `environment` on top.
///
/// # Errors
/// See [`ExecError`].
pub fn run(
    program: &Path,
    environment: &BTreeMap<String, String>,
    input: &[u8],
    timeout: Duration,
) -> Result<Value, ExecError> {
    let mut command = Command::new(program);
    command
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().map_err(ExecError::Start)?;
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let watched = watch(&mut child, group, input.to_vec());
    let outcome = watched.map(|events| gather(&events, timeout));
    if !matches!(outcome, Ok(Some(_))) {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = child.wait().map_err(ExecError::Start)?;
    match outcome.map_err(ExecError::Start)? {
        Some(output) => read_output(status, &output.out, &output.err),
        None => Err(ExecError::TimedOut(timeout)),
    }
}

enum Event {
    Out(Vec<u8>),
    Err(Vec<u8>),
    /// One of the two pipes has no writer any more.
    Closed,
    Exited,
}

/// Starts threads that feed the child and report what it does. They end with the pipes; nobody waits for them, since a
/// process the child has left behind may keep a pipe for as long as it likes.
fn watch(child: &mut Child, group: Pid, input: Vec<u8>) -> io::Result<mpsc::Receiver<Event>> {
    let (events, receiver) = mpsc::channel();
    let start = |work: Box<dyn FnOnce() + Send>| thread::Builder::new().name("cni-plugin".into()).spawn(work);
    if let Some(mut pipe) = child.stdin.take() {
        // A plugin that does not read its input (VERSION) closes the pipe; that is its right.
        start(Box::new(move || drop(pipe.write_all(&input))))?;
    }
    if let Some(pipe) = child.stdout.take() {
        let events = events.clone();
        start(Box::new(move || read(pipe, &events, Event::Out)))?;
    }
    if let Some(pipe) = child.stderr.take() {
        let events = events.clone();
        start(Box::new(move || read(pipe, &events, Event::Err)))?;
    }
    start(Box::new(move || {
        // WNOWAIT leaves the process to be reaped by the caller, so its number cannot be taken by another meanwhile.
        let _ = waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let _ = events.send(Event::Exited);
    }))?;
    Ok(receiver)
}

fn read(pipe: impl Read, events: &mpsc::Sender<Event>, wrap: fn(Vec<u8>) -> Event) {
    let mut pipe = pipe.take(OUTPUT_BYTES);
    let mut buffer = vec![0; 8192];
    loop {
        match pipe.read(&mut buffer) {
            Ok(len) if len > 0 => {
                if events.send(wrap(buffer[..len].to_vec())).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    let _ = events.send(Event::Closed);
}

#[derive(Default)]
struct Output {
    out: Vec<u8>,
    err: Vec<u8>,
}

/// Waits for both outputs and the exit; `None` when time is up before the exit. What a plugin has to say it has said
/// when it exits, so for pipes that others still hold there is only a short patience.
fn gather(events: &mpsc::Receiver<Event>, timeout: Duration) -> Option<Output> {
    let mut deadline = Instant::now() + timeout;
    let mut output = Output::default();
    let (mut open, mut exited) = (2, false);
    while open > 0 || !exited {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Out(mut bytes)) => output.out.append(&mut bytes),
            Ok(Event::Err(mut bytes)) => output.err.append(&mut bytes),
            Ok(Event::Closed) => open -= 1,
            Ok(Event::Exited) => {
                exited = true;
                deadline = deadline.min(Instant::now() + AFTER_EXIT);
            }
            Err(_) => break,
        }
    }
    exited.then_some(output)
}

fn read_output(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> Result<Value, ExecError> {
    let json = serde_json::from_slice::<Value>(stdout);
    if !status.success() {
        let said = json.ok().and_then(|v| serde_json::from_value::<CniError>(v).ok());
        return Err(match said.filter(|e| e.code != 0 || !e.msg.is_empty()) {
            Some(error) if status.signal().is_none() => ExecError::Said(error),
            _ => ExecError::Failed { status, output: tail(if stderr.is_empty() { stdout } else { stderr }) },
        });
    }
    if stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    json.map_err(|e| ExecError::Garbage { error: e.to_string(), output: head(stdout) })
}

fn head(bytes: &[u8]) -> String {
    printable(&bytes[..bytes.len().min(QUOTE_BYTES)])
}

fn tail(bytes: &[u8]) -> String {
    printable(&bytes[bytes.len().saturating_sub(QUOTE_BYTES)..])
}

fn printable(bytes: &[u8]) -> String {
    struct Line<'a>(&'a str);
    impl fmt::Display for Line<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0
                .trim()
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .try_for_each(|c| write!(f, "{c}"))
        }
    }
    Line(&String::from_utf8_lossy(bytes)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs;

    fn script(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("plugin");
        programs::write(&path, format!("#!/bin/sh\n{body}\n"), "755").unwrap();
        path
    }

    fn run_script(body: &str, timeout: Duration) -> Result<Value, ExecError> {
        let dir = tempfile::tempdir().unwrap();
        let environment = BTreeMap::from([("CNI_COMMAND".to_owned(), "ADD".to_owned())]);
        run(&script(dir.path(), body), &environment, b"{\"a\":1}", timeout)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn input_and_environment_reach_the_plugin() {
        let value = run_script(r#"read -r line; echo "{\"cmd\":\"$CNI_COMMAND\",\"in\":$line}""#, LONG);
        // `read` fails at the end of input without a line end but has read the line.
        assert_eq!(value.unwrap(), serde_json::json!({"cmd": "ADD", "in": {"a": 1}}));
        assert_eq!(run_script("cat >/dev/null", LONG).unwrap(), Value::Null);
    }

    #[test]
    fn failures_say_what_the_plugin_said() {
        let error =
            run_script(r#"echo '{"code":7,"msg":"bad","details":"very"}'; exit 1"#, LONG).unwrap_err();
        assert_eq!(error.to_string(), "bad: very (CNI code 7)");
        let error = run_script("echo oops >&2; exit 3", LONG).unwrap_err();
        assert_eq!(error.to_string(), "failed (exit status: 3): oops");
        let error = run_script("echo '<html>'", LONG).unwrap_err();
        assert!(error.to_string().starts_with("printed something that is not JSON: "), "{error}");
        let error = run_script("kill -9 $$", LONG).unwrap_err();
        assert!(matches!(error, ExecError::Failed { .. }), "{error}");
    }

    #[test]
    fn a_hanging_plugin_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let path = script(dir.path(), &format!("sleep 1000 9>{} & wait", fifo.display()));
        // Reading ends when the last writer, the grandchild, is dead.
        let reader = thread::spawn(move || std::fs::read(fifo).unwrap());
        let error = run(&path, &BTreeMap::new(), b"", Duration::from_millis(500)).unwrap_err();
        assert!(matches!(error, ExecError::TimedOut(_)), "{error}");
        assert_eq!(reader.join().unwrap(), b"");
    }

    #[test]
    fn what_a_plugin_leaves_behind_holds_nobody_up() {
        // It keeps the pipes, in a process group of its own, for longer than anybody here has patience.
        let value = run_script("setsid sleep 5 & echo '{}'", LONG).unwrap();
        assert_eq!(value, serde_json::json!({}));
        let error = run_script("setsid sleep 5 & exec sleep 5", Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, ExecError::TimedOut(_)), "{error}");
    }

    #[test]
    fn a_missing_program_names_the_directories() {
        let error = find("no-such-plugin", &["/opt/cni/bin".into(), "/x".into()]).unwrap_err();
        assert_eq!(error.to_string(), "not found in /opt/cni/bin:/x");
    }
}
