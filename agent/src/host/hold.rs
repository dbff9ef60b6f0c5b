//! Which images pods use, told to the image store, so that nothing removes them from under a running container.
//!
//! Owns: one hold for each pod and image, from before the first container's root is made until nothing of the pod is left. A
//! pod whose tag has moved holds both images until then. Never: removes an image.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::NodeHost;
use crate::image::digest::Digest;
use crate::image::store::{Store, StoreError};
use crate::pod::names::PodUid;

impl NodeHost {
    /// Holds an image for a pod; fails if the image was removed since it was looked up.
    pub(super) async fn hold_image(&self, uid: &PodUid, id: &Digest) -> Result<(), String> {
        let owner = uid.to_string();
        let id = id.clone();
        self.with_images(move |images| images.hold(&id, &owner)).await
    }

    /// Ends a pod's holds. What fails is freed at the next start of the daemon.
    pub(super) async fn release_images(&self, uid: &PodUid) {
        let owner = uid.to_string();
        if let Err(error) = self.with_images(move |images| images.release_all(&owner)).await {
            tracing::warn!(%uid, %error, "cannot release the images of a pod that is gone");
        }
    }

    /// Ends the holds of every other pod than these.
    pub(super) fn release_images_of_others(&self, living: &BTreeSet<PodUid>) {
        match release_others(&self.images, living) {
            Ok(0) => {}
            Ok(released) => tracing::info!(released, "images held by pods that are gone were released"),
            Err(error) => tracing::warn!(%error, "cannot release the images of pods that are gone"),
        }
    }

    /// The store's lock may have to be waited for, on a thread where waiting is allowed.
    async fn with_images<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, String> {
        let images = Arc::clone(&self.images);
        match tokio::task::spawn_blocking(move || work(&images)).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn release_others(images: &Store, living: &BTreeSet<PodUid>) -> Result<usize, StoreError> {
    let mut released = 0;
    for (id, owner) in images.holds()? {
        if !living.contains(&PodUid::from(owner.clone())) {
            images.release(&id, &owner)?;
            released += 1;
        }
    }
    Ok(released)
}
