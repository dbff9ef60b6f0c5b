//! A node, pods and an outside, made of network namespaces.
//!
//! Owns: the namespaces (removed on drop), the echo servers in the pods and the probes. Nothing of the machine's own
//! network is touched.
//! ```text
//!   outside 192.168.180.2 ── 192.168.180.1 node ──┬── pod a    10.180.0.10  on this node
//!                                                 ├── pod b    10.180.0.11  on this node
//!                                                 ├── client   10.180.0.12  on this node
//!                                                 ├── far      10.180.1.10  a pod of another node
//!                                                 └── distant  10.180.1.11  another
//! ```
//! with fd00:180::/64 and fd00:192::/64 beside it, and interfaces named `veth-<pod>` on the node's side.

#![allow(dead_code, reason = "each test uses a part of the lab")]

pub mod cluster;
mod sctp;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// Names, last parts of addresses and whether they are on this node.
pub const PODS: [(&str, &str, &str); 5] = [
    ("a", "10.180.0.10", "fd00:180::10"),
    ("b", "10.180.0.11", "fd00:180::11"),
    ("client", "10.180.0.12", "fd00:180::12"),
    ("far", "10.180.1.10", "fd00:180:0:1::10"),
    ("distant", "10.180.1.11", "fd00:180:0:1::11"),
];
pub const NODE_IP: &str = "192.168.180.1";
pub const NODE_IP6: &str = "fd00:192::1";
/// A second address of the node.
pub const NODE_OTHER_IP: &str = "192.168.180.11";
pub const OUTSIDE_IP: &str = "192.168.180.2";
pub const OUTSIDE_IP6: &str = "fd00:192::2";
/// Ports every pod answers at, over TCP and UDP.
pub const PORTS: [u16; 3] = [80, 443, 8080];

/// The port every pod answers at over SCTP.
pub const SCTP_PORT: u16 = 9;

static NUMBER: AtomicU32 = AtomicU32::new(0);
const PATIENCE: Duration = Duration::from_millis(350);

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A pod answered: its name, and the address it saw the client at.
    Answered(String, IpAddr),
    /// Refused: a reset, or ICMP.
    Refused,
    /// No answer.
    Silence,
}

/// The namespaces.
pub struct Lab {
    prefix: String,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

/// The reason this test cannot run, if there is one.
pub fn missing() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("root is needed to make network namespaces".to_owned());
    }
    for program in ["ip", "nft"] {
        let found = std::env::var_os("PATH")
            .is_some_and(|paths| std::env::split_paths(&paths).any(|path| path.join(program).exists()));
        if !found {
            return Some(format!("the program `{program}` is not installed"));
        }
    }
    None
}

/// Leaves a root test with a reason where it cannot run.
#[macro_export]
macro_rules! require_root {
    () => {
        if let Some(reason) = lab::missing() {
            println!("SKIP {reason}");
            return;
        }
    };
}

/// Held by whoever starts a program: until that runs, the child has a copy of every socket of this process.
static STARTING: RwLock<()> = RwLock::new(());

/// Runs a program to its end.
fn output(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let starting = STARTING.read().expect("no panic while a program starts");
    let child = command.spawn().expect("the program is installed");
    drop(starting);
    child.wait_with_output().expect("a child can be waited for")
}

/// Ends what owns sockets as the end of its process would: once this returns, nobody has them. If a child of another
/// test still held one, its table would belong to somebody else, and its port would be taken.
pub fn end<T>(owner: T) {
    let _nobody_starts = STARTING.write().expect("no panic while a program starts");
    drop(owner);
}

/// Runs `ip` with these words.
pub fn ip(arguments: &str) {
    let output = output(Command::new("ip").args(arguments.split(' ')));
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Lab {
    /// Only the node, without anything attached.
    pub fn bare() -> Self {
        let prefix = format!("onp{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let lab = Self { prefix, stop: Arc::default(), servers: Vec::new() };
        ip(&format!("netns add {}", lab.namespace("node")));
        ip(&format!("-n {} link set lo up", lab.namespace("node")));
        lab
    }

    /// Everything in the picture.
    pub fn new() -> Self {
        let mut lab = Self::bare();
        let node = lab.namespace("node");
        lab.on_node(|| {
            for (name, value) in [
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
            ] {
                std::fs::write(format!("/proc/sys/net/{name}"), value)
                    .expect("a sysctl of the lab's namespace");
            }
        });
        let outside = lab.attach("outside");
        ip(&format!("-n {node} addr add {NODE_IP}/24 dev veth-outside"));
        ip(&format!("-n {node} addr add {NODE_OTHER_IP}/24 dev veth-outside"));
        ip(&format!("-n {node} addr add {NODE_IP6}/64 dev veth-outside nodad"));
        ip(&format!("-n {outside} addr add {OUTSIDE_IP}/24 dev eth0"));
        ip(&format!("-n {outside} addr add {OUTSIDE_IP6}/64 dev eth0 nodad"));
        ip(&format!("-n {outside} route add default via {NODE_IP}"));
        ip(&format!("-n {outside} -6 route add default via {NODE_IP6}"));
        // The node itself reaches cluster addresses by a default route; packets that were not translated end outside.
        ip(&format!("-n {node} route add default via {OUTSIDE_IP}"));
        ip(&format!("-n {node} -6 route add default via {OUTSIDE_IP6}"));
        for (pod, v4, v6) in PODS {
            let namespace = lab.attach(pod);
            ip(&format!("-n {node} addr add 169.254.1.1/32 dev veth-{pod}"));
            ip(&format!("-n {node} addr add fe80::1/64 dev veth-{pod} nodad"));
            ip(&format!("-n {node} route add {v4}/32 dev veth-{pod} src {NODE_IP}"));
            ip(&format!("-n {node} -6 route add {v6}/128 dev veth-{pod} src {NODE_IP6}"));
            ip(&format!("-n {namespace} addr add {v4}/32 dev eth0"));
            ip(&format!("-n {namespace} addr add {v6}/128 dev eth0 nodad"));
            ip(&format!("-n {namespace} route add 169.254.1.1 dev eth0 scope link"));
            ip(&format!("-n {namespace} route add default via 169.254.1.1 src {v4}"));
            ip(&format!("-n {namespace} -6 route add default via fe80::1 dev eth0 src {v6}"));
            lab.serve(pod);
        }
        lab
    }

    fn attach(&self, name: &str) -> String {
        let (node, namespace) = (self.namespace("node"), self.namespace(name));
        ip(&format!("netns add {namespace}"));
        ip(&format!("-n {namespace} link set lo up"));
        ip(&format!("-n {node} link add veth-{name} type veth peer name eth0 netns {namespace}"));
        ip(&format!("-n {node} link set veth-{name} up"));
        ip(&format!("-n {namespace} link set eth0 up"));
        namespace
    }

    /// The namespace's name for `ip -n` and `ip netns exec`.
    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs something on a thread in a namespace.
    pub fn within<T: Send>(&self, name: &str, body: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.namespace(name))).expect("the namespace exists");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                body()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs something on a thread in the node's namespace.
    pub fn on_node<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.within("node", body)
    }

    /// Runs `nft` on the node and gives what it prints.
    pub fn nft(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("ip");
        let output = output(command.args(["netns", "exec", &self.namespace("node"), "nft"]).args(arguments));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Begins an SCTP association from a namespace.
    pub fn sctp(&self, from: &str, to: &str, port: u16) -> Outcome {
        let source =
            20_000 + u16::try_from(NUMBER.fetch_add(1, Ordering::Relaxed) % 40_000).expect("below 40000");
        let to = to.parse().expect("SCTP is tried over IPv4");
        self.within(from, || sctp::probe(source, to, port, PATIENCE))
    }

    fn serve(&mut self, pod: &'static str) {
        let stop = &self.stop;
        let raw = self.within(pod, || sctp::open(Duration::from_millis(20)));
        let sctp_stop = Arc::clone(stop);
        self.servers.push(std::thread::spawn(move || {
            while !sctp_stop.load(Ordering::Relaxed) {
                sctp::answer(&raw, pod, SCTP_PORT);
            }
        }));
        let sockets = self.within(pod, || {
            PORTS.map(|port| {
                let listener = TcpListener::bind(("::", port)).expect("a fresh namespace has free ports");
                listener.set_nonblocking(true).expect("a socket can be non-blocking");
                let udp = UdpSocket::bind(("::", port)).expect("a fresh namespace has free ports");
                udp.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout can be set");
                (listener, udp)
            })
        });
        for (listener, udp) in sockets {
            let tcp_stop = Arc::clone(stop);
            self.servers.push(std::thread::spawn(move || {
                while !tcp_stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((mut stream, peer)) => {
                            let _ = stream.set_nonblocking(false);
                            let _ = write!(stream, "{pod} {}", peer.ip().to_canonical());
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            }));
            let udp_stop = Arc::clone(stop);
            self.servers.push(std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !udp_stop.load(Ordering::Relaxed) {
                    if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                        let answer = format!("{pod} {}", peer.ip().to_canonical());
                        let _ = udp.send_to(answer.as_bytes(), peer);
                    }
                }
            }));
        }
    }

    /// Opens a TCP connection from a namespace.
    pub fn tcp(&self, from: &str, to: &str, port: u16) -> Outcome {
        let address = SocketAddr::new(to.parse().expect("an address"), port);
        self.within(from, || match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(mut stream) => {
                let mut text = String::new();
                let _ = stream.set_read_timeout(Some(PATIENCE));
                match stream.read_to_string(&mut text) {
                    Ok(_) => answered(&text),
                    Err(_) => Outcome::Silence,
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Outcome::Refused,
            Err(_) => Outcome::Silence,
        })
    }

    /// Sends a UDP packet from a namespace, from a port of the kernel's choice.
    pub fn udp(&self, from: &str, to: &str, port: u16) -> Outcome {
        self.udp_from(from, 0, to, port)
    }

    /// Sends a UDP packet from a namespace and port.
    pub fn udp_from(&self, from: &str, source_port: u16, to: &str, port: u16) -> Outcome {
        let address = SocketAddr::new(to.parse().expect("an address"), port);
        let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        self.within(from, || {
            let socket = UdpSocket::bind((any, source_port)).expect("the port is free");
            let _ = socket.set_read_timeout(Some(PATIENCE));
            let mut buffer = [0; 64];
            // A packet of the node itself that is dropped in the output hook fails with EPERM, also when an ICMP error
            // follows: what counts is what the socket hears then.
            let _ = socket.connect(address).and_then(|()| socket.send(b"?"));
            let received = socket.recv(&mut buffer);
            // The next one from this port is to find it free.
            end(socket);
            match received {
                Ok(length) => answered(&String::from_utf8_lossy(&buffer[..length])),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Outcome::Refused,
                Err(_) => Outcome::Silence,
            }
        })
    }
}

fn answered(text: &str) -> Outcome {
    let (pod, seen) = text.split_once(' ').expect("a server answers with its name and the client's address");
    Outcome::Answered(pod.to_owned(), seen.parse().expect("a server answers with an address"))
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
        for name in PODS.map(|(name, ..)| name).into_iter().chain(["outside", "node"]) {
            output(Command::new("ip").args(["netns", "del", &self.namespace(name)]));
        }
    }
}
