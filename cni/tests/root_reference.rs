//! The same configuration given to our plugin and to the reference plugins yields equal results, and equal interfaces,
//! addresses and routes on both sides.
//!
//! Differences that are meant, and evened out here: hardware addresses (ours follow from the address), names of host
//! ends, and who waits for IPv6 addresses (ours never). Not compared: a bridge that gets gateways of two IPv4 subnets,
//! which the reference refuses, and masquerade, which the reference does with iptables.
#![allow(clippy::unwrap_used)]

mod world;

use std::path::Path;

use serde_json::{Value, json};
use world::{Ns, World, plugin, root};

const OURS: &str = env!("CARGO_BIN_EXE_orlop-cni");
const REFERENCE: &str = "/usr/lib/cni";

fn installed() -> bool {
    let there = ["bridge", "ptp", "host-local"].iter().all(|n| Path::new(REFERENCE).join(n).exists());
    if !there {
        println!("SKIP no reference plugins in {REFERENCE}: install containernetworking-plugins");
    }
    there
}

/// What can be seen after two containers were attached, and after the first was detached again.
#[derive(Debug, PartialEq)]
struct Seen {
    results: Vec<Value>,
    inside: Value,
    outside: Value,
    after: Value,
}

fn look(program: &Path, conf: &Value) -> Seen {
    let world = World::new();
    let pods = [Ns::new(), Ns::new()];
    let call = |verb: &str, n: usize, conf: &Value| {
        let netns = pods[n].path().display().to_string();
        let id = format!("container-{n}");
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id.as_str()),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", REFERENCE),
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ];
        let answer = plugin(&world.node, program, &variables, conf);
        answer.unwrap_or_else(|e| panic!("{} {verb} {conf}: {e}", program.display()))
    };
    let mut conf = conf.clone();
    conf["ipam"]["dataDir"] = json!(world.path("data"));
    let results: Vec<_> = (0..2).map(|n| even_result(call("ADD", n, &conf), &pods[n])).collect();
    let (inside, outside) = (state(&pods[1]), state(&world.node));
    call("DEL", 0, &conf);
    Seen { results, inside, outside, after: state(&world.node) }
}

fn even_result(mut result: Value, pod: &Ns) -> Value {
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        assert!(interface["mac"].as_str().unwrap().len() == 17);
        interface["mac"] = json!("mac");
        if interface["name"].as_str().unwrap().starts_with("veth") {
            interface["name"] = json!("veth");
        }
        if interface["sandbox"] == json!(pod.path()) {
            interface["sandbox"] = json!("sandbox");
        }
    }
    result
}

/// Links with their addresses, and routes, as `ip` shows them, without what differs between any two runs.
fn state(ns: &Ns) -> Value {
    let links: Vec<Value> = serde_json::from_str(&ns.sh("ip -j -d addr show")).unwrap();
    let links = links.iter().filter(|l| l["ifname"] != "lo" && l["ifname"] != "up0").map(|link| {
        let name = link["ifname"].as_str().unwrap();
        let addresses = link["addr_info"].as_array().into_iter().flatten();
        let mut addresses: Vec<_> = addresses
            .filter(|a| a["scope"] == "global")
            .map(|a| json!([a["local"], a["prefixlen"], a["broadcast"]]))
            .collect();
        addresses.sort_by_key(Value::to_string);
        json!({
            "name": if name.starts_with("veth") { "veth" } else { name },
            "kind": link["linkinfo"]["info_kind"],
            "mtu": link["mtu"], "master": link["master"], "up": link["flags"].as_array().unwrap().contains(&json!("UP")),
            "hairpin": link["linkinfo"]["info_slave_data"]["hairpin"],
            "addresses": addresses,
        })
    });
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let found: Vec<Value> = serde_json::from_str(&ns.sh(&format!("ip -j {family} route show"))).unwrap();
        routes.extend(found.into_iter().filter(|r| !r["dst"].as_str().unwrap().starts_with("fe80")).map(
            |mut r| {
                if r["dev"].as_str().is_some_and(|d| d.starts_with("veth")) {
                    r["dev"] = json!("veth");
                }
                r
            },
        ));
    }
    let mut links: Vec<_> = links.collect();
    links.sort_by_key(Value::to_string);
    routes.sort_by_key(Value::to_string);
    json!({"links": links, "routes": routes})
}

fn compare(mode: &str, extra: &Value) {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "net",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}]]},
    });
    for (key, value) in extra.as_object().unwrap() {
        conf[key] = value.clone();
    }
    let mut theirs = conf.clone();
    theirs["type"] = json!(mode);
    let mut ours = conf;
    ours["type"] = json!("orlop-cni");
    ours["mode"] = json!(mode);
    let reference = look(&Path::new(REFERENCE).join(mode), &theirs);
    // Once with their address plugin below ours, once with our own.
    assert_eq!(look(Path::new(OURS), &ours), reference, "{mode} {extra} over host-local");
    ours["ipam"]["type"] = json!("orlop-cni");
    assert_eq!(look(Path::new(OURS), &ours), reference, "{mode} {extra}");
}

fn dual() -> Value {
    json!({"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64"}]]})
}

#[test]
fn a_bridge_is_like_the_reference() {
    if !root() || !installed() {
        return;
    }
    let limits = json!({"type": "host-local", "ranges": [[
        {"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.20", "rangeEnd": "10.5.0.21", "gateway": "10.5.0.254"},
    ]]});
    let routes = json!({"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.5.0.77"}]});
    for extra in [
        json!({}),
        json!({"isGateway": true, "bridge": "br7"}),
        json!({"isDefaultGateway": true}),
        json!({"isDefaultGateway": true, "mtu": 1300, "hairpinMode": true}),
        json!({"isDefaultGateway": true, "ipam": dual()}),
        json!({"isGateway": true, "ipam": limits}),
        json!({"isGateway": true, "ipam": routes}),
        json!({"isDefaultGateway": true, "dns": {"nameservers": ["10.0.0.10"], "search": ["a", "b"]}}),
    ] {
        compare("bridge", &extra);
    }
}

#[test]
fn a_point_to_point_link_is_like_the_reference() {
    if !root() || !installed() {
        return;
    }
    let with_default = |mut ipam: Value| {
        ipam["routes"] = json!([{"dst": "0.0.0.0/0"}]);
        ipam
    };
    for extra in [
        json!({}),
        json!({"mtu": 1300, "ipam": with_default(json!({"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}]]}))}),
        json!({"ipam": dual()}),
    ] {
        compare("ptp", &extra);
    }
}

#[test]
fn every_version_of_the_specification_is_answered_alike() {
    if !root() || !installed() {
        return;
    }
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        compare("bridge", &json!({"cniVersion": version, "isDefaultGateway": true, "ipam": dual()}));
    }
}
