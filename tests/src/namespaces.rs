//! Network, mount and UTS namespaces for a machine under test, kept by a process that sleeps in them.
//!
//! Owns: making them, and running programs inside. Never: ends the process (whoever asked for it does).

use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};

/// A program inside the namespaces of a process, still without its name.
pub(crate) fn inside(holder: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--net", "--mount", "--uts", "-t", &holder.to_string(), "--"]);
    command
}

/// Runs a program inside the namespaces of a process; its standard output.
pub(crate) fn run(holder: u32, command: &[&str]) -> anyhow::Result<String> {
    let output = inside(holder).args(command).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// A process that keeps network, mount and UTS namespaces.
pub(crate) fn hold(name: &str, link: &str) -> anyhow::Result<Child> {
    let script =
        format!("hostname {name} && ip link set lo up && {link} && echo ready && exec sleep infinity");
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "--uts", "--propagation", "private", "--", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .context("unshare (util-linux)")?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("stdout")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
    if line != "ready\n" {
        let _ = child.kill();
        let _ = child.wait();
        bail!("cannot make namespaces for a node (iproute2 installed?)");
    }
    Ok(child)
}
