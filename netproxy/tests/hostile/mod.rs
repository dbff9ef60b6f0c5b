//! Objects nobody should write, and one that works among them.

#![allow(dead_code, reason = "each test uses a part")]

use orlop_netproxy::Event;
use orlop_netproxy::objects::{EndpointSlice, Service};
use serde_json::{Value, json};

/// The address of the service that must work whatever stands around it.
pub const GOOD: &str = "10.96.0.1";
/// The one that has a hundred thousand endpoints.
pub const CROWDED: &str = "10.96.0.2";
/// One with a fifth of them over UDP, and session affinity.
pub const CROWDED_UDP: &str = "10.96.0.16";
/// How many external addresses one service has.
const MANY_ADDRESSES: u32 = 5_000;
/// How many of the objects have something that is left out.
pub const COMPLAINTS_AT_LEAST: u64 = 15;

fn service(name: &str, spec: &Value) -> Value {
    json!({ "metadata": { "namespace": "ns", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" }, "spec": spec })
}

fn slice(name: &str, service: &str, endpoints: &Value) -> Value {
    json!({
        "metadata": { "namespace": "ns", "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 8080 }], "endpoints": endpoints,
    })
}

/// The complete lists, `crowd` endpoints in one service.
pub fn events(crowd: u32) -> Vec<Event> {
    let longest = "x".repeat(63);
    let port = json!([{ "port": 80 }]);
    let many_addresses: Vec<String> =
        (0..MANY_ADDRESSES).map(|n| format!("198.18.{}.{}", n >> 8, n & 255)).collect();
    let services = vec![
        service("good", &json!({ "clusterIP": GOOD, "ports": port })),
        service("crowded", &json!({ "clusterIP": CROWDED, "ports": port })),
        service(
            "big-port",
            &json!({ "clusterIP": "10.96.0.3", "ports": [{ "port": 70000 }, { "name": "b", "port": 81 }] }),
        ),
        service("no-port", &json!({ "clusterIP": "10.96.0.4", "ports": [{ "port": 0 }, { "port": -1 }] })),
        service(
            "protocol",
            &json!({ "clusterIP": "10.96.0.5", "ports": [{ "port": 80, "protocol": "QUIC" }] }),
        ),
        service(
            "address",
            &json!({ "clusterIPs": ["10.96.0.600", "nonsense", "0.0.0.0", "127.0.0.1", "224.0.0.1"], "ports": port }),
        ),
        service(
            "thief",
            &json!({ "clusterIP": GOOD, "externalIPs": [GOOD, "255.255.255.255"], "ports": port }),
        ),
        service("kind", &json!({ "type": "Teapot", "clusterIP": "10.96.0.6", "ports": port })),
        service(
            "twice",
            &json!({ "clusterIP": "10.96.0.7", "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 80 }] }),
        ),
        service(
            "affinity",
            &json!({ "clusterIP": "10.96.0.8", "ports": port, "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 99999999 } } }),
        ),
        service(
            "name",
            &json!({ "clusterIP": "10.96.0.9", "ports": [{ "name": "a\" drop; #", "port": 80 }] }),
        ),
        service(
            "UPPER {case}",
            &json!({ "clusterIP": "10.96.0.10", "ports": port, "sessionAffinity": "ClientIP" }),
        ),
        service(
            &longest,
            &json!({ "clusterIP": "10.96.0.11", "ports": [{ "name": longest, "port": 80 }], "sessionAffinity": "ClientIP" }),
        ),
        service(
            &"y".repeat(253),
            &json!({ "clusterIP": "10.96.0.12", "ports": port, "sessionAffinity": "ClientIP" }),
        ),
        service(
            "ranges",
            &json!({ "type": "LoadBalancer", "clusterIP": "10.96.0.13", "ports": port,
            "loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/8", "10.1.2.3/16", "10.1.0.0/33", "::/200", "fd00::/8"] }),
        ),
        service(
            "crowded-udp",
            &json!({ "clusterIP": CROWDED_UDP, "ports": [{ "port": 80, "protocol": "UDP" }], "sessionAffinity": "ClientIP" }),
        ),
        service(
            "addresses",
            &json!({ "type": "LoadBalancer", "clusterIP": "10.96.0.17", "ports": port, "externalIPs": many_addresses,
            "loadBalancerSourceRanges": many_addresses.iter().map(|address| format!("{address}/32")).collect::<Vec<_>>() }),
        ),
        service("bare", &Value::Null),
        service(
            "node-port",
            &json!({ "type": "NodePort", "clusterIP": "10.96.0.14",
            "ports": [{ "name": "a", "port": 80, "nodePort": 99999 }, { "name": "b", "port": 81, "nodePort": 30000 }] }),
        ),
        service(
            "node-port-too",
            &json!({ "type": "NodePort", "clusterIP": "10.96.0.15", "ports": [{ "port": 80, "nodePort": 30000 }] }),
        ),
        json!({}),
    ];
    let many: Vec<Value> = (0..crowd)
        .map(|n| json!({ "addresses": [format!("10.{}.{}.{}", 200 + (n >> 16), (n >> 8) & 255, n & 255)] }))
        .collect();
    let some = Value::Array(many[..many.len() / 5].to_vec());
    let udp = json!([{ "name": "", "port": 8080, "protocol": "UDP" }]);
    let bad = json!([
        { "addresses": ["not an address"] }, { "addresses": [] }, {}, { "addresses": ["fd00::1"] },
        { "addresses": ["127.0.0.1"] }, { "addresses": ["10.180.0.10"] }, { "addresses": ["10.180.0.10"] }
    ]);
    let mut slices = vec![
        slice("good", "good", &bad),
        slice("crowded", "crowded", &Value::Array(many)),
        slice("crowded-udp", "crowded-udp", &some),
        slice("orphan", "nobody", &bad),
        json!({ "metadata": { "namespace": "ns", "name": "strange" }, "addressType": "Carrier pigeon", "ports": null, "endpoints": null }),
        json!({}),
    ];
    for name in
        ["affinity", "UPPER {case}", &longest, &"y".repeat(253), "ranges", "node-port", "twice", "name"]
    {
        slices.push(slice(&format!("s-{name}"), name, &json!([{ "addresses": ["10.180.0.10"] }])));
    }
    slices[2]["ports"] = udp;
    slices[0]["ports"] = json!([{ "name": "", "port": 8080 }, { "name": "z", "port": 65536 }, { "name": "y", "port": 80, "protocol": "QUIC" }]);
    let all_services: Vec<Service> = services
        .into_iter()
        .map(|object| serde_json::from_value(object).expect("JSON of the right types"))
        .collect();
    let all_slices: Vec<EndpointSlice> = slices
        .into_iter()
        .map(|object| serde_json::from_value(object).expect("JSON of the right types"))
        .collect();
    vec![Event::ServicesReset(all_services), Event::SlicesReset(all_slices)]
}
