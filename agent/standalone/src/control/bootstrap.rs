//! What is there from the start: the four namespaces, the service `kubernetes` that leads to this server, and what a machine
//! that joins reads (`cluster-info`, `kubelet-config`).

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::registry::{DeleteOptions, Registry, Target, WriteOptions};
use crate::resource::{Kind, NAMESPACES, SERVICES};
use crate::status::{ApiError, ApiResult};
use crate::strategy::Part;

/// What `kubeadm` sets, as far as it is not about files of its own.
const KUBELET_CONFIG: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
authorization:
  mode: Webhook
clusterDomain: cluster.local
rotateCertificates: true
serverTLSBootstrap: true
";

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
    kubernetes_slice(registry)?;
    cluster_info(registry)?;
    kubelet_config(registry)
}

fn present(result: ApiResult<()>) -> ApiResult<()> {
    match result {
        Err(ApiError { reason: "AlreadyExists", .. }) => Ok(()),
        other => other,
    }
}

/// Where this server is, as it is reached now. Signed by `control::cluster_info`.
fn cluster_info(registry: &Registry) -> ApiResult<()> {
    let (address, port) = registry.settings.advertise;
    let server = format!("https://{}", SocketAddr::new(address, port));
    let wanted = super::cluster_info::config_map(&server, &registry.settings.ca_pem);
    let (namespace, name) = super::cluster_info::PLACE;
    let api = Kind::ConfigMap.api();
    present(registry.create(api, namespace, wanted.clone(), WriteOptions::default()).map(|_| ()))?;
    let target = Target { api, namespace, name, part: Part::Main };
    let change = |now: &Value| {
        let mut new = now.clone();
        new["data"]["kubeconfig"] = wanted["data"]["kubeconfig"].clone();
        Ok(new)
    };
    registry.update(target, WriteOptions::default(), change).map(|_| ())
}

/// The configuration of the nodes that join, the administrator's to change.
fn kubelet_config(registry: &Registry) -> ApiResult<()> {
    let map = json!({"metadata": {"name": "kubelet-config"}, "data": {"kubelet": KUBELET_CONFIG}});
    present(registry.create(Kind::ConfigMap.api(), "kube-system", map, WriteOptions::default()).map(|_| ()))
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
