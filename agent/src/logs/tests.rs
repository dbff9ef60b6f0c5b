//! Lines in, lines out: whatever is rotated, split and written meanwhile.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use proptest::prelude::*;
use tokio::sync::oneshot;

use super::follow::{LogRequest, stream};
use super::print::Style;
use super::reader::{LogReader, Reached};

/// Writes as the supervisor does: pieces tagged P and F, files rotated by renaming.
struct Writer {
    path: PathBuf,
    rotations: u32,
    clock: u32,
}

impl Writer {
    fn new(folder: &Path) -> Self {
        Self { path: folder.join("0.log"), rotations: 0, clock: 0 }
    }

    fn entry(&mut self, stream: &str, tag: char, text: &str) {
        self.clock += 1;
        self.raw(&format!(
            "2026-01-01T00:{:02}:{:02}.000000000Z {stream} {tag} {text}\n",
            self.clock / 60,
            self.clock % 60
        ));
    }

    fn raw(&self, text: &str) {
        let file = OpenOptions::new().append(true).create(true).open(&self.path);
        file.and_then(|mut f| f.write_all(text.as_bytes())).expect("written");
    }

    fn rotate(&mut self) {
        self.rotations += 1;
        let name = format!("0.log.20260101-{:06}", self.rotations);
        if self.path.exists() {
            fs::rename(&self.path, self.path.with_file_name(name)).expect("renamed");
        }
    }
}

fn drain(reader: &mut LogReader, out: &mut Vec<u8>) {
    while reader.read(out).expect("readable") == Reached::More {}
}

fn read_all(path: &Path, tail: Option<u64>) -> String {
    let mut reader = LogReader::open(path.to_owned(), tail, Style::default()).expect("open");
    let mut out = Vec::new();
    drain(&mut reader, &mut out);
    reader.finish(&mut out);
    String::from_utf8(out).expect("text")
}

#[derive(Debug, Clone)]
enum Step {
    /// A line in pieces of these lengths; the last piece ends it.
    Line {
        stderr: bool,
        pieces: Vec<u8>,
    },
    Rotate,
    Read,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let line = (any::<bool>(), prop::collection::vec(0u8..5, 1..4))
        .prop_map(|(stderr, pieces)| Step::Line { stderr, pieces });
    prop::collection::vec(prop_oneof![6 => line, 2 => Just(Step::Rotate), 2 => Just(Step::Read)], 0..40)
}

/// Carries the steps out; returns the lines in the order of their ends. Pieces of both streams are mixed.
fn write(writer: &mut Writer, steps: &[Step], mut read: impl FnMut()) -> Vec<String> {
    let mut lines = Vec::new();
    let mut number = 0;
    // Pieces still to write of each stream, as (tag, text), so that lines overlap.
    let mut waiting: [VecDeque<(char, String)>; 2] = Default::default();
    let mut current = [String::new(), String::new()];
    let mut put = |writer: &mut Writer, waiting: &mut [VecDeque<(char, String)>; 2], stream: usize| {
        let Some((tag, text)) = waiting[stream].pop_front() else { return };
        writer.entry(["stdout", "stderr"][stream], tag, &text);
        current[stream].push_str(&text);
        if tag == 'F' {
            lines.push(std::mem::take(&mut current[stream]));
        }
    };
    for step in steps {
        match step {
            Step::Line { stderr, pieces } => {
                number += 1;
                let last = pieces.len() - 1;
                for (at, length) in pieces.iter().enumerate() {
                    let text = format!("{number}.{at}{}", "x".repeat(usize::from(*length)));
                    waiting[usize::from(*stderr)].push_back((if at == last { 'F' } else { 'P' }, text));
                }
                put(writer, &mut waiting, usize::from(!*stderr));
                put(writer, &mut waiting, usize::from(*stderr));
            }
            Step::Rotate => writer.rotate(),
            Step::Read => read(),
        }
    }
    for stream in [0, 1, 0, 1] {
        while !waiting[stream].is_empty() {
            put(writer, &mut waiting, stream);
        }
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_line_comes_out_once_and_in_order(steps in steps()) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::new(folder.path());
        let mut reader = LogReader::open(writer.path.clone(), None, Style::default()).expect("open");
        let mut out = Vec::new();
        let lines = write(&mut writer, &steps, || drain(&mut reader, &mut out));
        drain(&mut reader, &mut out);
        reader.finish(&mut out);
        let wanted: String = lines.iter().map(|l| format!("{l}\n")).collect();
        prop_assert_eq!(String::from_utf8(out).expect("text"), &*wanted);
        prop_assert_eq!(read_all(&writer.path, None), wanted);
    }

    #[test]
    fn the_tail_is_the_last_lines(steps in steps(), tail in 0u64..8) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::new(folder.path());
        let lines = write(&mut writer, &steps, || {});
        let skipped = lines.len().saturating_sub(usize::try_from(tail).expect("small"));
        let wanted: String = lines[skipped..].iter().map(|l| format!("{l}\n")).collect();
        prop_assert_eq!(read_all(&writer.path, Some(tail)), wanted);
    }
}

#[test]
fn a_long_log_is_read_from_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::new(folder.path());
    for n in 0..5000 {
        writer.entry("stdout", 'F', &format!("{n} {}", "y".repeat(100)));
        if n % 1700 == 0 {
            writer.rotate();
        }
    }
    let text = read_all(&writer.path, Some(2000));
    assert_eq!(text.lines().count(), 2000);
    assert!(text.starts_with("3000 "));
}

#[test]
fn a_line_without_its_end_is_the_last_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::new(folder.path());
    writer.entry("stdout", 'F', "one");
    writer.entry("stdout", 'P', "prompt> ");
    assert_eq!(read_all(&writer.path, Some(1)), "prompt> ");
    assert_eq!(read_all(&writer.path, Some(2)), "one\nprompt> ");
    assert_eq!(read_all(&writer.path, Some(0)), "");
}

#[test]
fn torn_and_endless_lines_hide_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::new(folder.path());
    writer.entry("stdout", 'F', "before");
    writer.raw("2026-01-01T00:00:01.0000\n");
    writer.raw(&format!("{}\n", "z".repeat(3 << 20)));
    writer.entry("stdout", 'F', "after");
    assert_eq!(read_all(&writer.path, None), "before\nafter\n");
}

#[test]
fn an_emptied_file_is_read_from_its_beginning() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::new(folder.path());
    writer.entry("stdout", 'F', "a line that is long enough");
    let mut reader = LogReader::open(writer.path.clone(), None, Style::default()).expect("open");
    let mut out = Vec::new();
    drain(&mut reader, &mut out);
    fs::File::create(&writer.path).expect("emptied");
    writer.entry("stdout", 'F', "new");
    drain(&mut reader, &mut out);
    assert_eq!(String::from_utf8_lossy(&out), "a line that is long enough\nnew\n");
}

#[tokio::test]
async fn a_followed_log_ends_with_its_container_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::new(folder.path());
    writer.entry("stdout", 'F', "first");
    let (end, ended) = oneshot::channel::<()>();
    let follow: super::follow::Ended = Box::pin(async move {
        let _either_way = ended.await;
    });
    let request =
        LogRequest { path: writer.path.clone(), tail: None, style: Style::default(), follow: Some(follow) };
    let mut pieces = Box::pin(stream(request).await.expect("open"));
    let mut next = async || pieces.next().await.map(|piece| piece.expect("readable"));
    assert_eq!(next().await.as_deref(), Some(&b"first\n"[..]));
    writer.entry("stderr", 'F', "second");
    assert_eq!(next().await.as_deref(), Some(&b"second\n"[..]));
    writer.rotate();
    writer.entry("stdout", 'F', "third");
    assert_eq!(next().await.as_deref(), Some(&b"third\n"[..]));
    writer.entry("stdout", 'P', "last words");
    end.send(()).expect("somebody follows");
    assert_eq!(next().await.as_deref(), Some(&b"last words"[..]));
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn a_log_that_is_not_followed_ends_where_it_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::new(folder.path());
    for n in 0..3 {
        writer.entry("stdout", 'F', &n.to_string());
    }
    let request =
        LogRequest { path: writer.path.clone(), tail: Some(2), style: Style::default(), follow: None };
    let pieces: Vec<_> = stream(request).await.expect("open").map(|p| p.expect("readable")).collect().await;
    assert_eq!(pieces.concat(), b"1\n2\n");
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_an_error() {
    let request = LogRequest {
        path: "/nonexistent/0.log".into(),
        tail: None,
        style: Style::default(),
        follow: Some(Box::pin(std::future::pending())),
    };
    assert!(stream(request).await.err().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound));
}
