//! A pod for the root tests: directories, cgroups, a small root file system, a supervisor. Its socket is for `client`.
//!
//! Everything is removed when the pod is dropped, also after a failed assertion.
#![allow(clippy::unwrap_used)] // These are tests.
#![allow(dead_code)] // Each test file is a crate of its own and uses some of this.

mod client;
#[path = "../../../../tests/src/programs.rs"]
mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use orlop_sandbox::protocol::*;
use serde_json::{Value, json};

pub use client::Client;

const BUSYBOX: &str = "/bin/busybox";
const PATIENCE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Whether root tests can run here; says why not.
pub fn can_run() -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP needs root");
        return false;
    }
    if !Path::new(BUSYBOX).exists() {
        println!("SKIP needs {BUSYBOX} (package busybox-static)");
        return false;
    }
    true
}

/// Mount points of the cgroup hierarchies with controllers.
fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let of = |kind: &str| -> Vec<PathBuf> {
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        fields.filter(|f| f[2] == kind && !f[3].contains("name=")).map(|f| PathBuf::from(f[1])).collect()
    };
    let legacy = of("cgroup");
    if legacy.is_empty() { of("cgroup2") } else { legacy }
}

/// On version 2 a cgroup with processes of its own hands no controllers down, so the supervisor gets a leaf.
fn supervisor_cgroup(pod: &Path) -> PathBuf {
    if !pod.join("cgroup.controllers").exists() {
        return pod.to_owned();
    }
    let leaf = pod.join("supervisor");
    fs::create_dir(&leaf).unwrap();
    leaf
}

pub struct Pod {
    pub dir: SandboxDir,
    pub place: tempfile::TempDir,
    pub cgroup: PathBuf,
    pub supervisor: Child,
    pub client: Client,
    cgroups: Vec<PathBuf>,
}

/// A configuration that tests may change before the pod starts.
pub struct Plan {
    pub config: SandboxConfig,
    place: tempfile::TempDir,
    cgroup: PathBuf,
    cgroups: Vec<PathBuf>,
}

impl Plan {
    pub fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let name = format!("orlop-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroups: Vec<PathBuf> = cgroup_mounts().iter().map(|mount| mount.join(&name)).collect();
        for cgroup in &cgroups {
            fs::create_dir(cgroup).unwrap();
            // A cpuset has no CPUs until it is given some.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read_to_string(cgroup.parent().unwrap().join(file)) {
                    let _ = fs::write(cgroup.join(file), value);
                }
            }
        }
        let config = SandboxConfig {
            uid: name.clone(),
            namespace: "default".into(),
            name: "pod".into(),
            attempt: 0,
            hostname: "pod-host".into(),
            host_network: false,
            host_ipc: false,
            shared_pid: false,
            shm_bytes: 1 << 20,
            sysctls: BTreeMap::new(),
            tmpfs: Vec::new(),
            cgroup_procs: cgroups
                .iter()
                .map(|cgroup| supervisor_cgroup(cgroup).join("cgroup.procs"))
                .collect(),
            state_dir: place.path().join("state"),
            log_max_bytes: 10 << 20,
            log_max_files: 5,
        };
        make_layer(&place.path().join("layer"));
        fs::create_dir_all(place.path().join("logs")).unwrap();
        Plan { config, place, cgroup: Path::new("/").join(name), cgroups }
    }

    /// A path in the pod's own temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Starts the supervisor without greeting it.
    pub fn spawn(self) -> Pod {
        let dir = SandboxDir(self.place.path().join("run"));
        fs::create_dir_all(&dir.0).unwrap();
        fs::write(dir.config(), serde_json::to_vec(&self.config).unwrap()).unwrap();
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let supervisor = Command::new(
            std::env::var_os("ORLOP_SANDBOX").unwrap_or(env!("CARGO_BIN_EXE_orlop-sandbox").into()),
        )
        .arg("--dir")
        .arg(&dir.0)
        .args(["--pod", "default/pod"])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
        let client = Client::new(ours);
        Pod { dir, place: self.place, cgroup: self.cgroup, supervisor, client, cgroups: self.cgroups }
    }

    pub fn start(self) -> Pod {
        let mut pod = self.spawn();
        pod.client.hello();
        pod
    }
}

pub fn copy_busybox(to: &Path) {
    programs::write(to, fs::read(BUSYBOX).unwrap(), "755").unwrap();
}

fn make_layer(layer: &Path) {
    for directory in ["bin", "dev", "proc", "sys", "etc", "tmp", "dev/shm"] {
        fs::create_dir_all(layer.join(directory)).unwrap();
    }
    copy_busybox(&layer.join("bin/busybox"));
    let applets = "sh sleep cat echo true false kill ps id grep head dd yes seq hostname mount touch ls nslookup \
        ip readlink ulimit env stty tr wc mkdir stat nc chroot unshare mknod trap pwd test tail sync printf od setsid tty";
    for applet in applets.split_ascii_whitespace() {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n")
        .unwrap();
}

impl Pod {
    pub fn id(&self, name: &str) -> ContainerId {
        ContainerId { name: name.to_owned(), attempt: 0 }
    }

    pub fn log_path(&self, name: &str) -> PathBuf {
        self.place.path().join("logs").join(format!("{name}.log"))
    }

    /// The container's cgroup directory in the hierarchy of a version 1 controller, or the unified one.
    pub fn cgroup_directory(&self, controller: &str, name: &str) -> PathBuf {
        let own = self.cgroups.iter().find(|one| one.parent().unwrap().ends_with(controller));
        own.or(self.cgroups.first()).unwrap().join(name)
    }

    /// An ordinary spec that runs `args`.
    pub fn spec(&self, name: &str, args: &[&str]) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0},
                "env": ["PATH=/bin", "FIRST=1", "SECOND=2"]},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "bind", "source": self.dir.0.join("shm"), "options": ["rbind", "rw"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                    "options": ["nosuid", "noexec", "nodev", "ro"]},
            ],
            "linux": {
                "cgroupsPath": self.cgroup.join(name),
                "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}],
                "resources": {"devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 8, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 9, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 5, "minor": 1, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 5, "minor": 2, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 136, "access": "rwm"}]},
                "maskedPaths": ["/proc/kcore", "/proc/keys"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
            },
        })
    }

    /// Writes the spec and says how to start it.
    pub fn prepare(&self, name: &str, spec: &Value) -> StartContainer {
        let id = self.id(name);
        let attempt = self.dir.attempt(&id);
        fs::create_dir_all(&attempt).unwrap();
        fs::write(attempt.join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
        let writable = self.place.path().join("writable").join(name);
        StartContainer {
            rootfs: Rootfs {
                lower: vec![self.place.path().join("layer")],
                upper: writable.join("upper"),
                work: writable.join("work"),
            },
            log_path: self.log_path(name),
            security: Security {
                capabilities: DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
                no_new_privs: false,
                seccomp: Seccomp::RuntimeDefault,
                oom_score_adj: 100,
            },
            tty: false,
            stdin: false,
            backoff_ms: 10_000,
            image: "busybox".into(),
            image_id: "sha256:0".into(),
            id,
        }
    }

    /// Starts a container that runs a shell script.
    pub fn run(&mut self, name: &str, script: &str) -> ContainerRecord {
        let start = self.prepare(name, &self.spec(name, &["sh", "-c", script]));
        self.client.start(start).unwrap()
    }

    /// The log as (stream and tag, content).
    pub fn log(&self, name: &str) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.log_path(name)).unwrap();
        let entry = |line: &str| {
            let mut fields = line.splitn(4, ' ').skip(1);
            let mut next = || fields.next().unwrap().to_owned();
            (format!("{} {}", next(), next()), next())
        };
        text.lines().map(entry).collect()
    }

    pub fn output(&self, name: &str) -> String {
        self.log(name).into_iter().map(|(_, content)| content + "\n").collect()
    }

    /// Ends the sandbox as the daemon would, and waits for the process.
    pub fn shut_down(&mut self) {
        assert_eq!(self.client.call(Call::Shutdown), Ok(Answer::Done));
        assert!(self.supervisor.wait().unwrap().success());
    }
}

pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

impl Drop for Pod {
    fn drop(&mut self) {
        // Whatever a failed test left behind lives in the pod's cgroups.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let left: Vec<PathBuf> =
                self.cgroups.iter().filter(|cgroup| !remove_cgroup(cgroup)).cloned().collect();
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("cgroups {:?} are left behind", self.cgroups);
    }
}

fn remove_cgroup(cgroup: &Path) -> bool {
    for pid in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
        let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
    }
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}

/// Waits until something is so; fails when it does not come about.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A request to run `args` in a container.
pub fn exec_request(pod: &Pod, name: &str, args: &[&str]) -> ExecProcess {
    ExecProcess {
        exec_id: u64::from(std::process::id()) << 32 | u64::from(NEXT.fetch_add(1, Ordering::Relaxed)),
        id: pod.id(name),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        tty: false,
    }
}

/// Starts a process whose outputs can be read; its input is empty.
pub fn start_exec(pod: &mut Pod, request: ExecProcess) -> Result<[fs::File; 2], Failure> {
    let null = fs::File::open("/dev/null").unwrap();
    let (out, out_end) = nix::unistd::pipe().unwrap();
    let (err, err_end) = nix::unistd::pipe().unwrap();
    let fds = [null.as_raw_fd(), out_end.as_raw_fd(), err_end.as_raw_fd()];
    let id = pod.client.send(Call::Exec(Box::new(request)), &fds);
    drop((out_end, err_end));
    match pod.client.reply(id).0? {
        Answer::ExecStarted { .. } => Ok([fs::File::from(out), fs::File::from(err)]),
        other => panic!("{other:?}"),
    }
}

/// Runs a process to its end: exit code, stdout, stderr.
pub fn exec_with(pod: &mut Pod, request: ExecProcess) -> (i32, String, String) {
    let id = request.exec_id;
    let outputs = start_exec(pod, request).unwrap();
    let [out, err] = outputs.map(|file| std::io::read_to_string(file).unwrap());
    (pod.client.exec_exit(id), out, err)
}

pub fn exec(pod: &mut Pod, name: &str, args: &[&str]) -> (i32, String, String) {
    let request = exec_request(pod, name, args);
    exec_with(pod, request)
}
