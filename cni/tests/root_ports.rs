//! Host ports: from outside, from the node, by 127.0.0.1, from the pod itself; freed at once.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::UdpSocket;

use orlop_cni::runtime::{Attachment, Capabilities, PortMapping};
use serde_json::json;
use world::{NODE_IP, NODE_IP6, Ns, OUTSIDE_IP, World, ask_udp_from, attachment, root, socket};

const RANGES: &[&str] = &["10.244.1.0/24", "fd00:244:1::/64"];

fn with_ports(id: &str, pod: &Ns, ports: &[(u16, u16, &str, Option<&str>)]) -> Attachment {
    let port_mappings = ports
        .iter()
        .map(|(host_port, container_port, protocol, host_ip)| PortMapping {
            host_port: *host_port,
            container_port: *container_port,
            protocol: (*protocol).to_owned(),
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        })
        .collect();
    Attachment {
        capabilities: Capabilities { port_mappings, ..Capabilities::default() },
        ..attachment(id, pod)
    }
}

#[test]
fn a_host_port_is_reached_from_everywhere() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime(RANGES);
        runtime.add(&with_ports("a", &a, &[(8080, 80, "tcp", None)])).unwrap();
        runtime.add(&attachment("b", &b)).unwrap();
        a.serve_tcp("[::]:80");
        assert_eq!(
            world.outside.ask_tcp(socket(NODE_IP, 8080)),
            Ok(format!("::ffff:{OUTSIDE_IP}")),
            "own source"
        );
        assert_eq!(world.outside.ask_tcp(socket(NODE_IP6, 8080)), Ok("2001:db8::2".into()));
        assert_eq!(world.node.ask_tcp(socket(NODE_IP, 8080)), Ok(format!("::ffff:{NODE_IP}")));
        assert_eq!(
            world.node.ask_tcp(socket("127.0.0.1", 8080)),
            Ok("::ffff:10.244.1.1".into()),
            "localhost"
        );
        assert_eq!(b.ask_tcp(socket(NODE_IP, 8080)), Ok("::ffff:10.244.1.3".into()), "another pod");
        assert_eq!(a.ask_tcp(socket(NODE_IP, 8080)), Ok("::ffff:10.244.1.1".into()), "the pod itself");
        assert_eq!(a.ask_tcp(socket(NODE_IP6, 8080)), Ok("fd00:244:1::1".into()), "the pod itself");
        assert!(world.outside.ask_tcp(socket(NODE_IP, 8081)).is_err());
        runtime.check(&attachment("a", &a)).unwrap();

        runtime.del(&attachment("a", &a)).unwrap();
        assert!(world.outside.ask_tcp(socket(NODE_IP, 8080)).is_err(), "freed at once");
        runtime.settle();
        runtime.gc(&[attachment("b", &b)]).unwrap();
        assert!(world.rules().contains("masquerade"), "{}", world.rules());
        runtime.del(&attachment("b", &b)).unwrap();
        runtime.gc(&[]).unwrap();
        assert_eq!(world.rules(), "");
    });
}

#[test]
fn a_host_address_limits_a_host_port() {
    if !root() {
        return;
    }
    let world = World::new();
    world.node.sh("ip addr add 192.0.2.7/24 dev up0");
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime(RANGES);
        runtime.add(&with_ports("a", &a, &[(8080, 80, "tcp", Some("192.0.2.7"))])).unwrap();
        runtime.add(&with_ports("b", &b, &[(8080, 80, "tcp", Some(NODE_IP))])).unwrap();
        a.serve_tcp("0.0.0.0:80");
        b.serve_tcp("0.0.0.0:80");
        assert!(world.outside.ask_tcp(socket("192.0.2.7", 8080)).is_ok());
        runtime.del(&attachment("a", &a)).unwrap();
        assert!(world.outside.ask_tcp(socket("192.0.2.7", 8080)).is_err());
        assert!(world.outside.ask_tcp(socket(NODE_IP, 8080)).is_ok());
    });
}

#[test]
fn a_port_in_use_names_its_holder_and_changes_nothing() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime(RANGES);
        runtime.add(&with_ports("a", &a, &[(8080, 80, "tcp", None)])).unwrap();
        let error = runtime
            .add(&with_ports("b", &b, &[(9090, 90, "tcp", None), (8080, 80, "tcp", None)]))
            .unwrap_err();
        assert!(error.to_string().contains("host port 8080 is in use: by attachment a/eth0"), "{error}");
        assert!(!world.rules().contains("9090") && world.rules().contains("8080"));
        assert_eq!(b.links(), ["lo"]);
        let ports = [(8080, 80, "udp", None), (8081, 81, "sctp", None)];
        let address = runtime.add(&with_ports("b", &b, &ports)).unwrap().ips[0];
        // Not every kernel has SCTP to ask with.
        let rules = world.rules();
        for (key, port) in [("udp . 8080", 80), ("sctp . 8081", 81)] {
            let element = format!("{key} comment \"b/eth0\" : {address} . {port}");
            assert!(rules.contains(&element), "{element} in {rules}");
        }
    });
}

#[test]
fn datagrams_go_to_the_new_pod_at_once() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime(RANGES);
        let ports = [(5353, 53, "udp", None)];
        runtime.add(&with_ports("a", &a, &ports)).unwrap();
        a.serve_udp("0.0.0.0:53", "a");
        let client = world.outside.run(|| UdpSocket::bind("0.0.0.0:40000").unwrap());
        assert_eq!(ask_udp_from(&client, socket(NODE_IP, 5353)), Ok(format!("a {OUTSIDE_IP}")));
        runtime.del(&attachment("a", &a)).unwrap();
        runtime.add(&with_ports("b", &b, &ports)).unwrap();
        b.serve_udp("0.0.0.0:53", "b");
        // The same flow, still tracked by the kernel had it not been forgotten.
        assert_eq!(ask_udp_from(&client, socket(NODE_IP, 5353)), Ok(format!("b {OUTSIDE_IP}")));
    });
}

#[test]
fn nobody_outside_reaches_127_0_0_1_through_the_node() {
    if !root() {
        return;
    }
    let world = World::new();
    let a = Ns::new();
    world.node.run(|| {
        let runtime = world.runtime(RANGES);
        runtime.add(&with_ports("a", &a, &[(8080, 80, "tcp", None)])).unwrap();
        world.node.serve_tcp("127.0.0.1:99");
        assert!(world.node.ask_tcp(socket("127.0.0.1", 99)).is_ok());
        // The pod sends to the node's loopback address by way of its gateway.
        a.sh("ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via 10.244.1.1 dev eth0");
        a.sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet");
        assert!(a.ask_tcp(socket("127.0.0.1", 99)).is_err());
    });
}

#[test]
fn the_reference_configuration_of_ports_reads_the_same() {
    if !root() {
        return;
    }
    let world = World::new();
    let a = Ns::new();
    let mut conf = world.network(RANGES).to_value();
    conf["cniVersion"] = json!("0.4.0");
    world.node.run(|| {
        let runtime = world.runtime_of(&conf);
        runtime.add(&with_ports("a", &a, &[(8080, 80, "TCP", Some("0.0.0.0"))])).unwrap();
        a.serve_tcp("0.0.0.0:80");
        assert!(world.outside.ask_tcp(socket(NODE_IP, 8080)).is_ok());
        // The daemon was killed and has lost its record: GC frees the port by its comment.
        std::fs::remove_dir_all(world.path("cache")).unwrap();
        world.runtime_of(&conf).gc(&[]).unwrap();
        assert_eq!((world.rules(), world.node.pod_links()), (String::new(), vec![]));
    });
}
