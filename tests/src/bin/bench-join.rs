//! Joining and restarting: how long they take and what they disturb. Writes `target/bench/join.json` and prints a table.
//!
//! Owns: how each figure is taken; the command that does it is in `tests/bench`. Never: judges the machine (goals are
//! printed beside the figures; a figure that misses its goal fails the run).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orlop_tests::client::{Client, Watch};
use orlop_tests::joining::{self, Invitation};
use orlop_tests::manifest::is_ready;
use orlop_tests::node::Node;
use orlop_tests::report::{Figure, report};
use orlop_tests::stats::percentile;
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";
const LONG: Duration = Duration::from_secs(60);
/// Joins, each followed by a reset.
const JOINS: usize = 5;
/// Starts with the credentials of a join.
const STARTS: usize = 10;
/// Restarts under open connections; every other one is a SIGKILL.
const RESTARTS: usize = 4;
/// Open connections through a service.
const CONNECTIONS: usize = 1000;
/// Where their other end listens, in the server's namespace.
const SERVER: &str = "192.0.2.2";
const PORT: u16 = 7000;

fn main() -> anyhow::Result<()> {
    if let Some(reason) = orlop_tests::cannot_run() {
        anyhow::bail!("cannot measure: {reason}");
    }
    let mut server = Node::prepared()?;
    server.start()?;
    let client = server.client()?;
    let mut node = server.beside()?;
    joining::configure(&client, &node)?;
    let invitation = Invitation::new(&server, "1h")?;

    let mut figures = vec![];
    let command = joins(&client, &mut node, &invitation, &mut figures)?;
    starts(&client, &mut node, &command, &mut figures)?;
    restarts(&server, &client, &mut node, &command, &mut figures)?;
    report("join", &figures)
}

fn node_path(node: &Node) -> String {
    format!("{NODES}/{}", node.name())
}

/// From the start of `orlop join` to its end, which is when the API server says that the node is Ready. The last one stays
/// joined; the daemon's arguments come back.
fn joins(
    client: &Client,
    node: &mut Node,
    invitation: &Invitation,
    figures: &mut Vec<Figure>,
) -> anyhow::Result<Vec<String>> {
    let mut seconds = vec![];
    loop {
        let start = Instant::now();
        let mut joining = joining::Joining::start(node, &invitation.args())?;
        let command = joining.until_service()?;
        joining::start_daemon(node, &command)?;
        let (code, said) = joining.finish()?;
        seconds.push(start.elapsed().as_secs_f64());
        ensure!(code == Some(0), "the join ended with {code:?}: {said}\n{}", node.log());
        if seconds.len() == JOINS {
            figures.push(Figure {
                name: "join_to_ready_seconds",
                value: percentile(&mut seconds, 50),
                goal: 2.0,
            });
            println!("join: worst of {JOINS} {:.2} s", percentile(&mut seconds, 100));
            return Ok(command);
        }
        let output = joining::reset(node)?;
        ensure!(output.status.success(), "{output:?}");
        node.stop_daemon()?;
        client.delete(&node_path(node))?;
    }
}

/// From the start of the daemon to the Ready condition at the API server, of a Node that is not there before.
fn starts(
    client: &Client,
    node: &mut Node,
    command: &[String],
    figures: &mut Vec<Figure>,
) -> anyhow::Result<()> {
    let mut times = vec![];
    let name = node.name().to_owned();
    for _ in 0..STARTS {
        node.stop_daemon()?;
        client.delete(&node_path(node))?;
        let mut watch = client.watch(NODES)?;
        let start = Instant::now();
        joining::start_daemon(node, command)?;
        watch.until(LONG, |event| {
            let object = &event["object"];
            event["type"] != "DELETED" && object["metadata"]["name"] == name.as_str() && is_ready(object)
        })?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    figures.push(Figure { name: "start_to_ready_ms", value: percentile(&mut times, 50), goal: 300.0 });
    println!("start: worst of {STARTS} {:.0} ms", percentile(&mut times, 100));
    Ok(())
}

/// The daemon is ended and started again under open connections through a service, and a watch of its Node.
fn restarts(
    server: &Node,
    client: &Client,
    node: &mut Node,
    command: &[String],
    figures: &mut Vec<Figure>,
) -> anyhow::Result<()> {
    let address = service(client)?;
    wait_programmed(node, &address)?;
    let (hard, wanted) = (getrlimit(Resource::RLIMIT_NOFILE)?.1, 3 * CONNECTIONS as u64);
    ensure!(hard >= wanted, "at most {hard} open files here, and {wanted} are needed");
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    let listener = inside(server, || Ok(TcpListener::bind((SERVER, PORT))?))?;
    let echo = std::thread::spawn(move || echo(&listener));
    let mut open = inside(node, || connect(&address))?;

    let mut watch = client.watch(NODES)?;
    let mut flips = 0;
    for turn in 0..RESTARTS {
        let before = heartbeat(&client.get(&node_path(node))?);
        // Heartbeats are whole seconds: the next one can be told from this.
        wait_for_another_second(&before)?;
        if turn % 2 == 0 {
            node.stop_daemon().map(drop)?
        } else {
            node.kill_daemon()?
        }
        joining::start_daemon(node, command)?;
        until_reported(&mut watch, node, &before, &mut flips)?;
    }
    figures.push(Figure { name: "restart_ready_flips", value: f64::from(flips), goal: 0.0 });

    let dropped = dropped(&mut open);
    figures.push(Figure { name: "restart_dropped_connections", value: dropped as f64, goal: 0.0 });
    drop(open);
    if dropped > 0 {
        // The other ends of lost connections wait for ever.
        return Ok(());
    }
    let served = echo.join().map_err(|_| anyhow::anyhow!("the echo server panicked"))??;
    ensure!(served >= CONNECTIONS, "only {served} connections were answered");
    Ok(())
}

/// Until the daemon has posted a new heartbeat; every state of the node that is not Ready counts.
fn until_reported(watch: &mut Watch, node: &Node, before: &str, flips: &mut u32) -> anyhow::Result<()> {
    let name = node.name().to_owned();
    let seen = watch.until(LONG, |event| {
        let object = &event["object"];
        if object["metadata"]["name"] != name.as_str() {
            return false;
        }
        if event["type"] == "DELETED" || !is_ready(object) {
            *flips += 1;
        }
        heartbeat(object) != before
    });
    seen.with_context(|| node.log())
}

fn heartbeat(node: &Value) -> String {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.and_then(|list| list.iter().find(|condition| condition["type"] == "Ready"));
    ready.and_then(|ready| ready["lastHeartbeatTime"].as_str()).unwrap_or_default().to_owned()
}

fn wait_for_another_second(heartbeat: &str) -> anyhow::Result<()> {
    let last: jiff::Timestamp = heartbeat.parse().with_context(|| format!("heartbeat {heartbeat:?}"))?;
    while jiff::Timestamp::now().as_second() <= last.as_second() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A service whose one endpoint is in the server's namespace; its address.
fn service(client: &Client) -> anyhow::Result<String> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo"},
        "spec": {"ports": [{"port": 80, "targetPort": PORT}]}});
    let made = client.create("/api/v1/namespaces/default/services", &service)?;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "echo-1", "labels": {"kubernetes.io/service-name": "echo"}},
        "endpoints": [{"addresses": [SERVER], "conditions": {"ready": true}}],
        "ports": [{"port": PORT, "protocol": "TCP"}]});
    client.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice)?;
    Ok(made["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned())
}

/// Waits until the node translates the service itself: the server on its default route would do it too.
fn wait_programmed(node: &Node, address: &str) -> anyhow::Result<()> {
    let (start, wanted) = (Instant::now(), format!("{SERVER}:{PORT}"));
    loop {
        let output = node.orlop_output(&["proxy", "explain", &format!("{address}:80")])?;
        if String::from_utf8_lossy(&output.stdout).contains(&wanted) {
            return Ok(());
        }
        ensure!(start.elapsed() < LONG, "the service is not programmed: {output:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Does something on a thread in a node's network namespace.
fn inside<T: Send>(node: &Node, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let netns = node.netns()?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().map_err(|_| anyhow::anyhow!("a thread in the namespace panicked"))?
    })
}

/// Opens all connections, the first once the service is programmed.
fn connect(address: &str) -> anyhow::Result<Vec<TcpStream>> {
    let start = Instant::now();
    let target = (address, 80);
    let first = loop {
        match TcpStream::connect(target) {
            Ok(stream) => break stream,
            Err(error) => {
                ensure!(start.elapsed() < LONG, "the service at {address} does not answer: {error}")
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut open = vec![first];
    while open.len() < CONNECTIONS {
        open.push(TcpStream::connect(target)?);
    }
    for stream in &mut open {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        ensure!(answers(stream), "a new connection is not answered");
    }
    Ok(open)
}

/// How many of the connections are not answered, all within one patience.
fn dropped(open: &mut [TcpStream]) -> usize {
    let end = Instant::now() + Duration::from_secs(10);
    let mut count = 0;
    for stream in open {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let patient = stream.set_read_timeout(Some(left)).is_ok();
        if !(patient && answers(stream)) {
            count += 1;
        }
    }
    count
}

fn answers(stream: &mut TcpStream) -> bool {
    let mut answer = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"x"
}

/// Accepts every connection and answers what it says, each on a small thread, until all have ended; how many there were.
fn echo(listener: &TcpListener) -> anyhow::Result<usize> {
    let mut threads = vec![];
    for _ in 0..CONNECTIONS {
        let (mut stream, _) = listener.accept()?;
        let serve = move || {
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        };
        threads.push(std::thread::Builder::new().stack_size(64 << 10).spawn(serve)?);
    }
    let count = threads.len();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("an echo panicked"))?;
    }
    Ok(count)
}
