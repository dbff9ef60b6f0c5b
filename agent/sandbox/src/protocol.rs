//! The words between the daemon and a supervisor: one JSON message per packet on a `SOCK_SEQPACKET` Unix socket,
//! descriptors beside it by `SCM_RIGHTS`. Also the files a supervisor keeps, which tell the same story to a daemon
//! that was not there.
//!
//! Owns: message and record types, the version number, size limits, file names. Never: does I/O.
//!
//! ```text
//! daemon ── Request{id, call} ──► supervisor ── Reply{id, result} ──►        (in order of completion, not of asking)
//!                                 supervisor ── Event ──►                    (to every connection that said Hello)
//! ```
//!
//! # Versions
//! The first packet on a connection is `Hello`. A supervisor answers with the version it speaks; a daemon speaks every
//! version from [`OLDEST`] to [`VERSION`], because it meets supervisors started by older daemons. Fields are only
//! added, with a default; a changed meaning is a new version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The version this code speaks.
pub const VERSION: u32 = 1;
/// The oldest version a daemon still understands.
pub const OLDEST: u32 = 1;
/// The largest packet, in bytes. Anything larger (an OCI spec, say) is handed over as a file.
pub const MAX_PACKET: usize = 64 * 1024;
/// The most descriptors one packet carries.
pub const MAX_FDS: usize = 4;
/// Where things are inside a sandbox's run directory (`<run-dir>/pods/<uid>`). The directory is on a tmpfs.
#[derive(Debug, Clone)]
pub struct SandboxDir(pub PathBuf);

impl SandboxDir {
    /// What the daemon wants of the sandbox: [`SandboxConfig`], written before the supervisor starts.
    pub fn config(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }
    /// Who the supervisor is: [`SupervisorRecord`], written by it when it is ready.
    pub fn supervisor(&self) -> PathBuf {
        self.0.join("supervisor.json")
    }
    /// The listening socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("sock")
    }
    /// One directory for each container name, one below it for each attempt.
    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }
    /// The directory of one attempt: OCI bundle (`config.json`), record, mount point of the root file system.
    pub fn attempt(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(&id.name).join(id.attempt.to_string())
    }
    /// The [`ContainerRecord`] of one attempt, written by the supervisor.
    pub fn record(&self, id: &ContainerId) -> PathBuf {
        self.attempt(id).join("record.json")
    }
    /// The mount point of one attempt's root file system, in the supervisor's mount namespace alone.
    pub fn rootfs(&self, id: &ContainerId) -> PathBuf {
        self.attempt(id).join("rootfs")
    }
}

impl AsRef<Path> for SandboxDir {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// One attempt to run a container of the pod. `attempt` counts from 0 and never repeats within a pod's life on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId {
    /// The container's name in the PodSpec (init and ephemeral containers included: names are unique in a pod).
    pub name: String,
    /// 0 for the first start.
    pub attempt: u32,
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name, self.attempt)
    }
}

/// What a sandbox is to be. Read once by the supervisor at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The pod's UID.
    pub uid: String,
    /// The pod's namespace, for messages and `orlop ps`.
    pub namespace: String,
    /// The pod's name, likewise.
    pub name: String,
    /// Counts the sandboxes this pod has had on the node, from 0.
    pub attempt: u32,
    /// Set in the new UTS namespace; ignored with `host_network`.
    pub hostname: String,
    /// Share the node's network and UTS namespaces instead of making new ones (`hostNetwork`).
    #[serde(default)]
    pub host_network: bool,
    /// Share the node's IPC namespace (`hostIPC`).
    #[serde(default)]
    pub host_ipc: bool,
    /// One pid namespace for all containers, with a reaper as PID 1 (`shareProcessNamespace`).
    #[serde(default)]
    pub shared_pid: bool,
    /// Size of the pod's `/dev/shm` in bytes, mounted at `<dir>/shm` in the supervisor's mount namespace. Not mounted
    /// with `host_ipc`: such containers get the node's.
    pub shm_bytes: u64,
    /// Sysctls of the pod's namespaces, dotted or slashed names. One that does not belong to a namespace of this pod
    /// fails the sandbox.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// tmpfs mounts to make in the supervisor's mount namespace before anything else (memory-backed emptyDir).
    #[serde(default)]
    pub tmpfs: Vec<TmpfsMount>,
    /// `cgroup.procs` files to enter (one on cgroup v2, one for each hierarchy on v1); made by the daemon. On v2 it must
    /// be a leaf beside the containers' cgroups: a cgroup with processes of its own cannot hand controllers down.
    pub cgroup_procs: Vec<PathBuf>,
    /// Where `libcontainer` keeps its state.
    pub state_dir: PathBuf,
    /// Rotate a log file when it would grow past this many bytes (`containerLogMaxSize`).
    pub log_max_bytes: u64,
    /// Keep at most this many files of a container's log, the current one included (`containerLogMaxFiles`).
    pub log_max_files: u32,
}

/// A tmpfs to mount at an existing directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsMount {
    /// The mount point.
    pub target: PathBuf,
    /// Size limit in bytes; `None` is the kernel's default.
    pub size_bytes: Option<u64>,
    /// Permission bits of the root directory.
    pub mode: u32,
    /// Owning group of the root directory (`fsGroup`); root's when `None`.
    #[serde(default)]
    pub gid: Option<u32>,
}

/// Who supervises a sandbox; makes a pid trustworthy after a reboot or pid wrap-around.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorRecord {
    /// Protocol version.
    pub version: u32,
    /// Process id in the node's pid namespace; its `/proc/<pid>/ns/*` are the sandbox's namespaces.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    pub start_ticks: u64,
    /// Milliseconds since the epoch.
    pub created_at_ms: i64,
    /// PID 1 of the shared pid namespace, if the pod has one: `/proc/<pid>/ns/pid` is what containers join.
    #[serde(default)]
    pub pid_ns_holder: Option<i32>,
}

/// A call from the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller, comes back in the [`Reply`].
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// The calls a supervisor answers. All are idempotent: "already so" is success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// First on every connection; subscribes it to events. Answer: [`Answer::Hello`].
    Hello {
        /// The newest version the caller speaks.
        version: u32,
    },
    /// Everything known. Answer: [`Answer::State`].
    State,
    /// Create and start a container. Answer: [`Answer::Started`]; a repeated call for a running attempt answers alike,
    /// for an ended one with its record. Failure: [`Failure`] and the attempt's record says `StartFailed`.
    Start(Box<StartContainer>),
    /// Signal a container. Not running any more is success. Answer: [`Answer::Done`].
    Signal {
        /// Which attempt.
        id: ContainerId,
        /// Signal number.
        signal: i32,
        /// Only PID 1, or every process of the container (SIGKILL goes to the whole cgroup).
        all: bool,
    },
    /// Forget an ended attempt: `libcontainer` state, cgroup, root mount, directory. Answer: [`Answer::Done`].
    Remove {
        /// Which attempt; a running one is refused.
        id: ContainerId,
    },
    /// Run a process in a running container. Descriptors: stdin, stdout, stderr, or with `tty` none (the pty
    /// master comes back with the answer). Answer: [`Answer::ExecStarted`], later [`Event::ExecExited`].
    Exec(Box<ExecProcess>),
    /// Signal an exec'd process and what it started. Answer: [`Answer::Done`].
    ExecSignal {
        /// As given in [`ExecProcess`].
        exec_id: u64,
        /// Signal number.
        signal: i32,
    },
    /// Kill what still runs, end. Answered before the end. Cgroups and mounts of the containers are gone then; their
    /// directories with the records stay, since they tell how the containers ended. Answer: [`Answer::Done`].
    Shutdown,
}

/// How to start a container. The OCI spec is `config.json` in the attempt's directory, written by the daemon; what the
/// supervisor overrides in it is listed in `launch::spec`. `linux.namespaces` lists `mount`, `cgroup` and, unless the
/// pod has `hostPID`, `pid`, all without a path; `linux.cgroupsPath` is absolute, below the pod's cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartContainer {
    /// Which attempt.
    pub id: ContainerId,
    /// The root file system: overlay layers, mounted by the supervisor at [`SandboxDir::rootfs`].
    pub rootfs: Rootfs,
    /// The current log file (`.../<container>/<attempt>.log`); its directory exists.
    pub log_path: PathBuf,
    /// What the executor applies right before `execve`, to this and to every exec'd process.
    pub security: Security,
    /// Give the process a terminal (`tty`).
    #[serde(default)]
    pub tty: bool,
    /// Keep stdin open for attach (`stdin`); otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// The delay, in milliseconds, that CrashLoopBackOff will ask for after this attempt; kept in the record, so that
    /// it outlives the daemon. The supervisor does not act on it.
    #[serde(default)]
    pub backoff_ms: u64,
    /// Image reference as reported in `status.containerStatuses[].image`; kept in the record.
    #[serde(default)]
    pub image: String,
    /// Image id as reported in `imageID`; kept in the record.
    #[serde(default)]
    pub image_id: String,
}

/// An overlay mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Read-only layers, lowest first.
    pub lower: Vec<PathBuf>,
    /// The writable layer; made if absent.
    pub upper: PathBuf,
    /// Overlay's work directory, on the file system of `upper`; made if absent.
    pub work: PathBuf,
}

/// Privileges, applied by the executor and not by `libcontainer`. See the order in `launch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Capability names without `CAP_`, for the bounding and permitted sets; effective too when the user is root or
    /// the capability is ambient.
    pub capabilities: Vec<String>,
    /// Set `no_new_privs` (`allowPrivilegeEscalation: false`).
    pub no_new_privs: bool,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// `oom_score_adj` to try; a refusal (no `CAP_SYS_RESOURCE`) is ignored.
    pub oom_score_adj: i32,
}

/// A system call filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// None at all.
    Unconfined,
    /// The runtime's own profile, compiled for the container's capabilities.
    RuntimeDefault,
    /// A profile in the OCI/docker JSON form, read from this file.
    Localhost(PathBuf),
}

/// A process to run in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecProcess {
    /// Chosen by the caller, unique among this supervisor's callers (random).
    pub exec_id: u64,
    /// The container; the attempt must be running.
    pub id: ContainerId,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to the container's own environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory; `None` is the container's own.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// Give the process a terminal.
    #[serde(default)]
    pub tty: bool,
}

/// The answer to one [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// What came of it.
    pub result: Result<Answer, Failure>,
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nothing more to say.
    Done,
    /// The connection is subscribed.
    Hello {
        /// The version this connection will speak.
        version: u32,
        /// Who answers.
        supervisor: SupervisorRecord,
    },
    /// Everything known, ended attempts included.
    State {
        /// One for each attempt not yet removed.
        containers: Vec<ContainerRecord>,
        /// Not all fitted the packet; the attempts that ended first are left out. Their record files tell of them.
        #[serde(default)]
        truncated: bool,
    },
    /// The container runs.
    Started(ContainerRecord),
    /// The exec'd process runs.
    ExecStarted {
        /// Its pid in the node's pid namespace.
        pid: i32,
    },
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// A sentence that names the thing, fit for a container status.
    pub message: String,
}

/// What a caller may want to distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The program cannot be executed: not found, no permission, wrong format (`StartError`, exit code 128).
    CannotRun,
    /// The container could not be created: mounts, cgroups, root file system (`RunContainerError`).
    CannotCreate,
    /// No such container, or it does not run.
    NotRunning,
    /// The request makes no sense to this supervisor.
    BadRequest,
}

/// What a supervisor tells without being asked. The record on disk is written before the event is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container runs. Also the answer to the call that started it; the event is for a daemon that came back while the
    /// call was under way.
    Started(ContainerRecord),
    /// A container's PID 1 ended, or (the record then says `StartFailed`) an attempt to start it failed. The latter is
    /// also the answer to the call; the event is for a daemon that came back while the call was under way.
    Exited(ContainerRecord),
    /// An exec'd process ended.
    ExecExited {
        /// As given in [`ExecProcess`].
        exec_id: u64,
        /// Exit code, 128 + signal for a signal.
        exit_code: i32,
    },
}

/// A packet from the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromSupervisor {
    /// To the connection that asked.
    Reply(Reply),
    /// To every connection that said Hello.
    Event(Event),
}

/// All that is known of one attempt; what the record file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Which attempt.
    pub id: ContainerId,
    /// The `libcontainer` id, unique on the node: what `containerID` shows behind `orlop://`.
    pub container_id: String,
    /// Copied from [`StartContainer`].
    pub backoff_ms: u64,
    /// Copied from [`StartContainer`].
    pub image: String,
    /// Copied from [`StartContainer`].
    pub image_id: String,
    /// Copied from [`StartContainer`].
    pub log_path: PathBuf,
    /// [`SandboxConfig::attempt`] of the sandbox it was started in.
    #[serde(default)]
    pub sandbox: u32,
    /// From the call to the program's `execve`, in microseconds; 0 until then.
    #[serde(default)]
    pub start_us: u64,
    /// Where it is in its life.
    pub state: RecordState,
}

/// Where an attempt is in its life. Times are milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordState {
    /// Being created. A record left like this by a dead supervisor is a lost container.
    Starting {
        /// When the call came.
        since_ms: i64,
    },
    /// The program runs.
    Running {
        /// In the node's pid namespace.
        pid: i32,
        /// When `execve` was seen to succeed.
        started_at_ms: i64,
    },
    /// The program could not be started.
    StartFailed {
        /// When.
        at_ms: i64,
        /// What kind of failure.
        kind: FailureKind,
        /// Why.
        message: String,
    },
    /// The program ended.
    Exited {
        /// When it was started.
        started_at_ms: i64,
        /// When it ended.
        finished_at_ms: i64,
        /// Exit code, 128 + signal for a signal.
        exit_code: i32,
        /// The signal that ended it, if one did.
        signal: Option<i32>,
        /// The kernel's OOM killer struck in this container.
        oom_killed: bool,
    },
}

impl RecordState {
    /// Whether nothing more will happen to this attempt by itself.
    pub fn is_over(&self) -> bool {
        match self {
            RecordState::Starting { .. } | RecordState::Running { .. } => false,
            RecordState::StartFailed { .. } | RecordState::Exited { .. } => true,
        }
    }

    /// How far the attempt is: a life only goes on, so of two records the one further on is the newer one.
    pub fn stage(&self) -> u8 {
        match self {
            RecordState::Starting { .. } => 0,
            RecordState::Running { .. } => 1,
            RecordState::StartFailed { .. } | RecordState::Exited { .. } => 2,
        }
    }
}
