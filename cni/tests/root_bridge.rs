//! The bridge network as pods see it: each other, the node, the outside; and nothing left afterwards.
#![allow(clippy::unwrap_used)]

mod world;

use orlop_cni::runtime::Runtime;
use serde_json::json;
use world::{NODE_IP, NODE_IP6, Ns, OUTSIDE_IP, OUTSIDE_IP6, World, attachment, plugin, root, socket};

/// Our plugin as a program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_orlop-cni");
const RANGE: &[&str] = &["10.244.1.0/24"];

#[test]
fn pods_reach_each_other_the_node_and_the_outside() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime(RANGE);
        let first = runtime.add(&attachment("a", &a)).unwrap();
        let second = runtime.add(&attachment("b", &b)).unwrap();
        assert_eq!(
            (first.ips[0].to_string(), second.ips[0].to_string()),
            ("10.244.1.2".into(), "10.244.1.3".into())
        );
        b.serve_tcp("0.0.0.0:80");
        world.node.serve_tcp("0.0.0.0:81");
        world.outside.serve_tcp("0.0.0.0:82");
        assert_eq!(a.ask_tcp(socket(second.ips[0], 80)), Ok("10.244.1.2".into()), "pod to pod");
        assert_eq!(a.ask_tcp(socket(NODE_IP, 81)), Ok("10.244.1.2".into()), "pod to node");
        assert_eq!(a.ask_tcp(socket("10.244.1.1", 81)), Ok("10.244.1.2".into()), "pod to gateway");
        assert_eq!(world.node.ask_tcp(socket(second.ips[0], 80)), Ok("10.244.1.1".into()), "node to pod");
        assert_eq!(a.ask_tcp(socket(OUTSIDE_IP, 82)), Ok(NODE_IP.into()), "pod to outside, masqueraded");
        runtime.check(&attachment("a", &a)).unwrap();
        runtime.status().unwrap();
    });
}

#[test]
fn nothing_is_left_after_the_last_pod_and_gc() {
    if !root() {
        return;
    }
    let world = World::new();
    let pods: Vec<_> = (0..5).map(|_| Ns::new()).collect();
    world.node.run(|| {
        let runtime = world.runtime(RANGE);
        for (n, pod) in pods.iter().enumerate() {
            runtime.add(&attachment(&format!("p{n}"), pod)).unwrap();
        }
        assert_eq!(world.node.pod_links().len(), 5);
        for (n, pod) in pods.iter().enumerate() {
            runtime.del(&attachment(&format!("p{n}"), pod)).unwrap();
            runtime.del(&attachment(&format!("p{n}"), pod)).unwrap();
        }
        runtime.settle();
        assert_eq!(world.node.pod_links(), [""; 0]);
        assert_eq!(pods[0].links(), ["lo"]);
        assert_leases(&world, 0);
        assert!(std::fs::read_dir(world.path("cache")).unwrap().next().is_none());
        runtime.gc(&[]).unwrap();
        assert_eq!(world.rules(), "");
    });
}

fn assert_leases(world: &World, count: usize) {
    let mut store = orlop_cni::store::Store::new(&world.path("state"), "orlop");
    assert_eq!(store.owners().unwrap().len(), count);
}

#[test]
fn both_families_work_side_by_side() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime(&["10.244.1.0/24", "fd00:244:1::/64"]);
        runtime.add(&attachment("a", &a)).unwrap();
        let ips = runtime.add(&attachment("b", &b)).unwrap().ips;
        assert_eq!(ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.244.1.3", "fd00:244:1::3"]);
        b.serve_tcp("[::]:80");
        world.outside.serve_tcp("[::]:82");
        world.node.serve_tcp("[::]:83");
        assert_eq!(a.ask_tcp(socket("fd00:244:1::3", 80)), Ok("fd00:244:1::2".into()));
        assert_eq!(a.ask_tcp(socket("10.244.1.3", 80)), Ok("::ffff:10.244.1.2".into()));
        assert_eq!(a.ask_tcp(socket(OUTSIDE_IP6, 82)), Ok(NODE_IP6.into()));
        assert_eq!(a.ask_tcp(socket(NODE_IP6, 83)), Ok("fd00:244:1::2".into()));
    });
}

#[test]
fn a_second_add_returns_what_is_there_and_an_unfinished_one_is_undone() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let first = world.runtime(RANGE).add(&attachment("a", &a)).unwrap();
        // Another process after the first one died.
        let runtime = world.runtime(RANGE);
        assert_eq!(runtime.add(&attachment("a", &a)).unwrap(), first);
        assert_eq!(runtime.attached(&attachment("a", &a)).unwrap(), Some(first.clone()));
        // The sandbox lost its interface.
        a.sh("ip link del eth0");
        assert_ne!(runtime.add(&attachment("a", &a)).unwrap().ips, first.ips);
        assert_eq!(a.links(), ["eth0", "lo"]);
        // The sandbox was made anew with the same ID: the old attachment is undone.
        let again = runtime.add(&attachment("a", &b)).unwrap();
        assert_ne!(again.ips, first.ips);
        assert_leases(&world, 1);
        assert_eq!((a.links(), b.links()), (vec!["lo".to_owned()], vec!["eth0".to_owned(), "lo".to_owned()]));
    });
}

#[test]
fn the_program_answers_like_the_call_in_process() {
    if !root() {
        return;
    }
    let world = World::new();
    let pod = Ns::new();
    let mut conf = world.network(RANGE).to_value()["plugins"][0].clone();
    conf["name"] = json!("orlop");
    conf["cniVersion"] = json!("1.1.0");
    let netns = pod.path().display().to_string();
    let call = |verb: &str, conf: &serde_json::Value| {
        let variables =
            [("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &netns), ("CNI_IFNAME", "eth0")];
        plugin(&world.node, std::path::Path::new(PROGRAM), &variables, conf)
    };
    let result = call("ADD", &conf).unwrap();
    assert_eq!(
        result["ips"][0],
        json!({"interface": 2, "address": "10.244.1.2/24", "gateway": "10.244.1.1"})
    );
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["interfaces"][2]["sandbox"], netns.as_str());
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]));
    assert_eq!(call("ADD", &conf).unwrap_err()["code"], 7, "a second ADD without DEL is refused");

    let mut checked = conf.clone();
    checked["prevResult"] = result;
    assert_eq!(call("CHECK", &checked), Ok(serde_json::Value::Null));
    pod.sh("ip addr del 10.244.1.2/24 dev eth0");
    assert_eq!(call("CHECK", &checked).unwrap_err()["msg"], "interface eth0 lacks address 10.244.1.2/24");
    assert_eq!(call("STATUS", &conf), Ok(serde_json::Value::Null));
    assert_eq!(call("DEL", &checked), Ok(serde_json::Value::Null));
    assert_eq!(call("DEL", &conf), Ok(serde_json::Value::Null));
    assert_eq!(world.node.pod_links(), [""; 0]);
    let gone = plugin(
        &world.node,
        std::path::Path::new(PROGRAM),
        &[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/none"),
            ("CNI_IFNAME", "eth0"),
        ],
        &conf,
    );
    assert_eq!(gone.unwrap_err()["code"], 3);
}

#[test]
fn a_failed_add_leaves_nothing() {
    if !root() {
        return;
    }
    let world = World::new();
    let pod = Ns::new();
    pod.sh("ip link add eth0 type bridge");
    world.node.run(|| {
        let runtime: Runtime = world.runtime(RANGE);
        let error = runtime.add(&attachment("a", &pod)).unwrap_err();
        assert!(error.to_string().contains("File exists"), "{error}");
        assert_leases(&world, 0);
        assert_eq!(world.node.pod_links(), [""; 0]);
        assert_eq!(pod.links(), ["eth0", "lo"]);
        let own = attachment("b", &world.node);
        assert!(runtime.add(&own).unwrap_err().to_string().contains("of the node itself"));
    });
}

#[test]
fn the_mtu_follows_the_uplink_unless_it_is_given() {
    if !root() {
        return;
    }
    let world = World::new();
    world.node.sh("ip link set up0 mtu 1400");
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let result = world.runtime(RANGE).add(&attachment("a", &a)).unwrap().result;
        assert_eq!(result.interfaces.iter().map(|i| i.mtu).collect::<Vec<_>>(), [Some(1400); 3]);
    });
    let network = orlop_cni::runtime::DefaultNetwork { mtu: Some(1300), ..world.network(RANGE) };
    world.node.run(|| {
        let runtime = world.runtime_of(&network.to_value());
        let result = runtime.add(&attachment("b", &b)).unwrap().result;
        assert_eq!(result.interfaces[2].mtu, Some(1300));
    });
}

#[test]
fn a_full_range_is_not_ready_and_says_so() {
    if !root() {
        return;
    }
    let world = World::new();
    let pods = [Ns::new(), Ns::new()];
    world.node.run(|| {
        let runtime = world.runtime(&["10.244.1.0/30"]);
        runtime.status().unwrap();
        runtime.add(&attachment("a", &pods[0])).unwrap();
        assert_eq!(runtime.status().unwrap_err().code(), Some(50));
        let error = runtime.add(&attachment("b", &pods[1])).unwrap_err();
        assert!(error.to_string().contains("no address is free in 10.244.1.1-10.244.1.2"), "{error}");
        runtime.del(&attachment("a", &pods[0])).unwrap();
        runtime.settle();
        runtime.add(&attachment("b", &pods[1])).unwrap();
    });
}

#[test]
fn many_threads_share_one_runtime() {
    if !root() {
        return;
    }
    let world = World::new();
    world.node.run(|| {
        let runtime = world.runtime(&["10.244.1.0/26"]);
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let runtime = &runtime;
                scope.spawn(move || {
                    let pod = Ns::new();
                    let wanted = attachment(&format!("w{worker}"), &pod);
                    for round in 0..20 {
                        let got = runtime.add(&wanted).unwrap();
                        assert!(
                            pod.sh("ip addr show eth0").contains(&got.ips[0].to_string()),
                            "round {round}"
                        );
                        runtime.del(&wanted).unwrap();
                    }
                });
            }
        });
        runtime.settle();
        assert_leases(&world, 0);
        assert_eq!(world.node.pod_links(), [""; 0]);
    });
}

#[test]
fn a_router_s_advertisements_are_still_heard() {
    if !root() {
        return;
    }
    let world = World::new();
    let pod = Ns::new();
    let before = world.node.sh("cat /proc/sys/net/ipv6/conf/up0/accept_ra");
    assert_eq!(before.trim(), "1");
    world.node.run(|| world.runtime(&["fd00:244:1::/64"]).add(&attachment("a", &pod)).unwrap());
    assert_eq!(world.node.sh("cat /proc/sys/net/ipv6/conf/up0/accept_ra").trim(), "2");
    assert_eq!(world.node.sh("cat /proc/sys/net/ipv6/conf/all/forwarding").trim(), "1");
}

#[test]
fn other_pod_ranges_are_for_new_pods_only() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime(RANGE);
        let first = runtime.add(&attachment("a", &a)).unwrap().ips[0];
        runtime.set_fallback(world.network(&["10.244.9.0/24"]).to_list()).unwrap();
        let second = runtime.add(&attachment("b", &b)).unwrap().ips[0];
        assert_eq!((first.to_string(), second.to_string()), ("10.244.1.2".into(), "10.244.9.2".into()));
        b.serve_tcp("0.0.0.0:80");
        world.outside.serve_tcp("0.0.0.0:82");
        assert!(a.ask_tcp(socket(second, 80)).is_ok());
        for pod in [&a, &b] {
            assert_eq!(pod.ask_tcp(socket(OUTSIDE_IP, 82)), Ok(NODE_IP.into()));
        }
        runtime.del(&attachment("a", &a)).unwrap();
        runtime.del(&attachment("b", &b)).unwrap();
        runtime.settle();
        assert_leases(&world, 0);
        runtime.gc(&[]).unwrap();
        assert_eq!(world.rules(), "");
    });
}
