//! Eight processes at a time attach and detach containers in random order, and many are killed on the way.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use orlop_cni::store::Store;
use serde_json::{Value, json};
use world::{Ns, World, plugin, root};

const PROGRAM: &str = env!("CARGO_BIN_EXE_orlop-cni");
const WORKERS: usize = 8;
const CONTAINERS: usize = 4;
const OPERATIONS: usize = 500;
/// One in this many is killed.
const KILLED: u64 = 4;

/// A small generator, so that a failure can be repeated: the seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Who has which address, as far as the callers were told.
#[derive(Default)]
struct Told(Mutex<HashMap<IpAddr, String>>);

impl Told {
    fn given(&self, address: IpAddr, id: &str) {
        let before = self.0.lock().unwrap().insert(address, id.to_owned());
        assert_eq!(before, None, "{address} given to {id} and to another");
    }

    fn about_to_release(&self, id: &str) {
        self.0.lock().unwrap().retain(|_, holder| holder != id);
    }
}

struct Storm {
    world: World,
    conf: Value,
    told: Told,
    left: AtomicUsize,
}

impl Storm {
    fn start(&self, verb: &str, id: &str, pod: &Ns, port: usize) -> Child {
        let mut conf = self.conf.clone();
        conf["runtimeConfig"] =
            json!({"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]});
        // The worker's thread is on the node already.
        let mut child = Command::new(PROGRAM)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child
    }

    /// Runs one operation; `None` when it was killed before it could answer.
    fn run(&self, verb: &str, id: &str, pod: &Ns, port: usize, random: &mut Random) -> Option<Value> {
        let mut child = self.start(verb, id, pod, port);
        let kill = random.below(KILLED) == 0;
        if kill {
            thread::sleep(Duration::from_micros(random.below(if verb == "ADD" { 6_000 } else { 25_000 })));
            child.kill().unwrap();
        }
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let status = child.wait().unwrap();
        if status.success() {
            return Some(serde_json::from_str(&text).unwrap_or(Value::Null));
        }
        assert!(kill, "{verb} {id} failed: {text}");
        None
    }

    /// One worker's containers go through their lives.
    fn work(&self, worker: usize, random: &mut Random) -> Vec<(String, Ns)> {
        #[derive(PartialEq)]
        enum Is {
            Detached,
            Attached,
            Unknown,
        }
        let mut all: Vec<_> =
            (0..CONTAINERS).map(|n| (format!("w{worker}-c{n}-0"), Ns::new(), Is::Detached, 0)).collect();
        while self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            let n = random.below(CONTAINERS as u64) as usize;
            let port = 10_000 + worker * CONTAINERS + n;
            let (id, pod, is, round) = &mut all[n];
            if *is == Is::Detached {
                // A new sandbox each time, as a real runtime makes it.
                *round += 1;
                *id = format!("w{worker}-c{n}-{round}");
                *is = match self.run("ADD", id, pod, port, random) {
                    Some(result) => {
                        let address = result["ips"][0]["address"]
                            .as_str()
                            .unwrap()
                            .split('/')
                            .next()
                            .unwrap()
                            .to_owned();
                        self.told.given(address.parse().unwrap(), id);
                        Is::Attached
                    }
                    None => Is::Unknown,
                };
            } else {
                self.told.about_to_release(id);
                let done = self.run("DEL", id, pod, port, random).is_some();
                *is = if done { Is::Detached } else { Is::Unknown };
            }
        }
        all.into_iter().filter(|(_, _, is, _)| *is == Is::Attached).map(|(id, pod, _, _)| (id, pod)).collect()
    }

    fn gc(&self, valid: &[(String, Ns)]) {
        let valid: Vec<_> =
            valid.iter().map(|(id, _)| json!({"containerID": id, "ifname": "eth0"})).collect();
        let mut conf = self.conf.clone();
        conf["cni.dev/valid-attachments"] = valid.into();
        plugin(&self.world.node, PROGRAM.as_ref(), &[("CNI_COMMAND", "GC"), ("CNI_PATH", "/x")], &conf)
            .unwrap();
    }
}

#[test]
fn no_address_is_given_twice_none_is_lost_and_nothing_is_left() {
    if !root() {
        return;
    }
    let world = World::new();
    let mut conf = world.network(&["10.244.0.0/26", "fd00:244::/120"]).to_value()["plugins"][0].clone();
    conf["name"] = json!("orlop");
    conf["cniVersion"] = json!("1.1.0");
    let storm = Storm { world, conf, told: Told::default(), left: AtomicUsize::new(OPERATIONS) };
    let seed = u64::from(std::process::id()) << 20 | 1;
    println!("seed {seed}");
    let attached: Vec<(String, Ns)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|n| {
                let storm = &storm;
                scope.spawn(move || {
                    storm.world.node.run(|| storm.work(n, &mut Random(seed + n as u64 * 7919)))
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });

    storm.gc(&attached);
    let mut store = Store::new(&storm.world.path("state"), "orlop");
    let mut held: Vec<String> =
        store.owners().unwrap().into_iter().map(|(owner, _)| owner.container).collect();
    let mut expected: Vec<String> = attached.iter().map(|(id, _)| id.clone()).collect();
    held.sort();
    expected.sort();
    assert_eq!(held, expected, "what was attached is still leased, and nothing else");
    assert_eq!(storm.world.node.pod_links().len(), attached.len());
    for (id, pod) in &attached {
        let address =
            storm.told.0.lock().unwrap().iter().find(|(_, holder)| *holder == id).map(|(a, _)| *a).unwrap();
        assert!(pod.sh("ip addr show eth0").contains(&format!("{address}/")), "{id} has {address}");
        assert!(storm.world.rules().contains(&format!("\"{id}/eth0\"")), "{id} has its host port");
    }

    storm.gc(&[]);
    assert_eq!(store.owners().unwrap(), []);
    assert_eq!((storm.world.node.pod_links(), storm.world.rules()), (vec![], String::new()));
    assert!(attached.iter().all(|(_, pod)| pod.links() == ["lo"]));
}
