//! The supervisors of all pods, as the daemon knows them.
//!
//! Owns: one connection and the newest records for each sandbox. Does: starts supervisors, adopts those that an earlier
//! daemon started, keeps records current from events. Never: asks again what an event tells (no polling), or stops a
//! supervisor by itself.

pub mod connection;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use orlop_sandbox::protocol::{
    Answer, Call, ContainerId, ContainerRecord, Event, SandboxConfig, SandboxDir, SupervisorRecord, VERSION,
};
use tokio::sync::watch;

use crate::pod::names::PodUid;
use connection::{CallError, Connection};

/// Every sandbox of this node. One writer for each entry: the task that reads its connection, or the call that changes it.
#[derive(Debug)]
pub struct Supervisors {
    /// `<run-dir>/pods`.
    pods_dir: PathBuf,
    sandboxes: Mutex<HashMap<PodUid, Entry>>,
    /// Pods whose supervisor is on its way: its files are there before it answers.
    starting: Mutex<HashSet<PodUid>>,
    changes: Mutex<HashMap<PodUid, watch::Sender<u64>>>,
}

#[derive(Debug, Clone)]
struct Entry {
    sandbox: LiveSandbox,
    records: BTreeMap<ContainerId, ContainerRecord>,
    /// Until the supervisor has listed what it has, announcements are collected here and nobody is shown a part.
    listed: bool,
}

impl Entry {
    /// Takes a record unless a newer one is known: an answer may be looked at after the events that follow it.
    fn take(&mut self, record: ContainerRecord) {
        let known = self.records.get(&record.id);
        if known.is_none_or(|known| known.state.stage() <= record.state.stage()) {
            self.records.insert(record.id.clone(), record);
        }
    }
}

/// A sandbox whose supervisor answers.
#[derive(Debug, Clone)]
pub struct LiveSandbox {
    /// To call it.
    pub connection: Connection,
    /// Who it is.
    pub supervisor: SupervisorRecord,
    /// The pod's sandbox number.
    pub attempt: u32,
    /// The pod's addresses, once the network is attached.
    pub addresses: Option<Vec<IpAddr>>,
}

impl Supervisors {
    /// `pods_dir` is `<run-dir>/pods`; it is made if absent.
    pub fn new(pods_dir: PathBuf) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(&pods_dir)?;
        Ok(Arc::new(Self {
            pods_dir,
            sandboxes: Mutex::default(),
            starting: Mutex::default(),
            changes: Mutex::default(),
        }))
    }

    /// The run directory of a pod.
    pub fn dir(&self, uid: &PodUid) -> SandboxDir {
        SandboxDir(self.pods_dir.join(uid.as_str()))
    }

    /// Every pod that has a run directory.
    pub fn present(&self) -> Vec<PodUid> {
        std::fs::read_dir(&self.pods_dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok().map(PodUid::from))
            .collect()
    }

    /// The live sandbox of a pod.
    pub fn live(&self, uid: &PodUid) -> Option<LiveSandbox> {
        self.lock().get(uid).filter(|entry| entry.listed).map(|entry| entry.sandbox.clone())
    }

    /// Whether a supervisor for the pod is being started: then it is neither there nor lost.
    pub fn is_starting(&self, uid: &PodUid) -> bool {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    /// The records of a live sandbox's attempts.
    pub fn records(&self, uid: &PodUid) -> Vec<ContainerRecord> {
        self.lock().get(uid).map(|entry| entry.records.values().cloned().collect()).unwrap_or_default()
    }

    /// Remembers the addresses of a sandbox's network; `None` once it is detached.
    pub fn set_addresses(&self, uid: &PodUid, addresses: Option<Vec<IpAddr>>) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.sandbox.addresses = addresses;
        }
    }

    /// Remembers what a call answered, ahead of the events.
    pub fn set_record(&self, uid: &PodUid, record: ContainerRecord) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.take(record);
        }
    }

    /// Forgets an attempt.
    pub fn remove_record(&self, uid: &PodUid, id: &ContainerId) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.records.remove(id);
        }
    }

    /// Changes whenever something happens to this pod by itself.
    pub fn changes(&self, uid: &PodUid) -> watch::Receiver<u64> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        // Pods that nobody listens for any more are forgotten here, never under a listener.
        changes.retain(|other, sender| other == uid || sender.receiver_count() > 0);
        changes.entry(uid.clone()).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    /// Forgets a pod of which nothing is left.
    pub fn forget(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    /// Starts a supervisor for a directory that holds nothing of an earlier one but its records.
    ///
    /// # Errors
    /// Where the process cannot be started or does not say Hello: its own words are in its standard error.
    pub async fn start(self: &Arc<Self>, uid: &PodUid, config: &SandboxConfig) -> Result<(), CallError> {
        let _starting = Starting::new(self, uid);
        let dir = self.dir(uid);
        std::fs::create_dir_all(dir.containers())?;
        crate::host::files::write_json(&dir.config(), config)?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(io::Error::from)?;
        spawn(&dir, &format!("{}/{}", config.namespace, config.name), theirs)?;
        nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(io::Error::from)?;
        self.attach(uid, Connection::new(ours)?, config.attempt).await
    }

    /// Connects to a supervisor that an earlier daemon started. `None`: there is none, or it does not answer.
    pub async fn adopt(self: &Arc<Self>, uid: &PodUid) -> Option<LiveSandbox> {
        let dir = self.dir(uid);
        let config: SandboxConfig = crate::host::files::read_json(&dir.config()).ok()?;
        let connection = Connection::connect(&dir.socket()).ok()?;
        match self.attach(uid, connection, config.attempt).await {
            Ok(()) => self.live(uid),
            Err(error) => {
                tracing::warn!(%uid, %error, "a supervisor's socket is there and does not answer");
                None
            }
        }
    }

    async fn attach(
        self: &Arc<Self>,
        uid: &PodUid,
        connection: Connection,
        attempt: u32,
    ) -> Result<(), CallError> {
        let reader = tokio::spawn(Arc::clone(self).read(uid.clone(), connection.clone()));
        let known = self.greet(uid, &connection, attempt).await;
        if known.is_err() {
            reader.abort();
            self.drop_connection(uid, &connection);
        }
        known
    }

    /// Learns who the supervisor is and what it has. From its Hello on it announces what happens; that is kept from there.
    async fn greet(&self, uid: &PodUid, connection: &Connection, attempt: u32) -> Result<(), CallError> {
        let another_question = || io::Error::other("the supervisor answers another question");
        let Answer::Hello { supervisor, .. } = connection.call(Call::Hello { version: VERSION }).await?
        else {
            return Err(another_question().into());
        };
        let sandbox = LiveSandbox { connection: connection.clone(), supervisor, attempt, addresses: None };
        self.lock()
            .entry(uid.clone())
            .and_modify(|entry| (entry.sandbox, entry.listed) = (sandbox.clone(), false))
            .or_insert_with(|| Entry { sandbox, records: BTreeMap::new(), listed: false });
        let Answer::State { mut containers, truncated } = connection.call(Call::State).await? else {
            return Err(another_question().into());
        };
        if truncated {
            // What the packet had no room for are ended attempts; their records on disk are final.
            let known: Vec<ContainerId> = containers.iter().map(|record| record.id.clone()).collect();
            let rest = crate::host::records_on_disk(&self.dir(uid)).into_iter();
            containers.extend(rest.filter(|record| !known.contains(&record.id)));
        }
        let mut sandboxes = self.lock();
        // It may have hung up meanwhile.
        let entry = sandboxes.get_mut(uid).ok_or(CallError::Lost)?;
        containers.into_iter().for_each(|record| entry.take(record));
        entry.listed = true;
        Ok(())
    }

    /// The task of one connection; ends with it.
    async fn read(self: Arc<Self>, uid: PodUid, connection: Connection) {
        connection
            .read(|event| match event {
                Event::Started(record) | Event::Exited(record) => {
                    self.set_record(&uid, record);
                    self.announce(&uid);
                }
                Event::ExecExited { .. } => {}
            })
            .await;
        self.drop_connection(&uid, &connection);
        self.announce(&uid);
    }

    /// Forgets what came over a connection, unless the pod has a new sandbox by now.
    fn drop_connection(&self, uid: &PodUid, connection: &Connection) {
        let mut sandboxes = self.lock();
        if sandboxes.get(uid).is_some_and(|entry| entry.sandbox.connection.is(connection)) {
            sandboxes.remove(uid);
        }
    }

    fn announce(&self, uid: &PodUid) {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = changes.get(uid) {
            sender.send_modify(|count| *count += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Entry>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a pod for as long as its supervisor is being started, however that ends.
struct Starting<'a>(&'a Supervisors, &'a PodUid);

impl<'a> Starting<'a> {
    fn new(supervisors: &'a Supervisors, uid: &'a PodUid) -> Self {
        supervisors.starting.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone());
        Self(supervisors, uid)
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starting.lock().unwrap_or_else(PoisonError::into_inner).remove(self.1);
    }
}

/// Starts `orlop sandbox` with its first connection as standard input. It is not waited for: the daemon may end before
/// it, and while the daemon lives the runtime reaps it.
fn spawn(dir: &SandboxDir, pod: &str, connection: OwnedFd) -> io::Result<()> {
    let child = tokio::process::Command::new("/proc/self/exe")
        .arg0("orlop")
        .arg("sandbox")
        .arg("--dir")
        .arg(Path::new(&dir.0))
        .arg("--pod")
        .arg(pod)
        .stdin(Stdio::from(connection))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(false)
        .spawn()?;
    drop(child);
    Ok(())
}

#[cfg(test)]
mod tests;
