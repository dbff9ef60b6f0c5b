//! OCI image layouts: `index.json` names manifests, everything else is found by digest under `blobs/`.

use std::collections::BTreeMap;

use super::super::digest::Digest;
use super::super::manifest::{Document, IndexEntry, Manifest, Platform, parse};
use super::super::reference::Reference;
use super::archive::Archive;
use super::{Found, ImportError, checked_config};

/// Indexes may point to indexes; nobody nests them deeper.
const DEEPEST: usize = 4;

/// The images of a layout: one for each name in the index, or one in all if nothing is named.
pub(super) fn images(archive: &Archive, platform: &Platform) -> Result<Vec<Found>, ImportError> {
    let index = document(archive, "index.json", None)?;
    let Document::Index(entries) = index else {
        let reason = "it is a manifest, not an index".to_owned();
        return Err(ImportError::Malformed { what: archive.member("index.json"), reason });
    };
    let mut groups: BTreeMap<Option<String>, Vec<IndexEntry>> = BTreeMap::new();
    for entry in entries {
        groups.entry(entry.name.clone()).or_default().push(entry);
    }
    if groups.is_empty() {
        let reason = "it names no image".to_owned();
        return Err(ImportError::Malformed { what: archive.member("index.json"), reason });
    }
    // The same image under several names is one image.
    let mut found: Vec<Found> = Vec::new();
    for (name, group) in groups {
        // A bare word is a tag without a repository, which names nothing here.
        let name = name.filter(|n| n.contains(['/', ':'])).and_then(|n| n.parse::<Reference>().ok());
        let image = image(archive, "index.json", &group, platform)?;
        match found.iter_mut().find(|f| f.id == image.id) {
            Some(same) => same.names.extend(name),
            None => found.push(Found { names: name.into_iter().collect(), ..image }),
        }
    }
    Ok(found)
}

fn image(
    archive: &Archive,
    what: &str,
    entries: &[IndexEntry],
    platform: &Platform,
) -> Result<Found, ImportError> {
    let unusable = |cause| ImportError::Manifest { what: archive.member(what), cause };
    let mut entry = platform.choose(entries).map_err(unusable)?.clone();
    let top = entry.blob.digest.clone();
    for _ in 0..DEEPEST {
        let name = blob_name(&entry.blob.digest);
        match document(archive, &name, Some(&entry.blob.digest))? {
            Document::Manifest(manifest) => return from_manifest(archive, &manifest, top),
            Document::Index(inner) => {
                let unusable = |cause| ImportError::Manifest { what: archive.member(&name), cause };
                entry = platform.choose(&inner).map_err(unusable)?.clone();
            }
        }
    }
    Err(ImportError::Malformed {
        what: archive.member(what),
        reason: "its indexes are nested too deep".into(),
    })
}

fn from_manifest(archive: &Archive, manifest: &Manifest, top: Digest) -> Result<Found, ImportError> {
    let id = manifest.config.digest.clone();
    let name = blob_name(&id);
    let json = archive.document(&name, Some(&id))?;
    let config = checked_config(&json, &archive.member(&name), manifest.layers.len())?;
    let layer = |blob: &super::super::manifest::Blob| {
        archive.blob(&blob_name(&blob.digest), Some(blob.digest.clone()))
    };
    let layers = manifest.layers.iter().map(layer).collect::<Result<_, _>>()?;
    Ok(Found { id, config, layers, names: Vec::new(), manifest: Some(top) })
}

fn document(archive: &Archive, name: &str, digest: Option<&Digest>) -> Result<Document, ImportError> {
    let json = archive.document(name, digest)?;
    parse(&json).map_err(|cause| ImportError::Manifest { what: archive.member(name), cause })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}
