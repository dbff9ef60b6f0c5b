//! `orlop reset`: everything of orlop's goes from this machine. Nothing is drained: that is for whoever still speaks to the
//! cluster.
//!
//! Owns: what is looked for, what is said before, and the order of removal. Never: touches what it did not name first, or a
//! file below `<etc-dir>` that `orlop join` did not write.
//!
//! Order: the service, the daemon, the pods, their network and rules, the files. Whatever fails is told at the end and the rest
//! goes on; gone already is success, so that a second run is one too.

mod network;
mod pods;

use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use super::args::ResetArgs;
use super::configuration::is_the_units;
use super::files::is_foreign;
use super::service;
use crate::daemon::lock;
use crate::host::files::{remove_file, remove_tree};
use crate::services::control::SOCKET;

/// What the daemon keeps below `--root-dir`. Other things there are not ours: they stay, and with them the directory.
const ROOT: [&str; 5] = ["images", "pods", "pki", "standalone", "pod-cidrs.json"];
/// And below `--run-dir`.
const RUN: [&str; 4] = ["pods", "cni", SOCKET, lock::FILE];
/// How long the daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// `orlop reset`. Exit code 0 when nothing of orlop's is left.
pub fn main(args: &ResetArgs) -> ExitCode {
    match reset(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop reset: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What there is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Remains {
    daemon: Option<i32>,
    pods: Vec<pods::Remains>,
    network: Vec<String>,
    paths: Vec<PathBuf>,
}

fn reset(args: &ResetArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("must run as root: sudo orlop reset");
    }
    let remains = look(args);
    let lines = describe(&remains);
    if lines.is_empty() && !is_managed(args) {
        println!("nothing of orlop's is here");
        return Ok(());
    }
    println!("This removes from this machine:");
    if is_managed(args) {
        println!("  service  {} and {}, stopped and disabled", service::UNIT, service::STANDALONE_UNIT);
    }
    for line in &lines {
        println!("  {line}");
    }
    println!(
        "Nothing is drained: pods end here and now. The Node object stays at the API server: kubectl delete node NAME"
    );
    if args.dry_run {
        return Ok(());
    }
    if !args.force && !asked()? {
        bail!("nothing was removed");
    }
    remove(args, &remains)
}

/// The units are those of the usual places; a node kept elsewhere has none of them.
fn is_managed(args: &ResetArgs) -> bool {
    service::has_systemd() && is_the_units(&args.places)
}

fn asked() -> anyhow::Result<bool> {
    let mut out = std::io::stdout();
    write!(out, "Go on? [y/N] ")?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("read the answer")?;
    if !std::io::stdin().is_terminal() {
        println!();
    }
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn look(args: &ResetArgs) -> Remains {
    let places = &args.places;
    let below = |dir: &Path, names: &[&str]| names.iter().map(|name| dir.join(name)).collect::<Vec<_>>();
    let mut paths: Vec<PathBuf> =
        places.all().into_iter().filter(|path| path.starts_with(&places.etc_dir)).collect();
    // The CA is the cluster's own text; the rest says who wrote it.
    paths.retain(|path| path.exists() && (*path == places.ca() || !is_foreign(path)));
    paths.extend(below(&places.root_dir, &ROOT));
    paths.extend(below(&places.run_dir, &RUN));
    paths.retain(|path| path.exists());
    Remains {
        daemon: daemon(&places.run_dir.join(SOCKET)),
        pods: pods::look(places, &args.pod_logs_dir),
        network: network::look(&places.run_dir),
        paths,
    }
}

/// The process that serves the run directory.
fn daemon(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    getsockopt(&stream, PeerCredentials).ok().map(|peer| peer.pid())
}

fn describe(remains: &Remains) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(remains.daemon.map(|pid| format!("daemon   process {pid}")));
    lines.extend(remains.pods.iter().map(|pod| format!("pod      {pod}")));
    lines.extend(remains.network.iter().map(|what| format!("network  {what}")));
    lines.extend(remains.paths.iter().map(|path| {
        let standalone =
            if path.ends_with("standalone") { " (objects of the API server here, with its CA)" } else { "" };
        format!("file     {}{standalone}", path.display())
    }));
    lines
}

fn remove(args: &ResetArgs, remains: &Remains) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    let mut attempt = |what: &str, result: Result<(), String>| {
        if let Err(error) = result {
            failures.push(format!("{what}: {error}"));
        }
    };
    if is_managed(args) {
        let ended = service::disable_and_stop();
        if let Ok(units) = &ended {
            units.iter().for_each(|unit| println!("service  {unit} is stopped and disabled"));
        }
        attempt("service", ended.map(drop));
    }
    // The daemon would start the pods again.
    if let Some(pid) = remains.daemon {
        end(pid)?;
        println!("daemon   process {pid} has ended");
    }
    let places = &args.places;
    for pod in &remains.pods {
        attempt(&pod.to_string(), pods::end(pod, places));
    }
    if !remains.pods.is_empty() {
        println!("pods     {} ended", remains.pods.len());
    }
    if is_managed(args) {
        attempt("service", service::stop_pods_unit());
    }
    attempt("network", network::remove(places));
    for pod in &remains.pods {
        attempt(&pod.to_string(), pods::remove_logs(pod, &args.pod_logs_dir));
    }
    for dir in [&places.root_dir, &places.run_dir] {
        attempt("mounts", unmount_below(dir));
    }
    // A tree with something mounted in it belongs to more than us.
    let mounted = mounts().unwrap_or_default();
    for path in &remains.paths {
        let result = match mounted.iter().find(|mount| mount.starts_with(path)) {
            Some(mount) => Err(format!("{} is still mounted", mount.display())),
            None if path.is_dir() => remove_tree(path).map_err(|error| error.to_string()),
            None => remove_file(path).map_err(|error| error.to_string()),
        };
        attempt("file", result);
    }
    for dir in
        [places.etc_dir.join("pki"), places.etc_dir.clone(), places.root_dir.clone(), places.run_dir.clone()]
    {
        remove_if_empty(&dir);
    }
    if failures.is_empty() {
        println!("nothing of orlop's is left");
        return Ok(());
    }
    bail!("not everything could be removed; run it again after a look at:\n  {}", failures.join("\n  "))
}

fn remove_if_empty(dir: &Path) {
    // The unit's directories, mount points and what others keep there stay.
    if fs::remove_dir(dir).is_err() && dir.exists() {
        let rest: Vec<String> = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        if !rest.is_empty() {
            println!("left     {}: {}", dir.display(), rest.join(", "));
        }
    }
}

/// SIGTERM, and the wait for the end. Not our child: nothing but its number tells.
fn end(pid: i32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid);
    if kill(pid, Signal::SIGTERM).is_err() {
        return Ok(());
    }
    let start = Instant::now();
    while kill(pid, None).is_ok() && !is_dead(pid) {
        if start.elapsed() > PATIENCE {
            bail!("the daemon, process {pid}, does not end; nothing else was removed");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Ended and not reaped yet by its parent.
fn is_dead(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn mounts() -> Result<Vec<PathBuf>, String> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped).collect())
}

/// Blanks and the like stand in mountinfo as octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out += before;
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.map_or('\\', char::from));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(out + rest)
}

fn unmount_below(dir: &Path) -> Result<(), String> {
    let mut below: Vec<PathBuf> =
        mounts()?.into_iter().filter(|mount| mount.starts_with(dir) && mount != dir).collect();
    below.sort_by_key(|mount| std::cmp::Reverse(mount.components().count()));
    for mount in below {
        umount2(&mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| format!("unmount {}: {}", mount.display(), errno.desc()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::args::Places;
    use super::*;

    #[test]
    fn only_what_join_or_the_daemon_wrote_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["etc/pki", "root/images", "root/seccomp", "run/cni"] {
            fs::create_dir_all(at(name)).expect("made");
        }
        fs::write(at("etc/kubeconfig"), format!("{}x", super::super::files::MARK)).expect("written");
        fs::write(at("etc/config.yaml"), "by hand").expect("written");
        fs::write(at("etc/pki/ca.crt"), "PEM").expect("written");
        let args = ResetArgs {
            force: true,
            dry_run: false,
            pod_logs_dir: at("logs"),
            places: Places { etc_dir: at("etc"), root_dir: at("root"), run_dir: at("run") },
        };
        let mut named = look(&args).paths;
        named.sort();
        assert_eq!(named, [at("etc/kubeconfig"), at("etc/pki/ca.crt"), at("root/images"), at("run/cni")]);
    }

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        assert_eq!(unescaped("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescaped("/plain"), PathBuf::from("/plain"));
    }

    #[test]
    fn a_process_that_is_not_reaped_yet_counts_as_ended() {
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        end(pid.as_raw()).expect("ended");
        child.wait().expect("reaped");
        end(pid.as_raw()).expect("gone is success");
    }
}
