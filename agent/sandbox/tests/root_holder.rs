//! The holder of the pods' cgroup, in cgroups of the test's own: it says when it is there, and its end is the pods' end.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The hierarchies that matter to the holder: where it finds itself, and where it finds the pods.
fn mounts() -> Option<[PathBuf; 2]> {
    let text = fs::read_to_string("/proc/self/mounts").ok()?;
    let find = |kind: &str, option: &str| {
        text.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let fits = fields.get(2) == Some(&kind) && fields.get(3)?.split(',').any(|word| word == option);
            fits.then(|| PathBuf::from(fields[1]))
        })
    };
    match (find("cgroup", "name=systemd"), find("cgroup", "freezer")) {
        (Some(own), Some(pods)) => Some([own, pods]),
        _ => find("cgroup2", "rw").map(|mount| [mount.clone(), mount]),
    }
}

/// Cgroups that are removed at the end, and what is left in them with them.
struct Groups {
    own: PathBuf,
    pods: PathBuf,
}

impl Groups {
    fn make() -> Option<Self> {
        let [own, pods] = mounts()?;
        let name = format!("orlop-holder-test-{}", std::process::id());
        let groups = Self { own: own.join(&name), pods: pods.join(&name) };
        for group in ["", "burstable", "burstable/pod1", "burstable/pod1/app-0", "burstable/pod1/supervisor"]
        {
            fs::create_dir_all(groups.pods.join(group)).ok()?;
        }
        fs::create_dir_all(&groups.own).ok()?;
        Some(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let inner = [
            "burstable/pod1/app-0",
            "burstable/pod1/supervisor",
            "burstable/pod1",
            "burstable",
            "holder",
            "",
        ];
        for dir in inner.iter().map(|inner| self.pods.join(inner)).chain([self.own.clone()]) {
            for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = pid.parse().map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
            }
            // What was killed leaves its group when it is reaped.
            for _ in 0..300 {
                if fs::remove_dir(&dir).is_ok() || !dir.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Runs a script in a cgroup.
fn start(group: &Path, script: &str, socket: &Path) -> Child {
    let script = format!("echo $$ >{}/cgroup.procs; {script}", group.display());
    Command::new("/bin/sh").args(["-c", &script]).env("NOTIFY_SOCKET", socket).spawn().expect("started")
}

#[test]
fn the_end_of_the_holder_is_the_end_of_the_pods() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP needs root");
        return;
    }
    let Some(groups) = Groups::make() else {
        println!("SKIP needs a cgroup hierarchy in which groups can be made");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let told = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };

    let program = env!("CARGO_BIN_EXE_orlop-sandbox");
    let mut holder = start(&groups.own, &format!("exec {program} hold-pods --grace 30"), &path);
    assert!(told().starts_with("READY=1\n"));
    let pod = groups.pods.join("burstable/pod1");
    let ready = |name: &str| dir.path().join(name);
    let container =
        format!("trap 'exit 7' TERM; touch {}; while :; do sleep 0.1; done", ready("container").display());
    let mut container = start(&pod.join("app-0"), &container, &path);
    let supervisor = format!("trap '' TERM; touch {}; sleep 1000", ready("supervisor").display());
    let mut supervisor = start(&pod.join("supervisor"), &supervisor, &path);
    for name in ["container", "supervisor"] {
        let there = (0..3000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            ready(name).exists()
        });
        assert!(there, "{name} is up");
    }

    let pid = i32::try_from(holder.id()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signalled");
    assert!(told().starts_with("STOPPING=1\n"));
    assert_eq!(container.wait().expect("ended").code(), Some(7), "the container was asked, and had its time");
    assert_eq!(supervisor.wait().expect("ended").signal(), Some(libc::SIGKILL), "the supervisor was not");
    assert_eq!(holder.wait().expect("ended").code(), Some(0));
}
