//! A guest: a machine made of software that boots real systemd with cgroup version 2, on a link to a node outside.
//!
//! - [`image`]: what it boots from, made once.
//! - [`agent`]: commands for it.
//!
//! Owns: the machine's process and its disks; both are gone when dropped. Never: knows what orlop is.

pub mod agent;
pub mod image;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::node::Node;
use agent::{Agent, Outcome};
use image::Image;

/// A boot, and a shutdown. Both take under half a minute on an idle machine.
const BOOT: Duration = Duration::from_secs(240);
/// One command.
const COMMAND: Duration = Duration::from_secs(120);
/// Conditions are asked for that often.
const PAUSE: Duration = Duration::from_millis(250);
/// The device at the other end of the guest's link, in the network namespace of the node outside.
pub const TAP: &str = "guest0";

/// A machine. It outlives its boots: its disk stays.
pub struct Guest {
    image: Image,
    dir: tempfile::TempDir,
    /// Enters the namespaces of the node outside, where the link is.
    enter: Vec<String>,
    running: Option<Running>,
}

struct Running {
    machine: Child,
    agent: Agent,
}

impl Guest {
    /// Boots a machine with a disk of its own, on the link of `outside`. `files` is a folder that the guest finds at
    /// `/files`.
    pub fn boot(image: &Image, outside: &Node, files: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("orlop-guest-").tempdir()?;
        copy_sparse(&image.root(), &dir.path().join("root.ext4"))?;
        let mut archive = tar::Builder::new(File::create(dir.path().join("files.tar"))?);
        archive.append_dir_all(".", files)?;
        archive.into_inner()?;
        let command = outside.command();
        let enter = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned());
        let mut guest = Self { image: image.clone(), dir, enter: enter.collect(), running: None };
        guest.start()?;
        guest.ok("mkdir -p /files && tar -xf /dev/nvme1n1 -C /files")?;
        Ok(guest)
    }

    /// Runs a script; an exit code other than 0 is an error. What it printed.
    pub fn ok(&mut self, script: &str) -> anyhow::Result<String> {
        let Outcome { code, text } = self.run(script)?;
        ensure!(code == 0, "in the guest, code {code}: {script}\n{text}");
        Ok(text)
    }

    /// Runs a script, whatever comes of it.
    pub fn run(&mut self, script: &str) -> anyhow::Result<Outcome> {
        let running = self.running.as_mut().context("the guest is off")?;
        running.agent.run(script, COMMAND).with_context(|| format!("console:\n{}", console(self.dir.path())))
    }

    /// Runs a script again and again until it ends with 0; what it printed then.
    pub fn until(&mut self, limit: Duration, script: &str) -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let Outcome { code, text } = self.run(script)?;
            if code == 0 {
                return Ok(text);
            }
            ensure!(start.elapsed() < limit, "not so within {limit:?}: {script}\ncode {code}: {text}");
            std::thread::sleep(PAUSE);
        }
    }

    /// An orderly reboot: systemd stops everything, then the machine starts again.
    pub fn reboot(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("the guest is off")?;
        // The machine is told to end at a reset, so that its end can be waited for.
        running.agent.send("systemctl reboot")?;
        let start = Instant::now();
        while running.machine.try_wait()?.is_none() {
            if start.elapsed() > BOOT {
                end(&mut running.machine);
                bail!("no shutdown within {BOOT:?}; console:\n{}", console(self.dir.path()));
            }
            std::thread::sleep(PAUSE);
        }
        self.start()
    }

    /// The machine stops in the middle of whatever it does; what it had not written is lost. Then it starts again.
    pub fn power_cut(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("the guest is off")?;
        end(&mut running.machine);
        self.start()
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let socket = self.dir.path().join("agent.sock");
        let _ = fs::remove_file(&socket);
        let log = File::create(self.dir.path().join("qemu.log"))?;
        let words: Vec<String> = self.enter.iter().cloned().chain(self.image.qemu()).collect();
        let mut machine = Command::new(&words[0])
            .args(&words[1..])
            .args(arguments(&self.image, self.dir.path()))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the machine")?;
        match connect(&mut machine, &socket, self.dir.path()) {
            Ok(agent) => {
                self.running = Some(Running { machine, agent });
                Ok(())
            }
            Err(error) => {
                end(&mut machine);
                Err(error)
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console of the guest ---\n{}", console(self.dir.path()));
        }
        if let Some(mut running) = self.running.take() {
            end(&mut running.machine);
        }
    }
}

/// Waits for the guest's first word.
fn connect(machine: &mut Child, socket: &Path, dir: &Path) -> anyhow::Result<Agent> {
    let start = Instant::now();
    let mut agent = None;
    loop {
        if let Some(status) = machine.try_wait()? {
            let log = fs::read_to_string(dir.join("qemu.log")).unwrap_or_default();
            bail!("the machine ended with {status}: {log}\nconsole:\n{}", console(dir));
        }
        ensure!(start.elapsed() < BOOT, "no boot within {BOOT:?}; console:\n{}", console(dir));
        match &mut agent {
            None => match Agent::connect(socket) {
                Ok(connected) => agent = Some(connected),
                Err(_) => std::thread::sleep(PAUSE),
            },
            Some(connected) => {
                if connected.ready()? {
                    return agent.context("no agent");
                }
            }
        }
    }
}

fn end(machine: &mut Child) {
    let _ = machine.kill();
    let _ = machine.wait();
}

fn console(dir: &Path) -> String {
    String::from_utf8_lossy(&fs::read(dir.join("console.log")).unwrap_or_default()).into_owned()
}

/// A small machine with two disks, a network card and a port for the agent. No firmware menus, no screen.
fn arguments(image: &Image, dir: &Path) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    let append = "root=/dev/nvme0n1 rw console=ttyS0 net.ifnames=0 panic=-1 quiet systemd.show_status=1";
    let mut words: Vec<String> = vec![
        "-kernel".into(),
        image.kernel().display().to_string(),
        "-append".into(),
        append.into(),
        "-serial".into(),
        format!("file:{}", path("console.log")),
        "-chardev".into(),
        format!("socket,id=agent,path={},server=on,wait=off", path("agent.sock")),
    ];
    for (name, file) in [("root", "root.ext4"), ("files", "files.tar")] {
        // A cut takes the guest's power, not this machine's: what the guest has written is in the file.
        let drive = format!("if=none,id={name},file={},format=raw,cache=unsafe", path(file));
        words.extend(["-drive".into(), drive, "-device".into(), format!("nvme,serial={name},drive={name}")]);
    }
    let fixed = [
        "-nodefaults -no-user-config -no-reboot -display none -machine q35 -accel tcg,thread=multi -cpu max",
        "-smp 2 -m 640 -device virtio-serial-pci -device virtserialport,chardev=agent,name=agent",
        "-device virtio-net-pci,netdev=link,romfile=",
    ];
    words.extend(fixed.iter().flat_map(|line| line.split(' ')).map(str::to_owned));
    words.extend(["-netdev".into(), format!("tap,id=link,ifname={TAP},script=no,downscript=no")]);
    words
}

fn copy_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("--sparse=always").args([from, to]).status()?;
    ensure!(status.success(), "cp {}: {status}", from.display());
    Ok(())
}
