//! Processes exec'd into running containers.
#![allow(clippy::unwrap_used)] // These are tests.

mod support;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::unistd::pipe;
use orlop_sandbox::protocol::*;
use serde_json::json;
use support::{Client, Plan, can_run, eventually, exec, exec_request, start_exec};

#[test]
fn an_execd_process_is_inside_the_container() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let mut spec = pod.spec("app", &["sh", "-c", "echo here > /tmp/mark; echo ready; exec sleep 1000"]);
    spec["process"]["cwd"] = json!("/tmp");
    let start = pod.prepare("app", &spec);
    pod.client.start(start).unwrap();
    eventually("ready", || pod.output("app") == "ready\n");
    let script = "pwd; cat /tmp/mark; hostname; echo $FIRST$SECOND$HOME; grep -c . /proc/1/cmdline; echo bad >&2; exit 4";
    let (code, out, err) = exec(&mut pod, "app", &["sh", "-c", script]);
    assert_eq!((code, out.as_str(), err.as_str()), (4, "/tmp\nhere\npod-host\n12/root\n1\n", "bad\n"));

    let mut request = exec_request(&pod, "app", &["sh", "-c", "pwd; echo $FIRST$SECOND$THIRD"]);
    request.cwd = Some("/etc".into());
    request.env = vec!["SECOND=x".into(), "THIRD=y".into()];
    let (code, out, _) = support::exec_with(&mut pod, request);
    assert_eq!((code, out.as_str()), (0, "/etc\n1xy\n"));
    assert_eq!(pod.client.state().len(), 1, "the container is untouched");
    pod.shut_down();
}

#[test]
fn what_cannot_be_execd_says_so_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("app", "exec sleep 1000");
    let fail = |pod: &mut support::Pod, request: ExecProcess| start_exec(pod, request).unwrap_err();
    let request = exec_request(&pod, "app", &["foo"]);
    let failure = fail(&mut pod, request);
    assert_eq!(failure.kind, FailureKind::CannotRun);
    assert_eq!(failure.message, r#"exec: "foo": executable file not found in $PATH"#);
    let mut request = exec_request(&pod, "app", &["true"]);
    request.cwd = Some("/etc/passwd".into());
    let failure = fail(&mut pod, request);
    assert!(failure.message.contains("chdir") && failure.message.contains("/etc/passwd"), "{failure}");
    let request = exec_request(&pod, "other", &["true"]);
    assert_eq!(fail(&mut pod, request).kind, FailureKind::NotRunning);
    let request = exec_request(&pod, "app", &[]);
    assert_eq!(fail(&mut pod, request).kind, FailureKind::BadRequest);
    let without = Call::Exec(Box::new(exec_request(&pod, "app", &["true"])));
    assert_eq!(pod.client.call(without).unwrap_err().kind, FailureKind::BadRequest, "no descriptors");
    eventually("nothing is left", || {
        let attempt = std::fs::read_dir(pod.dir.attempt(&pod.id("app"))).unwrap();
        let cgroup = std::fs::read_dir(pod.cgroup_directory("freezer", "app")).unwrap();
        attempt.chain(cgroup).flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with("exec-"))
    });
    pod.shut_down();
}

#[test]
fn an_exec_is_killed_with_all_it_has_started() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("app", "exec sleep 1000");
    // The grandchild leaves the session, so that no signal to a group would find it.
    let request = exec_request(&pod, "app", &["sh", "-c", "setsid sleep 2000 & sleep 2001 & sleep 2002"]);
    let id = request.exec_id;
    start_exec(&mut pod, request).unwrap();
    let sleeping = |pod: &mut support::Pod| exec(pod, "app", &["sh", "-c", "ps | grep -c '[s]leep 200'"]).1;
    let mut seen = String::new();
    eventually("all have started", || {
        seen = sleeping(&mut pod);
        seen != "0\n"
    });
    assert_eq!(pod.client.call(Call::ExecSignal { exec_id: id, signal: 9 }), Ok(Answer::Done));
    assert_eq!(pod.client.exec_exit(id), 137);
    eventually("none is left", || sleeping(&mut pod) == "0\n");
    assert_eq!(
        pod.client.call(Call::ExecSignal { exec_id: id, signal: 9 }),
        Ok(Answer::Done),
        "gone already"
    );
    pod.shut_down();
}

#[test]
fn stdin_is_passed_through() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("app", "exec sleep 1000");
    let (input, writer) = pipe().unwrap();
    let (reader, output) = pipe().unwrap();
    let request = exec_request(&pod, "app", &["tr", "a-z", "A-Z"]);
    let id = request.exec_id;
    let fds = [input.as_raw_fd(), output.as_raw_fd(), output.as_raw_fd()];
    let call = pod.client.send(Call::Exec(Box::new(request)), &fds);
    drop((input, output));
    assert!(matches!(pod.client.reply(call).0, Ok(Answer::ExecStarted { .. })));
    std::fs::File::from(writer).write_all(b"hello").unwrap();
    let mut text = String::new();
    std::fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert_eq!(text, "HELLO");
    assert_eq!(pod.client.exec_exit(id), 0);
    pod.shut_down();
}

#[test]
fn a_terminal_comes_back_with_the_answer() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let mut spec = pod.spec("app", &["sh", "-c", "tty; exec sleep 1000"]);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let mut start = pod.prepare("app", &spec);
    start.tty = true;
    pod.client.start(start).unwrap();
    eventually("the terminal's output is in the log", || {
        std::fs::read_to_string(pod.log_path("app")).unwrap().contains("stdout F /dev/")
    });

    let mut request = exec_request(
        &pod,
        "app",
        &["sh", "-c", "test -t 0 && test -t 2 && echo yes > /dev/tty; read x; echo got:$x"],
    );
    request.tty = true;
    let id = request.exec_id;
    let call = pod.client.send(Call::Exec(Box::new(request)), &[]);
    let (answer, master) = pod.client.reply(call);
    assert!(matches!(answer, Ok(Answer::ExecStarted { .. })), "{answer:?}");
    let master: OwnedFd = master.expect("the pty master");
    nix::unistd::write(&master, b"abc\n").unwrap();
    let mut seen = Vec::new();
    let mut chunk = [0u8; 256];
    while !String::from_utf8_lossy(&seen).contains("got:abc") {
        // EIO once the other end is closed.
        match nix::unistd::read(&master, &mut chunk) {
            Ok(count) if count > 0 => seen.extend_from_slice(&chunk[..count]),
            _ => break,
        }
    }
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.contains("yes") && seen.contains("got:abc"), "{seen:?}");
    assert_eq!(pod.client.exec_exit(id), 0);
    pod.shut_down();
}

#[test]
fn execs_run_at_once_and_outlive_their_client() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("app", "exec sleep 1000");
    let requests: Vec<ExecProcess> =
        (0..8).map(|_| exec_request(&pod, "app", &["sh", "-c", "sleep 0.2; exit 9"])).collect();
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let fds = [null.as_raw_fd(); 3];
    for request in &requests {
        pod.client.send(Call::Exec(Box::new(request.clone())), &fds);
    }
    let mut other = Client::connect(&pod.dir);
    let mut codes = Vec::new();
    while codes.len() < requests.len() {
        if let Event::ExecExited { exec_id, exit_code } = other.event() {
            assert!(requests.iter().any(|request| request.exec_id == exec_id));
            codes.push(exit_code);
        }
    }
    assert_eq!(codes, [9; 8]);
    pod.client = other;
    pod.shut_down();
}
