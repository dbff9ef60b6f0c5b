//! Mirrors: containerd's `hosts.toml`, one folder for each registry below `certs.d`.
//!
//! Owns: [`load`]. The format is containerd's (`docs/hosts.md` there): mirrors in the order of the file, then `server`.
//! Read anew for each pull, so a change needs no restart. Never: talks to a host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::api::http::Trust;

/// One place where a registry's images may be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// `https://mirror:5000`, or with a path.
    pub url: String,
    /// Whether `/v2` is in the path already.
    pub override_path: bool,
    /// Whether it may say which digest a tag means.
    pub resolve: bool,
    /// Whether content may be had from it.
    pub pull: bool,
    /// Trusted authorities, if other than usual.
    pub trust: Option<Trust>,
}

/// A `hosts.toml` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct InvalidHosts {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// What a file says: mirrors, and the registry itself if it is not where its name says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Hosts {
    pub mirrors: Vec<Host>,
    pub server: Option<Host>,
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    root: Entry,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    skip_verify: bool,
    override_path: bool,
    #[serde(flatten)]
    other: toml::Table,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

/// Reads what `folder` says about a registry: its own file, or that of `_default`, or nothing.
pub(super) fn load(folder: &Path, registry: &str) -> Result<Hosts, InvalidHosts> {
    for name in [registry, "_default"] {
        let path = folder.join(name).join("hosts.toml");
        let invalid = |reason: String| InvalidHosts { path: path.clone(), reason };
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(invalid(e.to_string())),
            Ok(text) => return parse(&text, path.parent().unwrap_or(folder)).map_err(invalid),
        }
    }
    Ok(Hosts::default())
}

fn parse(text: &str, folder: &Path) -> Result<Hosts, String> {
    let file: File = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    let mut mirrors = Vec::new();
    for (url, entry) in file.host {
        let entry: Entry =
            entry.try_into().map_err(|e: toml::de::Error| format!("{url}: {}", e.message()))?;
        mirrors.push(host(&url, entry, folder)?);
    }
    let server = file.server.map(|url| host(&url, file.root, folder)).transpose()?;
    Ok(Hosts { mirrors, server })
}

fn host(url: &str, entry: Entry, folder: &Path) -> Result<Host, String> {
    let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Err(format!("{url}: not an HTTP URL"));
    }
    for key in entry.other.keys() {
        tracing::warn!(host = %url, field = %key, "this field of hosts.toml is not supported and has no effect");
    }
    let can = |what: &str| entry.capabilities.as_ref().is_none_or(|all| all.iter().any(|c| c == what));
    let authorities = match entry.ca {
        None => Vec::new(),
        Some(OneOrMore::One(path)) => vec![path],
        Some(OneOrMore::More(paths)) => paths,
    };
    let read =
        |path: &PathBuf| fs::read(folder.join(path)).map_err(|e| format!("ca {}: {e}", path.display()));
    let authorities = authorities.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let trust = match (entry.skip_verify, authorities.is_empty()) {
        (true, _) => Some(Trust::Anyone),
        (false, true) => None,
        (false, false) => Some(Trust::System(authorities)),
    };
    let (resolve, pull) = (can("resolve"), can("pull"));
    Ok(Host {
        url: url.trim_end_matches('/').to_owned(),
        override_path: entry.override_path,
        resolve,
        pull,
        trust,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_keep_the_order_of_the_file() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example:5000/prefix/"]
              capabilities = ["pull"]
              override_path = true
            [host."http://a.example"]
              skip_verify = true
        "#;
        let host = |url: &str| Host {
            url: url.into(),
            override_path: false,
            resolve: true,
            pull: true,
            trust: None,
        };
        assert_eq!(
            parse(text, Path::new("/")),
            Ok(Hosts {
                mirrors: vec![
                    Host { override_path: true, resolve: false, ..host("https://z.example:5000/prefix") },
                    Host { trust: Some(Trust::Anyone), ..host("http://a.example") },
                ],
                server: Some(host("https://registry-1.docker.io")),
            })
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), "reg.example").unwrap(), Hosts::default());
        fs::create_dir(dir.path().join("_default")).unwrap();
        for (text, part) in [
            ("[host.\"ftp://x\"]", "ftp://x"),
            ("[host.\"https://x\"]\nca = \"none.pem\"", "none.pem"),
            ("server = 1", "hosts.toml"),
            ("[[[", "hosts.toml"),
        ] {
            fs::write(dir.path().join("_default/hosts.toml"), text).unwrap();
            let error = load(dir.path(), "reg.example").unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("_default/hosts.toml"), "{error}");
        }
    }
}
