//! Objects as API servers write them, and as they should not.

use serde_json::json;

use super::*;

fn problems(found: &[Problem]) -> Vec<&'static str> {
    found.iter().map(|problem| problem.field).collect()
}

#[test]
fn a_service_is_read_with_everything_a_proxy_needs() {
    let service: Service = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "prod", "name": "web", "uid": "1", "creationTimestamp": "1970-01-01T00:00:01Z",
            "labels": { "app": "web" }, "managedFields": [{ "manager": "kubectl" }] },
        "spec": { "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "externalIPs": ["198.51.100.1", "198.51.100.1", "::ffff:198.51.100.2"],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster", "healthCheckNodePort": 31234,
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
            "loadBalancerSourceRanges": [" 192.0.2.7/24 ", "192.0.2.0/24"],
            "ports": [{ "name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "appProtocol": "http" },
                      { "name": "dns", "port": 53, "protocol": "UDP" }] },
        "status": { "loadBalancer": { "ingress": [
            { "ip": "203.0.113.1" }, { "ip": "203.0.113.2", "ipMode": "Proxy" }, { "hostname": "example.org" } ] } },
    }))
    .unwrap();
    assert_eq!((service.name.as_str(), service.created_ms), ("prod/web", 1000));
    assert!(service.is_served() && service.is_external());
    let addresses = |list: &[IpAddr]| list.iter().map(IpAddr::to_string).collect::<Vec<_>>();
    assert_eq!(addresses(&service.cluster_ips), ["10.96.0.1", "fd00::1"]);
    assert_eq!(addresses(&service.external_ips), ["198.51.100.1", "198.51.100.2"]);
    assert_eq!(addresses(&service.ingress), ["203.0.113.1"]);
    assert_eq!(service.source_ranges.as_deref(), Some(&["192.0.2.0/24".parse().unwrap()][..]));
    assert_eq!((service.external_local, service.internal_local), (true, false));
    assert_eq!(service.affinity_seconds, Some(60));
    assert_eq!(service.health_check_node_port.map(u16::from), Some(31234));
    let ports: Vec<_> =
        service.ports.iter().map(|port| (&*port.name, port.protocol, port.port.get())).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)]);
    assert_eq!(service.ports[0].node_port.map(u16::from), Some(30080));
    assert_eq!(*service.problems, []);
}

#[test]
fn services_that_are_nothing_for_this_proxy() {
    for spec in [
        json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }),
        json!({ "clusterIP": "", "ports": [{ "port": 80 }] }),
        json!({ "type": "ExternalName", "externalName": "example.org" }),
        json!(null),
    ] {
        let object = json!({ "metadata": { "namespace": "ns", "name": "web" }, "spec": spec });
        let service: Service = serde_json::from_value(object).unwrap();
        assert!(!service.is_served(), "{service:?}");
        assert_eq!(*service.problems, []);
    }
    let other = json!({ "metadata": { "namespace": "ns", "name": "web",
        "labels": { "service.kubernetes.io/service-proxy-name": "mine" } }, "spec": { "clusterIP": "10.96.0.1" } });
    assert!(!serde_json::from_value::<Service>(other).unwrap().is_served());
}

#[test]
fn what_makes_no_sense_in_a_service_is_left_out_and_named() {
    let service: Service = serde_json::from_value(json!({
        "metadata": { "namespace": "ns", "name": "web" },
        "spec": { "clusterIPs": ["10.96.0.1", "0.0.0.0"], "type": "ClusterIP", "sessionAffinity": "Magic",
            "loadBalancerSourceRanges": ["nonsense"],
            "ports": [{ "port": 0 }, { "port": 80, "nodePort": 65536 }, { "name": "q", "port": 81, "protocol": "QUIC" }] },
    }))
    .unwrap();
    assert!(service.is_served());
    assert_eq!((service.ports.len(), service.cluster_ips.len()), (1, 1));
    assert_eq!(service.affinity_seconds, None);
    assert_eq!(
        service.source_ranges.as_deref(),
        Some(&[][..]),
        "nobody is let in by a range that cannot be read"
    );
    let mut named = problems(&service.problems);
    named.sort_unstable();
    let expected = [
        "spec.clusterIPs",
        "spec.loadBalancerSourceRanges",
        "spec.ports.nodePort",
        "spec.ports.port",
        "spec.ports.protocol",
        "spec.sessionAffinity",
    ];
    assert_eq!(named, expected);
}

#[test]
fn a_slice_is_read_with_its_conditions_and_hints() {
    let slice: EndpointSlice = serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "namespace": "ns", "name": "web-abc", "labels": { "kubernetes.io/service-name": "web" },
            "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:02Z" } },
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }, { "name": "all" }, { "port": 1 }],
        "endpoints": [
            { "addresses": ["10.0.0.1", "10.0.0.2"], "nodeName": "n1", "zone": "z", "hints": { "forZones": [{ "name": "z" }], "forNodes": [{ "name": "n1" }] } },
            { "addresses": ["10.0.0.3"], "conditions": { "ready": false, "serving": true, "terminating": true } },
            { "addresses": ["fd00::1"] }, { "addresses": ["127.0.0.1"] }, { "addresses": [] } ],
    }))
    .unwrap();
    assert_eq!(slice.service, Some(ObjectName::new("ns", "web")));
    assert_eq!((slice.family, slice.triggered_ms), (Some(Family::V4), Some(2000)));
    assert_eq!(slice.ports.iter().map(|port| port.port.get()).collect::<Vec<_>>(), [8080]);
    let [first, second] = &*slice.endpoints else { panic!("{:?}", slice.endpoints) };
    assert_eq!((first.ready, first.serving, first.terminating), (true, true, false));
    assert_eq!(
        (first.node.as_deref(), &*first.zone_hints[0], &*first.node_hints[0]),
        (Some("n1"), "z", "n1")
    );
    assert_eq!((second.ready, second.serving, second.terminating), (false, true, true));
    assert_eq!(problems(&slice.problems), ["endpoints.addresses", "endpoints.addresses"]);
}

#[test]
fn slices_of_no_service_and_of_other_kinds_belong_to_nobody() {
    let labels = |labels: serde_json::Value| {
        let object = json!({ "metadata": { "namespace": "ns", "name": "s", "labels": labels }, "addressType": "IPv4" });
        serde_json::from_value::<EndpointSlice>(object).unwrap().service
    };
    let (name, headless) = ("kubernetes.io/service-name", "service.kubernetes.io/headless");
    assert_eq!(labels(json!({ name: "web" })), Some(ObjectName::new("ns", "web")));
    assert_eq!(labels(json!({ name: "web", headless: "" })), None);
    assert_eq!(labels(json!({ name: "" })), None);
    assert_eq!(labels(json!(null)), None);
    let fqdn: EndpointSlice = serde_json::from_value(
        json!({ "addressType": "FQDN", "endpoints": [{ "addresses": ["example.org"] }] }),
    )
    .unwrap();
    assert_eq!((fqdn.family, fqdn.endpoints.len(), fqdn.problems.len()), (None, 0, 0));
}

#[test]
fn a_node_tells_its_zone_addresses_ranges_and_whether_it_stays() {
    let mut object = json!({
        "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": "z" } },
        "spec": { "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64", "nonsense"] },
        "status": { "addresses": [{ "type": "Hostname", "address": "n1" }, { "type": "ExternalIP", "address": "203.0.113.9" },
            { "type": "InternalIP", "address": "192.0.2.1" }] },
    });
    let node: Node = serde_json::from_value(object.clone()).unwrap();
    assert_eq!((&*node.name, node.zone.as_deref(), node.eligible), ("n1", Some("z"), true));
    assert_eq!(
        node.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
        ["192.0.2.1", "203.0.113.9"]
    );
    assert_eq!(node.pod_cidrs.len(), 2);
    object["spec"]["taints"] = json!([{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }]);
    assert!(!serde_json::from_value::<Node>(object.clone()).unwrap().eligible);
    object["spec"]["taints"] = json!(null);
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(!serde_json::from_value::<Node>(object).unwrap().eligible);
}
