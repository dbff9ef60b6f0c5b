//! Measures what a pod's network costs, in namespaces of its own, and prints the figures as one JSON object.
//!
//! `network_bench [PLUGIN-PROGRAM] [DIRECTORY-OF-REFERENCE-PLUGINS]`
//! The first is this project's plugin as a program (its name must select the plugin), the second holds the reference
//! `bridge` and `host-local`, `/usr/lib/cni` on Debian. Without them those figures are missing. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "../tests/world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use orlop_cni::exec;
use orlop_cni::nodes::{Local, Nodes, NodesConfig, Peer};
use orlop_cni::runtime::Runtime;
use serde_json::{Value, json};
use world::{NODE_IP, Ns, World, attachment, root};

const PODS: usize = 200;
const DRAIN: usize = 100;
const RANGE: &[&str] = &["10.244.0.0/20"];

fn main() {
    if !root() {
        std::process::exit(1);
    }
    let mut figures = BTreeMap::new();
    let world = World::new();
    world.node.run(|| in_process(&world, &mut figures));
    let world = World::new();
    world.node.run(|| other_nodes(&mut figures));
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if let Some(program) = arguments.first() {
        let world = World::new();
        let conf = program_conf(&world, "orlop-cni");
        world.node.run(|| by_program("", program, &conf, &mut figures));
    }
    if let Some(directory) = arguments.get(1).filter(|d| d.join("bridge").exists()) {
        let world = World::new();
        let mut conf = program_conf(&world, "bridge");
        conf["ipam"]["type"] = json!("host-local");
        world.node.run(|| by_program("reference_", &directory.join("bridge"), &conf, &mut figures));
    }
    println!("{}", json!(figures));
}

/// Milliseconds, the share `at` of the way up.
fn quantile(times: &mut [Duration], at: f64) -> f64 {
    times.sort();
    let position = (times.len() as f64 - 1.0) * at;
    (times[position.round() as usize].as_secs_f64() * 1e6).round() / 1e3
}

fn note(figures: &mut BTreeMap<String, f64>, name: &str, mut times: Vec<Duration>) {
    figures.insert(format!("{name}_p50_ms"), quantile(&mut times, 0.5));
    figures.insert(format!("{name}_p99_ms"), quantile(&mut times, 0.99));
}

fn in_process(world: &World, figures: &mut BTreeMap<String, f64>) {
    let runtime: Runtime = world.runtime(RANGE);
    // The first pod makes the bridge and the rules.
    let warm = Ns::new();
    runtime.add(&attachment("warm", &warm)).unwrap();
    let (mut with_netns, mut add, mut pods) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..PODS {
        let begin = Instant::now();
        // ADD brings the loopback interface up.
        let pod = Ns::bare();
        let attached = attachment(&format!("p{n}"), &pod);
        let middle = Instant::now();
        runtime.add(&attached).unwrap();
        with_netns.push(begin.elapsed());
        add.push(middle.elapsed());
        pods.push((pod, attached));
    }
    note(figures, "setup_inprocess", with_netns);
    note(figures, "add_inprocess", add);
    let rest = pods.split_off(PODS - DRAIN);
    let mut del = Vec::new();
    for (_, attached) in &pods {
        let begin = Instant::now();
        runtime.del(attached).unwrap();
        del.push(begin.elapsed());
        runtime.settle();
    }
    note(figures, "del_blocking", del);
    let begin = Instant::now();
    for (_, attached) in &rest {
        runtime.del(attached).unwrap();
    }
    runtime.settle();
    figures.insert("drain100_ms".into(), begin.elapsed().as_secs_f64() * 1e3);
}

/// A thousand other nodes, half of them behind the tunnel: all at once, and one that changes its address.
fn other_nodes(figures: &mut BTreeMap<String, f64>) {
    let local =
        Local { addresses: vec![NODE_IP.parse().unwrap()], pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()] };
    let mut peers: Vec<Peer> = (1..=1000_u32)
        .map(|n| Peer {
            name: format!("node{n}"),
            addresses: vec![address_of(n)],
            pod_cidrs: vec![format!("10.{}.{}.0/24", n / 250 + 1, n % 250).parse().unwrap()],
        })
        .collect();
    let mut nodes = Nodes::new(NodesConfig::default()).unwrap();
    let begin = Instant::now();
    nodes.apply(&local, &peers).unwrap();
    figures.insert("nodes1000_first_ms".into(), begin.elapsed().as_secs_f64() * 1e3);
    let mut changes = Vec::new();
    for n in 0..20 {
        peers[n].addresses = vec![address_of(2000 + u32::try_from(n).unwrap())];
        let begin = Instant::now();
        nodes.apply(&local, &peers).unwrap();
        changes.push(begin.elapsed());
    }
    note(figures, "nodes1000_one_change", changes);
}

/// Every other one is on the node's own link, as far as there is room.
fn address_of(n: u32) -> IpAddr {
    if n.is_multiple_of(2) && n < 500 {
        IpAddr::from([192, 0, 2, (n / 2 + 3) as u8])
    } else {
        IpAddr::from((172_u32 << 24 | n).to_be_bytes())
    }
}

fn program_conf(world: &World, kind: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "bench", "type": kind, "bridge": "cni0",
        "isDefaultGateway": true, "ipMasq": false,
        "ipam": {"type": kind, "ranges": [[{"subnet": RANGE[0]}]], "dataDir": world.path("data")},
    })
}

fn by_program(prefix: &str, program: &Path, conf: &Value, figures: &mut BTreeMap<String, f64>) {
    let input = conf.to_string();
    let path = program.parent().unwrap_or(Path::new("/")).display().to_string();
    let call = |verb: &str, id: &str, pod: &Ns| {
        let variables = [
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", id.to_owned()),
            ("CNI_NETNS", pod.path().display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", path.clone()),
        ];
        let variables = variables.map(|(k, v)| (k.to_owned(), v)).into();
        let begin = Instant::now();
        exec::run(program, &variables, input.as_bytes(), Duration::from_secs(60)).unwrap();
        begin.elapsed()
    };
    call("ADD", "warm", &Ns::new());
    let pods: Vec<_> = (0..DRAIN).map(|n| (format!("p{n}"), Ns::new())).collect();
    let add = pods.iter().map(|(id, pod)| call("ADD", id, pod)).collect();
    note(figures, &format!("{prefix}add_binary"), add);
    let (one_by_one, together) = pods.split_at(DRAIN / 4);
    let del = one_by_one.iter().map(|(id, pod)| call("DEL", id, pod)).collect();
    note(figures, &format!("{prefix}del_binary"), del);
    for (id, pod) in one_by_one {
        call("ADD", id, pod);
    }
    let begin = Instant::now();
    thread::scope(|scope| {
        // As a node drains: some at a time.
        let halves = together.chunks(together.len().div_ceil(8)).chain([one_by_one]);
        for chunk in halves {
            let call = &call;
            scope.spawn(move || chunk.iter().for_each(|(id, pod)| _ = call("DEL", id, pod)));
        }
    });
    figures.insert(format!("{prefix}drain100_binary_ms"), begin.elapsed().as_secs_f64() * 1e3);
}
