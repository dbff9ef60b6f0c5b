//! Starting a container: everything looked up, written as an OCI bundle, handed to the supervisor.
//!
//! Owns: the attempt's directory with `config.json`, the termination log, the log file's directory and link. Never:
//! pulls an image, or decides whether to start.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_sandbox::protocol::{
    Answer, Call, ContainerId, ContainerRecord, FailureKind, Rootfs, Security, StartContainer,
};

use super::NodeHost;
use super::cgroup::resources::oom_score_adj;
use super::container::env::{self, Facts, Sources};
use super::container::mounts::{self, PodFiles};
use super::container::user::{self, Accounts};
use super::container::{self, Inputs, devices, privileges};
use super::files;
use super::sandbox::hostname;
use super::supervisor::LiveSandbox;
use crate::image::store::Image;
use crate::network::dns;
use crate::pod::action::ActionError;
use crate::pod::names::AttemptId;
use crate::pod::spec::{Container, Pod};
use crate::volume::objects::{ObjectData, ObjectError};

/// From this priority on a pod is critical for its node (`system-node-critical`).
const NODE_CRITICAL: i32 = 2_000_001_000;

/// The id as the supervisor spells it.
pub(super) fn wire_id(id: &AttemptId) -> ContainerId {
    ContainerId { name: id.name.to_string(), attempt: id.attempt }
}

impl NodeHost {
    pub(super) async fn start_container(
        &self,
        pod: &Pod,
        id: &AttemptId,
        backoff: Duration,
    ) -> Result<(), ActionError> {
        let (_, container) = pod
            .container(&id.name)
            .ok_or_else(|| misconfigured(format!("container {} not found", id.name)))?;
        let live =
            self.supervisors.live(pod.uid()).ok_or_else(|| broken("the pod's sandbox is gone".to_owned()))?;
        let image = self.image_of(container)?;
        self.hold_image(pod.uid(), &image.id).await.map_err(broken)?;
        let env = self.environment(pod, container, &live).await.map_err(misconfigured)?;
        let start = self.bundle(pod, container, &Prepared { id, image: &image, env, backoff })?;
        let uid = pod.uid();
        match live.connection.call(Call::Start(Box::new(start))).await {
            Ok(Answer::Started(record)) => {
                self.link_log(pod, &record);
                self.supervisors.set_record(uid, record);
                Ok(())
            }
            Ok(other) => Err(broken(format!("the supervisor answers {other:?}"))),
            Err(error) => Err(match error.kind() {
                Some(FailureKind::CannotRun) => {
                    ActionError { reason: "StartError", message: error.to_string() }
                }
                Some(_) | None => broken(error.to_string()),
            }),
        }
    }

    fn image_of(&self, container: &Container) -> Result<Image, ActionError> {
        match self.images.resolve(&container.image) {
            Ok(Some(image)) => Ok(image),
            Ok(None) => Err(broken(format!("image \"{}\" is not in the store", container.image))),
            Err(error) => Err(broken(error.to_string())),
        }
    }

    /// The container's variables, with every object they refer to fetched.
    async fn environment(
        &self,
        pod: &Pod,
        container: &Container,
        live: &LiveSandbox,
    ) -> Result<Vec<(String, String)>, String> {
        let (config_maps, secrets) = env::references(container);
        let mut sources = Sources {
            services: self.services.for_pod(pod.namespace(), pod.spec.enable_service_links),
            facts: self.facts(live.addresses.clone().unwrap_or_default()),
            ..Sources::default()
        };
        let namespace = pod.namespace();
        for name in config_maps {
            let found = self.objects.config_map(namespace, name).await;
            remember(&mut sources.config_maps, name, found)?;
        }
        for name in secrets {
            let found = self.objects.secret(namespace, name).await;
            remember(&mut sources.secrets, name, found)?;
        }
        env::resolve(pod, container, &sources)
    }

    /// The node's facts with a pod's addresses.
    pub(super) fn facts(&self, pod_ips: Vec<std::net::IpAddr>) -> Facts {
        Facts { pod_ips, ..self.settings.facts.clone() }
    }

    /// Writes the attempt's directory and makes the call.
    fn bundle(
        &self,
        pod: &Pod,
        container: &Container,
        prepared: &Prepared<'_>,
    ) -> Result<StartContainer, ActionError> {
        let settings = &self.settings;
        let id = wire_id(prepared.id);
        let dir = self.supervisors.dir(pod.uid());
        let attempt = dir.attempt(&id);
        let termination_log = make_attempt_dir(&attempt).map_err(|error| broken(error.to_string()))?;
        let accounts = Accounts::of_image(&prepared.image.layers);
        let user =
            user::resolve(pod, container, &prepared.image.config.user, &accounts).map_err(misconfigured)?;
        let files = PodFiles {
            sandbox: dir.0.clone(),
            etc: dir.0.join("etc"),
            termination_log: (!container.termination_message_path.is_empty()).then_some(termination_log),
        };
        let volumes = self.volumes.binds(pod, container).map_err(misconfigured)?;
        let mounts =
            mounts::all(pod, container, &files, &volumes).map_err(|error| broken(error.to_string()))?;
        let names = dns::names(pod, &settings.dns.domain).map_err(misconfigured)?;
        let hostname = hostname(pod, names).map_err(|error| broken(error.to_string()))?;
        let cgroup = self.cgroups.pod_path(pod.qos_class(), pod.uid().as_str());
        let spec = container::spec(&Inputs {
            pod,
            container,
            image: &prepared.image.config,
            env: prepared.env.clone(),
            user,
            mounts,
            cgroup: cgroup.join(format!("{}-{}", id.name, id.attempt)),
            rootfs: dir.rootfs(&id),
            devices: if container.security_context.privileged { devices::of_node() } else { vec![] },
            hostname: &hostname,
            pids_limit: None,
        })
        .map_err(|error| misconfigured(error.to_string()))?;
        files::write_json(&attempt.join("config.json"), &spec).map_err(|error| broken(error.to_string()))?;
        let layers =
            settings.root_pod(pod.uid()).join("containers").join(&id.name).join(id.attempt.to_string());
        let log_dir = settings.pod_logs(pod).join(&id.name);
        fs::create_dir_all(&layers)
            .and_then(|()| fs::create_dir_all(&log_dir))
            .map_err(|e| broken(e.to_string()))?;
        Ok(StartContainer {
            rootfs: Rootfs {
                lower: prepared.image.layers.clone(),
                upper: layers.join("upper"),
                work: layers.join("work"),
            },
            log_path: log_dir.join(format!("{}.log", id.attempt)),
            security: self.security(pod, container).map_err(misconfigured)?,
            tty: container.tty,
            stdin: container.stdin,
            backoff_ms: u64::try_from(prepared.backoff.as_millis()).unwrap_or(u64::MAX),
            image: container.image.clone(),
            image_id: prepared.image.status_id(),
            id,
        })
    }

    fn security(&self, pod: &Pod, container: &Container) -> Result<Security, String> {
        let settings = &self.settings;
        let critical = pod.spec.priority.is_some_and(|priority| priority >= NODE_CRITICAL);
        let request = container.resources.memory_request_bytes();
        Ok(Security {
            capabilities: privileges::capabilities(container)?,
            no_new_privs: container.security_context.within(&pod.spec.security_context).no_new_privs,
            seccomp: privileges::seccomp(
                pod,
                container,
                settings.seccomp_default,
                &settings.root_dir.join("seccomp"),
            )?,
            oom_score_adj: oom_score_adj(pod.qos_class(), critical, request, settings.memory_capacity),
        })
    }

    /// The link that log collectors follow. Its absence loses no log line, so a failure is only told.
    pub(super) fn link_log(&self, pod: &Pod, record: &ContainerRecord) {
        let dir = &self.settings.container_logs_dir;
        let name =
            format!("{}_{}_{}-{}.log", pod.name(), pod.namespace(), record.id.name, record.container_id);
        let link = dir.join(name);
        let made = fs::create_dir_all(dir).and_then(|()| match symlink(&record.log_path, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
        if let Err(error) = made {
            tracing::warn!(link = %link.display(), %error, "cannot link a container's log");
        }
    }
}

/// What was found out before the bundle is written.
struct Prepared<'a> {
    id: &'a AttemptId,
    image: &'a Image,
    env: Vec<(String, String)>,
    backoff: Duration,
}

fn remember(
    objects: &mut HashMap<String, Option<Arc<ObjectData>>>,
    name: &str,
    found: Result<Arc<ObjectData>, ObjectError>,
) -> Result<(), String> {
    let object = match found {
        Ok(object) => Some(object),
        Err(ObjectError::NotFound(_)) => None,
        Err(error) => return Err(error.to_string()),
    };
    objects.insert(name.to_owned(), object);
    Ok(())
}

/// Makes the directory and an empty termination log that any user of the container may write.
fn make_attempt_dir(attempt: &std::path::Path) -> io::Result<PathBuf> {
    fs::create_dir_all(attempt.join("rootfs"))?;
    let log = attempt.join("termination-log");
    fs::write(&log, b"")?;
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
    Ok(log)
}

fn misconfigured(message: String) -> ActionError {
    ActionError { reason: "CreateContainerConfigError", message }
}

fn broken(message: String) -> ActionError {
    ActionError { reason: "CreateContainerError", message }
}
