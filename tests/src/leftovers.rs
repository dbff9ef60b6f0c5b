//! What pods leave behind on the machine: it must be nothing.
//!
//! Owns: looking, in every place where a pod has something. Never: removes anything.

use std::fs;
use std::path::Path;

use crate::node::Node;

/// Everything of pods that is still there, a line each.
pub fn of_pods(node: &Node) -> Vec<String> {
    let mut found = vec![];
    list(&node.dir().join("run/pods"), "run directory", &mut found);
    list(&node.dir().join("root/pods"), "root directory", &mut found);
    list(&node.dir().join("logs/pods"), "pod logs", &mut found);
    list(&node.dir().join("logs/containers"), "log link", &mut found);
    found.extend(cgroups(node.cgroup_root()).into_iter().map(|path| format!("cgroup {path}")));
    found.extend(processes(node.dir()).into_iter().map(|line| format!("process {line}")));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let base = node.dir().display().to_string();
    found.extend(mounts.lines().filter(|line| line.contains(&base)).map(|line| format!("mount {line}")));
    match node.run_inside(&["ip", "-o", "link"]) {
        Ok(links) => {
            let veths = links.lines().filter(|line| line.contains("veth") && !line.contains("uplink"));
            found.extend(veths.map(|line| format!("link {line}")));
        }
        Err(error) => found.push(format!("links cannot be listed: {error:#}")),
    }
    if let Ok(addresses) =
        node.run_inside(&["sh", "-c", "cat \"$0\"/run/cni/networks/*/leases 2>/dev/null || true", &base])
    {
        found.extend(live_leases(&addresses).into_iter().map(|lease| format!("lease {lease}")));
    }
    found
}

/// Addresses that an `A` line (`A <set> <address> <container> ...`) gave to a container and no later `D <container> ...` line
/// gave back.
fn live_leases(log: &str) -> Vec<String> {
    let mut live: Vec<(&str, &str)> = vec![];
    for line in log.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["A", _, address, container, ..] => live.push((container, address)),
            ["D", container, ..] => live.retain(|(holder, _)| *holder != container),
            _ => {}
        }
    }
    live.into_iter().map(|(container, address)| format!("{address} of {container}")).collect()
}

fn list(dir: &Path, what: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(format!("{what} {}", entry.path().display()));
    }
}

/// Cgroups of pods below our root, in every hierarchy.
fn cgroups(root: &str) -> Vec<String> {
    let mut found = vec![];
    let mut bases = vec![Path::new("/sys/fs/cgroup").join(root)];
    for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        bases.push(entry.path().join(root));
    }
    for base in bases {
        walk(&base, &mut |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("pod") {
                found.push(path.display().to_string());
            }
        });
    }
    found
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path());
            walk(&entry.path(), visit);
        }
    }
}

/// Supervisors of this node: they name their directory on their command line.
fn processes(base: &Path) -> Vec<String> {
    let base = base.display().to_string();
    let mut found = vec![];
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(bytes) = fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if command.contains(&base) && command.contains("sandbox") {
            found.push(format!("{} {command}", entry.file_name().to_string_lossy()));
        }
    }
    found
}
