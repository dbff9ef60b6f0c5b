//! Point-to-point mode, bandwidth limits, requested addresses, delegated address plugins.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use orlop_cni::runtime::{Attachment, Bandwidth, Capabilities};
use serde_json::{Value, json};
use world::{NODE_IP, Ns, OUTSIDE_IP, PATIENCE, World, attachment, root, socket};

fn list(world: &World, extra: &Value) -> Value {
    let mut plugin = json!({
        "type": "orlop-cni", "ipMasq": true, "isDefaultGateway": true,
        "capabilities": {"portMappings": true, "bandwidth": true, "mac": true, "ips": true, "ipRanges": true},
        "ipam": {"type": "orlop-cni", "dataDir": world.path("state"),
                 "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:1::/64"}]]},
    });
    for (key, value) in extra.as_object().unwrap() {
        plugin[key] = value.clone();
    }
    json!({"cniVersion": "1.1.0", "name": "orlop", "plugins": [plugin]})
}

#[test]
fn point_to_point_links_do_all_a_bridge_does() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime_of(&list(&world, &json!({"mode": "ptp"})));
        runtime.add(&attachment("a", &a)).unwrap();
        let second = runtime.add(&attachment("b", &b)).unwrap();
        assert_eq!(second.result.interfaces.len(), 2);
        b.serve_tcp("[::]:80");
        world.outside.serve_tcp("[::]:82");
        assert_eq!(a.ask_tcp(socket("10.244.1.3", 80)), Ok("::ffff:10.244.1.2".into()));
        // The node asks for neighbours by its link-local addresses, which it must have by now.
        assert_eq!(world.node.sh("ip -6 -o address show tentative | grep veth || true"), "");
        assert_eq!(a.ask_tcp(socket("fd00:244:1::3", 80)), Ok("fd00:244:1::2".into()));
        assert_eq!(a.ask_tcp(socket(OUTSIDE_IP, 82)), Ok(format!("::ffff:{NODE_IP}")));
        runtime.check(&attachment("a", &a)).unwrap();
        assert_eq!(world.node.links().iter().filter(|l| *l == "cni0").count(), 0);
        runtime.del(&attachment("a", &a)).unwrap();
        runtime.del(&attachment("b", &b)).unwrap();
        runtime.gc(&[]).unwrap();
        assert_eq!((world.node.pod_links(), world.rules()), (vec![], String::new()));
        assert!(!world.node.sh("ip route; ip -6 route").contains("244"));
    });
}

/// Seconds it takes to move this many bytes.
fn transfer(from: &Ns, to: &Ns, address: &str, bytes: usize) -> f64 {
    let listener = to.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let target = socket(address, listener.local_addr().unwrap().port());
    let receiver = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        stream.write_all(b"!").unwrap();
    });
    let seconds = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
        let begin = Instant::now();
        stream.write_all(&vec![0; bytes]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        begin.elapsed().as_secs_f64()
    });
    receiver.join().unwrap();
    seconds
}

#[test]
fn bandwidth_limits_hold_in_both_directions_and_leave_no_device() {
    if !root() {
        return;
    }
    let world = World::new();
    let a = Ns::new();
    // 8 Mbit/s is a megabyte per second.
    let limits = Bandwidth {
        ingress_rate: 8_000_000,
        ingress_burst: 800_000,
        egress_rate: 8_000_000,
        egress_burst: 800_000,
    };
    let capabilities = Capabilities { bandwidth: Some(limits), ..Capabilities::default() };
    let limited = Attachment { capabilities, ..attachment("a", &a) };
    world.node.run(|| {
        let runtime = world.runtime_of(&list(&world, &json!({})));
        runtime.add(&limited).unwrap();
        assert!(
            world.node.sh("tc qdisc show").matches("tbf").count() == 2,
            "{}",
            world.node.sh("tc qdisc show")
        );
        // A lower bound is safe on a busy machine: half a megabyte more than the burst cannot pass at once.
        let incoming = transfer(&world.node, &a, "10.244.1.2", 600_000);
        let outgoing = transfer(&a, &world.node, NODE_IP, 600_000);
        assert!(incoming > 0.3 && outgoing > 0.3, "{incoming} {outgoing}");
        assert_eq!(world.node.pod_links().len(), 2);
        runtime.del(&limited).unwrap();
        runtime.settle();
        assert_eq!(world.node.pod_links(), [""; 0]);
    });
}

#[test]
fn requested_addresses_and_hardware_addresses_are_given() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    let capabilities = Capabilities {
        mac: "02:11:22:33:44:55".into(),
        ips: vec!["10.244.1.77".parse().unwrap(), "fd00:244:1::77".parse().unwrap()],
        ..Capabilities::default()
    };
    world.node.run(|| {
        let runtime = world.runtime_of(&list(&world, &json!({})));
        let wanted = Attachment { capabilities: capabilities.clone(), ..attachment("a", &a) };
        let got = runtime.add(&wanted).unwrap();
        assert_eq!(got.ips, capabilities.ips);
        assert_eq!(got.result.interfaces[2].mac, "02:11:22:33:44:55");
        let again = Attachment { capabilities: capabilities.clone(), ..attachment("b", &b) };
        let error = runtime.add(&again).unwrap_err();
        assert!(error.to_string().contains("10.244.1.77 is already leased"), "{error}");
    });
}

#[test]
fn an_address_that_moves_to_another_hardware_address_is_announced() {
    if !root() {
        return;
    }
    let world = World::new();
    world.node.run(|| {
        let runtime = world.runtime_of(&list(&world, &json!({})));
        for round in 0..3 {
            let pod = Ns::new();
            let capabilities = Capabilities {
                mac: format!("02:11:22:33:44:{round:02x}"),
                ips: vec!["10.244.1.77".parse().unwrap(), "fd00:244:1::77".parse().unwrap()],
                ..Capabilities::default()
            };
            let wanted = Attachment { capabilities, ..attachment(&format!("p{round}"), &pod) };
            runtime.add(&wanted).unwrap();
            pod.serve_tcp("[::]:80");
            for ip in ["10.244.1.77", "fd00:244:1::77"] {
                assert!(world.node.ask_tcp(socket(ip, 80)).is_ok(), "round {round} {ip}");
            }
            runtime.del(&wanted).unwrap();
            runtime.settle();
        }
    });
}

#[test]
fn addresses_may_come_from_another_plugin() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    let ipam =
        json!({"type": "host-local", "dataDir": world.path("hl"), "ranges": [[{"subnet": "10.9.0.0/24"}]]});
    let mut conf = list(&world, &json!({"ipam": ipam}));
    conf["cniVersion"] = json!("1.0.0");
    world.node.run(|| {
        let runtime = world.runtime_of(&conf);
        let got = runtime.add(&attachment("a", &a)).unwrap();
        assert_eq!(got.ips[0].to_string(), "10.9.0.2");
        assert!(world.path("hl/orlop/10.9.0.2").exists());
        runtime.add(&attachment("b", &b)).unwrap();
        a.serve_tcp("0.0.0.0:80");
        assert_eq!(b.ask_tcp(socket("10.9.0.2", 80)), Ok("10.9.0.3".into()));
        runtime.del(&attachment("a", &a)).unwrap();
        runtime.settle();
        assert!(!world.path("hl/orlop/10.9.0.2").exists());
        // The record of b is lost; GC still finds the attachment.
        std::fs::remove_dir_all(world.path("cache")).unwrap();
        runtime.gc(&[]).unwrap();
        assert!(!world.path("hl/orlop/10.9.0.3").exists());
        assert_eq!(world.node.pod_links(), [""; 0]);
    });
}

#[test]
fn a_bridge_with_another_address_is_an_error_unless_forced() {
    if !root() {
        return;
    }
    let world = World::new();
    let a = Ns::new();
    world
        .node
        .sh("ip link add cni0 type bridge && ip addr add 10.244.1.9/24 dev cni0 && ip link set cni0 up");
    world.node.run(|| {
        let error = world.runtime_of(&list(&world, &json!({}))).add(&attachment("a", &a)).unwrap_err();
        assert!(error.to_string().contains("cni0 already has address 10.244.1.9/24"), "{error}");
        assert!(!world.node.sh("ip addr show cni0").contains("10.244.1.1/24"));
        world.runtime_of(&list(&world, &json!({"forceAddress": true}))).add(&attachment("a", &a)).unwrap();
        assert!(!world.node.sh("ip addr show cni0").contains("10.244.1.9"));
    });
}

#[test]
fn hairpin_and_isolation_are_set_on_the_port() {
    if !root() {
        return;
    }
    let world = World::new();
    let a = Ns::new();
    world.node.run(|| {
        let conf = list(&world, &json!({"hairpinMode": true, "portIsolation": true}));
        world.runtime_of(&conf).add(&attachment("a", &a)).unwrap();
        let port = world.node.sh("ip -d link show type veth");
        assert!(port.contains("hairpin on") && port.contains("isolated on"), "{port}");
    });
}
