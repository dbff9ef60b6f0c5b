//! A node under real systemd with cgroup version 2: a guest that joins a server outside of it. Its daemon is restarted,
//! upgraded, killed and stuck; systemd is executed anew; the machine is rebooted and loses its power.
//!
//! One test, since a boot is what costs; each step says what it is before it starts.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use orlop_tests::client::Client;
use orlop_tests::guest::Guest;
use orlop_tests::guest::image::Image;
use orlop_tests::manifest::{PODS, container, is_ready, pod_path, sleeper};
use orlop_tests::node::Node;
use orlop_tests::{image, require};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);
/// The guest's node, and its host name.
const NODE: &str = "guest";
#[test]
fn a_node_under_systemd_keeps_its_pods() -> anyhow::Result<()> {
    require!();
    let reason = Image::cannot_be_made();
    require!(reason.is_none(), reason.unwrap_or_default());
    let image = match Image::open() {
        Ok(image) => image,
        Err(error) => {
            println!("SKIP the packages of a guest cannot be had: {error:#}");
            return Ok(());
        }
    };
    let mut bench = Bench::boot(&image)?;

    bench.step("install, join, and a pod with limits", Bench::installs_and_joins)?;
    bench.step("restart", Bench::survives_a_restart)?;
    bench.step("upgrade of the binary", Bench::survives_an_upgrade)?;
    bench.step("daemon-reexec and daemon-reload", Bench::survives_systemds_own_renewal)?;
    bench.step("SIGKILL", Bench::survives_sigkill)?;
    bench.step("watchdog", Bench::survives_the_watchdog)?;
    bench.step("stop and start", Bench::survives_a_stop)?;
    bench.step("a wrong clock", Bench::survives_a_wrong_clock)?;
    bench.step("reboot", Bench::comes_back_after_a_reboot)?;
    bench.step("power cut", Bench::comes_back_after_a_power_cut)?;
    bench.step("the last pod goes", Bench::leaves_nothing)
}

struct Bench {
    outside: Node,
    client: Client,
    guest: Guest,
    /// The uid of the pod that is there all the time.
    uid: String,
    /// How many pods have come and gone beside it.
    visitors: u32,
}

/// What may not change while a pod is not stopped.
#[derive(Debug, PartialEq, Eq)]
struct Steady {
    /// The processes of its container, with their start times.
    processes: String,
    container_id: String,
    restarts: u64,
    pod_ready_since: String,
    node_ready_since: String,
    limits: String,
    /// Of the unit in which the pods live.
    holder: String,
}

impl Bench {
    fn boot(image: &Image) -> anyhow::Result<Self> {
        let mut outside = Node::before_guest()?;
        outside.start()?;
        let client = outside.client()?;
        let files = tempfile::tempdir()?;
        prepare_files(files.path())?;
        let guest = Guest::boot(image, &outside, files.path())?;
        Ok(Self { outside, client, guest, uid: String::new(), visitors: 0 })
    }

    fn step(&mut self, name: &str, run: fn(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let start = std::time::Instant::now();
        let result = run(self);
        println!("{:6.1} s  {name}", start.elapsed().as_secs_f64());
        result.with_context(|| {
            let journal = self.guest.run(JOURNAL);
            let journal = journal.map_or_else(|error| format!("{error:#}"), |outcome| outcome.text);
            format!("step {name}; the guest's journal:\n{journal}\nlog outside:\n{}", self.outside.log())
        })
    }

    fn installs_and_joins(&mut self) -> anyhow::Result<()> {
        let guest = &mut self.guest;
        guest.ok("dpkg -i /files/first/orlop_*.deb")?;
        guest.ok("orlop image import /files/busybox.tar --tag localhost/busybox:test")?;
        // The line that an administrator copies from the server's machine to this one.
        let line = self.outside.orlop(&["standalone", "token", "create", "--print-join-command"])?;
        // Boards without a clock of their own wake up long ago; that is seen without a server, other times with one.
        for (days, words) in [(-3000, "before this program was written"), (3000, "the clock is wrong")] {
            guest.ok(&by_days(days))?;
            let refused = guest.run(line.trim())?;
            let said = refused.text;
            ensure!(refused.code == 3 && said.contains(words), "{}: {said}", refused.code);
            ensure!(said.contains("timedatectl"), "not said what to do: {said}");
            guest.ok(&by_days(-days))?;
        }
        guest.ok(line.trim())?;
        guest.ok("systemctl is-active orlop orlop-pods && systemctl is-enabled orlop")?;
        self.client.wait(&node_path(), LONG, |node| node.filter(|node| is_ready(node)).map(drop))?;
        let mut pod = on_guest("steady");
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}});
        self.client.create(PODS, &pod)?;
        let pod = self.wait_ready("steady")?;
        self.uid = pod["metadata"]["uid"].as_str().context("no uid")?.to_owned();
        let dir = self.guest.ok(&format!("echo {}", self.pod_dir()))?;
        let wanted = format!("/sys/fs/cgroup/kubepods.slice/orlop-pods.service/burstable/pod{}", self.uid);
        ensure!(dir == wanted, "the pod's cgroup is {dir}");
        let limits = self.limits()?;
        let each = "cpu.max 50000 100000\nmemory.max 67108864\n";
        ensure!(limits == format!("pod\n{each}container\n{each}"), "limits are {limits:?}");
        self.shows_in_cgls()?;
        self.only_the_steady_pod_is_there()
    }

    fn survives_a_restart(&mut self) -> anyhow::Result<()> {
        self.unchanged_by(|bench| {
            bench.guest.ok("systemctl restart orlop")?;
            Ok(())
        })
    }

    fn survives_an_upgrade(&mut self) -> anyhow::Result<()> {
        self.unchanged_by(|bench| {
            bench.guest.ok("dpkg -i /files/later/orlop_*.deb && systemctl is-active orlop")?;
            bench.guest.ok("cmp /usr/bin/orlop /proc/$(systemctl show -P MainPID orlop)/exe")?;
            let end = bench.guest.ok(&format!("tail -c {} /usr/bin/orlop; echo", LATER.len()))?;
            ensure!(end == LATER, "not the later version: {end:?}");
            Ok(())
        })
    }

    fn survives_systemds_own_renewal(&mut self) -> anyhow::Result<()> {
        let daemon = self.guest.ok(MAIN_PID)?;
        self.unchanged_by(|bench| {
            bench.guest.ok("systemctl daemon-reexec")?;
            bench.guest.ok("systemctl daemon-reload")?;
            // Both answer before systemd has looked at every unit again; a unit that starts comes after that.
            bench.guest.ok("systemd-run --quiet --wait true")?;
            Ok(())
        })?;
        ensure!(self.guest.ok(MAIN_PID)? == daemon, "the daemon was restarted");
        Ok(())
    }

    fn survives_sigkill(&mut self) -> anyhow::Result<()> {
        self.unchanged_by(|bench| bench.falls("systemctl kill -s KILL --kill-whom=main orlop", "signal"))
    }

    fn survives_the_watchdog(&mut self) -> anyhow::Result<()> {
        let set = self.guest.ok("systemctl show -P WatchdogUSec orlop")?;
        ensure!(set == "30s", "the unit's watchdog is {set:?}");
        // Half a minute is right for a node and long for a test.
        self.guest.ok("mkdir -p /run/systemd/system/orlop.service.d && \
            printf '[Service]\\nWatchdogSec=10s\\n' >/run/systemd/system/orlop.service.d/short.conf && \
            systemctl daemon-reload && systemctl restart orlop")?;
        self.unchanged_by(|bench| bench.falls("kill -STOP $(systemctl show -P MainPID orlop)", "watchdog"))?;
        self.guest.ok("rm -r /run/systemd/system/orlop.service.d && systemctl daemon-reload")?;
        Ok(())
    }

    fn survives_a_stop(&mut self) -> anyhow::Result<()> {
        self.unchanged_by(|bench| {
            bench.guest.ok("systemctl stop orlop")?;
            bench.guest.ok("journalctl -u orlop -n 5 | grep 'pods keep running'")?;
            let left = bench.guest.ok(&format!("cat {}/*/cgroup.procs", bench.pod_dir()))?;
            ensure!(!left.is_empty(), "the pod ended with the daemon");
            bench.guest.ok("systemctl start orlop")?;
            Ok(())
        })
    }

    /// First ahead of every certificate's end, noticed at work; then before their beginning, noticed at a start. Both are
    /// named, and nothing but the clock has to be set.
    fn survives_a_wrong_clock(&mut self) -> anyhow::Result<()> {
        let said = |words: &str| format!("journalctl --no-pager -b -u orlop -o verbose | grep '{words}'");
        self.unchanged_by(|bench| {
            let guest = &mut bench.guest;
            guest.ok(&by_days(3000))?;
            guest.until(
                LONG,
                &said("the clock of this machine and that of the API server are far apart: set it"),
            )?;
            guest.ok(&by_days(-3000))?;
            guest.until(LONG, &said("the clock of this machine agrees with that of the API server again"))?;
            Ok(())
        })?;
        self.unchanged_by(|bench| {
            let guest = &mut bench.guest;
            guest.ok(&by_days(-3000))?;
            guest.ok("systemctl restart orlop && systemctl is-active orlop")?;
            let status = "systemctl show -P StatusText orlop";
            ensure!(guest.ok(status)? == "waits for the API server", "{}", guest.ok(status)?);
            guest.until(LONG, &said("the clock of this machine says .*: set the clock"))?;
            guest.until(LONG, &said("the clock of this machine says .*: is it right?"))?;
            guest.ok(&by_days(3000))?;
            guest.until(LONG, &format!("[ \"$({status})\" = 'node {NODE}' ]"))?;
            Ok(())
        })
    }

    fn comes_back_after_a_reboot(&mut self) -> anyhow::Result<()> {
        self.starts_anew_by(Guest::reboot)?;
        self.comes_and_goes()
    }

    /// With a pod whose start the cut falls into.
    fn comes_back_after_a_power_cut(&mut self) -> anyhow::Result<()> {
        self.guest.ok("sync")?;
        self.client.create(PODS, &on_guest("cut"))?;
        self.starts_anew_by(|guest| {
            guest.until(LONG, "[ $(ls /run/orlop/pods | wc -l) = 2 ]")?;
            guest.power_cut()
        })?;
        self.wait_ready("cut")?;
        self.remove("cut")?;
        self.comes_and_goes()
    }

    fn leaves_nothing(&mut self) -> anyhow::Result<()> {
        self.remove("steady")?;
        self.only_these_are_there(&[])
    }

    /// The machine starts anew: so does the pod, once, and the node has nothing of before.
    fn starts_anew_by(&mut self, end: fn(&mut Guest) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let before = self.steady()?;
        end(&mut self.guest)?;
        let pod = self.client.wait(&pod_path("steady"), LONG, |pod| {
            let started = |pod: &&Value| container_id(pod).is_some_and(|id| id != before.container_id);
            pod.filter(|pod| is_ready(pod)).filter(started).cloned()
        })?;
        let restarts = container(&pod, "main").and_then(|main| main["restartCount"].as_u64());
        ensure!(restarts == Some(before.restarts + 1), "before {before:#?}, after {}", pod["status"]);
        self.client.wait(&node_path(), LONG, |node| node.filter(|node| is_ready(node)).map(drop))?;
        ensure!(self.limits()? == before.limits, "the limits have changed: {}", self.limits()?);
        self.guest.ok("systemctl is-active orlop && [ $(systemctl show -P NRestarts orlop) = 0 ]")?;
        Ok(())
    }

    /// The daemon falls by `how`, systemd says so by `result` and starts it again.
    fn falls(&mut self, how: &str, result: &str) -> anyhow::Result<()> {
        let before = self.guest.ok(MAIN_PID)?;
        let count = self.guest.ok("systemctl show -P NRestarts orlop")?;
        self.guest.ok(how)?;
        self.guest.until(
            LONG,
            &format!(
                "[ $(systemctl show -P NRestarts orlop) != {count} ] && systemctl is-active -q orlop && \
                 [ $({MAIN_PID}) != {before} ]"
            ),
        )?;
        let said = format!("journalctl -b -u orlop -o cat | grep \"Failed with result '{result}'\"");
        self.guest.until(LONG, &said).map(drop)
    }

    /// Nothing of the pod and of its node changes, and the daemon does its work afterwards.
    fn unchanged_by(&mut self, what: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let before = self.steady()?;
        what(self)?;
        self.comes_and_goes()?;
        let after = self.steady()?;
        ensure!(before == after, "before: {before:#?}\nafter: {after:#?}");
        self.shows_in_cgls()
    }

    /// A pod is started and removed, with nothing left over.
    fn comes_and_goes(&mut self) -> anyhow::Result<()> {
        self.visitors += 1;
        let name = format!("visitor-{}", self.visitors);
        self.client.create(PODS, &on_guest(&name))?;
        self.wait_ready(&name)?;
        self.remove(&name)?;
        self.only_the_steady_pod_is_there()
    }

    fn wait_ready(&self, name: &str) -> anyhow::Result<Value> {
        self.client.wait(&pod_path(name), LONG, |pod| pod.filter(|pod| is_ready(pod)).cloned())
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.client.delete(&pod_path(name))?;
        self.client.wait(&pod_path(name), LONG, |pod| pod.is_none().then_some(()))
    }

    fn steady(&mut self) -> anyhow::Result<Steady> {
        let pod = self.client.get(&pod_path("steady"))?;
        let node = self.client.get(&node_path())?;
        let main = container(&pod, "main").context("no status of main")?;
        let script = format!(
            "for p in $(cat {}/main-*/cgroup.procs); do echo $p $(cut -d ' ' -f 22 /proc/$p/stat); done",
            self.pod_dir()
        );
        let processes = self.guest.ok(&script)?;
        ensure!(!processes.is_empty(), "the container has no process");
        Ok(Steady {
            processes,
            container_id: container_id(&pod).context("no container id")?.to_owned(),
            restarts: main["restartCount"].as_u64().context("no restart count")?,
            pod_ready_since: ready_since(&pod)?,
            node_ready_since: ready_since(&node)?,
            limits: self.limits()?,
            holder: self.guest.ok("systemctl show -P MainPID orlop-pods")?,
        })
    }

    /// The steady pod's cgroup, for the guest's shell.
    fn pod_dir(&self) -> String {
        format!("$(find /sys/fs/cgroup -type d -name '*pod{}')", self.uid)
    }

    fn limits(&mut self) -> anyhow::Result<String> {
        let script = format!(
            "cd {}; for dir in . main-*; do [ $dir = . ] && echo pod || echo container
             for file in cpu.max memory.max; do echo $file $(cat $dir/$file); done; done",
            self.pod_dir()
        );
        Ok(self.guest.ok(&script)? + "\n")
    }

    /// An administrator finds the pod, by its names.
    fn shows_in_cgls(&mut self) -> anyhow::Result<()> {
        let tree = self.guest.ok("systemd-cgls --no-pager -l")?;
        for wanted in [&format!("pod{}", self.uid), "default/steady", "main-", "sleep 1000"] {
            ensure!(tree.contains(wanted), "{wanted} is not in:\n{tree}");
        }
        Ok(())
    }

    fn only_the_steady_pod_is_there(&mut self) -> anyhow::Result<()> {
        let uid = self.uid.clone();
        self.only_these_are_there(&[&uid])
    }

    /// Removal ends a moment after the object's.
    fn only_these_are_there(&mut self, uids: &[&str]) -> anyhow::Result<()> {
        let pattern = if uids.is_empty() { "no-pod".to_owned() } else { uids.join("\\|") };
        let script = format!(
            "{LEFTOVERS}\nfound=$(leftovers | grep -v '{pattern}'; veths=$(ip -o link | grep -c veth)
             [ $veths = {} ] || echo $veths veths)
             [ -z \"$found\" ] || {{ echo \"$found\"; false; }}",
            uids.len()
        );
        self.guest.until(LONG, &script).map(drop)
    }
}

/// What systemd says, and what orlop says with its fields.
const JOURNAL: &str = "journalctl --no-pager -b -n 300 -o short-monotonic _PID=1; echo; \
    journalctl --no-pager -b -n 300 -o verbose _COMM=orlop | grep -v '^    [_SPT]'";
/// What tells the binary of the second package from the first one's.
const LATER: &str = "a later version";
const MAIN_PID: &str = "systemctl show -P MainPID orlop";

/// Sets the guest's clock wrong, or right again.
fn by_days(days: i64) -> String {
    format!("date -s @$(($(date +%s) + {days} * 86400))")
}

/// Everything of pods in the guest, a line each.
const LEFTOVERS: &str = r"leftovers() {
    for dir in /run/orlop/pods /var/lib/orlop/pods /var/log/pods /var/log/containers; do
        [ ! -d $dir ] || find $dir -mindepth 1 -maxdepth 1 -printf '%p %l\n'
    done
    find /sys/fs/cgroup -type d -regex '.*[/-]pod[0-9a-f_-]*\(\.slice\|\.scope\)?'
    pgrep -af 'orlop sandbox'
    grep -h /orlop/pods/ /proc/self/mountinfo
}";

fn node_path() -> String {
    format!("/api/v1/nodes/{NODE}")
}

fn on_guest(name: &str) -> Value {
    let mut pod = sleeper(name);
    pod["spec"]["nodeName"] = json!(NODE);
    pod
}

fn container_id(pod: &Value) -> Option<&str> {
    container(pod, "main")?["containerID"].as_str()
}

fn ready_since(object: &Value) -> anyhow::Result<String> {
    let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
    let ready = conditions.iter().find(|one| one["type"] == "Ready" && one["status"] == "True");
    let since = ready.and_then(|ready| ready["lastTransitionTime"].as_str());
    Ok(since.with_context(|| format!("not Ready: {conditions:?}"))?.to_owned())
}

/// What the guest finds at `/files`.
fn prepare_files(dir: &Path) -> anyhow::Result<()> {
    let built = std::env::var_os("ORLOP_BIN").context("ORLOP_BIN")?;
    let work = tempfile::tempdir()?;
    let binary = work.path().join("orlop");
    // Debug information would fill the guest's memory.
    let stripped = Command::new("strip").arg("-o").arg(&binary).arg(&built).status();
    if !stripped.is_ok_and(|status| status.success()) {
        fs::copy(&built, &binary)?;
    }
    package(&binary, &dir.join("first"))?;
    // A program does not mind what follows its last section.
    fs::File::options().append(true).open(&binary)?.write_all(LATER.as_bytes())?;
    package(&binary, &dir.join("later"))?;
    image::busybox_archive(dir)?;
    Ok(())
}

/// A package with this binary in it.
fn package(binary: &Path, out: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/package"));
    command.args(["--formats", "deb", "--binary"]).args([binary, Path::new("--out"), out]);
    // The test runner has made the manual already; without it the script makes its own.
    if let Some(manual) = std::env::var_os("ORLOP_MANUAL") {
        command.arg("--manual").arg(manual);
    }
    // To be unpacked once, by a slow machine.
    let output = command.env("DPKG_DEB_COMPRESSOR_LEVEL", "0").output().context("systemd/package")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "systemd/package: {}: {text}", output.status);
    Ok(())
}
