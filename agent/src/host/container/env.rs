//! A container's environment. Pure; order and expansion are kubelet's (`makeEnvironmentVariables`).
//!
//! Owns: which value wins, `$(VAR)`, the fields of the downward API. Never: fetches an object; what it needs comes in.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::pod::spec::{Container, EnvValue, Pod, ResourceFieldRef};
use crate::volume::objects::ObjectData;

/// What values may come from.
#[derive(Debug, Default)]
pub struct Sources {
    /// `<SERVICE>_SERVICE_HOST` and so on.
    pub services: Vec<(String, String)>,
    /// By name; `None` is an object that does not exist.
    pub config_maps: HashMap<String, Option<Arc<ObjectData>>>,
    /// By name, likewise.
    pub secrets: HashMap<String, Option<Arc<ObjectData>>>,
    /// What fields of the pod refer to.
    pub facts: Facts,
}

/// What the node knows about a pod beyond its object.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// Allocatable CPU in millicores: the limit of a container without one.
    pub allocatable_cpu_millis: u64,
    /// Allocatable memory in bytes, likewise.
    pub allocatable_memory: u64,
    /// Allocatable ephemeral storage in bytes, likewise.
    pub allocatable_storage: u64,
}

/// Resolves every variable; a later one of the same name wins.
///
/// # Errors
/// kubelet's sentence for `CreateContainerConfigError`.
pub fn resolve(pod: &Pod, container: &Container, sources: &Sources) -> Result<Vec<(String, String)>, String> {
    let mut env = Environment::default();
    for (name, value) in &sources.services {
        env.set(name, value.clone());
    }
    for from in &container.env_from {
        if let Some(object) = &from.config_map_ref {
            let data = whole(&sources.config_maps, &object.name, object.optional, "configmap")?;
            env.set_all(&from.prefix, data);
        }
        if let Some(object) = &from.secret_ref {
            let data = whole(&sources.secrets, &object.name, object.optional, "secret")?;
            env.set_all(&from.prefix, data);
        }
    }
    for var in &container.env {
        let value = match &var.value {
            EnvValue::Literal(text) => Some(expand(text, |name| env.get(name))),
            EnvValue::Field(field) => Some(pod_field(pod, &field.field_path, &sources.facts)?),
            EnvValue::Resource(field) => Some(resource_field(pod, container, field, &sources.facts)?),
            EnvValue::ConfigMapKey(key) => {
                one_key(&sources.config_maps, (&key.name, &key.key), key.optional, "configmap")?
            }
            EnvValue::SecretKey(key) => {
                one_key(&sources.secrets, (&key.name, &key.key), key.optional, "secret")?
            }
        };
        if let Some(value) = value {
            env.set(&var.name, value);
        }
    }
    Ok(env.vars)
}

/// Names of the ConfigMaps and Secrets that a container's environment refers to.
pub fn references(container: &Container) -> (Vec<&str>, Vec<&str>) {
    let (mut config_maps, mut secrets) = (vec![], vec![]);
    for from in &container.env_from {
        config_maps.extend(from.config_map_ref.as_ref().map(|object| object.name.as_str()));
        secrets.extend(from.secret_ref.as_ref().map(|object| object.name.as_str()));
    }
    for var in &container.env {
        match &var.value {
            EnvValue::ConfigMapKey(key) => config_maps.push(key.name.as_str()),
            EnvValue::SecretKey(key) => secrets.push(key.name.as_str()),
            EnvValue::Literal(_) | EnvValue::Field(_) | EnvValue::Resource(_) => {}
        }
    }
    (config_maps, secrets)
}

#[derive(Default)]
struct Environment {
    vars: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name) {
            Some(at) => self.vars[*at].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.vars.len());
                self.vars.push((name.to_owned(), value));
            }
        }
    }

    fn set_all(&mut self, prefix: &str, data: Option<&BTreeMap<String, Vec<u8>>>) {
        for (key, value) in data.into_iter().flatten() {
            self.set(&format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|at| self.vars[*at].1.as_str())
    }
}

type Objects = HashMap<String, Option<Arc<ObjectData>>>;

fn whole<'a>(
    objects: &'a Objects,
    name: &str,
    optional: bool,
    kind: &str,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, String> {
    match objects.get(name).and_then(Option::as_ref) {
        Some(object) => Ok(Some(&object.data)),
        None if optional => Ok(None),
        None => Err(format!("{kind} \"{name}\" not found")),
    }
}

fn one_key(
    objects: &Objects,
    (name, key): (&str, &str),
    optional: bool,
    kind: &str,
) -> Result<Option<String>, String> {
    match whole(objects, name, optional, kind)? {
        None => Ok(None),
        Some(data) => match data.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => {
                let kind = if kind == "secret" { "Secret" } else { "ConfigMap" };
                Err(format!("couldn't find key {key} in {kind} {name}"))
            }
        },
    }
}

/// Replaces `$(NAME)` by its value; an unknown name stays as it is, `$$` is a dollar sign.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// A field of the pod as text, for variables and files of the downward API.
pub fn pod_field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, String> {
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let meta = &pod.metadata;
    if let Some((field, key)) = subscript(path) {
        return match field {
            "metadata.labels" => Ok(meta.labels.get(key).cloned().unwrap_or_default()),
            "metadata.annotations" => Ok(meta.annotations.get(key).cloned().unwrap_or_default()),
            _ => Err(format!("unsupported fieldPath: {path}")),
        };
    }
    match path {
        "metadata.name" => Ok(meta.name.to_string()),
        "metadata.namespace" => Ok(meta.namespace.to_string()),
        "metadata.uid" => Ok(meta.uid.to_string()),
        "metadata.labels" => Ok(lines(&meta.labels)),
        "metadata.annotations" => Ok(lines(&meta.annotations)),
        "spec.nodeName" => Ok(facts.node_name.clone()),
        "spec.serviceAccountName" => Ok(pod.spec.service_account_name.clone()),
        "status.hostIP" => Ok(first(&facts.host_ips)),
        "status.hostIPs" => Ok(join(&facts.host_ips)),
        "status.podIP" => Ok(first(&facts.pod_ips)),
        "status.podIPs" => Ok(join(&facts.pod_ips)),
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// `a.b['key']` as `a.b` and `key`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, rest) = path.strip_suffix("']")?.split_once("['")?;
    Some((field, rest))
}

fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// A resource of a container, in units of the divisor, rounded up. A limit that is not set is what the node has.
pub fn resource_field(
    pod: &Pod,
    own: &Container,
    field: &ResourceFieldRef,
    facts: &Facts,
) -> Result<String, String> {
    use crate::pod::quantity::Quantity;
    let container = match field.container_name.as_str() {
        "" => own,
        name => pod
            .containers()
            .map(|(_, container)| container)
            .find(|container| container.name.as_str() == name)
            .ok_or_else(|| format!("container {name} not found"))?,
    };
    let unknown = || format!("unsupported container resource : {}", field.resource);
    let (list, resource) = field.resource.split_once('.').ok_or_else(unknown)?;
    let (set, is_limit) = match list {
        "limits" => (&container.resources.limits, true),
        "requests" => (&container.resources.requests, false),
        _ => return Err(unknown()),
    };
    let fallback = || match (is_limit, resource) {
        (true, "cpu") => Quantity::from_millis(facts.allocatable_cpu_millis),
        (true, "memory") => Quantity::from_bytes(facts.allocatable_memory),
        (true, "ephemeral-storage") => Quantity::from_bytes(facts.allocatable_storage),
        (true, _) | (false, _) => Quantity::default(),
    };
    let amount = set.get(resource).copied().unwrap_or_else(fallback);
    Ok(amount.divided_by(&field.divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::{EnvFrom, EnvVar, FieldRef, KeyRef, Metadata, ObjectRef};

    fn literal(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.into(), value: EnvValue::Literal(value.into()) }
    }

    fn object(pairs: &[(&str, &str)]) -> Option<Arc<ObjectData>> {
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
        Some(Arc::new(ObjectData { data, kind: String::new() }))
    }

    #[test]
    fn references_expand_only_to_what_came_before() {
        let lookup = |name: &str| (name == "A").then_some("1");
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y", "x1y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$", "$"),
        ] {
            assert_eq!(expand(text, lookup), want, "{text}");
        }
    }

    #[test]
    fn services_yield_to_env_from_and_that_to_env() {
        let mut sources = Sources {
            services: vec![("A".into(), "svc".into()), ("S".into(), "svc".into())],
            ..Sources::default()
        };
        sources.config_maps.insert("cm".into(), object(&[("A", "cm"), ("B", "cm")]));
        let container = Container {
            env_from: vec![EnvFrom {
                config_map_ref: Some(ObjectRef { name: "cm".into(), optional: false }),
                ..EnvFrom::default()
            }],
            env: vec![literal("B", "own"), literal("C", "$(A)-$(B)")],
            ..Container::default()
        };
        let env = resolve(&Pod::default(), &container, &sources).expect("resolved");
        let want = [("A", "cm"), ("S", "svc"), ("B", "own"), ("C", "cm-own")];
        assert_eq!(env, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn missing_objects_and_keys_are_named() {
        let var = |optional| EnvVar {
            name: "X".into(),
            value: EnvValue::SecretKey(KeyRef { name: "s".into(), key: "k".into(), optional }),
        };
        let container = |optional| Container { env: vec![var(optional)], ..Container::default() };
        let mut sources = Sources::default();
        let error = resolve(&Pod::default(), &container(false), &sources).expect_err("missing");
        assert_eq!(error, "secret \"s\" not found");
        assert!(resolve(&Pod::default(), &container(true), &sources).expect("optional").is_empty());
        sources.secrets.insert("s".into(), object(&[]));
        let error = resolve(&Pod::default(), &container(false), &sources).expect_err("missing key");
        assert_eq!(error, "couldn't find key k in Secret s");
    }

    #[test]
    fn fields_of_the_pod_become_text() {
        let mut pod =
            Pod { metadata: Metadata { name: "p".into(), ..Metadata::default() }, ..Pod::default() };
        pod.metadata.labels = BTreeMap::from([("app".into(), "web".into()), ("b".into(), "x\"y".into())]);
        let facts = Facts {
            pod_ips: vec!["10.0.0.1".parse().expect("ip"), "fd00::1".parse().expect("ip")],
            ..Facts::default()
        };
        let field = |path: &str| pod_field(&pod, path, &facts);
        assert_eq!(field("metadata.name").as_deref(), Ok("p"));
        assert_eq!(field("metadata.labels['app']").as_deref(), Ok("web"));
        assert_eq!(field("metadata.labels").as_deref(), Ok("app=\"web\"\nb=\"x\\\"y\""));
        assert_eq!(field("status.podIPs").as_deref(), Ok("10.0.0.1,fd00::1"));
        assert_eq!(field("spec.volumes"), Err("unsupported fieldPath: spec.volumes".into()));
        let _ = FieldRef { field_path: String::new(), api_version: String::new() };
    }

    #[test]
    fn a_limit_that_is_not_set_is_what_the_node_has() {
        let facts = Facts { allocatable_cpu_millis: 1500, ..Facts::default() };
        let field = |resource: &str| ResourceFieldRef {
            container_name: String::new(),
            resource: resource.into(),
            divisor: crate::pod::quantity::Quantity::default(),
        };
        let own = Container::default();
        assert_eq!(resource_field(&Pod::default(), &own, &field("limits.cpu"), &facts).as_deref(), Ok("2"));
        assert_eq!(resource_field(&Pod::default(), &own, &field("requests.cpu"), &facts).as_deref(), Ok("0"));
    }
}
