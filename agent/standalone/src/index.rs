//! What controllers and the node authorizer need to know of objects, in short form.
//!
//! Owns: compact entries for pods, nodes and services, and who owns whom. Fed by every change of the store, in order.
//! Decides which work a change causes. Never: holds a whole object.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use serde_json::Value;

use crate::auth::bootstrap;
use crate::control::{Work, cluster_info};
use crate::object::{self, at, items, text, text_at};
use crate::quantity;
use crate::resource::Kind;
use crate::store::{Change, Event};

/// Labels or a selector.
pub type Labels = BTreeMap<String, String>;

/// A pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodEntry {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.nodeName`.
    pub node: String,
    /// Its phase is Succeeded or Failed.
    pub over: bool,
    /// It has a deletionTimestamp.
    pub terminating: bool,
    /// Its condition Ready is True.
    pub ready: bool,
    /// `status.podIPs`.
    pub addresses: Vec<String>,
    /// Requested millicores.
    pub cpu: i128,
    /// Requested memory, in thousandths of a byte.
    pub memory: i128,
    /// Named ports: name, protocol, number.
    pub ports: Vec<(String, String, u16)>,
    /// Ports of the node it takes: protocol, number.
    pub host_ports: Vec<(String, u16)>,
    /// `spec.hostname` and `spec.subdomain`, for endpoint slices.
    pub hostname: Option<(String, String)>,
    /// What it refers to: secrets, config maps, its service account.
    pub refers: HashSet<(Kind, String)>,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeEntry {
    /// Its condition Ready is True.
    pub ready: bool,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Taints: key, value, effect.
    pub taints: Vec<(String, String, String)>,
    /// Allocatable millicores, memory in thousandths of a byte, pods in thousandths.
    pub allocatable: [Option<i128>; 3],
    /// `spec.podCIDRs`.
    pub cidrs: Vec<String>,
    /// `status.addresses`: what its serving certificate may name.
    pub addresses: Vec<String>,
    /// `metadata.uid`.
    pub uid: String,
}

/// A service with a selector.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServiceEntry {
    /// `spec.selector`.
    pub selector: Labels,
}

/// The entries.
#[derive(Debug, Default)]
pub struct Entries {
    /// By namespace and name.
    pub pods: BTreeMap<(String, String), PodEntry>,
    /// By name.
    pub nodes: BTreeMap<String, NodeEntry>,
    /// By namespace and name; only services with a selector.
    pub services: BTreeMap<(String, String), ServiceEntry>,
    /// The owned, by the UID of the owner.
    pub owned: HashMap<String, HashSet<(Kind, String, String)>>,
    /// Namespaces that are being deleted.
    pub terminating: HashSet<String>,
}

/// The index.
#[derive(Default)]
pub struct Index {
    entries: RwLock<Entries>,
}

impl Index {
    /// The entries, to look at. Held shortly: writers wait.
    pub fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this UID owned is collected.
    pub fn forget_owner(&self, uid: &str) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).owned.remove(uid);
    }

    /// Takes over a change and says what work it causes.
    pub fn observe(&self, kind: Kind, event: &Event) -> Vec<Work> {
        let interesting = !matches!(kind, Kind::Event | Kind::Lease | Kind::EndpointSlice);
        let parse = interesting
            || contains(&event.object, OWNERS)
            || event.before.as_ref().is_some_and(|(b, _)| contains(b, OWNERS))
            || event.change == Change::Deleted;
        let new = if parse { object::parse(&event.object) } else { Value::Null };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut work = Vec::new();
        let gone = event.change == Change::Deleted;
        if parse {
            entries.follow_owners(kind, event, &new, &mut work);
        }
        match kind {
            Kind::Pod => entries.follow_pod(&new, gone, &mut work),
            Kind::Node => entries.follow_node(&new, gone, &mut work),
            Kind::Service => entries.follow_service(&new, gone, &mut work),
            Kind::Namespace => entries.follow_namespace(&new, gone, &mut work),
            Kind::Lease => work.push(Work::Leases),
            Kind::SigningRequest if !gone => work.push(Work::SigningRequest(event.slim.name().to_owned())),
            Kind::ConfigMap if (event.slim.namespace(), event.slim.name()) == cluster_info::PLACE => {
                work.push(Work::ClusterInfo);
            }
            Kind::Secret if is_token(event) => work.push(Work::ClusterInfo),
            Kind::EndpointSlice
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::ServiceAccount
            | Kind::SigningRequest
            | Kind::Event => {}
        }
        if gone && entries.terminating.contains(event.slim.namespace()) {
            work.push(Work::Namespace(event.slim.namespace().to_owned()));
        }
        work
    }
}

/// Whether a secret is named as a bootstrap token.
fn is_token(event: &Event) -> bool {
    event.slim.namespace() == bootstrap::NAMESPACE && event.slim.name().starts_with(bootstrap::PREFIX)
}

const OWNERS: &[u8] = b"\"ownerReferences\"";

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w == what)
}

impl Entries {
    fn follow_owners(&mut self, kind: Kind, event: &Event, object: &Value, work: &mut Vec<Work>) {
        let key = (kind, object::namespace(object).to_owned(), object::name(object).to_owned());
        let gone = event.change == Change::Deleted;
        let before = event
            .before
            .as_ref()
            .filter(|(bytes, _)| contains(bytes, OWNERS))
            .map(|(bytes, _)| object::parse(bytes));
        for owner in before.iter().flat_map(|b| items(&b["metadata"], "ownerReferences")) {
            if let Some(owned) = self.owned.get_mut(text(owner, "uid")) {
                owned.remove(&key);
                if owned.is_empty() {
                    self.owned.remove(text(owner, "uid"));
                }
            }
        }
        for owner in items(&object["metadata"], "ownerReferences").iter().filter(|_| !gone) {
            self.owned.entry(text(owner, "uid").to_owned()).or_default().insert(key.clone());
        }
        if gone && self.owned.contains_key(object::uid(object)) {
            work.push(Work::Collect(object::uid(object).to_owned()));
        }
    }

    fn follow_pod(&mut self, pod: &Value, gone: bool, work: &mut Vec<Work>) {
        let key = (object::namespace(pod).to_owned(), object::name(pod).to_owned());
        let new = pod_entry(pod);
        let old = if gone { self.pods.remove(&key) } else { self.pods.insert(key.clone(), new.clone()) };
        let serves = |p: &PodEntry| {
            (p.labels.clone(), p.ready, p.terminating, p.over, p.addresses.clone(), p.node.clone())
        };
        if gone || old.as_ref().map(serves) != Some(serves(&new)) {
            for ((namespace, name), service) in self.services.range((key.0.clone(), String::new())..) {
                if *namespace != key.0 {
                    break;
                }
                let hit = |p: &PodEntry| selects(&service.selector, &p.labels);
                if hit(&new) || old.as_ref().is_some_and(hit) {
                    work.push(Work::Endpoints(namespace.clone(), name.clone()));
                }
            }
        }
        if !gone && new.node.is_empty() && !new.terminating {
            work.push(Work::Schedule(key.0, key.1));
        } else if !new.node.is_empty() && (gone || new.over && !old.is_some_and(|o| o.over)) {
            work.push(Work::ScheduleWaiting);
        }
    }

    fn follow_node(&mut self, node: &Value, gone: bool, work: &mut Vec<Work>) {
        let name = object::name(node).to_owned();
        let new = node_entry(node);
        let old = if gone { self.nodes.remove(&name) } else { self.nodes.insert(name.clone(), new.clone()) };
        if gone || old.as_ref() != Some(&new) {
            work.push(Work::Node(name));
            work.push(Work::ScheduleWaiting);
        }
    }

    fn follow_service(&mut self, service: &Value, gone: bool, work: &mut Vec<Work>) {
        let key = (object::namespace(service).to_owned(), object::name(service).to_owned());
        let selector = labels(at(service, &["spec", "selector"]));
        if gone || selector.is_empty() {
            self.services.remove(&key);
        } else {
            self.services.insert(key.clone(), ServiceEntry { selector });
        }
        work.push(Work::Endpoints(key.0, key.1));
    }

    fn follow_namespace(&mut self, namespace: &Value, gone: bool, work: &mut Vec<Work>) {
        let name = object::name(namespace).to_owned();
        if gone {
            self.terminating.remove(&name);
        } else if object::is_terminating(namespace) {
            self.terminating.insert(name.clone());
            work.push(Work::Namespace(name));
        }
    }
}

/// Whether a selector, which is not empty, selects these labels.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

fn labels(value: &Value) -> Labels {
    let pair = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
    value.as_object().into_iter().flatten().filter_map(pair).collect()
}

fn condition_true(object: &Value, kind: &str) -> bool {
    items(&object["status"], "conditions")
        .iter()
        .any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

fn pod_entry(pod: &Value) -> PodEntry {
    let spec = &pod["spec"];
    let ips = items(&pod["status"], "podIPs").iter().map(|p| text(p, "ip").to_owned()).collect::<Vec<_>>();
    let single = text_at(pod, &["status", "podIP"]);
    let addresses = if ips.is_empty() && !single.is_empty() { vec![single.to_owned()] } else { ips };
    let hostname = text(spec, "hostname");
    PodEntry {
        namespace: object::namespace(pod).to_owned(),
        name: object::name(pod).to_owned(),
        uid: object::uid(pod).to_owned(),
        labels: labels(at(pod, &["metadata", "labels"])),
        node: text(spec, "nodeName").to_owned(),
        over: matches!(text_at(pod, &["status", "phase"]), "Succeeded" | "Failed"),
        terminating: object::is_terminating(pod),
        ready: condition_true(pod, "Ready"),
        addresses,
        cpu: requested(spec, "cpu"),
        memory: requested(spec, "memory"),
        ports: named_ports(spec),
        host_ports: host_ports(spec),
        hostname: (!hostname.is_empty()).then(|| (hostname.to_owned(), text(spec, "subdomain").to_owned())),
        refers: references(spec),
    }
}

/// The larger of all containers together and the largest init container, in thousandths.
fn requested(spec: &Value, name: &str) -> i128 {
    let of = |c: &Value| quantity::parse(text_at(c, &["resources", "requests", name])).unwrap_or(0);
    let sidecar = |c: &&Value| text(c, "restartPolicy") == "Always";
    let init = items(spec, "initContainers");
    let running: i128 = items(spec, "containers").iter().map(of).sum::<i128>()
        + init.iter().filter(sidecar).map(of).sum::<i128>();
    let starting = init.iter().filter(|c| !sidecar(c)).map(of).max().unwrap_or(0);
    running.max(starting) + quantity::parse(text_at(spec, &["overhead", name])).unwrap_or(0)
}

fn each_port(spec: &Value) -> impl Iterator<Item = &Value> {
    let sidecars = items(spec, "initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always");
    items(spec, "containers").iter().chain(sidecars).flat_map(|c| items(c, "ports"))
}

fn named_ports(spec: &Value) -> Vec<(String, String, u16)> {
    let one = |p: &Value| {
        let number = u16::try_from(p["containerPort"].as_u64()?).ok()?;
        Some((text(p, "name").to_owned(), text(p, "protocol").to_owned(), number))
    };
    each_port(spec).filter(|p| !text(p, "name").is_empty()).filter_map(one).collect()
}

fn host_ports(spec: &Value) -> Vec<(String, u16)> {
    let one = |p: &Value| {
        let number = u16::try_from(p["hostPort"].as_u64()?).ok().filter(|n| *n != 0)?;
        Some((text(p, "protocol").to_owned(), number))
    };
    each_port(spec).filter_map(one).collect()
}

/// What a pod spec refers to.
pub fn references(spec: &Value) -> HashSet<(Kind, String)> {
    let mut out = HashSet::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            out.insert((kind, name.to_owned()));
        }
    };
    add(Kind::ServiceAccount, text(spec, "serviceAccountName"));
    for secret in items(spec, "imagePullSecrets") {
        add(Kind::Secret, text(secret, "name"));
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(spec, list) {
            for source in items(container, "envFrom") {
                add(Kind::ConfigMap, text_at(source, &["configMapRef", "name"]));
                add(Kind::Secret, text_at(source, &["secretRef", "name"]));
            }
            for variable in items(container, "env") {
                add(Kind::ConfigMap, text_at(variable, &["valueFrom", "configMapKeyRef", "name"]));
                add(Kind::Secret, text_at(variable, &["valueFrom", "secretKeyRef", "name"]));
            }
        }
    }
    for volume in items(spec, "volumes") {
        add(Kind::ConfigMap, text_at(volume, &["configMap", "name"]));
        add(Kind::Secret, text_at(volume, &["secret", "secretName"]));
        for source in items(&volume["projected"], "sources") {
            add(Kind::ConfigMap, text_at(source, &["configMap", "name"]));
            add(Kind::Secret, text_at(source, &["secret", "name"]));
        }
    }
    out
}

fn node_entry(node: &Value) -> NodeEntry {
    let spec = &node["spec"];
    let taint =
        |t: &Value| (text(t, "key").to_owned(), text(t, "value").to_owned(), text(t, "effect").to_owned());
    let amount = |name| quantity::parse(text_at(node, &["status", "allocatable", name]));
    NodeEntry {
        ready: condition_true(node, "Ready"),
        unschedulable: spec["unschedulable"] == true,
        labels: labels(at(node, &["metadata", "labels"])),
        taints: items(spec, "taints").iter().map(taint).collect(),
        allocatable: [amount("cpu"), amount("memory"), amount("pods")],
        cidrs: items(spec, "podCIDRs").iter().filter_map(|c| c.as_str().map(str::to_owned)).collect(),
        addresses: items(&node["status"], "addresses")
            .iter()
            .map(|a| text(a, "address").to_owned())
            .collect(),
        uid: object::uid(node).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(object: &Value) -> Event {
        Event::initial(object.to_string().into())
    }

    #[test]
    fn a_pod_causes_work_for_the_services_that_select_it() {
        let index = Index::default();
        let service =
            json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {"selector": {"app": "a"}}});
        index.observe(Kind::Service, &event(&service));
        let mut pod = json!({"metadata": {"name": "p", "namespace": "d", "labels": {"app": "a"}}, "spec": {"nodeName": "n"}});
        let work = index.observe(Kind::Pod, &event(&pod));
        assert_eq!(work, [Work::Endpoints("d".into(), "s".into())]);
        assert_eq!(index.observe(Kind::Pod, &event(&pod)), []);
        pod["metadata"]["labels"] = json!({});
        assert_eq!(index.observe(Kind::Pod, &event(&pod)), [Work::Endpoints("d".into(), "s".into())]);
    }

    #[test]
    fn owners_are_followed_through_changes() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(dir.path()).unwrap();
        let index = std::sync::Arc::new(Index::default());
        let seen = std::sync::Arc::clone(&index);
        store.observe(Box::new(move |kind, event| {
            seen.observe(kind, event);
        }));
        let put = |owners: Value| {
            let map = json!({"metadata": {"name": "m", "namespace": "d", "ownerReferences": owners}});
            store.write::<_, crate::store::StoreError>(|tx| tx.put(Kind::ConfigMap, map)).unwrap();
            let mut owners: Vec<String> = index.read().owned.keys().cloned().collect();
            owners.sort();
            owners
        };
        assert_eq!(put(json!([{"uid": "a"}, {"uid": "b"}])), ["a", "b"]);
        assert_eq!(put(json!([{"uid": "b"}, {"uid": "c"}])), ["b", "c"]);
        assert_eq!(put(json!([])), Vec::<String>::new());
        put(json!([{"uid": "a"}]));
        store.write::<_, crate::store::StoreError>(|tx| tx.delete(Kind::ConfigMap, "d", "m")).unwrap();
        assert!(index.read().owned.is_empty());
    }

    #[test]
    fn requests_count_init_containers_once() {
        let c = |cpu: &str, policy: &str| json!({"restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
        let spec = json!({"containers": [c("100m", ""), c("200m", "")],
            "initContainers": [c("250m", ""), c("50m", "Always"), c("400m", "")]});
        assert_eq!(requested(&spec, "cpu"), 400);
        assert_eq!(requested(&json!({"containers": [c("1", "")]}), "cpu"), 1000);
    }

    #[test]
    fn references_of_every_kind_are_found() {
        let spec = json!({"serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "c1"}}], "env": [{"valueFrom": {"secretKeyRef": {"name": "s1"}}}]}],
            "volumes": [{"secret": {"secretName": "s2"}}, {"projected": {"sources": [{"configMap": {"name": "c2"}}]}}]});
        let mut names: Vec<String> = references(&spec).into_iter().map(|(_, n)| n).collect();
        names.sort();
        assert_eq!(names, ["c1", "c2", "pull", "s1", "s2", "sa"]);
    }
}
