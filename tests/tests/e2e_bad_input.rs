//! What users get wrong, and what machines do wrong: a clear error that names the thing, nothing half-made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use orlop_tests::manifest::{PODS, container, pod, pod_path};
use orlop_tests::node::Node;
use orlop_tests::{programs, require};
use serde_json::json;

/// Runs a command of orlop that has to fail; what it said.
fn fails(node: &Node, args: &[&str]) -> anyhow::Result<String> {
    let output = node.orlop_output(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success(),
        "orlop {args:?} succeeded: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    ensure!(!said.contains("panicked"), "orlop {args:?}: {said}");
    Ok(said)
}

fn ensure_says(said: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in: {said}");
    }
    Ok(())
}

#[test]
fn without_root_the_daemon_says_so() -> anyhow::Result<()> {
    require!();
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let binary = dir.path().join("orlop");
    programs::write(&binary, fs::read(std::env::var("ORLOP_BIN")?)?, "755")?;
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary)
        .args(["run", "--standalone"])
        .output()
        .context("setpriv (util-linux)")?;
    ensure!(!output.status.success());
    ensure_says(&String::from_utf8_lossy(&output.stderr), &["root"])
}

#[test]
fn a_wrong_kubeconfig_is_named_with_what_is_wrong() -> anyhow::Result<()> {
    require!();
    let node = Node::prepared()?;
    let config = node.dir().join("etc/config.yaml").display().to_string();
    let run = |path: &Path| {
        let path = path.display().to_string();
        fails(&node, &["run", "--kubeconfig", &path, "--config", &config])
    };
    let missing = node.dir().join("etc/nowhere");
    ensure_says(&run(&missing)?, &["etc/nowhere", "No such file"])?;
    let malformed = node.dir().join("etc/malformed");
    fs::write(&malformed, "apiVersion: v1\nclusters: [\n")?;
    ensure_says(&run(&malformed)?, &["etc/malformed"])?;
    let contextless = node.dir().join("etc/contextless");
    fs::write(&contextless, "apiVersion: v1\nkind: Config\ncurrent-context: nope\n")?;
    ensure_says(&run(&contextless)?, &["etc/contextless", "nope"])
}

#[test]
fn a_wrong_configuration_is_named_with_field_and_kind() -> anyhow::Result<()> {
    require!();
    let node = Node::prepared()?;
    let run = |name: &str, text: &str| {
        let path = node.dir().join("etc").join(name);
        fs::write(&path, text)?;
        fails(&node, &["run", "--standalone", "--config", &path.display().to_string()])
    };
    let said = run("kind.yaml", "apiVersion: v1\nkind: Pod\n")?;
    ensure_says(&said, &["kind.yaml", "KubeletConfiguration", "Pod"])?;
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    ensure_says(&run("type.yaml", &format!("{head}maxPods: many\n"))?, &["type.yaml", "maxPods"])?;
    ensure_says(&run("syntax.yaml", &format!("{head}evictionHard: {{\n"))?, &["syntax.yaml"])
}

#[test]
fn an_api_server_that_is_away_is_waited_for_and_told_once() -> anyhow::Result<()> {
    require!();
    let server = Node::standalone()?;
    let mut node = server.beside()?;
    let kubeconfig = server.kubeconfig_for(&node)?;
    let text = fs::read_to_string(&kubeconfig)?.replace(":6443", ":6444");
    fs::write(&kubeconfig, text)?;
    node.spawn(&["--kubeconfig", &kubeconfig])?;
    std::thread::sleep(Duration::from_secs(6));
    let log = node.log();
    let complaints = log.lines().filter(|line| line.contains("192.0.2.2:6444")).count();
    ensure!(complaints == 1, "{complaints} lines about the server that is away:\n{log}");
    ensure!(node.stop_daemon()? == Some(0), "SIGTERM ends it: {}", node.log());
    Ok(())
}

#[test]
fn images_that_cannot_be_had_are_told_in_kubelets_words() -> anyhow::Result<()> {
    require!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let cases = [
        ("refused", "127.0.0.1:5999/none:1", "IfNotPresent", &["ErrImagePull", "ImagePullBackOff"][..]),
        ("never", "localhost/absent:1", "Never", &["ErrImageNeverPull"]),
        ("invalid", "UPPER//case", "IfNotPresent", &["InvalidImageName"]),
    ];
    for (name, image, policy, _) in cases {
        let mut object = pod(name, "true");
        object["spec"]["containers"][0]["image"] = json!(image);
        object["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
        client.create(PODS, &object)?;
    }
    for (name, image, _, reasons) in cases {
        let waiting = client.wait(&pod_path(name), Duration::from_secs(20), |pod| {
            let waiting = container(pod?, "main")?["state"]["waiting"].clone();
            reasons.iter().any(|reason| waiting["reason"] == *reason).then_some(waiting)
        });
        let waiting = waiting.with_context(|| node.log())?;
        ensure!(waiting["message"].as_str().is_some_and(|text| text.contains(image)), "{waiting:#}");
    }
    Ok(())
}

#[test]
fn hostile_and_broken_archives_leave_nothing() -> anyhow::Result<()> {
    require!();
    let node = Node::prepared()?;
    let outside = node.dir().join("outside");
    let archive = |name: &str, entry: &str, link: Option<&str>| -> anyhow::Result<String> {
        let path = node.dir().join(name);
        let mut tar = tar::Builder::new(fs::File::create(&path)?);
        if let Some(target) = link {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, "link", target)?;
        }
        let mut header = tar::Header::new_gnu();
        // The library refuses to write such a name: it goes into the header by hand.
        header.as_mut_bytes()[..entry.len()].copy_from_slice(entry.as_bytes());
        header.set_mode(0o644);
        header.set_size(4);
        header.set_cksum();
        tar.append(&header, &b"evil"[..])?;
        tar.finish()?;
        Ok(path.display().to_string())
    };
    let climbing = archive("climb.tar", "../../outside", None)?;
    let said = fails(&node, &["image", "import", "--rootfs", &climbing, "--tag", "localhost/x:1"])?;
    ensure_says(&said, &["../../outside"])?;
    let target = node.dir().display().to_string();
    // Through a link the entry lands inside the image, or nowhere.
    let linked = archive("link.tar", "link/outside", Some(&target))?;
    let _ = node.orlop_output(&["image", "import", "--rootfs", &linked, "--tag", "localhost/x:2"])?;
    ensure!(!outside.exists(), "the archive has written {}", outside.display());
    let garbage = node.dir().join("garbage.tar");
    fs::write(&garbage, b"this is no archive")?;
    ensure_says(&fails(&node, &["image", "import", &garbage.display().to_string()])?, &["garbage.tar"])?;
    let listed = node.orlop(&["image", "ls", "-o", "json"])?;
    ensure!(!listed.contains("localhost/x:1"), "a refused image is listed: {listed}");
    Ok(())
}

#[test]
fn a_second_daemon_on_the_same_directories_is_told_who_the_first_is() -> anyhow::Result<()> {
    require!();
    let mut node = Node::prepared()?;
    node.start()?;
    let place = |name: &str| node.dir().join(name).display().to_string();
    let (root, run) = (place("root"), place("run"));
    let said = fails(&node, &["run", "--standalone", "--root-dir", &root, "--run-dir", &run])?;
    ensure_says(&said, &[&format!("another orlop (process {})", node.pid()?), "--run-dir"])?;
    node.stop_daemon()?;
    node.start()
}

#[test]
fn a_check_finds_a_disk_that_cannot_hold_containers_and_rules_that_are_left_over() -> anyhow::Result<()> {
    require!();
    let node = Node::prepared()?;
    let check = |root: &Path| -> anyhow::Result<serde_json::Value> {
        let output =
            node.orlop_output(&["check", "-o", "json", "--root-dir", &root.display().to_string()])?;
        serde_json::from_slice(&output.stdout).context("findings")
    };
    let finding = |findings: &serde_json::Value, name: &str| -> anyhow::Result<(String, String)> {
        let all = findings.as_array().context("a list")?;
        let one = all.iter().find(|one| one["name"] == name).with_context(|| format!("{name}: {all:?}"))?;
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        Ok((text("level"), text("detail")))
    };
    let root = node.dir().join("root");
    let findings = check(&root.join("not/there/yet"))?;
    ensure!(finding(&findings, "RootDir")?.0 == "ok", "{findings:#}");
    ensure!(finding(&findings, "KubeProxyRules")?.0 == "ok", "{findings:#}");

    let dir = node.dir().display();
    let overlay = format!(
        "cd {dir} && mkdir lower upper work over && \
         mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay over"
    );
    node.run_inside(&["sh", "-c", &overlay])?;
    let chains = "add table ip nat; add chain ip nat KUBE-SERVICES";
    node.run_inside(&["nft", chains])?;
    let findings = check(&node.dir().join("over/root"))?;
    let (level, detail) = finding(&findings, "RootDir")?;
    ensure!(level == "fail" && detail.contains("over/root is on an overlay"), "{findings:#}");
    let (level, detail) = finding(&findings, "KubeProxyRules")?;
    ensure!(level == "warn" && detail.contains("KUBE-... in nat"), "{findings:#}");
    Ok(())
}
