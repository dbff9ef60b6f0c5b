//! The packages: what is in them, that the same input makes the same bytes, and what their scripts do to a system.
//!
//! The binary in them is a file of the test's own: what it is does not matter here. Nothing is installed on the machine
//! that tests; `systemctl` in the scripts' PATH is a program that writes down how it was called.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use orlop_tests::{programs, require};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace")
}

fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn text(command: &mut Command) -> anyhow::Result<String> {
    Ok(String::from_utf8(run(command)?.stdout)?)
}

fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

/// The one file in a directory that ends so.
fn file(dir: &Path, end: &str) -> anyhow::Result<PathBuf> {
    let mut found = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    found.find(|path| path.to_string_lossy().ends_with(end)).with_context(|| format!("no {end} in {dir:?}"))
}

/// Builds packages, twice with `--check`, and says where they are.
fn build(dir: &Path, formats: &str) -> anyhow::Result<PathBuf> {
    let out = dir.join("out");
    let mut command = Command::new(top().join("systemd/package"));
    command.args(["--check", "--binary", "/bin/true", "--formats", formats]).arg("--out").arg(&out);
    // The test runner has made the manual already; without it the script makes its own.
    if let Some(manual) = std::env::var_os("ORLOP_MANUAL") {
        command.arg("--manual").arg(manual);
    }
    run(&mut command)?;
    Ok(out)
}

/// Destinations of `systemd/files` in a package.
fn listed() -> anyhow::Result<BTreeSet<String>> {
    let list = fs::read_to_string(top().join("systemd/files"))?;
    let place = |path: &str| {
        path.replace("@prefix@", "/usr")
            .replace("@units@", "/usr/lib/systemd/system")
            .replace("@sysctl@", "/usr/lib/sysctl.d")
            .replace("@modules@", "/usr/lib/modules-load.d")
    };
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match *words.first()? {
                "link" => words.get(1).map(|path| place(path)),
                _ => words.get(2).map(|path| place(path)),
            }
        })
        .map(|path| if path.ends_with("/man8/") { format!("{path}orlop.8.gz") } else { path })
        .collect())
}

fn missing(contents: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    Ok(listed()?.into_iter().filter(|path| !contents.contains(path)).collect())
}

/// A `systemctl` that notes its arguments, and a PATH that finds it first.
fn systemctl(dir: &Path) -> anyhow::Result<(PathBuf, String)> {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    let program = bin.join("systemctl");
    let log = dir.join("calls");
    programs::write(&program, format!("#!/bin/sh\necho \"$@\" >>{}\n", log.display()), "755")?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    Ok((log, path))
}

/// What a maintainer script asks of systemd. It looks for a running systemd in a path that is replaced by one of ours.
fn calls(dir: &Path, script: &str, args: &[&str]) -> anyhow::Result<Vec<String>> {
    let (log, path) = systemctl(dir)?;
    let _ = fs::remove_file(&log);
    let script = script.replace("/run/systemd/system", &dir.display().to_string());
    let file = dir.join("script");
    fs::write(&file, script)?;
    run(Command::new("/bin/sh").arg(&file).args(args).env("PATH", path))?;
    let calls = fs::read_to_string(&log).unwrap_or_default();
    Ok(calls.lines().map(str::to_owned).collect())
}

const NEW_FILES: [&str; 2] = ["daemon-reload", "restart systemd-modules-load.service systemd-sysctl.service"];
const NEW_DAEMON: &str = "try-restart orlop.service orlop-standalone.service";
const REMOVED: [&str; 2] = [
    "disable orlop.service orlop-standalone.service",
    "stop orlop.service orlop-standalone.service orlop-pods.service",
];

#[test]
fn the_debian_package_holds_the_list_and_its_scripts_spare_the_pods() -> anyhow::Result<()> {
    require!(installed("dpkg-deb"), "needs dpkg-deb");
    let dir = tempfile::tempdir()?;
    let package = file(&build(dir.path(), "deb")?, ".deb")?;
    let root = dir.path().join("root");
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
    let found = text(Command::new("find").arg(&root).args(["-mindepth", "1", "-printf", "/%P\n"]))?;
    assert_eq!(missing(&found.lines().map(str::to_owned).collect())?, Vec::<String>::new());
    let owners = text(Command::new("dpkg-deb").arg("-c").arg(&package))?;
    assert!(owners.lines().all(|line| line.contains(" root/root ")), "{owners}");
    assert_eq!(fs::read(root.join("usr/bin/orlop"))?, fs::read("/bin/true")?);
    let page = text(Command::new("gzip").arg("-dc").arg(root.join("usr/share/man/man8/orlop-join.8.gz")))?;
    let codes = page.split("EXIT STATUS").nth(1).context("orlop-join.8 has no exit codes")?;
    assert!(codes.contains("\\fB13\\fR") && codes.contains("not Ready in time"), "{codes}");
    assert!(
        fs::read_to_string(root.join("usr/lib/systemd/system/orlop.service"))?
            .contains("=/usr/bin/orlop run")
    );
    assert_eq!(fs::read_link(root.join("opt/cni/bin/orlop-cni"))?, Path::new("/usr/bin/orlop"));

    let control = dir.path().join("control");
    run(Command::new("dpkg-deb").arg("-e").arg(&package).arg(&control))?;
    run(Command::new("md5sum").args(["--quiet", "-c"]).arg(control.join("md5sums")).current_dir(&root))?;
    let calls =
        |script: &str, args: &[&str]| calls(dir.path(), &fs::read_to_string(control.join(script))?, args);
    assert_eq!(
        calls("postinst", &["configure"])?,
        NEW_FILES,
        "nothing is started before the node has joined"
    );
    assert_eq!(calls("postinst", &["configure", "0.0.9"])?, [NEW_FILES[0], NEW_FILES[1], NEW_DAEMON]);
    assert_eq!(calls("prerm", &["upgrade", "0.2.0"])?, Vec::<String>::new());
    assert_eq!(calls("prerm", &["remove"])?, REMOVED);
    assert_eq!(calls("postrm", &["upgrade", "0.2.0"])?, Vec::<String>::new());
    assert_eq!(calls("postrm", &["remove"])?, ["daemon-reload"]);
    Ok(())
}

#[test]
fn the_debian_package_installs_into_a_root_of_its_own() -> anyhow::Result<()> {
    require!(installed("dpkg-deb") && nix::unistd::geteuid().is_root(), "needs dpkg and root");
    let dir = tempfile::tempdir()?;
    let package = file(&build(dir.path(), "deb")?, ".deb")?;
    let root = dir.path().join("root");
    for folder in ["var/lib/dpkg/updates", "var/lib/dpkg/info"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for name in ["status", "available"] {
        fs::write(root.join("var/lib/dpkg").join(name), "")?;
    }
    // The scripts run outside of that root, and find no systemd in it, either.
    let (log, path) = systemctl(dir.path())?;
    let mut install = Command::new("dpkg");
    install
        .arg(format!("--root={}", root.display()))
        .args(["--force-script-chrootless", "--unpack"])
        .arg(&package);
    run(install.env("PATH", &path))?;
    assert!(root.join("usr/bin/orlop").exists() && root.join("etc/orlop/config.d").is_dir());
    assert!(!log.exists(), "unpacking asks nothing of systemd");
    let mut remove = Command::new("dpkg");
    remove
        .arg(format!("--root={}", root.display()))
        .args(["--force-script-chrootless", "--force-remove-reinstreq"]);
    run(remove.args(["--no-triggers", "--no-act", "--remove", "orlop"]).env("PATH", &path))?;
    Ok(())
}

#[test]
fn the_rpm_holds_the_list_and_its_scripts_spare_the_pods() -> anyhow::Result<()> {
    require!(installed("rpmbuild"), "needs rpmbuild (Debian's rpm)");
    let dir = tempfile::tempdir()?;
    let package = file(&build(dir.path(), "rpm")?, ".rpm")?;
    let contents = text(Command::new("rpm").args(["-qlp", "--nosignature"]).arg(&package))?;
    assert_eq!(missing(&contents.lines().map(str::to_owned).collect())?, Vec::<String>::new());
    let owners = text(
        Command::new("rpm").args(["-qp", "--qf", "[%{FILEUSERNAME}:%{FILEGROUPNAME}\n]"]).arg(&package),
    )?;
    assert!(owners.lines().all(|line| line == "root:root"), "{owners}");
    let calls = |tag: &str, args: &[&str]| {
        let script = text(Command::new("rpm").args(["-qp", "--qf", &format!("%{{{tag}}}")]).arg(&package))?;
        calls(dir.path(), &script, args)
    };
    assert_eq!(calls("POSTIN", &["1"])?, NEW_FILES, "nothing is started before the node has joined");
    assert_eq!(calls("POSTIN", &["2"])?, [NEW_FILES[0], NEW_FILES[1], NEW_DAEMON]);
    assert_eq!(calls("PREUN", &["1"])?, Vec::<String>::new());
    assert_eq!(calls("PREUN", &["0"])?, REMOVED);
    assert_eq!(calls("POSTUN", &["0"])?, ["daemon-reload"]);
    Ok(())
}

#[test]
fn the_tarball_installs_what_the_list_says() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = file(&build(dir.path(), "tar")?, ".tar.gz")?;
    run(Command::new("tar").arg("-C").arg(dir.path()).arg("-xzf").arg(&archive))?;
    let name = archive.file_name().context("a name")?.to_string_lossy().replace(".tar.gz", "");
    let root = dir.path().join("root");
    let installer = dir.path().join(name).join("systemd/install");
    run(Command::new(&installer).args(["--prefix", "/usr", "--destdir"]).arg(&root))?;
    let found = text(Command::new("find").arg(&root).args(["-mindepth", "1", "-printf", "/%P\n"]))?;
    assert_eq!(missing(&found.lines().map(str::to_owned).collect())?, Vec::<String>::new());

    let local = dir.path().join("local");
    run(Command::new(&installer).arg("--destdir").arg(&local))?;
    let unit = fs::read_to_string(local.join("etc/systemd/system/orlop-pods.service"))?;
    assert!(unit.contains("ExecStart=/usr/local/bin/orlop hold-pods"), "{unit}");
    assert!(local.join("usr/local/bin/orlop").exists() && !local.join("usr/bin").exists());
    Ok(())
}

#[test]
fn systemd_finds_no_fault_in_the_units() -> anyhow::Result<()> {
    require!(installed("systemd-analyze"), "needs systemd-analyze");
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    run(Command::new(top().join("systemd/install"))
        .args(["--prefix", "/usr", "--binary", "/bin/true", "--destdir"])
        .arg(root))?;
    // What the units name of systemd's own: empty stand-ins, so that this machine's do not matter.
    let units = root.join("usr/lib/systemd/system");
    for name in
        ["sysinit", "basic", "shutdown", "slices", "network", "network-online", "multi-user", "remote-fs"]
    {
        fs::write(units.join(format!("{name}.target")), "[Unit]\nDefaultDependencies=no\n")?;
    }
    let names = ["orlop.service", "orlop-standalone.service", "orlop-pods.service", "kubepods.slice"];
    for name in names {
        let mut verify = Command::new("systemd-analyze");
        verify
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(format!("--root={}", root.display()));
        let output = run(verify.arg(name))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            said.lines().filter(|line| line.contains("orlop") || line.contains("kubepods")).count(),
            0,
            "{said}"
        );
    }
    Ok(())
}
