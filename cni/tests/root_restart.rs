//! A daemon with the runtime in it is killed at random moments; the next one finds and removes what it left.
#![allow(clippy::unwrap_used)]

mod world;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use orlop_cni::runtime::{Attachment, Capabilities, DefaultNetwork, PortMapping, Runtime, RuntimeConfig};
use orlop_cni::store::Store;
use world::{Ns, World, attachment, root};

/// Tells the test's own program that it is the daemon, and where things are.
const DIRECTORY: &str = "ORLOP_CNI_TEST_DAEMON";
const PODS: usize = 4;
const ROUNDS: u64 = 25;

fn runtime(dir: &Path) -> Runtime {
    let network = DefaultNetwork {
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        state_dir: Some(dir.join("state")),
        ..DefaultNetwork::default()
    };
    let runtime = Runtime::new(RuntimeConfig {
        conf_dir: dir.join("net.d"),
        cache_dir: dir.join("cache"),
        state_dir: dir.join("state"),
        fallback: network.to_list(),
        ..RuntimeConfig::default()
    });
    runtime.load().unwrap();
    runtime
}

fn wanted(n: usize, netns: PathBuf) -> Attachment {
    let port = PortMapping {
        host_port: 8000 + u16::try_from(n).unwrap(),
        container_port: 80,
        protocol: "tcp".into(),
        host_ip: None,
    };
    let capabilities = Capabilities { port_mappings: vec![port], ..Capabilities::default() };
    Attachment { capabilities, ..Attachment::of_pod(&format!("p{n}"), netns, "default", "p", "u") }
}

/// Not a test of its own: what the daemon does until it is killed.
#[test]
fn daemon() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let dir = PathBuf::from(dir);
    let runtime = runtime(&dir);
    thread::scope(|scope| {
        for n in 0..PODS {
            let (runtime, dir) = (&runtime, &dir);
            scope.spawn(move || {
                let netns = std::fs::read_to_string(dir.join(format!("netns{n}"))).unwrap();
                let wanted = wanted(n, netns.into());
                loop {
                    runtime.add(&wanted).unwrap();
                    runtime.del(&wanted).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_killed_daemon_leaves_nothing_that_its_successor_does_not_remove() {
    if !root() {
        return;
    }
    let world = World::new();
    let pods: Vec<Ns> = (0..PODS).map(|_| Ns::new()).collect();
    for (n, pod) in pods.iter().enumerate() {
        std::fs::write(world.path(&format!("netns{n}")), pod.path().display().to_string()).unwrap();
    }
    let program = std::env::current_exe().unwrap();
    for round in 0..ROUNDS {
        let mut daemon = world.node.run(|| {
            Command::new(&program)
                .args(["--exact", "daemon", "--nocapture"])
                .env(DIRECTORY, world.dir.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        });
        // The moment is what is varied here, not something that is waited for.
        thread::sleep(Duration::from_micros(20_000 + round * 1_931));
        assert!(daemon.try_wait().unwrap().is_none(), "it works until it is killed");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        world.node.run(|| {
            let runtime = runtime(world.dir.path());
            if round % 2 == 0 {
                // Its pods are still wanted: each ADD either finds its work done or does it again.
                for (n, pod) in pods.iter().enumerate() {
                    let ips = runtime.add(&wanted(n, pod.path())).unwrap().ips;
                    assert!(pod.sh("ip addr show eth0").contains(&format!("{}/", ips[0])));
                }
                assert_eq!(world.node.pod_links().len(), PODS);
                assert_eq!(leases(&world), PODS);
            } else {
                runtime.gc(&[]).unwrap();
                assert_eq!((world.node.pod_links(), leases(&world)), (vec![], 0), "round {round}");
                assert_eq!(world.rules(), "", "round {round}");
                assert!(std::fs::read_dir(world.path("cache")).unwrap().next().is_none_or(|e| {
                    // A record being written when the daemon died is a file beside the records.
                    e.unwrap().path().extension().is_some_and(|e| e == "new")
                }));
            }
        });
    }
}

fn leases(world: &World) -> usize {
    Store::new(&world.path("state"), "orlop").owners().unwrap().len()
}

#[test]
fn pods_keep_their_network_while_the_daemon_is_away() {
    if !root() {
        return;
    }
    let world = World::new();
    let (a, b) = (Ns::new(), Ns::new());
    world.node.run(|| {
        let runtime = world.runtime(&["10.244.1.0/24"]);
        let target = runtime.add(&attachment("a", &a)).unwrap().ips[0];
        runtime.add(&attachment("b", &b)).unwrap();
        a.serve_tcp("0.0.0.0:80");
        drop(runtime);
        assert!(b.ask_tcp(world::socket(target, 80)).is_ok());
        let runtime = world.runtime(&["10.244.1.0/24"]);
        runtime.gc(&[attachment("a", &a), attachment("b", &b)]).unwrap();
        assert!(b.ask_tcp(world::socket(target, 80)).is_ok());
        runtime.check(&attachment("a", &a)).unwrap();
    });
}
