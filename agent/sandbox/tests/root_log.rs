//! Logs under load, and streams that outlive their container.
#![allow(clippy::unwrap_used)] // These are tests.

mod support;

use std::fs;

use orlop_sandbox::protocol::*;
use support::{Plan, can_run, eventually};

/// The log's files, oldest first, the current one last.
fn files(pod: &support::Pod, name: &str) -> Vec<std::path::PathBuf> {
    let current = pod.log_path(name);
    let mut files: Vec<_> = fs::read_dir(current.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| *path != current && path.to_string_lossy().starts_with(&*current.to_string_lossy()))
        .collect();
    files.sort();
    files.push(current);
    files
}

#[test]
fn no_line_is_lost_or_torn_when_files_are_rotated_under_load() {
    if !can_run() {
        return;
    }
    let mut plan = Plan::new();
    plan.config.log_max_bytes = 100_000;
    plan.config.log_max_files = 1000;
    let mut pod = plan.start();
    pod.run("app", "seq 1 100000");
    assert_eq!(pod.client.exit("app").0, 0);
    let mut expected = 1;
    for file in files(&pod, "app") {
        assert!(fs::metadata(&file).unwrap().len() <= 100_000);
        for line in fs::read_to_string(file).unwrap().lines() {
            assert!(line.ends_with(&format!("stdout F {expected}")), "{line}");
            expected += 1;
        }
    }
    assert_eq!(expected, 100_001);
    pod.shut_down();
}

#[test]
fn the_hard_cap_holds() {
    if !can_run() {
        return;
    }
    let mut plan = Plan::new();
    plan.config.log_max_bytes = 50_000;
    plan.config.log_max_files = 3;
    let mut pod = plan.start();
    pod.run(
        "app",
        "yes a-line-of-some-length | head -n 50000; yes | tr -d '\\n' | head -c 3000000; echo; echo last",
    );
    assert_eq!(pod.client.exit("app").0, 0);
    let files = files(&pod, "app");
    assert_eq!(files.len(), 3);
    for file in &files {
        assert!(fs::metadata(file).unwrap().len() <= 50_000, "{file:?}");
    }
    assert!(fs::read_to_string(&files[2]).unwrap().ends_with("stdout F last\n"));
    pod.shut_down();
}

#[test]
fn logs_go_on_without_a_client() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("app", "seq 1 3000; sleep 0.2; seq 3001 6000");
    let (nobody, _) = nix::sys::socket::socketpair(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::SeqPacket,
        None,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    // As when the daemon is killed: its end of the connection is closed.
    pod.client = support::Client::new(nobody);
    eventually("all lines are there", || pod.log("app").len() == 6000);
    pod.client = support::Client::connect(&pod.dir);
    let numbers: Vec<usize> = pod.log("app").iter().map(|(_, line)| line.parse().unwrap()).collect();
    assert!(numbers.into_iter().eq(1..=6000));
    pod.shut_down();
}

#[test]
fn an_exit_is_announced_although_another_process_holds_the_pipe() {
    if !can_run() {
        return;
    }
    let mut plan = Plan::new();
    plan.config.shared_pid = true;
    let mut pod = plan.start();
    let mut spec = pod.spec("holder", &["sh", "-c", "sleep 1000"]);
    spec["process"]["args"] = serde_json::json!(["sh", "-c", "read x < /tmp/fifo"]);
    // The other container's process opens the first one's output through /proc and goes on writing to it.
    pod.run("app", "echo before; while ! test -e /tmp/go; do sleep 0.02; done; exit 3");
    let record = pod.client.state().remove(0);
    let RecordState::Running { pid, .. } = record.state else { panic!() };
    let held = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    assert_eq!(pod.client.exit("app").0, 3);
    assert_eq!(pod.output("app"), "before\n");
    std::io::Write::write_all(&mut &held, b"after\n").unwrap();
    eventually("what comes later is copied, too", || pod.output("app") == "before\nafter\n");
    drop(held);
    assert_eq!(pod.client.call(Call::Remove { id: pod.id("app") }), Ok(Answer::Done));
    pod.shut_down();
}

#[test]
fn a_full_disk_stops_no_program() {
    if !can_run() {
        return;
    }
    let mut plan = Plan::new();
    let small = plan.path("small");
    fs::create_dir(&small).unwrap();
    plan.config.tmpfs.push(TmpfsMount {
        target: small.clone(),
        size_bytes: Some(65536),
        mode: 0o755,
        gid: None,
    });
    let mut pod = plan.start();
    let mut start = pod.prepare("app", &pod.spec("app", &["sh", "-c", "seq 1 100000; exit 5"]));
    start.log_path = small.join("0.log");
    pod.client.start(start).unwrap();
    assert_eq!(pod.client.exit("app").0, 5);
    // The small file system is mounted only where the supervisor is.
    let inside = format!("/proc/{}/root{}", pod.supervisor.id(), small.join("0.log").display());
    let text = fs::read_to_string(inside).unwrap();
    assert!(text.len() > 30_000 && text.len() <= 65536);
    let mut whole = text.lines().collect::<Vec<_>>();
    whole.pop();
    for (number, line) in whole.iter().enumerate() {
        assert!(line.ends_with(&format!("stdout F {}", number + 1)), "{line}");
    }
    pod.shut_down();
}
