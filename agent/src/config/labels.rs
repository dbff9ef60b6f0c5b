//! Labels and taints that a node registers with. Owns: their syntax, and which labels a node may give itself. Never:
//! talks to a server (which enforces the same, see the NodeRestriction admission plugin).

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Deserialize;

/// A taint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, often empty.
    #[serde(default)]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: TaintEffect,
}

/// What a taint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum TaintEffect {
    /// Nothing new is bound here.
    NoSchedule,
    /// Elsewhere first.
    PreferNoSchedule,
    /// Nothing stays here.
    NoExecute,
}

impl TaintEffect {
    /// In the API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            TaintEffect::NoSchedule => "NoSchedule",
            TaintEffect::PreferNoSchedule => "PreferNoSchedule",
            TaintEffect::NoExecute => "NoExecute",
        }
    }
}

/// What keeps pods off a Node that a cloud controller manager has not finished yet; it takes the taint away.
pub fn uninitialized() -> Taint {
    let key = "node.cloudprovider.kubernetes.io/uninitialized".to_owned();
    Taint { key, value: "true".to_owned(), effect: TaintEffect::NoSchedule }
}

/// `key=value:effect` or `key:effect`.
impl FromStr for Taint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a taint such as key=value:NoSchedule");
        let (head, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
        let effect = match effect {
            "NoSchedule" => TaintEffect::NoSchedule,
            "PreferNoSchedule" => TaintEffect::PreferNoSchedule,
            "NoExecute" => TaintEffect::NoExecute,
            _ => return Err(wrong()),
        };
        let (key, value) = head.split_once('=').unwrap_or((head, ""));
        if !is_key(key) || !is_value(value) {
            return Err(wrong());
        }
        Ok(Taint { key: key.to_owned(), value: value.to_owned(), effect })
    }
}

/// One `key=value` of `--node-labels`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("`{text}` is not a label such as key=value"))?;
    if !is_key(key) || !is_value(value) {
        return Err(format!("`{text}` is not a valid label"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The labels of this list that a node may not give itself.
pub fn forbidden(labels: &BTreeMap<String, String>) -> Vec<&str> {
    labels.keys().map(String::as_str).filter(|key| !is_allowed(key)).collect()
}

/// Outside of Kubernetes' own names everything is allowed; inside, what kubelet may set (KEP-279).
fn is_allowed(key: &str) -> bool {
    const OWN: [&str; 11] = [
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "kubernetes.io/arch",
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let within = |namespace: &str, domain: &str| {
        namespace == domain || namespace.strip_suffix(domain).is_some_and(|head| head.ends_with('.'))
    };
    let Some((namespace, _)) = key.split_once('/') else { return true };
    if !within(namespace, "kubernetes.io") && !within(namespace, "k8s.io") {
        return true;
    }
    OWN.contains(&key)
        || within(namespace, "kubelet.kubernetes.io")
        || within(namespace, "node.kubernetes.io")
}

/// A qualified name: an optional DNS prefix, a slash, and up to 63 characters.
fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_is_fine = prefix.is_none_or(|p| {
        !p.is_empty()
            && p.len() <= 253
            && p.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
    });
    prefix_is_fine && !name.is_empty() && is_value(name)
}

fn is_value(value: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let outer = |b: &u8| b.is_ascii_alphanumeric();
    value.len() <= 63
        && value.bytes().all(inner)
        && value.as_bytes().first().is_none_or(outer)
        && value.as_bytes().last().is_none_or(outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read_as_kubelet_reads_them() {
        let taint = |key: &str, value: &str, effect| Taint { key: key.into(), value: value.into(), effect };
        assert_eq!("a=b:NoExecute".parse(), Ok(taint("a", "b", TaintEffect::NoExecute)));
        assert_eq!("x.io/a:NoSchedule".parse(), Ok(taint("x.io/a", "", TaintEffect::NoSchedule)));
        for wrong in ["a=b", "a=b:Never", "=b:NoExecute", "a b:NoExecute", ""] {
            assert!(wrong.parse::<Taint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_node_may_not_give_itself_the_labels_of_others() {
        let labels = |keys: &[&str]| keys.iter().map(|k| ((*k).to_owned(), String::new())).collect();
        let allowed = [
            "rack",
            "example.com/rack",
            "kubernetes.io/hostname",
            "node.kubernetes.io/x",
            "a.kubelet.kubernetes.io/x",
        ];
        assert!(forbidden(&labels(&allowed)).is_empty());
        let refused = [
            "kubernetes.io/x",
            "node-restriction.kubernetes.io/x",
            "node-role.kubernetes.io/control-plane",
            "x.k8s.io/y",
        ];
        let mut wanted = refused.to_vec();
        wanted.sort_unstable();
        assert_eq!(forbidden(&labels(&refused)), wanted);
    }

    #[test]
    fn labels_follow_the_syntax() {
        assert_eq!(parse_label("a.io/b=c"), Ok(("a.io/b".into(), "c".into())));
        assert_eq!(parse_label("a="), Ok(("a".into(), String::new())));
        for wrong in ["a", "=b", "-a=b", "a=b-", "A.io/ =b", "/a=b"] {
            assert!(parse_label(wrong).is_err(), "{wrong}");
        }
    }
}
