//! The sandbox itself: namespaces, volumes, sysctls, the shared pid namespace, bad clients, the end.
#![allow(clippy::unwrap_used)] // These are tests.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use orlop_sandbox::protocol::*;
use support::{Client, Plan, can_run, eventually};

fn namespace(pid: impl std::fmt::Display, kind: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{kind}")).unwrap().ino()
}

fn pid_of(record: &ContainerRecord) -> i32 {
    match record.state {
        RecordState::Running { pid, .. } => pid,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn containers_share_the_sandboxs_namespaces_and_nothing_of_the_nodes() {
    if !can_run() {
        return;
    }
    let mut plan = Plan::new();
    plan.config.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "7".into());
    plan.config.sysctls.insert("kernel/shm_rmid_forced".into(), "1".into());
    plan.config.tmpfs.push(TmpfsMount {
        target: plan.path("volume"),
        size_bytes: Some(4 << 20),
        mode: 0o1777,
        gid: None,
    });
    fs::create_dir_all(plan.path("volume")).unwrap();
    let volume = plan.path("volume");
    let mut pod = plan.start();
    let supervisor = pod.client.hello();
    assert_eq!(supervisor.pid, pod.supervisor.id() as i32);
    let on_disk: SupervisorRecord = serde_json::from_slice(&fs::read(pod.dir.supervisor()).unwrap()).unwrap();
    assert_eq!(on_disk, supervisor);

    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; \
        ip addr show lo | grep -c LOOPBACK,UP; echo x > /volume/x; grep ' /volume ' /proc/mounts | grep -c size=4096k; \
        echo y > /dev/shm/y; echo ready; exec sleep 1000";
    let mut spec = pod.spec("one", &["sh", "-c", script]);
    let bind =
        serde_json::json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]});
    spec["mounts"].as_array_mut().unwrap().push(bind);
    let start = pod.prepare("one", &spec);
    let one = pid_of(&pod.client.start(start).unwrap());
    eventually("ready", || pod.output("one").ends_with("ready\n"));
    let two = pod.run("two", "cat /dev/shm/y; exec sleep 1000");
    let two = pid_of(&two);
    eventually("both have written", || !pod.log("two").is_empty());
    assert_eq!(pod.output("one"), "7\n1\n1\n1\nready\n");
    assert_eq!(pod.output("two"), "y\n");
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(one, kind), namespace(two, kind), "{kind}");
        assert_eq!(namespace(one, kind), namespace(supervisor.pid, kind), "{kind}");
        assert_ne!(namespace(one, kind), namespace("self", kind), "{kind}");
    }
    for kind in ["pid", "mnt", "cgroup"] {
        assert_ne!(namespace(one, kind), namespace(two, kind), "{kind}");
        assert_ne!(namespace(one, kind), namespace("self", kind), "{kind}");
    }
    // Nothing is mounted in the node's mount namespace.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*pod.place.path().to_string_lossy()), "{mounts}");
    pod.shut_down();
}

#[test]
fn host_namespaces_are_kept_when_asked_for() {
    if !can_run() {
        return;
    }
    let mut plan = Plan::new();
    plan.config.host_network = true;
    plan.config.host_ipc = true;
    let mut pod = plan.start();
    let mut spec = pod.spec("app", &["sh", "-c", "(sleep 1000 &); exec sleep 1000"]);
    spec["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}]);
    spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
    let start = pod.prepare("app", &spec);
    let pid = pid_of(&pod.client.start(start).unwrap());
    for kind in ["net", "ipc", "uts", "pid"] {
        assert_eq!(namespace(pid, kind), namespace("self", kind), "{kind}");
    }
    let procs = pod.cgroup_directory("freezer", "app").join("cgroup.procs");
    eventually("the orphan is there", || fs::read_to_string(&procs).unwrap().lines().count() == 2);
    // A real-time signal: those have numbers and no names.
    let signal = |number| Call::Signal { id: pod.id("app"), signal: number, all: false };
    let (real_time, none) = (signal(35), signal(65));
    assert_eq!(pod.client.call(none).unwrap_err().kind, FailureKind::BadRequest);
    assert_eq!(pod.client.call(real_time), Ok(Answer::Done));
    assert_eq!(pod.client.exit("app"), (163, Some(35), false));
    // In the node's pid namespace nobody but the supervisor ends what the program left behind.
    eventually("the orphan is gone", || fs::read_to_string(&procs).unwrap().is_empty());
    pod.shut_down();
}

#[test]
fn a_shared_pid_namespace_has_a_reaper_and_survives_its_containers() {
    if !can_run() {
        return;
    }
    let mut plan = Plan::new();
    plan.config.shared_pid = true;
    let mut pod = plan.start();
    let holder = pod.client.hello().pid_ns_holder.expect("a reaper");
    let one = pid_of(&pod.run("one", "exec sleep 1000"));
    assert_eq!(namespace(one, "pid"), namespace(holder, "pid"));
    pod.run(
        "two",
        "(sleep 0.01 &); (sleep 0.02 &); sleep 0.2; ps -o pid,comm; ps -o stat | grep -c Z; exit 6",
    );
    assert_eq!(pod.client.exit("two").0, 6);
    let output = pod.output("two");
    assert!(output.contains("1 orlop-reaper") && output.contains("sleep"), "{output}");
    assert!(output.ends_with("\n0\n"), "orphans are reaped: {output}");
    assert_eq!(fs::read_link(format!("/proc/{holder}/fd/3")).ok(), None, "the reaper holds no descriptor");
    let kill = Call::Signal { id: pod.id("one"), signal: 9, all: true };
    assert_eq!(pod.client.call(kill), Ok(Answer::Done));
    assert_eq!(pod.client.exit("one").0, 137);
    let three = pid_of(&pod.run("three", "exec sleep 1000"));
    assert_eq!(namespace(three, "pid"), namespace(holder, "pid"));
    pod.shut_down();
    assert!(!std::path::Path::new(&format!("/proc/{holder}")).exists(), "the reaper is gone");
}

#[test]
fn a_sandbox_that_cannot_be_made_says_why() {
    if !can_run() {
        return;
    }
    for (name, value, words) in [
        ("vm.swappiness", "1", "sysctl vm.swappiness does not belong to a namespace of this pod"),
        ("net.no.such.thing", "1", "net.no.such.thing"),
        ("net.ipv4.ip_unprivileged_port_start", "many", "ip_unprivileged_port_start to \"many\""),
    ] {
        let mut plan = Plan::new();
        plan.config.sysctls.insert(name.into(), value.into());
        let mut pod = plan.spawn();
        let failure = pod.client.call(Call::Hello { version: VERSION }).unwrap_err();
        assert_eq!(failure.kind, FailureKind::CannotCreate);
        assert!(
            failure.message.starts_with("create sandbox: ") && failure.message.contains(words),
            "{failure}"
        );
        assert!(!pod.supervisor.wait().unwrap().success());
        assert!(!pod.dir.supervisor().exists());
    }
}

#[test]
fn bad_clients_harm_nobody() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("app", "exec sleep 1000");
    let mut bad = Client::connect(&pod.dir);
    bad.raw(b"\xff\xfe");
    assert_eq!(bad.reply(0).0.unwrap_err().kind, FailureKind::BadRequest);
    bad.raw(br#"{"id":77,"call":{"start":{}}}"#);
    assert_eq!(bad.reply(77).0.unwrap_err().kind, FailureKind::BadRequest);
    bad.raw(format!(r#"{{"id":78,"call":"{}"}}"#, "x".repeat(MAX_PACKET)).as_bytes());
    assert_eq!(bad.reply(0).0.unwrap_err().kind, FailureKind::BadRequest);
    let rude = Client::connect_silently(&pod.dir);
    rude.raw(br#"{"id":1,"call":"shutdown"}"#);
    let mut rude = rude;
    assert_eq!(rude.reply(1).0.unwrap_err().kind, FailureKind::BadRequest, "no hello");
    assert_eq!(rude.call_as(2, Call::Hello { version: 0 }).unwrap_err().kind, FailureKind::BadRequest);
    let mut evil = pod.prepare("evil", &pod.spec("evil", &["true"]));
    evil.id.name = "../../etc".into();
    assert_eq!(pod.client.start(evil).unwrap_err().kind, FailureKind::BadRequest);
    // One that asks and never reads is dropped; the others notice nothing.
    let mut deaf = Client::connect(&pod.dir);
    for _ in 0..2000 {
        if deaf.try_send(Call::State).is_err() {
            break;
        }
    }
    assert_eq!(pod.client.state().len(), 1);
    pod.shut_down();
}

#[test]
fn shutdown_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let running = pid_of(&pod.run("running", "trap '' TERM; (setsid sleep 1000 &); sleep 1000"));
    pod.run("ended", "exit 0");
    pod.client.exit("ended");
    let failed = pod.prepare("failed", &pod.spec("failed", &["no-such-program"]));
    pod.client.start(failed).unwrap_err();
    let starting = pod.prepare("starting", &pod.spec("starting", &["sleep", "1000"]));
    pod.client.send(Call::Start(Box::new(starting)), &[]);
    let net = namespace(running, "net");
    let shutdown = pod.client.send(Call::Shutdown, &[]);
    let mut answered = false;
    while let Some((packet, _)) = pod.client.receive() {
        if let FromSupervisor::Reply(reply) = packet
            && reply.id == shutdown
        {
            assert_eq!(reply.result, Ok(Answer::Done));
            answered = true;
        }
    }
    assert!(answered, "answered before the end");
    assert!(pod.supervisor.wait().unwrap().success());
    for name in ["running", "ended", "failed", "starting"] {
        for controller in ["memory", "freezer", "pids"] {
            assert!(!pod.cgroup_directory(controller, name).exists(), "{controller} {name}");
        }
        // How each of them ended is still to be read.
        assert!(pod.dir.record(&pod.id(name)).exists(), "{name}");
    }
    assert_eq!(fs::read_dir(pod.place.path().join("state")).unwrap().count(), 0);
    assert!(!pod.dir.socket().exists());
    let holders = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        fs::metadata(entry.path().join("ns/net")).is_ok_and(|namespace| namespace.ino() == net)
    });
    assert_eq!(holders.count(), 0, "no process is left in the pod's network namespace");
}

#[test]
fn only_shutdown_ends_a_supervisor() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    pod.run("app", "exec sleep 1000");
    let pid = nix::unistd::Pid::from_raw(pod.supervisor.id() as i32);
    for signal in [nix::sys::signal::SIGTERM, nix::sys::signal::SIGHUP, nix::sys::signal::SIGINT] {
        nix::sys::signal::kill(pid, signal).unwrap();
    }
    // Its directory vanishes: it goes on, and what it cannot write it does without.
    fs::rename(&pod.dir.0, pod.place.path().join("elsewhere")).unwrap();
    let kill = Call::Signal { id: pod.id("app"), signal: 9, all: true };
    assert_eq!(pod.client.call(kill), Ok(Answer::Done));
    assert_eq!(pod.client.exit("app").0, 137);
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "orlop-sandbox\n");
    pod.shut_down();
}

/// KiB of program code that a process has mapped.
fn mapped_code(pid: i32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut code = false;
    let mut sum = 0;
    for line in smaps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rss) if code => sum += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap(),
            Some(_) => {}
            // Other lines within a mapping have no permissions.
            None => code = line.contains(" r-xp ") || (code && !line.contains("-p ")),
        }
    }
    sum
}

#[test]
fn a_supervisor_without_work_gives_back_what_its_work_needed() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let pid = pod.client.hello().pid;
    pod.run("one", "exec sleep 1000");
    let busy = mapped_code(pid);
    eventually("it is quiet", || mapped_code(pid) < busy / 2);
    assert!(matches!(pod.client.state()[0].state, RecordState::Running { .. }), "it works on");
}
