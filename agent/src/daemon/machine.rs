//! What the configuration demands of the machine before a node starts on it: swap, cgroup version, kernel settings.
//!
//! Owns: looking, and the errors. Never: changes a setting (the package's sysctl file does).

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::config::Machine;
use crate::host::cgroup::Cgroups;

/// What kubelet expects of the kernel: a machine that does not refuse memory it has, and that restarts after a panic.
const KERNEL: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Refuses a machine that the configuration does not want.
///
/// # Errors
/// What is not as demanded, and by which field.
pub fn check(wanted: &Machine) -> anyhow::Result<()> {
    check_in(wanted, Path::new("/proc"), || {
        Cgroups::detect("").map(|cgroups| cgroups.is_v2()).unwrap_or(false)
    })
}

fn check_in(wanted: &Machine, proc: &Path, unified: impl FnOnce() -> bool) -> anyhow::Result<()> {
    let swaps = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    // The first line is the heading.
    if let Some(device) = swaps.lines().nth(1).and_then(|line| line.split_whitespace().next()) {
        match wanted.fail_swap_on {
            Some(true) => bail!(
                "failSwapOn: swap is on ({device}); turn it off with swapoff -a, or set failSwapOn: false"
            ),
            None => tracing::warn!(
                device,
                "swap is on; set failSwapOn to false if that is meant, or to true to refuse it"
            ),
            Some(false) => {}
        }
    }
    if wanted.fail_cgroup_v1 && !unified() {
        bail!(
            "failCgroupV1: this machine mounts cgroup version 1; boot it with systemd.unified_cgroup_hierarchy=1"
        );
    }
    if wanted.protect_kernel_defaults {
        for (name, value) in KERNEL {
            let path = proc.join("sys").join(name);
            let found = fs::read_to_string(&path)
                .with_context(|| format!("protectKernelDefaults: {}", path.display()))?;
            if found.trim() != value {
                let name = name.replace('/', ".");
                bail!(
                    "protectKernelDefaults: {name} is {}, and should be {value}: sysctl -w {name}={value}",
                    found.trim()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(swaps: &str, settings: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("swaps"), format!("Filename Type Size Used Priority\n{swaps}"))
            .expect("written");
        for (name, value) in settings {
            let path = dir.path().join("sys").join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, format!("{value}\n")).expect("written");
        }
        dir
    }

    const ANY: Machine =
        Machine { fail_swap_on: None, fail_cgroup_v1: false, protect_kernel_defaults: false };

    fn error(wanted: &Machine, proc: &tempfile::TempDir, unified: bool) -> Option<String> {
        check_in(wanted, proc.path(), || unified).err().map(|error| error.to_string())
    }

    #[test]
    fn swap_is_refused_where_the_configuration_says_so() {
        let on = proc("/dev/sda2 partition 1 0 -2\n", &[]);
        assert_eq!(error(&ANY, &on, true), None);
        assert_eq!(error(&Machine { fail_swap_on: Some(false), ..ANY }, &on, true), None);
        let refused = error(&Machine { fail_swap_on: Some(true), ..ANY }, &on, true).expect("refused");
        assert!(refused.starts_with("failSwapOn: swap is on (/dev/sda2)"), "{refused}");
        assert_eq!(error(&Machine { fail_swap_on: Some(true), ..ANY }, &proc("", &[]), true), None);
    }

    #[test]
    fn version_1_is_refused_where_the_configuration_says_so() {
        let none = proc("", &[]);
        assert_eq!(error(&ANY, &none, false), None);
        let wanted = Machine { fail_cgroup_v1: true, ..ANY };
        assert_eq!(error(&wanted, &none, true), None);
        assert!(error(&wanted, &none, false).expect("refused").starts_with("failCgroupV1: "));
    }

    #[test]
    fn kernel_settings_are_compared_and_named() {
        let wanted = Machine { protect_kernel_defaults: true, ..ANY };
        assert_eq!(error(&wanted, &proc("", &KERNEL), true), None);
        let mut other = KERNEL;
        other[2].1 = "0";
        assert_eq!(
            error(&wanted, &proc("", &other), true).as_deref(),
            Some("protectKernelDefaults: kernel.panic is 0, and should be 10: sysctl -w kernel.panic=10")
        );
    }
}
