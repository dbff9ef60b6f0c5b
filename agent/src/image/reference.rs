//! Names of images as people and pod specs write them, brought into one full form.
//!
//! Owns: [`Reference`]. Pure. The grammar and the defaults are those of `distribution/reference`, which the kubelet and
//! docker share: `busybox` means `docker.io/library/busybox:latest`. Never: asks a registry whether a name exists.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// An image name in full: registry, repository, and a tag or a digest (or both; then the digest decides).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text is not an image name. The kubelet shows this as the waiting reason `InvalidImageName`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name {name:?}: {reason}")]
pub struct InvalidImageName {
    /// The text as it was given.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Reference {
    /// Host and optional port of the registry as written in names: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in that registry: `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was written or defaulted.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository: `docker.io/library/busybox`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tagged name under which a store files the image; none where the name says a digest.
    #[must_use]
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            (_, Some(_)) | (None, None) => None,
        }
    }

    /// The name under which a store files this repository's image of the given digest.
    #[must_use]
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// What follows `/manifests/` in a request: the digest if there is one, otherwise the tag.
    #[must_use]
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository with another digest instead of its tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), tag: None, ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidImageName;

    fn from_str(text: &str) -> Result<Self, InvalidImageName> {
        parse(text).map_err(|reason| InvalidImageName { name: text.chars().take(300).collect(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() == 64 && text.bytes().all(is_hex) {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(
                digest
                    .parse()
                    .map_err(|_| "what follows @ is not a digest such as sha256:<64 hex digits>")?,
            ),
        ),
        None => (text, None),
    };
    let (domain, path) = split_domain(rest);
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let registry = match domain {
        None | Some("index.docker.io") => DEFAULT_REGISTRY.to_owned(),
        Some(domain) => {
            check_domain(domain)?;
            domain.to_owned()
        }
    };
    check_path(path)?;
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + 1 + repository.len() > LONGEST_NAME {
        return Err("registry and repository are longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(Reference { registry, repository, tag, digest })
}

/// The first component is a registry only if it cannot be part of a Docker Hub name.
fn split_domain(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        Some(_) | None => (None, text),
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let first = tag.bytes().next().ok_or("the tag after : is empty")?;
    if tag.len() > LONGEST_TAG {
        return Err("the tag is longer than 128 characters");
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !word(first) || !tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        return Err("a tag consists of letters, digits, _, . and -, and starts with neither . nor -");
    }
    Ok(())
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or("the registry's IPv6 address lacks its ]")?;
        address
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| "the registry between [ and ] is no IPv6 address")?;
        if after.is_empty() {
            return Ok(());
        }
        ("", Some(after.strip_prefix(':').ok_or("after the registry's ] only :port may follow")?))
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        }
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return Err("the registry's port is not a number from 0 to 65535");
    }
    if domain.starts_with('[') {
        return Ok(());
    }
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.split('.').all(label) { Ok(()) } else { Err("the registry is not a host name") }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("the repository is empty");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be lower-case");
    }
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err("a repository consists of parts of lower-case letters and digits, joined by ., _, __, - or /")
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    part.split(|c: char| c.is_ascii() && alnum(c as u8))
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn is_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_get_docker_defaults() {
        for (given, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("library/busybox", "docker.io/library/busybox:latest"),
            ("bitnami/redis:7", "docker.io/bitnami/redis:7"),
            ("localhost/busybox:demo", "localhost/busybox:demo"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c:t"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("Host/x", "Host/x:latest"),
            ("a__b/c-d--e.f_g", "docker.io/a__b/c-d--e.f_g:latest"),
        ] {
            assert_eq!(given.parse::<Reference>().map(|r| r.to_string()), Ok(full.to_owned()), "{given}");
        }
    }

    #[test]
    fn digest_decides_over_tag() {
        let reference: Reference = format!("busybox:1@{SHA}").parse().unwrap();
        assert_eq!(reference.selector(), SHA);
        assert_eq!(reference.repo_tag(), None);
        let reference: Reference = format!("busybox@{SHA}").parse().unwrap();
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.to_string(), format!("docker.io/library/busybox@{SHA}"));
    }

    proptest::proptest! {
        #[test]
        fn the_full_form_of_a_name_names_the_same(text in "[a-zA-Z0-9:./@_-]{1,40}|(localhost|[a-c.]{1,4}(:[0-9]{1,5})?)/[a-c._-]{1,6}(:[A-z.]{1,5})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "a/".repeat(130) + "a";
        for bad in [
            "",
            "Busybox",
            "busybox:",
            "busybox:-x",
            "busybox@sha256:12",
            "busy box",
            "/busybox",
            "busybox/",
            "a//b",
            "../etc",
            "a/../b",
            "localhost:x/y",
            "localhost:99999/y",
            "a..b",
            "a___b",
            "-a",
            "http://x/y",
            "[::1/x",
            &SHA[7..],
            &long,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
