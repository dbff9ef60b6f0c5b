//! The version 2 device program against the kernel: loaded, attached, obeyed.
#![allow(clippy::unwrap_used)] // These are tests.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use orlop_sandbox::cgroup::guard_devices;
use orlop_sandbox::device::{DeviceRule, with_usual};

/// A cgroup of its own in the version 2 hierarchy, which a hybrid machine has beside the others.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount =
            mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|f| f[2] == "cgroup2")?[1];
        let path = PathBuf::from(mount).join(format!("orlop-test-devices-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Some(Cgroup(path))
    }

    /// Whether a program inside can do something.
    fn can(&self, script: &str) -> bool {
        let enter = r#"echo $$ > "$1/cgroup.procs" && eval "$2""#;
        let status = Command::new("/bin/sh").args(["-c", enter, "sh"]).arg(&self.0).arg(script).status();
        status.unwrap().success()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        support::eventually("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn the_program_is_obeyed() {
    if !support::can_run() {
        return;
    }
    let Some(cgroup) = Cgroup::new() else {
        println!("SKIP needs a mounted cgroup2 hierarchy");
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let (kmsg, open_kmsg) = (place.path().join("kmsg"), "head -c 0 <");
    let make = format!("mknod {} c 1 11 2>/dev/null", kmsg.display());
    let open_kmsg = format!("({open_kmsg} {}) 2>/dev/null", kmsg.display());
    let write_null = "echo x > /dev/null";
    let read_zero = "(head -c 1 /dev/zero > /dev/null) 2>/dev/null";

    assert!(cgroup.can(&make) && cgroup.can(&open_kmsg), "nothing is guarded yet");
    fs::remove_file(&kmsg).unwrap();
    let deny_all: Vec<DeviceRule> = serde_json::from_str(r#"[{"allow":false,"access":"rwm"}]"#).unwrap();
    guard_devices(&cgroup.0, &with_usual(deny_all)).unwrap();
    assert!(cgroup.can(&make), "any node may be made");
    assert!(!cgroup.can(&open_kmsg), "but not opened");
    assert!(cgroup.can(write_null) && cgroup.can(read_zero));
}
