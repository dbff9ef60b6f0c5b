//! Joining a cluster: by token, by file, with everything that can be wrong about it; and leaving it again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use orlop_tests::client::{Access, Client};
use orlop_tests::joining::{self, Invitation, KUBELET_CONFIG, etc_dir, signing_requests};
use orlop_tests::manifest::{PODS, is_ready, pod_path, sleeper};
use orlop_tests::node::{Node, orlop_bin};
use orlop_tests::{leftovers, programs, require};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// A node with a server, and a machine on its link that has joined nothing.
fn cluster_and_machine() -> anyhow::Result<(Node, Node, Client)> {
    let mut server = Node::prepared()?;
    server.start()?;
    let node = server.beside()?;
    let client = server.client()?;
    joining::configure(&client, &node)?;
    Ok((server, node, client))
}

/// Runs a join that ends by itself; its exit code and what it said.
fn attempt(node: &Node, args: &[String]) -> anyhow::Result<(Option<i32>, String)> {
    joining::Joining::start(node, args)?.finish()
}

/// A program in a node's namespaces, ended when dropped.
struct Background(Child);

impl Background {
    fn start(node: &Node, script: &str) -> anyhow::Result<Self> {
        let mut command = node.command();
        command.args(["sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until somebody listens on a port in the node's namespace.
fn wait_listening(node: &Node, port: u16) -> anyhow::Result<()> {
    let start = std::time::Instant::now();
    let wanted = format!(":{port:04X} ");
    loop {
        let table = node.run_inside(&["cat", "/proc/net/tcp", "/proc/net/tcp6"])?;
        if table.lines().any(|line| line.contains(&wanted) && line.contains(" 0A ")) {
            return Ok(());
        }
        ensure!(start.elapsed() < LONG, "nobody listens on {port}:\n{table}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn short_timeouts(node: &Node) -> anyhow::Result<String> {
    let path = node.dir().join("short.yaml");
    let text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\n\
                timeouts: {discovery: 2s, kubernetesAPICall: 2s, tlsBootstrap: 2s}\n";
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

#[test]
fn a_machine_joins_runs_a_pod_and_is_reset() -> anyhow::Result<()> {
    require!();
    let (server, mut node, client) = cluster_and_machine()?;
    node.import_busybox()?;
    let invitation = Invitation::new(&server, "1h")?;

    // A dry run says everything and does nothing.
    let (code, said) = attempt(&node, &[invitation.args(), vec!["--dry-run".into()]].concat())?;
    ensure!(code == Some(0) && said.contains("nothing was changed"), "{code:?}: {said}");
    ensure!(!Path::new(&etc_dir(&node)).exists() && signing_requests(&client)?.is_empty(), "{said}");

    let said = joining::join(&mut node, &invitation.args())?;
    for phase in
        ["preflight ", "discovery ", "configuration ", "certificate ", "files ", "service ", "ready "]
    {
        ensure!(said.lines().filter(|line| line.starts_with(phase)).count() == 1, "{phase}: {said}");
    }
    ensure!(!said.contains(&invitation.token), "the token's secret is shown: {said}");
    let config = fs::read_to_string(Path::new(&etc_dir(&node)).join("config.yaml"))?;
    ensure!(config.contains(node.cgroup_root()), "not the cluster's configuration: {config}");
    for (file, mode) in
        [("joined/kubeconfig", 0o600), ("root/pki/client.pem", 0o600), ("joined/pki/ca.crt", 0o644)]
    {
        let found =
            fs::metadata(node.dir().join(file)).with_context(|| file.to_owned())?.permissions().mode();
        ensure!(found & 0o777 == mode, "{file} has mode {found:o}");
    }
    ensure!(!node.dir().join("root/pki/client.key.pending").exists(), "the pending key stays");
    ensure!(
        !node.dir().join("joined/bootstrap-kubeconfig").exists(),
        "the token was kept without being asked for"
    );

    let mut pod = sleeper("one");
    pod["spec"]["nodeName"] = json!(node.name());
    client.create(PODS, &pod)?;
    let seen = client.wait(&pod_path("one"), LONG, |pod| pod.filter(|pod| is_ready(pod)).map(|_| ()));
    seen.with_context(|| node.log())?;

    // Again: the node keeps its certificate, and what runs goes on.
    let pid = node.pid()?;
    let (code, said) = attempt(&node, &invitation.args())?;
    ensure!(code == Some(0) && said.contains("from an earlier join"), "{code:?}: {said}");
    ensure!(said.contains("runs already") && said.contains("is Ready"), "{said}");
    ensure!(
        signing_requests(&client)?.len() == 1 && node.pid()? == pid,
        "asked for another certificate: {said}"
    );

    let dry = node.orlop(&["reset", "--dry-run", "--etc-dir", &etc_dir(&node)])?;
    for what in [&format!("process {pid}"), "default/one", "joined/kubeconfig", "nftables table"] {
        ensure!(dry.contains(what), "reset does not say that it removes {what}: {dry}");
    }
    // Nobody says yes.
    let output = node.orlop_output(&["reset", "--etc-dir", &etc_dir(&node)])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(node.dir().join("joined/kubeconfig").exists(), "removed without a yes");

    let output = joining::reset(&node)?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(node.stop_daemon().is_ok(), "the daemon had ended");
    ensure!(leftovers::of_pods(&node).is_empty(), "{:?}", leftovers::of_pods(&node));
    for left in ["joined", "root/images", "root/pki", "run/pods", "run/cni"] {
        ensure!(!node.dir().join(left).exists(), "{left} stays: {output:?}");
    }
    let links = node.run_inside(&["ip", "-o", "link"])?;
    ensure!(!links.contains("cni0") && !links.contains("orlop"), "{links}");
    let tables = node.run_inside(&["sh", "-c", "command -v nft >/dev/null && nft list tables || true"])?;
    ensure!(!tables.contains("orlop"), "{tables}");
    let again = joining::reset(&node)?;
    ensure!(again.status.success(), "a second reset fails: {again:?}");
    Ok(())
}

#[test]
fn a_reason_not_to_join_is_told_by_its_exit_code_and_leaves_nothing() -> anyhow::Result<()> {
    require!();
    let (server, node, client) = cluster_and_machine()?;
    let good = Invitation::new(&server, "1h")?;
    let short = short_timeouts(&node)?;
    let with = |change: &dyn Fn(&mut Invitation)| {
        let mut changed = good.clone();
        change(&mut changed);
        [changed.args(), vec!["--config".into(), short.clone()]].concat()
    };
    let expect = |what: &str, args: &[String], wanted: i32, words: &str| {
        let (code, said) = attempt(&node, args)?;
        ensure!(code == Some(wanted), "{what}: {code:?} instead of {wanted}: {said}");
        ensure!(said.contains(words), "{what}: nothing of {words:?}: {said}");
        ensure!(!Path::new(&etc_dir(&node)).exists(), "{what}: files stay");
        ensure!(!said.contains(&good.token[7..]), "{what}: a secret is shown: {said}");
        Ok(())
    };
    let id = good.token[..6].to_owned();

    expect("no hash", &["join".into(), "h".into(), "--token".into(), good.token.clone()], 2, "no CA hash")?;
    expect("secret", &with(&|i| i.token = format!("{id}.aaaaaaaaaaaaaaaa")), 5, "does not accept token")?;
    expect(
        "unknown token",
        &with(&|i| i.token = "aaaaaa.aaaaaaaaaaaaaaaa".into()),
        5,
        "does not accept token aaaaaa",
    )?;
    let brief = Invitation::new(&server, "1s")?;
    let secret = format!("/api/v1/namespaces/kube-system/secrets/bootstrap-token-{}", &brief.token[..6]);
    client.wait(&secret, LONG, |found| found.is_none().then_some(()))?;
    expect("expired token", &with(&|i| i.token.clone_from(&brief.token)), 5, "it has expired")?;
    client
        .create("/api/v1/namespaces/kube-system/secrets", &unsigning_token("bbbbbb", "cccccccccccccccc"))?;
    let unsigning = with(&|i| i.token = "bbbbbb.cccccccccccccccc".into());
    expect("token that does not sign", &unsigning, 5, "accepts token bbbbbb, and does not sign")?;
    let zeros = format!("sha256:{}", "0".repeat(64));
    expect("CA hash", &with(&|i| i.hash.clone_from(&zeros)), 6, &good.hash)?;
    expect(
        "both",
        &with(&|i| (i.hash.clone_from(&zeros), i.token = format!("{id}.aaaaaaaaaaaaaaaa")).1),
        7,
        "neither",
    )?;
    expect("closed port", &with(&|i| i.endpoint = "127.0.0.1:1".into()), 4, "does not answer in time")?;

    {
        let _silent = Background::start(&node, "exec busybox nc -l -p 7444")?;
        wait_listening(&node, 7444)?;
        expect(
            "silent server",
            &with(&|i| i.endpoint = "127.0.0.1:7444".into()),
            4,
            "does not answer in time",
        )?;
    }
    {
        let _slow = slow_way(&node, 7446)?;
        let slow = Invitation { endpoint: "127.0.0.1:7446".into(), ..good.clone() };
        expect("slow server", &[slow.args(), vec!["--dry-run".into()]].concat(), 0, "would")?;
    }
    if Command::new("openssl").arg("version").output().is_ok() {
        let _impostor = impostor(&node, &client)?;
        expect("tampered", &with(&|i| i.endpoint = "127.0.0.1:7443".into()), 7, "not vouched for")?;
    }
    {
        let _taken = Background::start(&node, "exec busybox nc -l -p 10250")?;
        wait_listening(&node, 10250)?;
        expect("taken port", &with(&|_| ()), 3, "Port-10250: in use by")?;
        let args =
            [with(&|_| ()), vec!["--ignore-preflight-errors=Port-10250".into(), "--dry-run".into()]].concat();
        expect("ignored port", &args, 0, "warning: Port-10250")?;
    }
    disks(&node, &good, &short)?;

    client.delete(KUBELET_CONFIG)?;
    expect("no configuration", &with(&|_| ()), 10, "kubelet-config")?;
    client.delete(CLUSTER_INFO)?;
    expect("no cluster-info", &with(&|_| ()), 10, "there is no cluster-info")?;
    ensure!(
        signing_requests(&client)?.is_empty(),
        "a join that could not succeed has asked for a certificate"
    );
    Ok(())
}

/// A way to the server on which each connection takes a second.
fn slow_way(node: &Node, port: u16) -> anyhow::Result<Background> {
    let relay = node.dir().join("relay");
    programs::write(&relay, "#!/bin/sh\nsleep 1\nexec /bin/busybox nc 192.0.2.2 6443\n", "755")?;
    let way = Background::start(node, &format!("exec busybox nc -ll -p {port} -e {}", relay.display()))?;
    wait_listening(node, port)?;
    Ok(way)
}

/// A bootstrap token as `kubeadm token create --usages authentication` makes it.
fn unsigning_token(id: &str, secret: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "bootstrap.kubernetes.io/token",
        "metadata": { "name": format!("bootstrap-token-{id}"), "namespace": "kube-system" },
        "stringData": {
            "token-id": id,
            "token-secret": secret,
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    })
}

/// Disks that take nothing, or next to nothing.
fn disks(node: &Node, invitation: &Invitation, short: &str) -> anyhow::Result<()> {
    for (name, options, words) in
        [("ro", "ro", "Read-only file system"), ("full", "size=16k", "No space left")]
    {
        let dir = node.dir().join(name);
        fs::create_dir(&dir)?;
        let place = dir.display().to_string();
        node.run_inside(&["mount", "-t", "tmpfs", "-o", options, "tmpfs", &place])?;
        let more = ["--config", short, "--root-dir", &place, "--ready-timeout", "0s"].map(str::to_owned);
        let (code, said) = attempt(node, &[invitation.args(), more.to_vec()].concat())?;
        ensure!(code == Some(11) && said.contains(words), "{name}: {code:?}: {said}");
        let left = node.run_inside(&["find", &place, "-mindepth", "1"])?;
        ensure!(left.is_empty() && !Path::new(&etc_dir(node)).exists(), "{name} leaves {left}");
        node.run_inside(&["umount", &place])?;
    }
    Ok(())
}

/// A server with a certificate of its own that serves a changed `cluster-info`.
fn impostor(node: &Node, client: &Client) -> anyhow::Result<Background> {
    let mut info = client.get(CLUSTER_INFO)?;
    let text =
        info["data"]["kubeconfig"].as_str().context("no kubeconfig")?.replace("192.0.2.2", "192.0.2.66");
    info["data"]["kubeconfig"] = json!(text);
    let dir = node.dir().join("impostor");
    let file = dir.join(CLUSTER_INFO.trim_start_matches('/'));
    fs::create_dir_all(file.parent().context("a folder")?)?;
    fs::write(&file, info.to_string())?;
    let script = format!(
        "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout k.pem -out c.pem \
         -subj /CN=kubernetes -days 2 && exec openssl s_server -WWW -accept 7443 -cert c.pem -key k.pem",
        dir.display()
    );
    let background = Background::start(node, &script)?;
    wait_listening(node, 7443)?;
    Ok(background)
}

#[test]
fn a_discovery_file_or_a_token_without_a_hash_joins_too() -> anyhow::Result<()> {
    require!();
    let (server, mut node, _client) = cluster_and_machine()?;
    let invitation = Invitation::new(&server, "1h")?;
    let later = ["--ready-timeout", "0s"].map(str::to_owned);
    let unchecked = [
        "join",
        &invitation.endpoint,
        "--token",
        &invitation.token,
        "--discovery-token-unsafe-skip-ca-verification",
        "--keep-bootstrap-kubeconfig",
    ]
    .map(str::to_owned);
    let (code, said) = attempt(&node, &[unchecked.to_vec(), later.to_vec()].concat())?;
    ensure!(code == Some(0) && said.contains("signed with token"), "{code:?}: {said}");
    let kept = fs::read_to_string(node.dir().join("joined/bootstrap-kubeconfig"))?;
    ensure!(kept.contains(&invitation.token), "{kept}");
    let output = joining::reset(&node)?;
    ensure!(output.status.success() && !node.dir().join("joined").exists(), "{output:?}");

    // What another cluster's node has is not taken over.
    let (name, file) = (node.name().to_owned(), node.dir().join("discovery.conf"));
    let admin = fs::read_to_string(server.kubeconfig())?;
    let access = Access::from_kubeconfig(&admin)?;
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(&access.ca);
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: {}\n    certificate-authority-data: {ca}\n",
        access.server
    );
    fs::write(&file, text)?;
    let by_file = |more: &[&str]| {
        let mut args = vec!["join".to_owned(), "--discovery-file".into(), file.display().to_string()];
        args.extend(more.iter().map(|word| (*word).to_owned()));
        args
    };
    let (code, said) = attempt(&node, &by_file(&[]))?;
    ensure!(code == Some(2) && said.contains("--tls-bootstrap-token"), "{code:?}: {said}");
    let said = joining::join(&mut node, &by_file(&["--tls-bootstrap-token", &invitation.token]))?;
    ensure!(said.contains(&format!("node {name} is Ready")), "{said}");
    Ok(())
}

/// The embedded server as a program of its own, which treats requests for certificates as the test wants.
struct Server {
    child: Child,
    node: Node,
    client: Client,
}

impl Server {
    fn start(approval: &str) -> anyhow::Result<Option<Self>> {
        let serve = server_program();
        let Some(serve) = serve else { return Ok(None) };
        let node = Node::prepared()?;
        let dir = node.dir().join("root/standalone");
        let mut command = node.command();
        let args = [dir.display().to_string(), "192.0.2.2:6443".into(), approval.into()];
        let mut child = command.arg(serve).args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        // Where `orlop standalone` looks for it.
        fs::copy(dir.join("admin.conf"), node.kubeconfig()).with_context(|| line.clone())?;
        let access = Access::from_kubeconfig(&fs::read_to_string(node.kubeconfig())?)?;
        let client = Client::new(access, Some(node.netns()?))?;
        Ok(Some(Self { child, node, client }))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server_program() -> Option<PathBuf> {
    let beside = orlop_bin().parent().map(|dir| dir.join("examples/serve"));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/examples/serve");
    beside.into_iter().chain([built]).find(|path| path.exists())
}

#[test]
fn a_denied_request_is_told_and_the_next_join_makes_another() -> anyhow::Result<()> {
    require!();
    require!(server_program().is_some(), "needs the example `serve` of orlop-standalone");
    let server = Server::start("deny")?.context("the server")?;
    let node = server.node.beside()?;
    let invitation = Invitation::new(&server.node, "1h")?;
    for round in 1..=2 {
        let (code, said) = attempt(&node, &invitation.args())?;
        ensure!(code == Some(8) && said.contains("was denied"), "{code:?}: {said}");
        ensure!(!Path::new(&etc_dir(&node)).exists(), "files stay: {said}");
        ensure!(signing_requests(&server.client)?.len() == round, "{:?}", signing_requests(&server.client)?);
    }
    Ok(())
}

#[test]
fn a_join_goes_on_once_its_request_is_approved() -> anyhow::Result<()> {
    require!();
    require!(server_program().is_some(), "needs the example `serve` of orlop-standalone");
    let server = Server::start("never")?.context("the server")?;
    let mut node = server.node.beside()?;
    joining::configure(&server.client, &node)?;
    let invitation = Invitation::new(&server.node, "1h")?;
    let short = short_timeouts(&node)?;
    let args = [invitation.args(), vec!["--config".into(), short]].concat();
    let (code, said) = attempt(&node, &args)?;
    let names = signing_requests(&server.client)?;
    let [name] = &names[..] else { anyhow::bail!("{names:?}: {said}") };
    ensure!(code == Some(9), "{code:?}: {said}");
    ensure!(said.contains(&format!("kubectl certificate approve {name}")), "{said}");
    ensure!(!Path::new(&etc_dir(&node)).exists(), "files stay: {said}");

    approve(&server.client, name)?;
    let said = joining::join(&mut node, &invitation.args())?;
    ensure!(signing_requests(&server.client)? == names, "another request was made: {said}");
    ensure!(said.contains("is Ready after"), "{said}");
    Ok(())
}

fn approve(client: &Client, name: &str) -> anyhow::Result<()> {
    let mut request = client.get(&format!("{REQUESTS}/{name}"))?;
    request["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "ByTest", "message": "approved by a test"}]);
    let path = format!("{REQUESTS}/{name}/approval");
    let (code, body) = client.request("PUT", &path, "application/json", Some(request.to_string()))?;
    ensure!(code == 200, "{code}: {body}");
    Ok(())
}

/// The proxy may have been there before, beside a stock kubelet; it is no node.
#[test]
fn a_proxy_that_runs_alone_is_not_taken_for_the_daemon() -> anyhow::Result<()> {
    require!();
    let (server, mut node, _) = cluster_and_machine()?;
    let kubeconfig = server.kubeconfig_for(&node)?;
    let name = node.name().to_owned();
    node.spawn_command(&["proxy", "run", "--kubeconfig", &kubeconfig, "--hostname-override", &name])?;
    node.until_prints(&["sh", "-c", &format!("ls {}/run", node.dir().display())], |files| {
        files.contains("proxy.sock")
    })?;
    let args = [Invitation::new(&server, "1h")?.args(), vec!["--ready-timeout".into(), "0s".into()]].concat();
    let (code, said) = attempt(&node, &args)?;
    ensure!(code == Some(0) && said.contains("not started by this command"), "{code:?}: {said}");
    Ok(())
}
