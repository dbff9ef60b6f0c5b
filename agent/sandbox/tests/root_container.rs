//! Containers from start to end, against the real supervisor, kernel and `libcontainer`.
#![allow(clippy::unwrap_used)] // These are tests.

mod support;

use std::fs;

use orlop_sandbox::protocol::*;
use serde_json::json;
use support::{Client, Plan, can_run, copy_busybox, eventually};

#[test]
fn a_container_runs_writes_its_log_and_ends_with_its_code() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let record =
        pod.run("app", "echo out; echo err >&2; hostname; echo $HOME $FIRST$SECOND; printf rest; exit 7");
    assert!(matches!(record.state, RecordState::Running { .. }));
    assert_eq!(pod.client.exit("app"), (7, None, false));
    let mut log = pod.log("app");
    log.sort();
    let entry = |stream: &str, text: &str| (stream.to_owned(), text.to_owned());
    let mut expected = vec![
        entry("stdout F", "out"),
        entry("stderr F", "err"),
        entry("stdout F", "pod-host"),
        entry("stdout F", "/root 12"),
        entry("stdout P", "rest"),
    ];
    expected.sort();
    assert_eq!(log, expected);
    let on_disk: ContainerRecord =
        serde_json::from_slice(&fs::read(pod.dir.record(&pod.id("app"))).unwrap()).unwrap();
    assert_eq!(pod.client.state(), [on_disk]);
    pod.shut_down();
}

#[test]
fn signals_reach_the_program_and_the_record_names_them() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("polite", "trap 'exit 3' TERM; while :; do sleep 0.05; done");
    pod.run("stubborn", "trap '' TERM; sleep 1000 & wait; sleep 1000");
    let signal = |name: &str, signal, all| Call::Signal { id: pod.id(name), signal, all };
    let (term, nothing, kill) =
        (signal("polite", 15, false), signal("stubborn", 15, false), signal("stubborn", 9, true));
    let unknown = signal("unknown", 15, false);
    // The trap may not be set yet when the program has just begun; then the default for PID 1 is to ignore it.
    let mut ended = None;
    while ended.is_none() {
        assert_eq!(pod.client.call(term.clone()), Ok(Answer::Done));
        let over = pod.client.state().iter().any(|one| one.id.name == "polite" && one.state.is_over());
        ended = over.then(|| pod.client.exit("polite"));
    }
    assert_eq!(ended, Some((3, None, false)));
    assert_eq!(pod.client.call(term), Ok(Answer::Done), "not running any more is success");
    assert_eq!(pod.client.call(nothing), Ok(Answer::Done));
    assert_eq!(pod.client.call(kill), Ok(Answer::Done));
    assert_eq!(pod.client.exit("stubborn"), (137, Some(9), false));
    assert_eq!(pod.client.call(unknown), Ok(Answer::Done));
    pod.shut_down();
}

#[test]
fn the_oom_killer_is_told_apart() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let mut spec = pod.spec("hungry", &["sh", "-c", "x=$(yes | head -c 200000000); echo no"]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20});
    let start = pod.prepare("hungry", &spec);
    pod.client.start(start).unwrap();
    let (code, _, oom_killed) = pod.client.exit("hungry");
    assert_ne!(code, 0);
    assert!(oom_killed);
    pod.run("content", "kill -9 $$; sh -c 'kill -9 $PPID'; exit 1");
    assert!(!pod.client.exit("content").2);
    pod.shut_down();
}

#[test]
fn what_cannot_be_run_says_so() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let mut fail = |name: &str, change: &dyn Fn(&mut serde_json::Value, &mut StartContainer)| {
        let mut spec = pod.spec(name, &["foo"]);
        let mut start = pod.prepare(name, &spec);
        change(&mut spec, &mut start);
        fs::write(pod.dir.attempt(&start.id).join("config.json"), spec.to_string()).unwrap();
        let failure = pod.client.start(start.clone()).unwrap_err();
        assert_eq!(pod.client.start(start), Err(failure.clone()), "asked again");
        (failure.kind, failure.message)
    };
    let run = FailureKind::CannotRun;
    assert_eq!(
        fail("absent", &|_, _| {}),
        (run, r#"exec: "foo": executable file not found in $PATH"#.to_owned())
    );
    assert_eq!(
        fail("absent-path", &|spec, _| spec["process"]["args"] = json!(["/x/foo"])),
        (run, r#"exec: "/x/foo": stat /x/foo: no such file or directory"#.to_owned())
    );
    assert_eq!(
        fail("denied", &|spec, _| spec["process"]["args"] = json!(["/etc/passwd"])),
        (run, r#"exec: "/etc/passwd": permission denied"#.to_owned())
    );
    for (name, change, words) in [
        (
            "mount",
            &(|spec: &mut serde_json::Value, _: &mut StartContainer| {
                let mount =
                    json!({"destination": "/m", "type": "bind", "source": "/no/such", "options": ["bind"]});
                spec["mounts"].as_array_mut().unwrap().push(mount);
            }) as &dyn Fn(&mut serde_json::Value, &mut StartContainer),
            vec!["failed to prepare rootfs", "/no/such"],
        ),
        (
            "layer",
            &|_, start| start.rootfs.lower[0] = "/no/such/layer".into(),
            vec!["overlay", "/no/such/layer"],
        ),
        (
            "log",
            &|_, start| start.log_path = "/no/such/dir/0.log".into(),
            vec!["open log /no/such/dir/0.log"],
        ),
        (
            "capability",
            &|_, start| start.security.capabilities.push("FLY".into()),
            vec!["unknown capability", "FLY"],
        ),
        (
            "profile",
            &|_, start| start.security.seccomp = Seccomp::Localhost("/no/such/profile.json".into()),
            vec!["seccomp profile /no/such/profile.json"],
        ),
        ("spec", &|spec, _| *spec = json!({"process": 3}), vec!["config.json"]),
        ("path", &|spec, _| spec["linux"]["cgroupsPath"] = json!("/a/../../b"), vec!["cgroupsPath"]),
    ] {
        let (kind, message) = fail(name, change);
        assert_eq!(kind, FailureKind::CannotCreate, "{message}");
        for word in words {
            assert!(message.contains(word), "{name}: {message}");
        }
    }
    let failed = pod.client.state();
    assert!(failed.iter().all(|one| matches!(one.state, RecordState::StartFailed { .. })), "{failed:?}");
    pod.shut_down();
}

#[test]
fn many_layers_one_layer_and_none_make_a_root() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let mut start =
        pod.prepare("many", &pod.spec("many", &["sh", "-c", "cat /f; echo x > /new && cat /new; ls /etc"]));
    for number in 0..127 {
        let layer =
            pod.place.path().join(format!("a-layer-with-a-name-as-long-as-a-digest-would-be-{number:060}"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("f"), format!("{number}\n")).unwrap();
        start.rootfs.lower.push(layer);
    }
    pod.client.start(start.clone()).unwrap();
    assert_eq!(pod.client.exit("many").0, 0);
    assert_eq!(pod.output("many"), "126\nx\npasswd\n", "the last layer is the topmost");
    assert!(start.rootfs.upper.join("new").exists(), "written to the upper directory");

    let mut start = pod.prepare("none", &pod.spec("none", &["/busybox", "echo", "alone"]));
    start.rootfs.lower.clear();
    fs::create_dir_all(&start.rootfs.upper).unwrap();
    copy_busybox(&start.rootfs.upper.join("busybox"));
    pod.client.start(start).unwrap();
    assert_eq!(pod.client.exit("none").0, 0);
    assert_eq!(pod.output("none"), "alone\n");
    pod.shut_down();
}

#[test]
fn a_missing_working_directory_is_made_and_the_home_found() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let mut spec =
        pod.spec("web", &["sh", "-c", "pwd; echo $HOME; id -u; id -g; id -G; echo hi > /dev/stdout; umask"]);
    spec["process"]["cwd"] = json!("/srv/data");
    spec["root"]["readonly"] = json!(true);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7, 1000]});
    let start = pod.prepare("web", &spec);
    pod.client.start(start).unwrap();
    assert_eq!(pod.client.exit("web").0, 0);
    assert_eq!(pod.output("web"), "/srv/data\n/home/web\n1000\n1000\n1000 7\nhi\n0022\n");
    pod.shut_down();
}

#[test]
fn a_client_that_comes_back_finds_everything() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("short", "read line < /gate; exit 5");
    pod.run("long", "while :; do echo tick; sleep 0.01; done");
    // The daemon is gone: its only connection is closed.
    pod.client = Client::connect(&pod.dir);
    let running: Vec<_> = pod.client.state().into_iter().filter(|one| !one.state.is_over()).collect();
    assert_eq!(running.iter().filter(|one| one.id.name == "long").count(), 1);
    let before = pod.log("long").len();
    eventually("the log goes on", || pod.log("long").len() > before);
    let again = pod.prepare("long", &pod.spec("long", &["false"]));
    let record = pod.client.start(again).unwrap();
    assert!(matches!(record.state, RecordState::Running { .. }), "a repeated start changes nothing");
    let short = pod.client.state().into_iter().find(|one| one.id.name == "short").unwrap();
    assert!(matches!(short.state, RecordState::Exited { .. }), "no such gate: the shell ends with an error");
    pod.shut_down();
}

#[test]
fn remove_forgets_an_ended_attempt_and_refuses_a_running_one() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("done", "exit 0");
    pod.run("busy", "sleep 1000");
    pod.client.exit("done");
    let cgroup = pod.cgroup_directory("memory", "done");
    assert!(cgroup.exists());
    let remove = |name: &str| Call::Remove { id: pod.id(name) };
    let (done, busy) = (remove("done"), remove("busy"));
    assert_eq!(pod.client.call(done.clone()), Ok(Answer::Done));
    assert_eq!(pod.client.call(done), Ok(Answer::Done), "gone already");
    assert!(!cgroup.exists());
    assert!(!pod.dir.attempt(&pod.id("done")).exists());
    assert_eq!(pod.client.call(busy).unwrap_err().kind, FailureKind::BadRequest);
    assert_eq!(pod.client.state().len(), 1);
    pod.shut_down();
}

#[test]
fn ten_containers_start_at_once() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let names: Vec<String> = (0..10).map(|number| format!("c{number}")).collect();
    for name in &names {
        let start = pod.prepare(name, &pod.spec(name, &["sh", "-c", &format!("echo {name}")]));
        pod.client.send(Call::Start(Box::new(start)), &[]);
    }
    let (mut started, mut told, mut ended) = (0, 0, 0);
    while started < 10 || told < 10 || ended < 10 {
        match pod.client.receive().unwrap().0 {
            FromSupervisor::Reply(reply) => {
                assert!(matches!(reply.result, Ok(Answer::Started(_))), "{reply:?}");
                started += 1;
            }
            FromSupervisor::Event(Event::Exited(_)) => ended += 1,
            FromSupervisor::Event(Event::Started(_)) => told += 1,
            FromSupervisor::Event(other) => panic!("{other:?}"),
        }
    }
    for name in &names {
        assert_eq!(pod.output(name), format!("{name}\n"));
    }
    pod.shut_down();
}

#[test]
fn a_slow_start_keeps_nobody_waiting_and_a_killed_helper_is_a_failure() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let slow = pod.prepare("slow", &pod.spec("slow", &["true"]));
    let config = pod.dir.attempt(&slow.id).join("config.json");
    // Reading the spec waits until somebody writes it.
    fs::remove_file(&config).unwrap();
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let before = children(pod.supervisor.id());
    let call = pod.client.send(Call::Start(Box::new(slow)), &[]);
    eventually("the helper is there", || children(pod.supervisor.id()).len() > before.len());
    let helper = children(pod.supervisor.id()).into_iter().find(|pid| !before.contains(pid)).unwrap();

    let mut other = Client::connect(&pod.dir);
    let quick = pod.prepare("quick", &pod.spec("quick", &["sh", "-c", "exit 3"]));
    other.start(quick).unwrap();
    assert_eq!(other.exit("quick").0, 3);
    assert!(other.state().iter().any(|one| matches!(one.state, RecordState::Starting { .. })));

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::SIGKILL).unwrap();
    let failure = pod.client.reply(call).0.unwrap_err();
    assert_eq!(failure.kind, FailureKind::CannotCreate);
    assert!(failure.message.contains("ended before its work was done"), "{failure}");
    pod.shut_down();
}

fn children(pid: u32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_ascii_whitespace().map(|child| child.parse().unwrap()).collect()
}
