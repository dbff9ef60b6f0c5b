//! A node under test: the real daemon in network, mount and UTS namespaces of its own, with directories and a cgroup root
//! of its own.
//!
//! Owns: all of that, and its removal, also when a test fails. Never: touches anything else on the machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Access, Client};
use crate::{namespaces, programs};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A node and its embedded API server.
pub struct Node {
    dir: tempfile::TempDir,
    cgroup_root: String,
    name: String,
    /// By which others reach it.
    address: String,
    binary: PathBuf,
    /// Keeps the namespaces while no daemon runs.
    holder: Child,
    daemon: Option<Child>,
    client: Option<Client>,
}

impl Node {
    /// A node with a server of its own, started, with the busybox image imported, Ready.
    pub fn standalone() -> anyhow::Result<Self> {
        let mut node = Self::prepared()?;
        node.import_busybox()?;
        node.start()?;
        Ok(node)
    }

    /// Namespaces and directories, and nothing running.
    pub fn prepared() -> anyhow::Result<Self> {
        let mut node = Self::with_link(OWN_LINK)?;
        node.set_address("192.0.2.2".to_owned());
        Ok(node)
    }

    /// A prepared node on a link with a guest, which may join its server.
    pub fn before_guest() -> anyhow::Result<Self> {
        Self::with_link(GUEST_LINK)
    }

    /// A prepared second node on a link with this one, which has a server.
    pub fn beside(&self) -> anyhow::Result<Self> {
        let mut node = Self::with_link("true")?;
        self.run_inside(&["ip", "link", "set", "uplink1", "netns", &node.holder.id().to_string()])?;
        node.run_inside(&["sh", "-c", SECOND_LINK])?;
        node.set_address("192.0.2.3".to_owned());
        Ok(node)
    }

    /// A second node, joined to this one's server and started, with the busybox image; not waited for. With its kubeconfig.
    pub fn joined_beside(&self) -> anyhow::Result<(Self, String)> {
        let mut node = self.beside()?;
        let kubeconfig = self.kubeconfig_for(&node)?;
        node.import_busybox()?;
        node.spawn(&["--kubeconfig", &kubeconfig])?;
        Ok((node, kubeconfig))
    }

    /// Writes a kubeconfig with which `node` may join this node's server; its path.
    pub fn kubeconfig_for(&self, node: &Node) -> anyhow::Result<String> {
        let server = format!("https://{}:6443", self.address);
        let text = self.orlop(&["standalone", "kubeconfig", "--node", node.name(), "--server", &server])?;
        let path = node.dir().join("etc/kubeconfig");
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// A node whose network namespace is prepared by a script.
    pub(crate) fn with_link(link: &str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("orlop-e2e-").tempdir()?;
        let name = format!("node-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroup_root = format!("orlop-test-{name}");
        for sub in ["root", "run", "logs/pods", "etc", "bin"] {
            fs::create_dir_all(dir.path().join(sub))?;
        }
        fs::write(dir.path().join("etc/config.yaml"), config(dir.path(), &cgroup_root))?;
        let holder = namespaces::hold(&name, link)?;
        let (address, binary) = (String::new(), orlop_bin());
        Ok(Self { dir, cgroup_root, name, address, binary, holder, daemon: None, client: None })
    }

    /// Runs a copy of the binary from now on: its processes share no page with those of others.
    pub fn use_a_copy(&mut self) -> anyhow::Result<()> {
        let copy = self.dir.path().join("orlop");
        let binary = fs::read(&self.binary).with_context(|| format!("read {}", self.binary.display()))?;
        programs::write(&copy, binary, "755")?;
        self.binary = copy;
        Ok(())
    }

    /// Adds lines to the configuration, before the daemon starts.
    pub fn configure(&self, lines: &str) -> anyhow::Result<()> {
        let path = self.dir.path().join("etc/config.yaml");
        let text = fs::read_to_string(&path)? + lines;
        Ok(fs::write(path, text)?)
    }

    /// The directory that holds everything of this node.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address by which others reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn set_address(&mut self, address: String) {
        self.address = address;
    }

    /// The process that holds its namespaces.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// `cgroupRoot` without the leading slash.
    pub fn cgroup_root(&self) -> &str {
        &self.cgroup_root
    }

    /// The daemon's process id.
    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.daemon.as_ref().context("the daemon does not run")?.id())
    }

    /// Imports the busybox image into the node's store.
    pub fn import_busybox(&self) -> anyhow::Result<()> {
        let archive = crate::image::busybox_archive(self.dir.path())?;
        let out =
            self.orlop(&["image", "import", &archive.display().to_string(), "--tag", crate::image::BUSYBOX])?;
        ensure!(!out.is_empty(), "import said nothing");
        Ok(())
    }

    /// Starts the daemon with the embedded server and waits until the node is Ready.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.spawn(&["--standalone"])?;
        self.wait_ready()
    }

    /// Starts the daemon with these further arguments, and waits for nothing.
    pub fn spawn(&mut self, args: &[&str]) -> anyhow::Result<()> {
        let dir = self.dir.path();
        let (root, run, config) = (dir.join("root"), dir.join("run"), dir.join("etc/config.yaml"));
        let (name, root, run, config) = (
            self.name.clone(),
            root.display().to_string(),
            run.display().to_string(),
            config.display().to_string(),
        );
        let mut all = vec!["run", "--hostname-override", &name, "--root-dir", &root, "--run-dir", &run];
        let (nets, bins) =
            (dir.join("etc/net.d").display().to_string(), dir.join("bin").display().to_string());
        all.extend(["--config", &config, "--cni-conf-dir", &nets, "--cni-bin-dir", &bins]);
        all.extend(args);
        self.spawn_command(&all)
    }

    /// Starts this command of orlop as the daemon, and waits for nothing.
    pub fn spawn_command(&mut self, args: &[&str]) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command();
        command
            .env("ORLOP_RUN_DIR", self.dir.path().join("run"))
            .arg(&self.binary)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.daemon = Some(command.spawn().context("start the daemon")?);
        Ok(())
    }

    /// Waits until the API server says that the node is Ready.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.wait_server()?;
        let start = Instant::now();
        let path = format!("/api/v1/nodes/{}", self.name);
        loop {
            let seen = self.client().and_then(|client| client.find(&path));
            if let Ok(Some(node)) = &seen
                && crate::manifest::is_ready(node)
            {
                return Ok(());
            }
            self.check_alive()?;
            ensure!(
                start.elapsed() < Duration::from_secs(30),
                "not Ready after 30 s: {seen:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the embedded server has written the admin kubeconfig.
    pub fn wait_server(&mut self) -> anyhow::Result<()> {
        let kubeconfig = self.kubeconfig();
        let start = Instant::now();
        while !kubeconfig.exists() {
            self.check_alive()?;
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "no admin kubeconfig after 20 s: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn check_alive(&mut self) -> anyhow::Result<()> {
        let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().transpose());
        match ended {
            Some(status) => bail!("the daemon ended with {:?}:\n{}", status, self.log()),
            None => Ok(()),
        }
    }

    /// The admin kubeconfig of the embedded server.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("root/standalone/admin.kubeconfig")
    }

    /// A client that speaks from inside the node.
    pub fn client(&mut self) -> anyhow::Result<Client> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let access = Access::from_kubeconfig(&fs::read_to_string(self.kubeconfig())?)?;
        let netns = self.netns()?;
        let client = Client::new(access, Some(netns))?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// The node's network namespace.
    pub fn netns(&self) -> anyhow::Result<File> {
        Ok(File::open(format!("/proc/{}/ns/net", self.holder.id()))?)
    }

    /// The network namespace of a pod with this UID, as a path.
    pub fn pod_netns(&self, uid: &str) -> anyhow::Result<String> {
        let record = self.dir.path().join("run/pods").join(uid).join("supervisor.json");
        let record: serde_json::Value = serde_json::from_str(&fs::read_to_string(record)?)?;
        Ok(format!("/proc/{}/ns/net", record["pid"]))
    }

    /// SIGKILL to the daemon, and nothing else.
    pub fn kill_daemon(&mut self) -> anyhow::Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    /// SIGTERM to the daemon; its exit code.
    pub fn stop_daemon(&mut self) -> anyhow::Result<Option<i32>> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(None) };
        kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(15) {
            if let Some(status) = daemon.try_wait()? {
                return Ok(status.code());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon.kill()?;
        daemon.wait()?;
        bail!("the daemon did not end within 15 s of SIGTERM: {}", self.log())
    }

    /// Runs a program inside the node's namespaces; its standard output.
    pub fn run_inside(&self, command: &[&str]) -> anyhow::Result<String> {
        namespaces::run(self.holder.id(), command)
    }

    /// The last line of the page `/`, fetched from the node's network namespace; empty where nobody answers.
    pub fn fetch(&self, address: &str, port: u16) -> anyhow::Result<String> {
        self.fetch_page(address, port, "/")
    }

    /// Fetches until the page is as wanted, for 30 s: rules follow their objects a moment later, and a program listens a
    /// moment after it was started.
    pub fn answers(&self, (address, port): (&str, u16), wanted: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let page = self.fetch(address, port).unwrap_or_default();
            if page.trim() == wanted {
                return Ok(());
            }
            ensure!(
                start.elapsed() < Duration::from_secs(30),
                "{} asks {address}:{port} and gets {page:?}, not {wanted}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// As [`Self::fetch`], of another page.
    pub fn fetch_page(&self, address: &str, port: u16, path: &str) -> anyhow::Result<String> {
        let script = format!(
            "printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 {address} {port} | tail -n 1"
        );
        self.run_inside(&["sh", "-c", &script])
    }

    /// Runs one of orlop's commands on this node; its standard output.
    pub fn orlop(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.orlop_output(args)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "orlop {args:?}: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// As [`Self::orlop`], whatever comes of it.
    pub fn orlop_output(&self, args: &[&str]) -> anyhow::Result<std::process::Output> {
        let dir = self.dir.path();
        let output = self
            .command()
            .env("ORLOP_ROOT_DIR", dir.join("root"))
            .env("ORLOP_RUN_DIR", dir.join("run"))
            .env("ORLOP_POD_LOGS_DIR", dir.join("logs/pods"))
            .arg(&self.binary)
            .args(args)
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }

    /// Waits until a command inside prints what is wanted.
    pub fn until_prints(&self, command: &[&str], wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let out = self.run_inside(command)?;
            if wanted(&out) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < Duration::from_secs(30),
                "{command:?} still prints {out}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// A program inside the node's namespaces, still without its name.
    pub fn command(&self) -> Command {
        namespaces::inside(self.holder.id())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("ORLOP_TEST_LOG").is_some() {
            eprintln!("--- log of {} ---\n{}", self.name, self.log());
        }
        let _ = self.kill_daemon();
        self.end_pods();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Node {
    /// Ends everything in our cgroup root, then removes it.
    pub fn end_pods(&self) {
        let mut bases = vec![Path::new("/sys/fs/cgroup").join(&self.cgroup_root)];
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            bases.push(entry.path().join(&self.cgroup_root));
        }
        for _ in 0..100 {
            let alive: usize = bases.iter().map(|base| kill_all(base)).sum();
            if alive == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for base in &bases {
            remove_cgroup(base);
        }
    }
}

fn kill_all(dir: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            count += kill_all(&entry.path());
        }
    }
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|line| line.parse().ok()) {
        count += 1;
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    count
}

fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// A bridge with the other end of a guest's link, and a member that keeps it up while the guest is off.
const GUEST_LINK: &str = "ip link add uplink0 type bridge && \
    ip link add uplink1 type veth peer name uplink2 && ip link set uplink2 up && \
    ip link set uplink1 master uplink0 up && ip addr add 192.0.2.2/24 dev uplink0 && ip link set uplink0 up && \
    ip tuntap add dev guest0 mode tap && ip link set guest0 master uplink0 up && \
    ip route add default via 192.0.2.1";
/// A veth whose other end nobody serves yet, and a default route through it.
const OWN_LINK: &str = "ip link add uplink0 type veth peer name uplink1 && ip addr add 192.0.2.2/24 dev uplink0 && \
    ip link set uplink0 up && ip link set uplink1 up && ip route add default via 192.0.2.1";
/// The other end, in a second node.
const SECOND_LINK: &str = "ip addr add 192.0.2.3/24 dev uplink1 && ip link set uplink1 up && \
    ip route add default via 192.0.2.2";

/// The binary under test.
pub fn orlop_bin() -> PathBuf {
    PathBuf::from(std::env::var_os("ORLOP_BIN").unwrap_or_else(|| "target/debug/orlop".into()))
}

fn config(dir: &Path, cgroup_root: &str) -> String {
    let dir = dir.display();
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupRoot: /{cgroup_root}\n\
         cgroupDriver: cgroupfs\nfailCgroupV1: false\npodLogsDir: {dir}/logs/pods\nclusterDNS: [10.96.0.10]\n\
         clusterDomain: cluster.local\n"
    )
}
