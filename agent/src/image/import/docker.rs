//! `docker save` archives: `manifest.json` lists images with their configuration, names and layer files.

use serde::Deserialize;

use super::super::digest::Digest;
use super::super::reference::Reference;
use super::archive::Archive;
use super::{Found, ImportError, checked_config};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of the archive. Layers carry no digest of their own; their diffIDs are in the configuration.
pub(super) fn images(archive: &Archive) -> Result<Vec<Found>, ImportError> {
    let what = || archive.member("manifest.json");
    let json = archive.document("manifest.json", None)?;
    let entries: Vec<Entry> = serde_json::from_slice(&json)
        .map_err(|e| ImportError::Malformed { what: what(), reason: format!("not a list of images: {e}") })?;
    if entries.is_empty() {
        return Err(ImportError::Malformed { what: what(), reason: "it names no image".into() });
    }
    entries.iter().map(|entry| image(archive, entry)).collect()
}

fn image(archive: &Archive, entry: &Entry) -> Result<Found, ImportError> {
    // The name is the digest in every archive docker ever wrote: `<hex>.json`, or `blobs/sha256/<hex>`.
    let stem = entry.config.strip_suffix(".json").unwrap_or(&entry.config);
    let hex = stem.rsplit('/').next().unwrap_or(stem);
    let named: Option<Digest> = format!("sha256:{hex}").parse().ok();
    let json = archive.document(&entry.config, named.as_ref())?;
    let config = checked_config(&json, &archive.member(&entry.config), entry.layers.len())?;
    let layers = entry.layers.iter().map(|name| archive.blob(name, None)).collect::<Result<_, _>>()?;
    let mut names = Vec::new();
    for tag in entry.repo_tags.iter().flatten() {
        let name: Reference = tag.parse().map_err(|e| ImportError::Malformed {
            what: archive.member("manifest.json"),
            reason: format!("{e}"),
        })?;
        names.push(name);
    }
    Ok(Found { id: Digest::of(&json), config, layers, names, manifest: None })
}
