//! What is there from the start: the four namespaces and the service `kubernetes` that leads to this server.

use serde_json::{Value, json};

use crate::registry::{DeleteOptions, Registry, Target, WriteOptions};
use crate::resource::{Kind, NAMESPACES, SERVICES};
use crate::status::{ApiError, ApiResult};
use crate::strategy::Part;

const NAMES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing and brings up to date what follows the configuration.
///
/// # Errors
/// When the store cannot be written.
pub fn ensure(registry: &Registry) -> ApiResult<()> {
    for name in NAMES {
        let object = json!({"metadata": {"name": name}});
        present(registry.create(NAMESPACES, "", object, WriteOptions::default()).map(|_| ()))?;
    }
    refresh_root_certificates(registry)?;
    kubernetes_service(registry)?;
    kubernetes_slice(registry)
}

fn present(result: ApiResult<()>) -> ApiResult<()> {
    match result {
        Err(ApiError { reason: "AlreadyExists", .. }) => Ok(()),
        other => other,
    }
}

/// A CA that was renewed reaches every namespace.
fn refresh_root_certificates(registry: &Registry) -> ApiResult<()> {
    let api = Kind::ConfigMap.api();
    for (_, bytes) in registry.store.list(Kind::Namespace, None, None, usize::MAX)?.items {
        let namespace = crate::object::name(&crate::object::parse(&bytes)).to_owned();
        let target = Target { api, namespace: &namespace, name: "kube-root-ca.crt", part: Part::Main };
        let change = |now: &Value| {
            let mut new = now.clone();
            new["data"]["ca.crt"] = registry.settings.ca_pem.as_str().into();
            Ok(new)
        };
        match registry.update(target, WriteOptions::default(), change) {
            Err(error) if error.code != 404 => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn kubernetes_service(registry: &Registry) -> ApiResult<()> {
    let Some(address) = registry.allocator.api_server_address() else { return Ok(()) };
    let port = registry.settings.advertise.1;
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": address.to_string(), "type": "ClusterIP",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]},
    });
    let found = registry.find(Kind::Service, "default", "kubernetes")?;
    let moved = found.as_ref().is_some_and(|f| f["spec"]["clusterIP"] != service["spec"]["clusterIP"]);
    if moved {
        // The service network was configured anew.
        registry.delete(SERVICES, "default", "kubernetes", &DeleteOptions::default())?;
    }
    if found.is_none() || moved {
        registry.create(SERVICES, "default", service, WriteOptions::default())?;
        return Ok(());
    }
    let target = Target { api: SERVICES, namespace: "default", name: "kubernetes", part: Part::Main };
    let change = |now: &Value| {
        let mut new = now.clone();
        new["spec"]["ports"] = service["spec"]["ports"].clone();
        Ok(new)
    };
    registry.update(target, WriteOptions::default(), change).map(|_| ())
}

fn kubernetes_slice(registry: &Registry) -> ApiResult<()> {
    let (address, port) = registry.settings.advertise;
    let api = Kind::EndpointSlice.api();
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let found = registry.find(Kind::EndpointSlice, "default", "kubernetes")?;
    let moved = found.as_ref().is_some_and(|f| f["addressType"] != slice["addressType"]);
    if moved {
        registry.delete(api, "default", "kubernetes", &DeleteOptions::default())?;
    }
    if found.is_none() || moved {
        registry.create(api, "default", slice, WriteOptions::default())?;
        return Ok(());
    }
    let target = Target { api, namespace: "default", name: "kubernetes", part: Part::Main };
    let change = |now: &Value| {
        let mut new = now.clone();
        for key in ["endpoints", "ports"] {
            new[key] = slice[key].clone();
        }
        Ok(new)
    };
    registry.update(target, WriteOptions::default(), change).map(|_| ())
}
