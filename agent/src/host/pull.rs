//! Pulling an image for a pod: with the credentials its imagePullSecrets hold.
//!
//! Owns: gathering credentials, kubelet's words for failures and for `Pulled`. Never: talks to a registry itself.

use std::time::Instant;

use super::NodeHost;
use crate::image::registry::Keyring;
use crate::pod::action::{ActionError, Done};
use crate::pod::spec::Pod;

impl NodeHost {
    pub(super) async fn pull_image(&self, pod: &Pod, image: &str) -> Result<Done, ActionError> {
        let keyring = self.keyring(pod).await;
        let since = Instant::now();
        match self.puller.pull(image, &keyring, std::sync::Arc::new(|_| ())).await {
            Ok(pulled) => {
                let took = since.elapsed();
                let detail = format!(
                    "in {0} ({0} including waiting). Image size: {1} bytes.",
                    seconds(took),
                    pulled.size
                );
                Ok(Done { detail: Some(detail), ..Done::default() })
            }
            Err(error) => {
                let said = error.to_string();
                let message = if said.contains(image) {
                    said
                } else {
                    format!("failed to pull image \"{image}\": {said}")
                };
                Err(ActionError { reason: error.reason(), message })
            }
        }
    }

    /// Every credential that can be read. A secret that is missing or malformed is skipped, as kubelet skips it: the
    /// registry may not ask for it.
    async fn keyring(&self, pod: &Pod) -> Keyring {
        let mut keyring = Keyring::default();
        for secret in &pod.spec.image_pull_secrets {
            let found = match self.objects.secret(pod.namespace(), &secret.name).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(pod = %pod, secret = secret.name, %error, "cannot read an image pull secret");
                    continue;
                }
            };
            let added = match (found.data.get(".dockerconfigjson"), found.data.get(".dockercfg")) {
                (Some(json), _) => keyring.add_docker_config_json(json),
                (None, Some(json)) => keyring.add_dockercfg(json),
                (None, None) => continue,
            };
            if let Err(error) = added {
                tracing::warn!(pod = %pod, secret = secret.name, %error, "cannot use an image pull secret");
            }
        }
        keyring
    }
}

/// As Go prints a duration of this size: `1.234s`, `56ms`.
fn seconds(duration: std::time::Duration) -> String {
    if duration.as_secs() >= 1 {
        format!("{:.3}s", duration.as_secs_f64())
    } else {
        format!("{}ms", duration.as_millis())
    }
}
