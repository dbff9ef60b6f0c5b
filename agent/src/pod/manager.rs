//! From sources to workers: which pods this node has, each with one worker.
//!
//! Owns: the set of workers, what is wanted of each pod, admission, the wait of a name's next bearer for the last one.
//! Guarantees: nothing is removed before the first complete list of every configured source; what the node still
//! holds and no source knows is ended after that, gracefully. Shutdown of the daemon leaves every pod alone.
//! Never: plans for a pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::admission::{Allocatable, admit};
use super::host::Host;
use super::names::PodUid;
use super::reporter::Reporter;
use super::spec::Pod;
use super::status::PodStatus;
use super::wanted::{NodeFacts, Object, Wanted};
use super::worker::{self, Channels, Context, Ended};

/// Where pods come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The API server.
    Api,
    /// Manifests on the node's disk.
    Manifests,
}

/// News from a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceUpdate {
    /// Which source.
    pub source: Source,
    /// What happened.
    pub event: SourceEvent,
}

/// What happened at a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEvent {
    /// The complete list: what is not in it does not exist there.
    Synced(Vec<Arc<Pod>>),
    /// A pod was added or changed.
    Applied(Arc<Pod>),
    /// A pod's object is gone.
    Deleted {
        /// Whose.
        uid: PodUid,
    },
}

/// What of the node the manager and its workers need.
#[derive(Debug, Clone)]
pub struct NodeWatch {
    /// For planning.
    pub facts: watch::Receiver<NodeFacts>,
    /// For admission.
    pub allocatable: watch::Receiver<Allocatable>,
}

/// A view of every pod of the node, for readers elsewhere.
#[derive(Debug, Clone)]
pub struct Pods(watch::Receiver<Arc<BTreeMap<PodUid, PodHandle>>>);

/// A view of one pod; always the newest.
#[derive(Debug, Clone)]
pub struct PodHandle {
    wanted: watch::Receiver<Wanted>,
    status: watch::Receiver<PodStatus>,
}

impl PodHandle {
    /// The pod as last wanted.
    pub fn pod(&self) -> Arc<Pod> {
        Arc::clone(&self.wanted.borrow().pod)
    }

    /// Its status as last computed.
    pub fn status(&self) -> PodStatus {
        self.status.borrow().clone()
    }

    /// Tells of changes of the status.
    pub fn watch_status(&self) -> watch::Receiver<PodStatus> {
        self.status.clone()
    }
}

impl Pods {
    /// Every pod, by UID.
    pub fn all(&self) -> Arc<BTreeMap<PodUid, PodHandle>> {
        Arc::clone(&self.0.borrow())
    }

    /// The pod with this UID.
    pub fn by_uid(&self, uid: &PodUid) -> Option<PodHandle> {
        self.0.borrow().get(uid).cloned()
    }

    /// The pod with this name.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<PodHandle> {
        let all = self.0.borrow();
        all.values().find(|h| h.pod().namespace() == namespace && h.pod().name() == name).cloned()
    }

    /// Waits for a pod to come or go. `false` when the manager is gone.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// The set of workers.
pub struct Manager<H, R> {
    context: Context<H, R>,
    node: NodeWatch,
    shutdown: CancellationToken,
    unsynced: BTreeSet<Source>,
    entries: BTreeMap<PodUid, Entry>,
    /// Pods whose name is still borne by an earlier pod.
    waiting: BTreeMap<PodUid, (Source, Arc<Pod>)>,
    /// Pods that are done here while their source may still mention them.
    finished: BTreeSet<PodUid>,
    tasks: JoinSet<Ended>,
    uids: HashMap<Id, PodUid>,
    view: watch::Sender<Arc<BTreeMap<PodUid, PodHandle>>>,
}

struct Entry {
    /// `None`: no source has named it (any more).
    source: Option<Source>,
    wanted: watch::Sender<Wanted>,
    handle: PodHandle,
}

impl<H: Host, R: Reporter> Manager<H, R> {
    /// A manager that waits for the first complete list of each of `sources`.
    pub fn new(
        context: Context<H, R>,
        node: NodeWatch,
        sources: impl IntoIterator<Item = Source>,
        shutdown: CancellationToken,
    ) -> (Self, Pods) {
        let (view, pods) = watch::channel(Arc::default());
        let manager = Self {
            context,
            node,
            shutdown,
            unsynced: sources.into_iter().collect(),
            entries: BTreeMap::new(),
            waiting: BTreeMap::new(),
            finished: BTreeSet::new(),
            tasks: JoinSet::new(),
            uids: HashMap::new(),
            view,
        };
        (manager, Pods(pods))
    }

    /// Works until shutdown. Begins with the pods that the node still holds, so that they are looked after while no
    /// source answers.
    pub async fn run(mut self, mut updates: mpsc::Receiver<SourceUpdate>) {
        for pod in self.context.host.residents().await {
            if !self.entries.contains_key(pod.uid()) {
                self.start(None, Wanted::present(pod));
            }
        }
        let mut open = true;
        loop {
            tokio::select! {
                // A token stays cancelled.
                () = self.shutdown.cancelled() => break,
                // A message stays in the channel until it is taken.
                update = updates.recv(), if open => match update {
                    Some(update) => self.update(update),
                    None => open = false,
                },
                // A finished task stays in the set until it is taken.
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            }
        }
        // Each worker sees the same token; what they have in flight is dropped with them.
        while self.tasks.join_next().await.is_some() {}
    }

    fn update(&mut self, update: SourceUpdate) {
        match update.event {
            SourceEvent::Applied(pod) => self.apply(update.source, pod),
            SourceEvent::Deleted { uid } => self.delete(&uid),
            SourceEvent::Synced(pods) => self.sync(update.source, pods),
        }
    }

    fn sync(&mut self, source: Source, mut pods: Vec<Arc<Pod>>) {
        let listed: BTreeSet<PodUid> = pods.iter().map(|p| p.uid().clone()).collect();
        for (uid, entry) in &mut self.entries {
            if entry.source == Some(source) && !listed.contains(uid) {
                entry.source = None;
            }
        }
        self.waiting.retain(|uid, (from, _)| *from != source || listed.contains(uid));
        self.finished.retain(|uid| listed.contains(uid));
        // The oldest first: on a full node they keep their place.
        pods.sort_by_key(|p| (p.metadata.creation_timestamp, p.uid().clone()));
        for pod in pods {
            self.apply(source, pod);
        }
        if self.unsynced.remove(&source) {
            info!(?source, "first complete list");
        }
        self.end_unknown();
    }

    fn apply(&mut self, source: Source, pod: Arc<Pod>) {
        let uid = pod.uid().clone();
        if self.finished.contains(&uid) || (source == Source::Api && is_mirror(&pod)) {
            return;
        }
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.source = Some(source);
            entry.wanted.send_if_modified(|wanted| {
                let changed = wanted.pod != pod;
                wanted.pod = pod;
                changed
            });
            return;
        }
        if let Some(bearer) = self.bearer_of_name(&pod) {
            // Two objects cannot bear one name at one time: the earlier one is gone.
            self.mark_gone(&bearer);
            info!(%uid, %bearer, "waits for the pod of the same name to end");
            self.waiting.insert(uid, (source, pod));
            return;
        }
        let wanted = self.admitted(pod);
        self.start(Some(source), wanted);
    }

    fn delete(&mut self, uid: &PodUid) {
        self.waiting.remove(uid);
        self.finished.remove(uid);
        self.mark_gone(uid);
    }

    fn mark_gone(&mut self, uid: &PodUid) {
        let Some(entry) = self.entries.get(uid) else { return };
        entry.wanted.send_if_modified(|wanted| {
            let changed = wanted.object != Object::Gone;
            wanted.object = Object::Gone;
            changed
        });
    }

    /// Ends what no source knows, once every source has been heard.
    fn end_unknown(&mut self) {
        if !self.unsynced.is_empty() {
            return;
        }
        let unknown: Vec<PodUid> =
            self.entries.iter().filter(|(_, e)| e.source.is_none()).map(|(u, _)| u.clone()).collect();
        for uid in unknown {
            self.mark_gone(&uid);
        }
    }

    fn bearer_of_name(&self, pod: &Pod) -> Option<PodUid> {
        let same = |other: &Pod| other.name() == pod.name() && other.namespace() == pod.namespace();
        self.entries.iter().find(|(_, e)| same(&e.handle.wanted.borrow().pod)).map(|(u, _)| u.clone())
    }

    /// Takes the pod or rejects it. A pod that is ending anyway, or has ended, is not asked.
    fn admitted(&self, pod: Arc<Pod>) -> Wanted {
        let mut wanted = Wanted::present(pod);
        if wanted.is_deleted() || wanted.pod.status.phase.is_terminal() {
            return wanted;
        }
        let taken: Vec<Arc<Pod>> = self.entries.values().filter_map(Entry::occupant).collect();
        let others = taken.iter().map(Arc::as_ref);
        if let Err(rejection) = admit(&wanted.pod, others, &self.node.allocatable.borrow()) {
            warn!(uid = %wanted.pod.uid(), pod = %wanted.pod, reason = rejection.reason, "rejected");
            wanted.rejected = Some(rejection);
        }
        wanted
    }

    fn start(&mut self, source: Option<Source>, wanted: Wanted) {
        let uid = wanted.pod.uid().clone();
        let (status_tx, status) = watch::channel(wanted.pod.status.clone());
        let (wanted, wanted_rx) = watch::channel(wanted);
        let channels = Channels {
            wanted: wanted_rx.clone(),
            node: self.node.facts.clone(),
            status: status_tx,
            shutdown: self.shutdown.clone(),
        };
        let task = self.tasks.spawn(worker::run(self.context.clone(), channels));
        self.uids.insert(task.id(), uid.clone());
        let handle = PodHandle { wanted: wanted_rx, status };
        self.entries.insert(uid, Entry { source, wanted, handle });
        self.publish();
    }

    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, failure) = match ended {
            Ok((id, Ended::Done | Ended::Shutdown)) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        let Some(uid) = self.uids.remove(&id) else { return };
        let Some(entry) = self.entries.remove(&uid) else { return };
        if let Some(error) = failure {
            error!(%uid, %error, "worker ended by itself");
        } else if entry.wanted.borrow().object == Object::Present {
            // We deleted the object; its source will say so, perhaps after a last change.
            self.finished.insert(uid);
        }
        let name = {
            let wanted = entry.wanted.borrow();
            (wanted.pod.namespace().to_owned(), wanted.pod.name().to_owned())
        };
        let next = self
            .waiting
            .iter()
            .find(|(_, (_, p))| (p.namespace(), p.name()) == (name.0.as_str(), name.1.as_str()))
            .map(|(uid, _)| uid.clone());
        self.publish();
        if let Some((source, pod)) = next.and_then(|uid| self.waiting.remove(&uid)) {
            self.apply(source, pod);
        }
    }

    fn publish(&self) {
        let view = self.entries.iter().map(|(u, e)| (u.clone(), e.handle.clone())).collect();
        self.view.send_replace(Arc::new(view));
    }
}

/// The picture that a node shows the API server of a pod from a manifest: nothing to run.
fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.contains_key("kubernetes.io/config.mirror")
}

impl Entry {
    /// The pod, if it takes up room on the node.
    fn occupant(&self) -> Option<Arc<Pod>> {
        let wanted = self.wanted.borrow();
        let over = wanted.rejected.is_some()
            || self.handle.status.borrow().phase.is_terminal()
            || wanted.pod.status.phase.is_terminal();
        (!over).then(|| Arc::clone(&wanted.pod))
    }
}
