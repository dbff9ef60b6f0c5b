//! Other people's plugins through our runtime: a working chain, and ones that misbehave.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/src/programs.rs"]
mod programs;
mod world;

use std::path::Path;
use std::time::Duration;

use orlop_cni::runtime::{Attachment, Bandwidth, Capabilities, PortMapping, Runtime, RuntimeConfig};
use serde_json::json;
use world::{NODE_IP, Ns, World, attachment, root, socket};

const REFERENCE: &str = "/usr/lib/cni";

/// Whether the reference plugins are installed; says why not.
fn reference(names: &[&str]) -> bool {
    if !root() {
        return false;
    }
    let missing: Vec<_> = names.iter().filter(|n| !Path::new(REFERENCE).join(n).exists()).collect();
    if !missing.is_empty() {
        println!("SKIP {missing:?} not in {REFERENCE}: install containernetworking-plugins");
    }
    missing.is_empty()
}

fn has_iptables() -> bool {
    let found = ["/usr/sbin/iptables", "/sbin/iptables"].iter().any(|p| Path::new(p).exists());
    if !found {
        println!("SKIP portmap of the reference plugins needs iptables");
    }
    found
}

fn chain(world: &World) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0", "name": "chain",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "dataDir": world.path("hl"), "ranges": [[{"subnet": "10.8.0.0/24"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ],
    })
}

#[test]
fn the_reference_chain_works_and_is_undone() {
    if !reference(&["bridge", "host-local", "portmap", "bandwidth"]) || !has_iptables() {
        return;
    }
    let world = World::new();
    let a = Ns::new();
    let limits = Bandwidth { ingress_rate: 80_000_000, ingress_burst: 8_000_000, ..Bandwidth::default() };
    let port = PortMapping { host_port: 8080, container_port: 80, protocol: "tcp".into(), host_ip: None };
    let capabilities =
        Capabilities { port_mappings: vec![port], bandwidth: Some(limits), ..Capabilities::default() };
    let wanted = Attachment { capabilities, ..attachment("a", &a) };
    world.node.run(|| {
        let runtime = world.runtime_of(&chain(&world));
        let got = runtime.add(&wanted).unwrap();
        assert_eq!(got.ips[0].to_string(), "10.8.0.2");
        a.serve_tcp("0.0.0.0:80");
        assert!(world.node.ask_tcp(socket("10.8.0.2", 80)).is_ok());
        assert!(world.outside.ask_tcp(socket(NODE_IP, 8080)).is_ok(), "portmap got its capability");
        assert!(world.node.sh("tc qdisc show").contains("tbf"), "bandwidth got its capability");
        assert!(a.sh("ip link show lo").contains("LOOPBACK,UP"));
        // CHECK is left out: that of portmap 1.1.1 looks for IPv6 rules even of a container without IPv6.
        runtime.status().unwrap();
        runtime.del(&wanted).unwrap();
        runtime.del(&wanted).unwrap();
        assert_eq!(world.node.pod_links(), [""; 0]);
        assert!(!world.path("hl/chain/10.8.0.2").exists());
        assert!(world.outside.ask_tcp(socket(NODE_IP, 8080)).is_err());
    });
}

#[test]
fn gc_undoes_what_a_killed_daemon_left_of_a_chain_without_gc() {
    if !reference(&["bridge", "host-local"]) {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    let mut conf = chain(&world);
    conf["plugins"].as_array_mut().unwrap().truncate(1);
    world.node.run(|| {
        let runtime = world.runtime_of(&conf);
        runtime.add(&attachment("a", &a)).unwrap();
        runtime.add(&attachment("b", &b)).unwrap();
        runtime.check(&attachment("b", &b)).unwrap();
        drop(runtime);
        let runtime = world.runtime_of(&conf);
        runtime.gc(&[attachment("b", &b)]).unwrap();
        assert_eq!((a.links(), b.links().len()), (vec!["lo".to_owned()], 2));
        assert!(runtime.attached(&attachment("b", &b)).unwrap().is_some());
    });
}

#[test]
fn our_plugin_takes_its_place_in_a_chain() {
    if !reference(&["tuning"]) {
        return;
    }
    let world = World::new();
    let a = Ns::new();
    let mut conf = world.network(&["10.244.1.0/24"]).to_value();
    conf["cniVersion"] = json!("1.0.0");
    let tuning =
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "mac": "02:00:00:00:00:07"});
    conf["plugins"].as_array_mut().unwrap().push(tuning);
    world.node.run(|| {
        let runtime = world.runtime_of(&conf);
        let got = runtime.add(&attachment("a", &a)).unwrap();
        assert_eq!(got.result.interfaces[2].mac, "02:00:00:00:00:07", "the last plugin's word counts");
        assert_eq!(a.sh("cat /proc/sys/net/core/somaxconn").trim(), "500");
        runtime.check(&attachment("a", &a)).unwrap();
        runtime.del(&attachment("a", &a)).unwrap();
        runtime.settle();
        assert_eq!(world.node.pod_links(), [""; 0]);
    });
}

/// A chain of our plugin and one that behaves as the script says.
fn with_script(world: &World, script: &str) -> Runtime {
    let bin = world.path("bin");
    std::fs::create_dir_all(&bin).unwrap();
    programs::write(&bin.join("odd"), format!("#!/bin/sh\n{script}\n"), "755").unwrap();
    let mut conf = world.network(&["10.244.1.0/24"]).to_value();
    conf["plugins"].as_array_mut().unwrap().push(json!({"type": "odd"}));
    std::fs::create_dir_all(world.path("net.d")).unwrap();
    std::fs::write(world.path("net.d/10.conflist"), conf.to_string()).unwrap();
    let runtime = Runtime::new(RuntimeConfig { timeout: Duration::from_secs(1), ..world.runtime_config() });
    runtime.load().unwrap();
    runtime
}

#[test]
fn a_plugin_that_misbehaves_is_named_and_the_chain_undone() {
    if !root() {
        return;
    }
    let cases = [
        (
            r#"[ $CNI_COMMAND = DEL ] || sleep 1000"#,
            "CNI plugin odd (ADD): did not end within 1 s and was killed",
        ),
        (
            r#"[ $CNI_COMMAND = DEL ] || echo '{"ips":'"#,
            "CNI plugin odd (ADD): printed something that is not JSON",
        ),
        (r#"[ $CNI_COMMAND = DEL ] || exit 3"#, "CNI plugin odd (ADD): failed (exit status: 3)"),
        (
            r#"[ $CNI_COMMAND = DEL ] || { echo '{"code":11,"msg":"busy"}'; exit 1; }"#,
            "CNI plugin odd (ADD): busy (CNI code 11)",
        ),
    ];
    for (script, expected) in cases {
        let world = World::new();
        let a = Ns::new();
        world.node.run(|| {
            let runtime = with_script(&world, script);
            let error = runtime.add(&attachment("a", &a)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
            runtime.settle();
            assert_eq!((world.node.pod_links(), a.links()), (vec![], vec!["lo".to_owned()]), "{expected}");
            assert_eq!(runtime.attached(&attachment("a", &a)).unwrap(), None);
            // When the plugin is well again, so is the pod.
            let runtime = with_script(&world, &format!(r#"jq() {{ :; }}; {GOOD}"#));
            runtime.add(&attachment("a", &a)).unwrap();
        });
    }
}

/// Prints the previous result as its own: it is the last key of the configuration, on one line.
const GOOD: &str = r#"conf=$(cat); [ $CNI_COMMAND = ADD ] || exit 0
echo "$conf" | sed 's/.*"prevResult":\({.*}\),"type".*/\1/'"#;
