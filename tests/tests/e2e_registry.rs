//! Images from a real registry: names, policies, credentials, and everything that can go wrong on the way.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use orlop_tests::client::Client;
use orlop_tests::gate::Gate;
use orlop_tests::manifest::{PODS, container, is_ready, pod, pod_path};
use orlop_tests::node::Node;
use orlop_tests::registry::{self, PASSWORD, Registry, TestImage, pull_secret};
use orlop_tests::require;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

macro_rules! require_registry {
    () => {
        require!();
        let missing = registry::cannot_run();
        require!(missing.is_none(), missing.unwrap_or_default());
    };
}

/// A pod that prints `/version` of its image and stays.
fn of_image(name: &str, image: &str, policy: &str) -> Value {
    let mut object = pod(name, "cat /version; trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done");
    object["spec"]["containers"][0]["image"] = json!(image);
    object["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
    object
}

fn with_secret(mut pod: Value, secret: &str) -> Value {
    pod["spec"]["imagePullSecrets"] = json!([{"name": secret}]);
    pod
}

fn wait_ready(node: &mut Node, name: &str) -> anyhow::Result<Value> {
    let waited = node.client()?.wait(&pod_path(name), LONG, |pod| pod.filter(|pod| is_ready(pod)).cloned());
    waited.with_context(|| node.log())
}

/// Waits until the container waits for this reason; the message.
fn wait_waiting(client: &Client, name: &str, reason: &str) -> anyhow::Result<String> {
    client.wait(&pod_path(name), LONG, |pod| {
        let waiting = &container(pod?, "main")?["state"]["waiting"];
        (waiting["reason"] == reason).then(|| waiting["message"].as_str().unwrap_or_default().to_owned())
    })
}

fn version(node: &Node, pod: &str) -> anyhow::Result<String> {
    Ok(node.orlop(&["logs", pod])?.trim().to_owned())
}

/// The messages of a pod's events of this reason.
fn events(client: &Client, pod: &str, reason: &str) -> anyhow::Result<Vec<String>> {
    let list = client.get("/api/v1/namespaces/default/events")?;
    let of_pod = |event: &&Value| event["involvedObject"]["name"] == pod && event["reason"] == reason;
    let items = list["items"].as_array().into_iter().flatten().filter(of_pod);
    Ok(items.filter_map(|event| event["message"].as_str().map(str::to_owned)).collect())
}

/// Waits until a pod has an event of this reason whose message holds `words`.
fn wait_event(client: &Client, pod: &str, reason: &str, words: &str) -> anyhow::Result<()> {
    let waited = client.wait("/api/v1/namespaces/default/events", LONG, |list| {
        list?["items"].as_array()?.iter().find_map(|event| {
            let message = event["message"].as_str()?;
            let fits = event["involvedObject"]["name"] == pod && event["reason"] == reason;
            (fits && message.contains(words)).then_some(())
        })
    });
    let seen = events(client, pod, reason).unwrap_or_default();
    waited.map_err(|_| anyhow::anyhow!("no event {reason} of {pod} says {words:?}; there are {seen:#?}"))
}

/// Names in a folder of the image store, seen from inside the node.
fn in_store(node: &Node, folder: &str) -> anyhow::Result<Vec<String>> {
    let path = node.dir().join("root/images").join(folder);
    let listed = node.run_inside(&["ls", "-A", &path.display().to_string()])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

#[test]
fn images_come_by_tag_and_by_digest() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, false)?;
    let digest = registry.push(&node, &TestImage::new("one"), "team/app:1")?;
    let other = registry.push(&node, &TestImage::new("two"), "team/app:2")?;
    client.create(PODS, &of_image("by-tag", &registry.name("team/app:1"), "IfNotPresent"))?;
    let by_digest = registry.name(&format!("team/app@{other}"));
    client.create(PODS, &of_image("by-digest", &by_digest, "IfNotPresent"))?;
    for (pod, text, digest) in [("by-tag", "one", &digest), ("by-digest", "two", &other)] {
        let seen = wait_ready(&mut node, pod)?;
        ensure!(version(&node, pod)? == text, "{pod} runs {}", version(&node, pod)?);
        let image_id = &container(&seen, "main").context("no status")?["imageID"];
        ensure!(*image_id == registry.name(&format!("team/app@{digest}")), "imageID is {image_id}");
    }
    wait_event(&client, "by-tag", "Pulling", &format!("Pulling image \"{}\"", registry.name("team/app:1")))?;
    wait_event(&client, "by-tag", "Pulled", "Successfully pulled image")?;
    // The Node lists what was pulled, without waiting for the next report.
    let path = format!("/api/v1/nodes/{}", node.name());
    client.wait(&path, LONG, |seen| {
        let images = seen?["status"]["images"].as_array()?;
        let names = images.iter().filter_map(|image| image["names"].as_array()).flatten();
        names.filter_map(Value::as_str).any(|name| name == by_digest).then_some(())
    })?;
    // What a pod runs from cannot be removed; what it has run from can.
    let refused = node.orlop_output(&["image", "rm", &by_digest])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("in use"), "image rm says {said:?}");
    client.delete(&pod_path("by-digest"))?;
    client.wait(&pod_path("by-digest"), LONG, |pod| pod.is_none().then_some(()))?;
    let holds = || Ok::<_, anyhow::Error>(in_store(&node, "holds")?.len());
    let start = std::time::Instant::now();
    while holds()? > 1 {
        ensure!(start.elapsed() < LONG, "the image stays held: {:?}", in_store(&node, "holds")?);
    }
    node.orlop(&["image", "rm", &by_digest])?;
    Ok(())
}

#[test]
fn pull_policies_decide_when_the_registry_is_asked() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, false)?;
    let image = registry.name("app:latest");
    registry.push(&node, &TestImage::new("old"), "app:latest")?;
    client.create(PODS, &of_image("never-absent", &image, "Never"))?;
    let message = wait_waiting(&client, "never-absent", "ErrImageNeverPull")?;
    ensure!(
        message == format!("Container image \"{image}\" is not present with pull policy of Never"),
        "{message}"
    );
    client.create(PODS, &of_image("first", &image, "IfNotPresent"))?;
    wait_ready(&mut node, "first")?;
    // The tag moves.
    registry.push(&node, &TestImage::new("new"), "app:latest")?;
    for (name, policy, text) in
        [("present", "IfNotPresent", "old"), ("never", "Never", "old"), ("always", "Always", "new")]
    {
        client.create(PODS, &of_image(name, &image, policy))?;
        wait_ready(&mut node, name)?;
        let seen = version(&node, name)?;
        ensure!(seen == text, "with policy {policy} the image is the {seen} one");
    }
    let present = format!("Container image \"{image}\" already present on machine");
    wait_event(&client, "present", "Pulled", &present)?;
    wait_event(&client, "always", "Pulled", "Successfully pulled image")?;
    // With the registry gone, Always cannot start what is there.
    drop(registry);
    client.create(PODS, &of_image("always-away", &image, "Always"))?;
    let message = wait_waiting(&client, "always-away", "ErrImagePull")?;
    ensure!(message.contains(&image) || message.contains("127.0.0.1:5000"), "{message}");
    // A container that restarts runs the image its name stands for by then.
    ensure!(version(&node, "first")? == "old", "a running container changed its image");
    Ok(())
}

#[test]
fn a_registry_with_passwords_wants_the_right_pull_secret() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, true)?;
    registry.push(&node, &TestImage::new("private"), "private:1")?;
    let image = registry.name("private:1");
    let host = "127.0.0.1:5000";
    client.create(SECRETS, &pull_secret("wrong", host, "guess"))?;
    client.create(SECRETS, &pull_secret("right", host, PASSWORD))?;
    client.create(PODS, &of_image("anonymous", &image, "IfNotPresent"))?;
    client.create(PODS, &with_secret(of_image("wrong", &image, "IfNotPresent"), "wrong"))?;
    client.create(PODS, &with_secret(of_image("absent", &image, "IfNotPresent"), "no-such-secret"))?;
    for name in ["anonymous", "wrong", "absent"] {
        let message = wait_waiting(&client, name, "ErrImagePull")?;
        for words in [image.as_str(), "denied", "authentication required"] {
            ensure!(message.contains(words), "{words:?} is not in the message of {name}: {message}");
        }
    }
    ensure!(!node.log().contains("guess"), "the log holds a password");
    client.create(PODS, &with_secret(of_image("right", &image, "IfNotPresent"), "right"))?;
    wait_ready(&mut node, "right")?;
    ensure!(version(&node, "right")? == "private");
    // Another's image is not had by its being here: Always asks the registry with the pod's own credentials.
    client.create(PODS, &with_secret(of_image("thief", &image, "Always"), "wrong"))?;
    wait_waiting(&client, "thief", "ErrImagePull")?;
    Ok(())
}

#[test]
fn an_unknown_image_backs_off_in_kubelets_words() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, false)?;
    let image = registry.name("unknown:1");
    client.create(PODS, &of_image("waits", &image, "IfNotPresent"))?;
    let failed = wait_waiting(&client, "waits", "ErrImagePull")?;
    ensure!(failed.contains(&image) && failed.contains("not found"), "{failed}");
    let waits = wait_waiting(&client, "waits", "ImagePullBackOff")?;
    ensure!(waits == format!("Back-off pulling image \"{image}\": ErrImagePull: {failed}"), "{waits}");
    wait_waiting(&client, "waits", "ErrImagePull")?;
    wait_waiting(&client, "waits", "ImagePullBackOff")?;
    for (reason, words) in [
        ("Pulling", format!("Pulling image \"{image}\"")),
        ("Failed", format!("Failed to pull image \"{image}\": ")),
        ("Failed", "Error: ErrImagePull".to_owned()),
        ("Failed", "Error: ImagePullBackOff".to_owned()),
        ("BackOff", format!("Back-off pulling image \"{image}\"")),
    ] {
        wait_event(&client, "waits", reason, &words)?;
    }
    // It starts by itself once somebody has pushed the image.
    registry.push(&node, &TestImage::new("late"), "unknown:1")?;
    wait_ready(&mut node, "waits")?;
    Ok(())
}

#[test]
fn a_corrupt_layer_is_named_and_nothing_half_made_stays() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, false)?;
    registry.push(&node, &TestImage::new("good").with_noise(3 << 20), "app:1")?;
    let blob = registry.blob_files()?.into_iter().next().context("no blob")?;
    let good = fs::read(&blob)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0xff;
    fs::write(&blob, &bad)?;
    let layers = in_store(&node, "layers")?;
    client.create(PODS, &of_image("corrupt", &registry.name("app:1"), "IfNotPresent"))?;
    let message = wait_waiting(&client, "corrupt", "ErrImagePull")?;
    let digest =
        blob.parent().and_then(|dir| dir.file_name()).context("a digest")?.to_string_lossy().into_owned();
    for words in ["layer", &format!("sha256:{digest}")] {
        ensure!(message.contains(words), "{words:?} is not in {message}");
    }
    ensure!(in_store(&node, "tmp")?.is_empty(), "left in tmp: {:?}", in_store(&node, "tmp")?);
    let partial = in_store(&node, "partial")?;
    ensure!(!partial.iter().any(|name| name.contains(&digest)), "the corrupt blob is kept: {partial:?}");
    // The layers below may have arrived whole; the image is not there, and no layer but theirs.
    let added = in_store(&node, "layers")?.len() - layers.len();
    ensure!(added <= 1, "{added} layers of a corrupt image are in the store");
    ensure!(!node.orlop(&["image", "ls"])?.contains("127.0.0.1:5000/app"), "a corrupt image is listed");
    fs::write(&blob, &good)?;
    wait_ready(&mut node, "corrupt")?;
    ensure!(version(&node, "corrupt")? == "good");
    Ok(())
}

#[test]
fn a_disk_that_fills_during_a_pull_is_named_and_recovers() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::prepared()?;
    let store = node.dir().join("root/images");
    fs::create_dir_all(&store)?;
    let store = store.display().to_string();
    node.run_inside(&["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", &store])?;
    node.import_busybox()?;
    node.start()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, false)?;
    registry.push(&node, &TestImage::new("large").with_noise(24 << 20), "large:1")?;
    let image = registry.name("large:1");
    let before = in_store(&node, "layers")?;
    client.create(PODS, &of_image("large", &image, "IfNotPresent"))?;
    let message = wait_waiting(&client, "large", "ErrImagePull")?;
    ensure!(message.to_lowercase().contains("no space left") && message.contains(&store), "{message}");
    ensure!(in_store(&node, "layers")? == before, "layers are left of a pull that filled the disk");
    ensure!(in_store(&node, "tmp")?.is_empty(), "work is left of a pull that filled the disk");
    // The node goes on: an image that is there still starts.
    client.create(PODS, &pod("small", "exec sleep 1000000"))?;
    wait_ready(&mut node, "small")?;
    node.run_inside(&["mount", "-o", "remount,size=128m", &store])?;
    wait_ready(&mut node, "large")?;
    ensure!(version(&node, "large")? == "large");
    Ok(())
}

#[test]
fn a_pull_goes_on_after_the_daemon_was_killed_in_its_middle() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, false)?;
    registry.push(&node, &TestImage::new("cut").with_noise(8 << 20), "cut:1")?;
    let gate = Gate::before(&node, 5001, 5000, 2 << 20)?;
    client.create(PODS, &of_image("cut", "127.0.0.1:5001/cut:1", "IfNotPresent"))?;
    gate.wait_stopped(LONG)?;
    node.kill_daemon()?;
    ensure!(!in_store(&node, "partial")?.is_empty(), "nothing of the blob is kept for the next attempt");
    ensure!(!node.orlop(&["image", "ls"])?.contains("5001/cut"), "half an image is listed");
    gate.open();
    node.start()?;
    wait_ready(&mut node, "cut")?;
    ensure!(version(&node, "cut")? == "cut");
    ensure!(in_store(&node, "partial")?.is_empty(), "left: {:?}", in_store(&node, "partial")?);
    ensure!(in_store(&node, "tmp")?.is_empty(), "left: {:?}", in_store(&node, "tmp")?);
    Ok(())
}

#[test]
fn a_pod_deleted_during_its_pull_ends_at_once() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::standalone()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, false)?;
    registry.push(&node, &TestImage::new("gone").with_noise(8 << 20), "gone:1")?;
    let gate = Gate::before(&node, 5001, 5000, 1 << 20)?;
    client.create(PODS, &of_image("gone", "127.0.0.1:5001/gone:1", "IfNotPresent"))?;
    gate.wait_stopped(LONG)?;
    client.delete(&pod_path("gone"))?;
    // The gate stays shut: the pull itself never ends.
    client.wait(&pod_path("gone"), LONG, |pod| pod.is_none().then_some(())).with_context(|| node.log())?;
    Ok(())
}

#[test]
fn images_that_nobody_uses_make_room_on_a_full_disk() -> anyhow::Result<()> {
    require_registry!();
    let mut node = Node::prepared()?;
    let store = node.dir().join("root/images");
    fs::create_dir_all(&store)?;
    let mount = ["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", &store.display().to_string()];
    node.run_inside(&mount)?;
    let path = node.dir().join("etc/config.yaml");
    let thresholds =
        "imageGCHighThresholdPercent: 25\nimageGCLowThresholdPercent: 1\nimageMinimumGCAge: 1ms\n";
    fs::write(&path, fs::read_to_string(&path)? + thresholds)?;
    node.import_busybox()?;
    node.start()?;
    let client = node.client()?;
    let registry = Registry::start(&node, 5000, false)?;
    registry.push(&node, &TestImage::new("used"), "used:1")?;
    registry.push(&node, &TestImage::new("unused").with_noise(8 << 20), "unused:1")?;
    client.create(PODS, &of_image("user", &registry.name("used:1"), "IfNotPresent"))?;
    wait_ready(&mut node, "user")?;
    node.orlop(&["image", "pull", &registry.name("unused:1")])?;
    // A daemon looks when it starts, and then every five minutes.
    node.kill_daemon()?;
    node.start()?;
    let start = std::time::Instant::now();
    while node.orlop(&["image", "ls"])?.contains("/unused") {
        ensure!(start.elapsed() < LONG, "the unused image stays: {}", node.log());
    }
    ensure!(node.orlop(&["image", "ls"])?.contains("/used"), "the image of a running pod was removed");
    let removed = node.log().lines().filter(|line| line.contains("removed an image")).count();
    ensure!(removed >= 1, "nothing is logged of it: {}", node.log());
    // The pod runs on, and its image starts again.
    ensure!(node.orlop(&["exec", "user", "--", "cat", "/version"])?.trim() == "used");
    Ok(())
}
