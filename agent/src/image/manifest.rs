//! Manifests and indexes, OCI and docker schema 2, and which entry of an index is for this machine.
//!
//! Owns: [`parse`], [`Platform`]. Pure. What a document is follows from its fields; its media type is a second opinion,
//! because archives and old registries leave it out.

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os};

use super::digest::Digest;

/// Media types asked for when a manifest is fetched.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A blob a manifest points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Number of its bytes.
    pub size: u64,
    /// As stated.
    pub media_type: String,
}

/// One platform's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

/// An entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The manifest (or further index).
    pub blob: Blob,
    /// What it is for; `None` where the index does not say.
    pub platform: Option<Platform>,
    /// `org.opencontainers.image.ref.name` or containerd's `io.containerd.image.name`, in archives.
    pub name: Option<String>,
}

/// What a registry or an archive may answer with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Vec<IndexEntry>),
}

/// Why a document is of no use here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is JSON of another kind: an artifact, schema 1, or no manifest at all.
    #[error("not an image manifest but {0}")]
    WrongKind(String),
    /// It cannot be parsed.
    #[error("malformed manifest: {0}")]
    Malformed(String),
    /// The index has nothing for this machine.
    #[error("no image for {wanted}; there are: {there}")]
    NoPlatform {
        /// This machine.
        wanted: Platform,
        /// What the index has.
        there: String,
    },
}

/// Operating system, architecture and variant, spelled as Go spells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, `v7`, … or empty.
    pub variant: String,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl Platform {
    /// The machine this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// How well an image for `other` runs here: 0 for not at all, more is better.
    fn rank(&self, other: &Self) -> u8 {
        if self.os != other.os || self.architecture != other.architecture {
            return 0;
        }
        match (&*self.architecture, &*other.variant) {
            (_, variant) if variant == self.variant => 4,
            ("amd64", "v1") | ("arm64", "") => 3,
            ("arm", "") => 1,
            ("arm", variant) if variant < &*self.variant => 2,
            // Newer levels of an architecture may need instructions this machine lacks.
            _ => 0,
        }
    }

    /// Refuses an image built for another system or architecture; one that does not say is let through.
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`].
    pub fn accept(&self, built_for: &Self) -> Result<(), ManifestError> {
        let same = |ours: &str, theirs: &str| theirs.is_empty() || ours == theirs;
        if same(&self.os, &built_for.os) && same(&self.architecture, &built_for.architecture) {
            return Ok(());
        }
        Err(ManifestError::NoPlatform { wanted: self.clone(), there: built_for.to_string() })
    }

    /// The best entry of an index for this machine.
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`] names what the index has instead.
    pub fn choose<'a>(&self, index: &'a [IndexEntry]) -> Result<&'a IndexEntry, ManifestError> {
        let ranked = |entry: &IndexEntry| match &entry.platform {
            Some(platform) => self.rank(platform),
            None if index.len() == 1 => 1,
            None => 0,
        };
        // The first of equals, as the specification wants it.
        let best = index.iter().rev().max_by_key(|entry| ranked(entry)).filter(|entry| ranked(entry) > 0);
        best.ok_or_else(|| {
            let there = index.iter().filter_map(|e| e.platform.as_ref()).filter(|p| p.os != "unknown");
            let there = there.map(Self::to_string).collect::<Vec<_>>().join(", ");
            let there = if there.is_empty() { "none".into() } else { there };
            ManifestError::NoPlatform { wanted: self.clone(), there }
        })
    }
}

/// Reads a manifest or an index.
///
/// # Errors
/// [`ManifestError::WrongKind`] and [`ManifestError::Malformed`].
pub fn parse(json: &[u8]) -> Result<Document, ManifestError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outline {
        schema_version: Option<u64>,
        media_type: Option<String>,
        kind: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
    }
    let malformed = |e: serde_json::Error| ManifestError::Malformed(e.to_string());
    let outline: Outline = serde_json::from_slice(json).map_err(malformed)?;
    let other = |what: String| Err(ManifestError::WrongKind(what));
    match (outline.schema_version, outline.manifests, outline.config) {
        (Some(1), ..) => other("a docker schema 1 manifest, which is no longer supported".into()),
        (_, Some(_), Some(_)) => other("an ambiguous document with both `manifests` and `config`".into()),
        (_, Some(_), None) => index(&serde_json::from_slice(json).map_err(malformed)?),
        (_, None, Some(_)) => manifest(&serde_json::from_slice(json).map_err(malformed)?),
        (_, None, None) => match (outline.kind, outline.media_type) {
            (Some(kind), _) => other(format!("an object of kind {kind:?}")),
            (None, Some(media_type)) => other(format!("a document of type {media_type:?}")),
            (None, None) => other("JSON without `config` and `manifests`".into()),
        },
    }
}

fn manifest(manifest: &ImageManifest) -> Result<Document, ManifestError> {
    let config = blob(manifest.config())?;
    let is_image = config.media_type == "application/vnd.oci.image.config.v1+json"
        || config.media_type.starts_with("application/vnd.docker.container.image.")
        || config.media_type == "application/octet-stream";
    if !is_image {
        return Err(ManifestError::WrongKind(format!("an artifact of type {:?}", config.media_type)));
    }
    let layers = manifest.layers().iter().map(blob).collect::<Result<_, _>>()?;
    Ok(Document::Manifest(Manifest { config, layers }))
}

fn index(index: &ImageIndex) -> Result<Document, ManifestError> {
    let entry = |descriptor: &Descriptor| {
        let annotation = |key| descriptor.annotations().as_ref().and_then(|a| a.get(key)).cloned();
        Ok(IndexEntry {
            blob: blob(descriptor)?,
            platform: descriptor.platform().as_ref().map(|p| Platform {
                os: os_name(p.os()),
                architecture: arch_name(p.architecture()),
                variant: p.variant().clone().unwrap_or_default(),
            }),
            name: annotation("io.containerd.image.name")
                .or_else(|| annotation("org.opencontainers.image.ref.name")),
        })
    };
    Ok(Document::Index(index.manifests().iter().map(entry).collect::<Result<_, _>>()?))
}

fn os_name(os: &Os) -> String {
    os.to_string()
}

fn arch_name(arch: &Arch) -> String {
    arch.to_string()
}

fn blob(descriptor: &Descriptor) -> Result<Blob, ManifestError> {
    let digest = descriptor.digest().to_string();
    Ok(Blob {
        digest: digest
            .parse()
            .map_err(|e: super::digest::InvalidDigest| ManifestError::Malformed(e.to_string()))?,
        size: descriptor.size(),
        media_type: descriptor.media_type().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    fn index_of(platforms: &[&str]) -> Vec<IndexEntry> {
        let descriptor = |p: &&str| {
            let Platform { os, architecture, variant } = platform(p);
            format!(
                r#"{{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","size":7,"digest":"{SHA}",
                "platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}}}"#
            )
        };
        let list = platforms.iter().map(descriptor).collect::<Vec<_>>().join(",");
        match parse(format!(r#"{{"schemaVersion":2,"manifests":[{list}]}}"#).as_bytes()).unwrap() {
            Document::Index(index) => index,
            Document::Manifest(_) => panic!("an index was written"),
        }
    }

    #[test]
    fn the_fitting_platform_is_chosen() {
        for (host, there, chosen) in [
            ("linux/amd64", &["windows/amd64", "linux/arm64/v8", "linux/amd64"][..], Some(2)),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/amd64", &["linux/amd64", "linux/amd64", "unknown/unknown"], Some(0)),
            ("linux/arm64/v8", &["linux/arm/v7", "linux/arm64"], Some(1)),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm64"], Some(0)),
            ("linux/arm/v7", &["linux/arm/v8"], None),
        ] {
            let index = index_of(there);
            let found =
                platform(host).choose(&index).ok().map(|e| index.iter().position(|x| std::ptr::eq(x, e)));
            assert_eq!(found.flatten(), chosen, "{host} among {there:?}");
        }
    }

    #[test]
    fn a_missing_platform_is_named_with_what_there_is() {
        let index = index_of(&["windows/amd64", "unknown/unknown"]);
        let error = platform("linux/amd64").choose(&index).unwrap_err().to_string();
        assert_eq!(error, "no image for linux/amd64; there are: windows/amd64");
    }

    #[test]
    fn other_documents_are_told_apart() {
        for (json, part) in [
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (r#"{"apiVersion":"v1","kind":"Pod"}"#, "\"Pod\""),
            (r#"{"schemaVersion":2,"mediaType":"x/y"}"#, "x/y"),
            ("{}", "without"),
            ("[", "malformed"),
        ] {
            let error = parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
        let chart = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"{SHA}","size":2}},"layers":[]}}"#
        );
        assert!(parse(chart.as_bytes()).unwrap_err().to_string().contains("helm"));
    }
}
