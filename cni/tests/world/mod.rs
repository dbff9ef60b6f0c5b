//! A small world of network namespaces: a node, the outside it is connected to, and pods.
//!
//! Owns: the namespaces, held by descriptors only, so the kernel removes them with everything in them when the test
//! ends, however it ends.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use orlop_cni::netlink::Channel;
use orlop_cni::runtime::{Attachment, DefaultNetwork, Runtime, RuntimeConfig};
use serde_json::Value;

/// Long enough for anything that is going to happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the test can run; says why not.
pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root to make network namespaces");
    }
    root
}

/// A network namespace.
pub struct Ns {
    fd: OwnedFd,
}

impl Ns {
    pub fn new() -> Self {
        let ns = Self::bare();
        ns.run(|| Channel::route().unwrap().set_up(1).unwrap());
        ns
    }

    /// As the kernel makes it: the loopback interface is down.
    pub fn bare() -> Self {
        let fd = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        Self { fd: fd.join().unwrap() }
    }

    /// A path by which any process finds the namespace.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.fd, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command line inside and returns what it prints.
    pub fn sh(&self, line: &str) -> String {
        let output = self.try_sh(line);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {error}{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn try_sh(&self, line: &str) -> Output {
        self.run(|| Command::new("sh").args(["-c", line]).output().unwrap())
    }

    /// The names of the links inside, sorted.
    pub fn links(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.run(|| Channel::route().unwrap().links().unwrap()).into_iter().map(|l| l.name).collect();
        names.sort();
        names
    }

    /// Links that belong to a pod.
    pub fn pod_links(&self) -> Vec<String> {
        self.links().into_iter().filter(|n| n.starts_with("veth") || n.starts_with("ifb")).collect()
    }

    /// Starts a TCP server inside that tells each client the address it came from.
    pub fn serve_tcp(&self, address: &str) -> SocketAddr {
        let listener = self.run(|| TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")));
        let local = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let from = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                let _ = stream.write_all(from.as_bytes());
            }
        });
        local
    }

    /// Starts a UDP server inside that answers each datagram with its name and the address it came from.
    pub fn serve_udp(&self, address: &str, name: &'static str) {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
            }
        });
    }

    /// Connects from inside; the address the server saw, or why not.
    pub fn ask_tcp(&self, to: impl Into<SocketAddr>) -> Result<String, String> {
        let to = to.into();
        self.run(|| {
            let mut stream =
                TcpStream::connect_timeout(&to, Duration::from_secs(3)).map_err(|e| e.to_string())?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
            Ok(answer)
        })
    }

    /// Sends a datagram from inside from `socket`'s port and waits for the answer.
    pub fn ask_udp(&self, to: SocketAddr) -> Result<String, String> {
        let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        ask_udp_from(&self.run(|| UdpSocket::bind(from).unwrap()), to)
    }
}

pub fn ask_udp_from(socket: &UdpSocket, to: SocketAddr) -> Result<String, String> {
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.send_to(b"?", to).map_err(|e| e.to_string())?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// A node with the outside behind its default route.
pub struct World {
    pub node: Ns,
    pub outside: Ns,
    pub dir: tempfile::TempDir,
}

pub const NODE_IP: &str = "192.0.2.1";
pub const OUTSIDE_IP: &str = "192.0.2.2";
pub const NODE_IP6: &str = "2001:db8::1";
pub const OUTSIDE_IP6: &str = "2001:db8::2";

impl World {
    pub fn new() -> Self {
        let world = Self { node: Ns::new(), outside: Ns::new(), dir: tempfile::tempdir().unwrap() };
        world.node.sh(&format!(
            "ip link add up0 type veth peer name up0 netns {} && ip addr add {NODE_IP}/24 dev up0 && \
             ip addr add {NODE_IP6}/64 dev up0 nodad && ip link set up0 up",
            world.outside.path().display(),
        ));
        world.outside.sh(&format!(
            "ip addr add {OUTSIDE_IP}/24 dev up0 && ip addr add {OUTSIDE_IP6}/64 dev up0 nodad && ip link set up0 up"
        ));
        world.node.sh(&format!(
            "ip route add default via {OUTSIDE_IP} && ip -6 route add default via {OUTSIDE_IP6}"
        ));
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The network of a node with these pod ranges.
    pub fn network(&self, pod_cidrs: &[&str]) -> DefaultNetwork {
        DefaultNetwork {
            pod_cidrs: pod_cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            state_dir: Some(self.path("state")),
            ..DefaultNetwork::default()
        }
    }

    pub fn runtime_config(&self) -> RuntimeConfig {
        RuntimeConfig {
            conf_dir: self.path("net.d"),
            bin_dirs: vec![self.path("bin"), "/usr/lib/cni".into()],
            cache_dir: self.path("cache"),
            state_dir: self.path("state"),
            ..RuntimeConfig::default()
        }
    }

    /// A runtime on the node with our plugin and these pod ranges.
    pub fn runtime(&self, pod_cidrs: &[&str]) -> Runtime {
        let fallback = self.network(pod_cidrs).to_list();
        let runtime = Runtime::new(RuntimeConfig { fallback, ..self.runtime_config() });
        runtime.load().unwrap();
        runtime
    }

    /// A runtime on the node with this configuration.
    pub fn runtime_of(&self, list: &Value) -> Runtime {
        std::fs::create_dir_all(self.path("net.d")).unwrap();
        std::fs::write(self.path("net.d/10.conflist"), list.to_string()).unwrap();
        let runtime = Runtime::new(self.runtime_config());
        runtime.load().unwrap();
        runtime
    }

    /// What `nft` shows of our table; empty when there is none.
    pub fn rules(&self) -> String {
        let output = self.node.try_sh("nft list table inet orlop-cni");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

pub fn attachment(id: &str, pod: &Ns) -> Attachment {
    Attachment::of_pod(id, pod.path(), "default", id, &format!("uid-{id}"))
}

/// Runs a plugin's program on the node.
pub fn plugin(node: &Ns, program: &Path, variables: &[(&str, &str)], conf: &Value) -> Result<Value, Value> {
    let environment: BTreeMap<String, String> =
        variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let output = node.run(|| {
        let mut child = Command::new(program)
            .env_clear()
            .envs(&environment)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    if output.status.success() { Ok(value) } else { Err(value) }
}

pub fn socket(ip: impl std::fmt::Display, port: u16) -> SocketAddr {
    SocketAddr::new(format!("{ip}").parse::<IpAddr>().unwrap(), port)
}

/// Waits for a value from a thread.
pub fn receive<T>(receiver: &mpsc::Receiver<T>) -> T {
    receiver.recv_timeout(PATIENCE).unwrap()
}
