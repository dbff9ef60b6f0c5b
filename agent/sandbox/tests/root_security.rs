//! What the kernel says of started and of exec'd processes: user, groups, capabilities, no_new_privs, filter.
#![allow(clippy::unwrap_used)] // These are tests.

mod support;

use std::collections::BTreeMap;
use std::fs;

use orlop_sandbox::launch::confine::capability_bits;
use orlop_sandbox::protocol::*;
use serde_json::json;
use support::{DEFAULT_CAPABILITIES, Plan, Pod, can_run, eventually};

/// The lines of `/proc/self/status` that matter, one value each.
const SHOW: &str = "cat /proc/self/status";

fn facts(status: &str) -> BTreeMap<String, String> {
    let wanted = [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "SigBlk",
        "SigIgn",
    ];
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        wanted.contains(&name).then(|| (name.to_owned(), value))
    };
    status.lines().filter_map(field).collect()
}

struct Case {
    name: &'static str,
    uid: u32,
    capabilities: Vec<&'static str>,
    no_new_privs: bool,
    seccomp: fn(&Pod) -> Seccomp,
    /// Expected: the bounding set, whether root's sets equal it, the filter mode.
    filter: u32,
}

/// A profile that refuses `prctl`: steps that come after the filter must not depend on it.
fn refuses_prctl(pod: &Pod) -> Seccomp {
    let path = pod.place.path().join("profile.json");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["prctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22}],
    });
    fs::write(&path, profile.to_string()).unwrap();
    Seccomp::Localhost(path)
}

fn own_permitted() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    u64::from_str_radix(&facts(&status)["CapPrm"], 16).unwrap()
}

fn expected(case: &Case) -> BTreeMap<String, String> {
    let names: Vec<String> = case.capabilities.iter().map(|name| (*name).to_owned()).collect();
    let bounding = capability_bits(&names).unwrap() & own_permitted();
    let held = if case.uid == 0 { bounding } else { 0 };
    let set = |bits: u64| format!("{bits:016x}");
    let four = |id: u32| format!("{id} {id} {id} {id}");
    let pairs = [
        ("Uid", four(case.uid)),
        ("Gid", four(case.uid)),
        ("Groups", "7 9".to_owned()),
        ("CapInh", set(0)),
        ("CapPrm", set(held)),
        ("CapEff", set(held)),
        ("CapBnd", set(bounding)),
        ("CapAmb", set(0)),
        ("NoNewPrivs", u32::from(case.no_new_privs).to_string()),
        ("Seccomp", case.filter.to_string()),
        ("SigBlk", set(0)),
        ("SigIgn", set(0)),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn check(pod: &mut Pod, case: &Case) {
    let mut spec = pod.spec(case.name, &["sh", "-c", &format!("{SHOW}; exec sleep 1000")]);
    spec["process"]["user"] = json!({"uid": case.uid, "gid": case.uid, "additionalGids": [7, 9]});
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}]);
    let mut start = pod.prepare(case.name, &spec);
    start.security = Security {
        capabilities: case.capabilities.iter().map(|name| (*name).to_owned()).collect(),
        no_new_privs: case.no_new_privs,
        seccomp: (case.seccomp)(pod),
        oom_score_adj: 321,
    };
    let record = pod.client.start(start).unwrap();
    let RecordState::Running { pid, .. } = record.state else { panic!("{record:?}") };
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "321\n");
    eventually("the status is in the log", || pod.output(case.name).contains("nonvoluntary_ctxt_switches"));
    assert_eq!(facts(&pod.output(case.name)), expected(case), "{} started", case.name);

    let (code, out, _) =
        support::exec(pod, case.name, &["sh", "-c", &format!("{SHOW}; ulimit -n; ulimit -Hn")]);
    assert_eq!(code, 0);
    assert_eq!(facts(&out), expected(case), "{} exec'd", case.name);
    assert!(out.ends_with("256\n512\n"), "limits: {out}");
    let kill = Call::Signal { id: pod.id(case.name), signal: 9, all: true };
    assert_eq!(pod.client.call(kill), Ok(Answer::Done));
    pod.client.exit(case.name);
}

#[test]
fn started_and_execd_processes_have_exactly_what_was_asked_for() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let default = DEFAULT_CAPABILITIES.to_vec();
    let case = |name, uid, capabilities: &[&'static str], no_new_privs, seccomp, filter| Case {
        name,
        uid,
        capabilities: capabilities.to_vec(),
        no_new_privs,
        seccomp,
        filter,
    };
    for case in [
        case("root", 0, &default, false, |_| Seccomp::RuntimeDefault, 2),
        case("root-nnp", 0, &default, true, |_| Seccomp::RuntimeDefault, 2),
        case("user", 1000, &default, false, |_| Seccomp::RuntimeDefault, 2),
        case("user-nnp", 1000, &default, true, |_| Seccomp::RuntimeDefault, 2),
        case("bare", 0, &[], false, |_| Seccomp::Unconfined, 0),
        case("bare-filter", 0, &[], true, |_| Seccomp::RuntimeDefault, 2),
        case("admin", 0, &["SYS_ADMIN", "NET_ADMIN"], false, |_| Seccomp::RuntimeDefault, 2),
        case("admin-user", 1000, &["SYS_ADMIN"], false, |_| Seccomp::Unconfined, 0),
        case("privileged", 0, &["ALL"], false, |_| Seccomp::Unconfined, 0),
        case("no-prctl", 0, &default, false, refuses_prctl, 2),
        case("no-prctl-user", 1000, &[], true, refuses_prctl, 2),
    ] {
        check(&mut pod, &case);
    }
    pod.shut_down();
}

#[test]
fn the_default_filter_stops_what_it_should() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let script = "mkdir /tmp/m; unshare -U true || echo no unshare; mount -t tmpfs x /tmp/m || echo no mount; \
        (true) && echo fork; head -c 3 /dev/zero | wc -c; mknod /tmp/mem c 1 1; \
        head -c 1 /tmp/mem || echo no mem; ip link add x type dummy || echo no link; hostname x || echo no hostname";
    pod.run("app", &format!("({script}) 2>/dev/null"));
    pod.client.exit("app");
    // Making a node is allowed, as with other runtimes; opening it is not.
    let expected = "no unshare\nno mount\nfork\n3\nno mem\nno link\nno hostname\n";
    assert_eq!(pod.output("app"), expected);
    pod.shut_down();
}

#[test]
fn a_profile_that_kills_kills() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let path = pod.place.path().join("kill.json");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    });
    fs::write(&path, profile.to_string()).unwrap();
    let mut start = pod.prepare("app", &pod.spec("app", &["mkdir", "/tmp/x"]));
    start.security.seccomp = Seccomp::Localhost(path);
    pod.client.start(start).unwrap();
    assert_eq!(pod.client.exit("app"), (159, Some(31), false));
    pod.shut_down();
}

#[test]
fn the_way_back_to_the_nodes_program_is_read_only() {
    if !can_run() {
        return;
    }
    let mut pod = Plan::new().start();
    let program = format!("/proc/{}/exe", pod.supervisor.id());
    let flags = nix::sys::statvfs::statvfs(program.as_str()).unwrap().flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    // An image whose program is whatever runs it gets this program, if it is linked statically, and cannot change it.
    let start = pod.prepare("self", &pod.spec("self", &["/proc/self/exe"]));
    match pod.client.start(start) {
        Ok(_) => assert_eq!(pod.client.exit("self").0, 2, "usage"),
        Err(failure) => assert!(failure.message.contains("/proc/self/exe"), "{failure}"),
    }
    pod.shut_down();
}
