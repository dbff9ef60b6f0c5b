//! Registry credentials as `imagePullSecrets` carry them, and which of them are for an image.
//!
//! Owns: [`Keyring`]. Pure. Parsing and matching are the kubelet's (documented at
//! "Interpretation of config.json", kubernetes.io/docs/concepts/containers/images): host parts may hold `*`, `?` and `[…]`, ports
//! must be equal, paths are prefixes, the most specific entry comes first. Never: runs a credential helper.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::reference::Reference;

/// What to show a registry.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Credential {
    /// User name; empty with a token.
    pub username: String,
    /// Password.
    pub password: String,
    /// A token to be exchanged for access tokens (`identitytoken`).
    pub identity_token: String,
    /// A token to be sent as it is (`registrytoken`).
    pub registry_token: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A secret that is no docker configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a docker configuration: {0}")]
pub struct InvalidSecret(String);

/// Credentials by registry pattern.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// `host[:port][/path]` with its credential, in the order given.
    entries: Vec<(String, Credential)>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

impl Keyring {
    /// Adds the `.dockerconfigjson` of a `kubernetes.io/dockerconfigjson` secret.
    ///
    /// # Errors
    /// JSON that is no such document. Entries that make no sense are left out, as the kubelet does.
    pub fn add_docker_config_json(&mut self, json: &[u8]) -> Result<(), InvalidSecret> {
        let mut config: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(json).map_err(|e| InvalidSecret(e.to_string()))?;
        match config.remove("auths") {
            None | Some(serde_json::Value::Null) => {}
            Some(serde_json::Value::Object(auths)) => self.add(auths),
            Some(_) => return Err(InvalidSecret("`auths` is not an object".to_owned())),
        }
        Ok(())
    }

    /// Adds the `.dockercfg` of a `kubernetes.io/dockercfg` secret.
    ///
    /// # Errors
    /// As [`Keyring::add_docker_config_json`].
    pub fn add_dockercfg(&mut self, json: &[u8]) -> Result<(), InvalidSecret> {
        let auths = serde_json::from_slice(json).map_err(|e| InvalidSecret(e.to_string()))?;
        self.add(auths);
        Ok(())
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Credentials to try for an image, best first. Empty means: ask anonymously.
    #[must_use]
    pub fn lookup(&self, image: &Reference) -> Vec<Credential> {
        let target = image.name();
        let matching = self.entries.iter().filter(|(pattern, _)| matches(pattern, &target));
        let mut found: Vec<&(String, Credential)> = matching.collect();
        // Stable: equal patterns keep the order of the pod's secrets.
        found.sort_by(|a, b| b.0.cmp(&a.0));
        if found.is_empty() && image.registry() == "docker.io" {
            found = self.entries.iter().filter(|(pattern, _)| pattern == "index.docker.io").collect();
        }
        found.into_iter().map(|(_, credential)| credential.clone()).collect()
    }

    fn add(&mut self, auths: serde_json::Map<String, serde_json::Value>) {
        for (location, value) in auths {
            let Some(pattern) = pattern(&location) else {
                tracing::warn!(%location, "a registry in a pull secret is not a URL; left out");
                continue;
            };
            match serde_json::from_value::<Auth>(value).ok().and_then(credential) {
                Some(credential) => self.entries.push((pattern, credential)),
                None => {
                    tracing::warn!(%location, "an entry of a pull secret has no usable credentials; left out")
                }
            }
        }
    }
}

fn credential(auth: Auth) -> Option<Credential> {
    let (mut username, mut password) = (auth.username, auth.password);
    if !auth.auth.is_empty() {
        let decoded = String::from_utf8(STANDARD.decode(auth.auth.trim()).ok()?).ok()?;
        let (user, secret) = decoded.split_once(':')?;
        username = user.to_owned();
        password = secret.trim_end_matches('\0').to_owned();
    }
    Some(Credential {
        username,
        password,
        identity_token: auth.identitytoken,
        registry_token: auth.registrytoken,
    })
}

/// Host, port and path of a location; the versions old docker clients wrote are no part of it.
fn pattern(location: &str) -> Option<String> {
    let rest =
        location.strip_prefix("https://").or_else(|| location.strip_prefix("http://")).unwrap_or(location);
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    if host.is_empty() || host.contains([' ', '@']) {
        return None;
    }
    let path = ["v1", "v2"].iter().find_map(|v| path.strip_prefix(&format!("{v}/"))).unwrap_or(path);
    Some(if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") })
}

fn matches(pattern: &str, target: &str) -> bool {
    let split = |text: &str| {
        let (host, path) = text.split_once('/').map_or((text, ""), |(h, p)| (h, p));
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port),
            Some(_) | None => (host, ""),
        };
        (name.split('.').map(str::to_owned).collect::<Vec<_>>(), port.to_owned(), path.to_owned())
    };
    let (pattern_host, pattern_port, pattern_path) = split(pattern);
    let (target_host, target_port, target_path) = split(target);
    pattern_port == target_port
        && pattern_host.len() == target_host.len()
        && target_path.starts_with(&pattern_path)
        && pattern_host.iter().zip(&target_host).all(|(p, t)| glob(p.as_bytes(), t.as_bytes()))
}

/// Go's `filepath.Match` within one part of a host name.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|i| glob(rest, &text[i..])),
        Some((b'?', rest)) => text.split_first().is_some_and(|(_, text)| glob(rest, text)),
        Some((b'[', rest)) => {
            let Some(end) = rest.iter().position(|&b| b == b']') else { return false };
            let (class, rest) = (&rest[..end], &rest[end + 1..]);
            text.split_first().is_some_and(|(&first, text)| in_class(class, first) && glob(rest, text))
        }
        Some((b'\\', rest)) => {
            rest.split_first().is_some_and(|(p, rest)| text.first() == Some(p) && glob(rest, &text[1..]))
        }
        Some((p, rest)) => text.split_first().is_some_and(|(t, text)| p == t && glob(rest, text)),
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    let (negated, class) = class.strip_prefix(b"^").map_or((false, class), |rest| (true, rest));
    let mut at = 0;
    let mut found = false;
    while at < class.len() {
        if at + 2 < class.len() && class[at + 1] == b'-' {
            found |= (class[at]..=class[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= class[at] == byte;
            at += 1;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(locations: &[&str]) -> Keyring {
        let mut keyring = Keyring::default();
        for location in locations {
            let json = serde_json::json!({"auths": {*location: {"username": location, "password": "p"}}});
            keyring.add_docker_config_json(json.to_string().as_bytes()).unwrap();
        }
        keyring
    }

    fn users(keyring: &Keyring, image: &str) -> Vec<String> {
        keyring.lookup(&image.parse().unwrap()).into_iter().map(|c| c.username).collect()
    }

    #[test]
    fn locations_match_as_the_kubelet_does() {
        for (location, image, fits) in [
            ("reg.example", "reg.example/a", true),
            ("https://reg.example/v2/", "reg.example/a", true),
            ("http://reg.example:5000", "reg.example:5000/a", true),
            ("reg.example", "reg.example:5000/a", false),
            ("*.example", "reg.example/a", true),
            ("*.example", "deep.reg.example/a", false),
            ("*.*.example", "deep.reg.example/a", true),
            ("r?g.example", "reg.example/a", true),
            ("r[a-f]g.example", "reg.example/a", true),
            ("r[^a-f]g.example", "reg.example/a", false),
            ("reg.example/team", "reg.example/team/a", true),
            ("reg.example/team", "reg.example/other", false),
            ("https://index.docker.io/v1/", "busybox", true),
            ("docker.io", "busybox", true),
            ("https://index.docker.io/v1/", "quay.io/x", false),
            ("localhost:5000", "localhost:5000/x", true),
        ] {
            assert_eq!(!users(&keyring(&[location]), image).is_empty(), fits, "{location} for {image}");
        }
    }

    #[test]
    fn the_most_specific_entry_comes_first() {
        let keyring = keyring(&["reg.example", "reg.example/team/a", "*.example", "reg.example/team"]);
        assert_eq!(
            users(&keyring, "reg.example/team/a"),
            ["reg.example/team/a", "reg.example/team", "reg.example", "*.example"]
        );
    }

    #[test]
    fn the_auth_field_and_the_old_format_are_read() {
        let mut keyring = Keyring::default();
        keyring
            .add_dockercfg(br#"{"reg.example":{"auth":"dXNlcjpwYTpzcw=="},"bad.example":{"auth":"!"}}"#)
            .unwrap();
        let found = keyring.lookup(&"reg.example/x".parse().unwrap());
        assert_eq!((&*found[0].username, &*found[0].password), ("user", "pa:ss"));
        assert!(!format!("{found:?}").contains("pa:ss"));
        assert!(keyring.lookup(&"bad.example/x".parse().unwrap()).is_empty());
        assert!(keyring.add_docker_config_json(b"[]").is_err());
    }
}
