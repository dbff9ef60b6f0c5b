//! A full disk: writes are refused with a reason, nothing that was answered is lost, and all goes on when there is room again.
//! Needs root for a small tmpfs in a mount namespace of its own.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod client;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use client::Client;
use serde_json::json;

/// Killed when dropped; its mount namespace goes with it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let root = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap() == 0;
    if !root {
        println!("SKIP mounting a small tmpfs needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let test = std::env::current_exe().unwrap();
    let serve = test.parent().and_then(Path::parent).unwrap().join("examples/serve");
    let script = "mount -t tmpfs -o size=12m tmpfs \"$1\" && head -c 4000000 /dev/zero > \"$1/ballast\" && exec \"$2\" \"$1/data\" 127.0.0.1:0";
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(&serve)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let process = Process(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let inside = |path: &str| format!("/proc/{}/root{path}", process.0.id());
    let client =
        Client::new(&std::fs::read_to_string(inside(line.trim().split_once(' ').unwrap().1)).unwrap());
    let maps = "/api/v1/namespaces/default/configmaps";
    let mut made = 0;
    let refused = loop {
        assert!(made < 1000, "the disk must be full at some time");
        let map = json!({"metadata": {"name": format!("m{made}")}, "data": {"k": "v".repeat(100_000)}});
        let (status, answer) = client.post(maps, &map).await;
        if status != 201 {
            break (status, answer);
        }
        made += 1;
    };
    assert_eq!(refused.0, 500);
    let message = refused.1["message"].as_str().unwrap();
    assert!(message.contains("No space left on device") && message.contains("/log."), "{message}");
    assert_eq!(client.get(&format!("{maps}?limit=500")).await.1["items"].as_array().unwrap().len(), 1 + made);
    std::fs::remove_file(inside(dir.path().join("ballast").to_str().unwrap())).unwrap();
    let (status, answer) = client.post(maps, &json!({"metadata": {"name": "after"}})).await;
    assert_eq!(status, 201, "{answer}");
    assert_eq!(client.get(&format!("{maps}?limit=500")).await.1["items"].as_array().unwrap().len(), 2 + made);
}
