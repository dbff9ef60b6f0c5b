//! An image made from a plain root file system: one layer, and a configuration from the command line.
//!
//! The configuration carries no date, so that the same files and options always give the same image ID.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};
use serde_json::json;

use super::super::config::{ImageConfig, parse_config};
use super::super::digest::Digest;
use super::super::layers::{Algorithms, unpack};
use super::super::manifest::Platform;
use super::super::reference::Reference;
use super::super::store::{Image, Record, Store, StoreError};
use super::archive::Archive;
use super::{Counted, ImportError, Options, Progress, file_in};

/// Unpacks a root file system as the only layer of a new image.
pub(super) fn import_root_fs(
    store: &Store,
    archive: &Archive,
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Image, ImportError> {
    progress(Progress::Layers(1));
    let work = store.begin()?;
    let source = Counted { inner: archive.raw()?, progress };
    let unpacked = unpack(source, &work.layer_directory()?, Algorithms::default())
        .map_err(|cause| ImportError::Layer { layer: archive.what().to_owned(), cause })?;
    let layer = unpacked.diff_id.clone();
    let json = configuration(&options.config, &layer);
    let config = parse_config(&json)
        .map_err(|reason| ImportError::Malformed { what: "the new image".into(), reason })?;
    store.commit_layer(&work, &unpacked)?;
    progress(Progress::Layer(layer.clone()));
    let committed = store.commit(Record {
        id: Digest::of(&json),
        tags: options.tags.iter().filter_map(Reference::repo_tag).collect(),
        digests: BTreeSet::new(),
        size: unpacked.size,
        config: config.config,
        layers: vec![layer.clone()],
        folders: Vec::new(),
        tagged_at: 0,
    });
    if committed.is_err() {
        store.drop_unused(&[layer])?;
    }
    Ok(committed?)
}

fn configuration(config: &ImageConfig, layer: &Digest) -> Vec<u8> {
    let Platform { os, architecture, .. } = Platform::host();
    let volumes: serde_json::Map<_, _> = config.volumes.iter().map(|v| (v.clone(), json!({}))).collect();
    let document = json!({
        "architecture": architecture,
        "os": os,
        "config": {
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "Env": config.env,
            "User": config.user,
            "WorkingDir": config.working_dir,
            "StopSignal": config.stop_signal,
            "Volumes": volumes,
            "Labels": config.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    document.to_string().into_bytes()
}

/// Writes a directory into a tar file, members in the order of their names, links and special files as they are.
/// Extended attributes are not carried over.
pub(super) fn pack_directory(directory: &Path, folder: &Path) -> Result<File, ImportError> {
    let (file, path) = file_in(folder, "rootfs.tar")?;
    let mut tar = tar::Builder::new(BufWriter::new(&file));
    tar.follow_symlinks(false);
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        let unreadable = |cause| ImportError::Read { what: next.display().to_string(), cause };
        let metadata = fs::symlink_metadata(&next).map_err(unreadable)?;
        let kind = metadata.file_type();
        if kind.is_socket() {
            // A socket without its server is of no use, and tar has no form for it.
            continue;
        }
        let name = next.strip_prefix(directory).unwrap_or(&next);
        let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
        if kind.is_dir() {
            tar.append_dir(name, &next).map_err(unreadable)?;
            let children = fs::read_dir(&next).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let mut children: Vec<_> = children.map_err(unreadable)?.into_iter().map(|c| c.path()).collect();
            children.sort_by(|a, b| b.cmp(a));
            waiting.extend(children);
        } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            append_special(&mut tar, name, &metadata).map_err(unreadable)?;
        } else {
            tar.append_path_with_name(&next, name).map_err(unreadable)?;
        }
    }
    tar.into_inner().and_then(|mut inner| inner.flush()).map_err(|cause| StoreError::Io {
        action: "write",
        path,
        cause,
    })?;
    Ok(file)
}

fn append_special(
    tar: &mut tar::Builder<impl Write>,
    name: &Path,
    metadata: &fs::Metadata,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    let number = |part: u64| u32::try_from(part).map_err(io::Error::other);
    header.set_device_major(number(major(metadata.rdev()))?)?;
    header.set_device_minor(number(minor(metadata.rdev()))?)?;
    header.set_size(0);
    tar.append_data(&mut header, name, io::empty())
}
