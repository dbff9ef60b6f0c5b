//! Carries actions out on this node. Decides nothing.
//!
//! Owns: what is on the node for a pod: sandbox, cgroup, directories, network attachment, volumes, log files. One file
//! for each kind of action, [`observe`] for what is there. Never: retries, backs off or orders actions (`pod::plan`).

pub mod cgroup;
pub mod container;
pub mod files;
mod hold;
mod observe;
mod pull;
mod sandbox;
pub mod settings;
mod start;
mod stop;
pub mod supervisor;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use crate::image::puller::Puller;
use crate::image::store::Store;
use crate::network::service_env::ServiceVariables;
use crate::network::{Network, Place};
use crate::pod::action::{Action, ActionError, Done};
use crate::pod::host::Host;
use crate::pod::names::PodUid;
use crate::pod::observed::Observed;
use crate::pod::spec::Pod;
use crate::volume::Volumes;
use crate::volume::objects::Objects;
use cgroup::Cgroups;
use settings::Settings;
use supervisor::Supervisors;

pub use observe::records_on_disk;

/// This node.
pub struct NodeHost {
    settings: Settings,
    cgroups: Cgroups,
    supervisors: Arc<Supervisors>,
    volumes: Volumes,
    network: Arc<Network>,
    images: Arc<Store>,
    puller: Arc<Puller>,
    objects: Arc<dyn Objects>,
    services: Arc<ServiceVariables>,
}

/// What a [`NodeHost`] is put together from.
pub struct Parts {
    /// Configuration.
    pub settings: Settings,
    /// The machine's cgroups.
    pub cgroups: Cgroups,
    /// The pods' network.
    pub network: Arc<Network>,
    /// The image store.
    pub images: Arc<Store>,
    /// Pulls into it.
    pub puller: Arc<Puller>,
    /// The API server's objects.
    pub objects: Arc<dyn Objects>,
    /// The services that containers get variables for.
    pub services: Arc<ServiceVariables>,
}

impl NodeHost {
    /// Takes the node over: every supervisor that runs is adopted with its network.
    ///
    /// # Errors
    /// Where the run directory cannot be made.
    pub async fn open(parts: Parts) -> std::io::Result<Self> {
        let supervisors = Supervisors::new(parts.settings.run_dir.join("pods"))?;
        for uid in supervisors.present() {
            if supervisors.adopt(&uid).await.is_some() {
                let attached = crate::network::AttachedNetwork::read(&supervisors.dir(&uid));
                supervisors.set_addresses(&uid, attached.map(|network| network.addresses));
            }
        }
        let volumes =
            Volumes::new(&parts.settings.run_dir, &parts.settings.root_dir, Arc::clone(&parts.objects));
        let host = Self {
            settings: parts.settings,
            cgroups: parts.cgroups,
            supervisors,
            volumes,
            network: parts.network,
            images: parts.images,
            puller: parts.puller,
            objects: parts.objects,
            services: parts.services,
        };
        host.collect_garbage().await;
        host.link_adopted_logs();
        Ok(host)
    }

    /// A daemon that was killed while a container started has not linked its log.
    fn link_adopted_logs(&self) {
        for uid in self.supervisors.present() {
            let Ok(pod) = files::read_json::<Pod>(&self.settings.snapshot(&uid)) else { continue };
            for record in self.supervisors.records(&uid) {
                self.link_log(&pod, &record);
            }
        }
    }

    /// Frees what pods that have nothing on this node any more still hold of network and images. Before any pod is worked
    /// for: what a pod gets meanwhile would look like nobody's.
    async fn collect_garbage(&self) {
        let pods = std::fs::read_dir(self.settings.root_dir.join("pods")).into_iter().flatten().flatten();
        let mut living: BTreeSet<PodUid> =
            pods.filter_map(|entry| entry.file_name().into_string().ok().map(PodUid::from)).collect();
        living.extend(self.supervisors.present());
        self.release_images_of_others(&living);
        // A pod whose detachment was written down holds no address any more: the links of a detached pod go in the background,
        // its address after them, and the daemon may have been killed in between. One that was not attached to the end is
        // attached anew.
        let is_attached =
            |uid: &PodUid| crate::network::AttachedNetwork::read(&self.supervisors.dir(uid)).is_some();
        let attached: Vec<PodUid> = living.into_iter().filter(is_attached).collect();
        if let Err(error) = self.network.collect_garbage(&attached).await {
            tracing::warn!(%error, "cannot free what vanished pods held of the network");
        }
    }

    async fn attach_network(&self, pod: &Pod) -> Result<(), ActionError> {
        let uid = pod.uid();
        let failed = |message: String| ActionError {
            reason: "FailedCreatePodSandBox",
            message: format!("Failed to create pod sandbox: {message}"),
        };
        let live =
            self.supervisors.live(uid).ok_or_else(|| failed("the pod's supervisor is gone".to_owned()))?;
        let dir = self.supervisors.dir(uid);
        let cgroup = self.cgroups.pod_path(pod.qos_class(), uid.as_str());
        let place = Place { dir: &dir, supervisor: live.supervisor.pid, cgroup: &cgroup };
        let addresses = self.network.attach(pod, place, &self.settings.dns.domain).await.map_err(failed)?;
        self.supervisors.set_addresses(uid, Some(addresses));
        Ok(())
    }

    async fn detach_network(&self, pod: &Pod) -> Result<(), ActionError> {
        let dir = self.supervisors.dir(pod.uid());
        let pid = self.supervisors.live(pod.uid()).map(|live| live.supervisor.pid);
        self.network.detach(pod, &dir, pid).await.map_err(|message| ActionError {
            reason: "FailedKillPod",
            message: format!("error killing pod: failed to tear down the network: {message}"),
        })?;
        self.supervisors.set_addresses(pod.uid(), None);
        Ok(())
    }
}

impl Host for NodeHost {
    async fn observe(&self, pod: &Arc<Pod>) -> Observed {
        self.look(pod)
    }

    async fn execute(&self, pod: &Arc<Pod>, action: &Action) -> Result<Done, ActionError> {
        match action {
            Action::CreateSandbox { attempt } => return self.create_sandbox(pod, *attempt).await,
            Action::AttachNetwork => self.attach_network(pod).await?,
            Action::PrepareVolumes => self
                .volumes
                .prepare(pod, &self.facts(vec![]))
                .await
                .map_err(|message| ActionError { reason: "FailedMount", message })?,
            Action::PullImage { image } => return self.pull_image(pod, image).await,
            Action::StartContainer { id, backoff } => self.start_container(pod, id, *backoff).await?,
            Action::StopContainer { id } => self.stop_container(pod, id).await?,
            Action::KillContainer { id } => self.kill_container(pod, id).await?,
            Action::RemoveContainer { id } => self.remove_container(pod, id).await?,
            Action::DetachNetwork => self.detach_network(pod).await?,
            Action::RemoveSandbox => self.remove_sandbox(pod).await?,
            Action::RemoveVolumes => self
                .volumes
                .remove(pod.uid())
                .map_err(|error| ActionError { reason: "FailedUnMount", message: error.to_string() })?,
            Action::RemoveRemains => self.remove_remains(pod).await?,
            // The worker asks its reporter; nothing of it is on the node.
            Action::DeleteObject => {}
        }
        Ok(Done::default())
    }

    fn changes(&self, uid: &PodUid) -> watch::Receiver<u64> {
        self.supervisors.changes(uid)
    }

    async fn remember(&self, pod: &Arc<Pod>) {
        if let Err(error) = files::write_json(&self.settings.snapshot(pod.uid()), pod.as_ref()) {
            tracing::warn!(pod = %pod, %error, "a daemon that starts without an API server will know an older pod");
        }
    }

    async fn residents(&self) -> Vec<Arc<Pod>> {
        let dir = self.settings.root_dir.join("pods");
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| match files::read_json::<Pod>(&entry.path().join("pod.json")) {
                Ok(pod) => Some(Arc::new(pod)),
                Err(error) => {
                    tracing::warn!(%error, "a pod's directory without a readable snapshot");
                    None
                }
            })
            .collect()
    }
}
