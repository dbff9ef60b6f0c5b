//! What the files of a volume are to hold, from the objects its sources name.
//!
//! Owns: fetching each source and laying it out; kubelet's modes for service account tokens. Never: writes a file.

use std::sync::Arc;

use super::VolumeError;
use super::objects::{ObjectData, ObjectError, Objects};
use super::payload::{File, ObjectRules, Payload};
use crate::host::container::env::{Facts, pod_field, resource_field};
use crate::pod::spec::{
    Container, DownwardApiFile, KeyToPath, Pod, ProjectedSource, TokenProjection, VolumeSource,
};

/// The payload of a configMap, secret, downwardAPI or projected volume; empty for every other kind.
pub async fn payload(
    pod: &Pod,
    source: &VolumeSource,
    objects: &dyn Objects,
    facts: &Facts,
) -> Result<Payload, VolumeError> {
    let mut filler = Filler { pod, objects, facts, payload: Payload::default() };
    match source {
        VolumeSource::ConfigMap(volume) => {
            let rules = ObjectRules { default_mode: volume.default_mode, optional: volume.optional };
            filler.config_map(&volume.name, &volume.items, rules).await?;
        }
        VolumeSource::Secret(volume) => {
            let rules = ObjectRules { default_mode: volume.default_mode, optional: volume.optional };
            filler.secret(&volume.secret_name, &volume.items, rules).await?;
        }
        VolumeSource::DownwardApi(volume) => filler.downward(&volume.items, volume.default_mode)?,
        VolumeSource::Projected(volume) => {
            for source in &volume.sources {
                filler.projected(source, volume.default_mode).await?;
            }
        }
        VolumeSource::EmptyDir(_) | VolumeSource::HostPath(_) | VolumeSource::Unsupported { .. } => {}
    }
    Ok(filler.payload)
}

struct Filler<'a> {
    pod: &'a Pod,
    objects: &'a dyn Objects,
    facts: &'a Facts,
    payload: Payload,
}

impl Filler<'_> {
    async fn projected(&mut self, source: &ProjectedSource, default_mode: u32) -> Result<(), VolumeError> {
        match source {
            ProjectedSource::ConfigMap(object) => {
                let rules = ObjectRules { default_mode, optional: object.optional };
                self.config_map(&object.name, &object.items, rules).await
            }
            ProjectedSource::Secret(object) => {
                let rules = ObjectRules { default_mode, optional: object.optional };
                self.secret(&object.name, &object.items, rules).await
            }
            ProjectedSource::DownwardApi(items) => self.downward(items, default_mode),
            ProjectedSource::ServiceAccountToken(token) => self.token(token, default_mode).await,
            ProjectedSource::Unsupported { kind } => {
                Err(VolumeError::Unsupported(format!("projected {kind}")))
            }
        }
    }

    async fn config_map(
        &mut self,
        name: &str,
        items: &[KeyToPath],
        rules: ObjectRules,
    ) -> Result<(), VolumeError> {
        let found = self.objects.config_map(self.pod.namespace(), name).await;
        self.object(&format!("configmap \"{name}\""), found, items, rules)
    }

    async fn secret(
        &mut self,
        name: &str,
        items: &[KeyToPath],
        rules: ObjectRules,
    ) -> Result<(), VolumeError> {
        let found = self.objects.secret(self.pod.namespace(), name).await;
        self.object(&format!("secret \"{name}\""), found, items, rules)
    }

    fn object(
        &mut self,
        label: &str,
        found: Result<Arc<ObjectData>, ObjectError>,
        items: &[KeyToPath],
        rules: ObjectRules,
    ) -> Result<(), VolumeError> {
        match found {
            Ok(object) => Ok(self.payload.insert_object(label, &object.data, items, rules)?),
            Err(ObjectError::NotFound(_)) if rules.optional => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn downward(&mut self, items: &[DownwardApiFile], default_mode: u32) -> Result<(), VolumeError> {
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => pod_field(self.pod, &field.field_path, self.facts),
                (None, Some(field)) => resource_field(self.pod, &Container::default(), field, self.facts),
                (None, None) => Ok(String::new()),
            };
            let contents = text.map_err(VolumeError::Field)?.into_bytes();
            let mode = item.mode.unwrap_or(default_mode);
            self.payload.insert(&item.path, File { contents, mode, owner: None })?;
        }
        Ok(())
    }

    /// A token is for the user the pod runs as, if that is one and the same in all containers, or for its group.
    async fn token(&mut self, token: &TokenProjection, default_mode: u32) -> Result<(), VolumeError> {
        let text = self.objects.token(self.pod, &token.audience, token.expiration).await?;
        let owner = common_user(self.pod);
        let private = owner.is_some() || self.pod.spec.security_context.fs_group.is_some();
        let mode = if private { 0o600 } else { default_mode };
        Ok(self.payload.insert(&token.path, File { contents: text.into_bytes(), mode, owner })?)
    }
}

/// The user that every container runs as, if they agree and say so.
fn common_user(pod: &Pod) -> Option<u32> {
    let context = &pod.spec.security_context;
    let mut users =
        pod.containers().map(|(_, container)| container.security_context.within(context).run_as_user);
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}
