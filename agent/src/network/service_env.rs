//! The variables that tell containers of services: `<SERVICE>_SERVICE_HOST` and its kin.
//!
//! Owns: one small entry for each service, the naming rules (`pkg/kubelet/envvars`). Never: watches anything itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A service as its variables need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// `spec.clusterIP`.
    pub cluster_ip: IpAddr,
    /// The ports in order.
    pub ports: Vec<ServicePort>,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// May be empty.
    pub name: String,
    /// The service's port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
}

/// Every service with a cluster address, by namespace and name. Written by the task that reads the service watch.
#[derive(Debug, Default)]
pub struct ServiceVariables(Mutex<BTreeMap<(String, String), ServiceEntry>>);

impl ServiceVariables {
    /// Adds or changes a service; `None` removes it.
    pub fn set(&self, namespace: &str, name: &str, entry: Option<ServiceEntry>) {
        let key = (namespace.to_owned(), name.to_owned());
        match entry {
            Some(entry) => self.lock().insert(key, entry),
            None => self.lock().remove(&key),
        };
    }

    /// Replaces everything.
    pub fn reset(&self, entries: BTreeMap<(String, String), ServiceEntry>) {
        *self.lock() = entries;
    }

    /// The variables of a pod in this namespace. Without `links` only those of the API server's own service.
    pub fn for_pod(&self, namespace: &str, links: bool) -> Vec<(String, String)> {
        let services = self.lock();
        let mut vars = vec![];
        let master = ("default".to_owned(), "kubernetes".to_owned());
        let own_kubernetes = links && services.contains_key(&(namespace.to_owned(), master.1.clone()));
        if let Some(entry) = services.get(&master).filter(|_| !own_kubernetes) {
            variables(&master.1, entry, &mut vars);
        }
        if links {
            let from = (namespace.to_owned(), String::new());
            for ((_, name), entry) in services.range(from..).take_while(|((ns, _), _)| ns == namespace) {
                variables(name, entry, &mut vars);
            }
        }
        vars
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), ServiceEntry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn variables(name: &str, entry: &ServiceEntry, vars: &mut Vec<(String, String)>) {
    let Some(first) = entry.ports.first() else { return };
    let prefix = upper(name);
    let host = entry.cluster_ip.to_string();
    let bracketed = if entry.cluster_ip.is_ipv6() { format!("[{host}]") } else { host.clone() };
    let url = |port: &ServicePort| format!("{}://{bracketed}:{}", port.protocol.to_lowercase(), port.port);
    vars.push((format!("{prefix}_SERVICE_HOST"), host.clone()));
    vars.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    for port in entry.ports.iter().filter(|port| !port.name.is_empty()) {
        vars.push((format!("{prefix}_SERVICE_PORT_{}", upper(&port.name)), port.port.to_string()));
    }
    vars.push((format!("{prefix}_PORT"), url(first)));
    for port in &entry.ports {
        let prefix = format!("{prefix}_PORT_{}_{}", port.port, port.protocol);
        vars.push((prefix.clone(), url(port)));
        vars.push((format!("{prefix}_PROTO"), port.protocol.to_lowercase()));
        vars.push((format!("{prefix}_PORT"), port.port.to_string()));
        vars.push((format!("{prefix}_ADDR"), host.clone()));
    }
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ports: &[(&str, u16, &'static str)]) -> ServiceEntry {
        let ports = ports.iter().map(|(name, port, protocol)| ServicePort {
            name: (*name).into(),
            port: *port,
            protocol,
        });
        ServiceEntry { cluster_ip: "10.96.0.1".parse().expect("address"), ports: ports.collect() }
    }

    fn text(vars: &[(String, String)]) -> Vec<String> {
        vars.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_service_has_dockers_link_variables_and_its_own() {
        let services = ServiceVariables::default();
        services.set("shop", "redis-main", Some(entry(&[("db", 6379, "TCP")])));
        assert_eq!(
            text(&services.for_pod("shop", true)),
            [
                "REDIS_MAIN_SERVICE_HOST=10.96.0.1",
                "REDIS_MAIN_SERVICE_PORT=6379",
                "REDIS_MAIN_SERVICE_PORT_DB=6379",
                "REDIS_MAIN_PORT=tcp://10.96.0.1:6379",
                "REDIS_MAIN_PORT_6379_TCP=tcp://10.96.0.1:6379",
                "REDIS_MAIN_PORT_6379_TCP_PROTO=tcp",
                "REDIS_MAIN_PORT_6379_TCP_PORT=6379",
                "REDIS_MAIN_PORT_6379_TCP_ADDR=10.96.0.1",
            ]
        );
    }

    #[test]
    fn without_links_only_the_api_server_is_told() {
        let services = ServiceVariables::default();
        services.set("default", "kubernetes", Some(entry(&[("https", 443, "TCP")])));
        services.set("shop", "web", Some(entry(&[("", 80, "TCP")])));
        let names =
            |links| services.for_pod("shop", links).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names(false).iter().all(|name| name.starts_with("KUBERNETES_")));
        assert!(names(true).contains(&"WEB_SERVICE_HOST".to_owned()));
        assert!(names(true).contains(&"KUBERNETES_SERVICE_HOST".to_owned()));
        services.set("shop", "web", None);
        assert!(!names(true).contains(&"WEB_SERVICE_HOST".to_owned()));
    }
}
