//! What the manual says beyond the commands' own help: exit codes and files.
//!
//! Owns: these lists, and the command line as a value for those who print it (`examples/manual.rs`). Never: is used by the
//! running program.

use clap::{Command, CommandFactory};

use crate::join::failure::Exit;

/// Exit codes and what they mean; `orlop join` has more of its own ([`join_exit_codes`]).
pub const EXIT_CODES: &[(&str, &str)] = &[
    ("0", "Done."),
    (
        "1",
        "It failed; the reason is on standard error, in one line. `orlop check`: the node cannot run here.",
    ),
    ("2", "The command line is wrong."),
    ("130", "`orlop run` was told twice to stop and did not wait for its tasks. Pods run on."),
    ("N", "`orlop exec`: the exit code of the program that ran in the container."),
];

/// Those of `orlop join`.
pub fn join_exit_codes() -> impl Iterator<Item = (u8, &'static str)> {
    Exit::ALL.into_iter().map(|exit| (exit as u8, exit.meaning()))
}

/// Files and directories.
pub const FILES: &[(&str, &str)] = &[
    ("/etc/orlop/kubeconfig", "The API server to obey, and as whom."),
    ("/etc/orlop/config.yaml", "KubeletConfiguration; `orlop config --fields` says what each field does."),
    ("/etc/orlop/config.d/*.conf", "Drop-in files, merged into it in the order of their names."),
    ("/etc/orlop/certs.d/REGISTRY/hosts.toml", "Mirrors and authorities of a registry."),
    (
        "/etc/default/orlop, /etc/sysconfig/orlop",
        "ORLOP_ARGS=... are more flags for `orlop run` as a service.",
    ),
    ("/etc/cni/net.d", "A CNI configuration here wins over the node's own network."),
    ("/opt/cni/bin", "CNI plugins; orlop-cni there is the node's own."),
    ("/run/orlop", "Live state of pods; a reboot empties it."),
    ("/var/lib/orlop", "Images, volumes, certificates."),
    ("/var/log/pods, /var/log/containers", "Output of containers, as every log collector expects it."),
    ("orlop.service", "The daemon. Stopping or restarting it leaves pods running."),
    ("orlop-pods.service", "Holds the pods' cgroup. Stopping it stops every pod."),
    ("orlop-standalone.service", "The daemon with an API server of its own, instead of orlop.service."),
];

/// The command line.
pub fn command() -> Command {
    super::Cli::command()
}
