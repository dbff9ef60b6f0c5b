//! Certificates that end while the node works.

use std::time::{Duration, Instant};

use anyhow::ensure;
use orlop_tests::manifest::{PODS, is_ready, pod_path, sleeper};
use orlop_tests::node::Node;
use orlop_tests::require;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);

/// When the condition Ready last changed.
fn ready_since(object: &Value) -> String {
    let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let ready = conditions.iter().find(|c| c["type"] == "Ready");
    ready.map(|c| format!("{} since {}", c["status"], c["lastTransitionTime"])).unwrap_or_default()
}

/// Two certificates end within the test, so that everything at its end goes by the third.
#[test]
fn a_node_outlives_its_certificates_without_a_restart() -> anyhow::Result<()> {
    require!();
    let mut node = Node::prepared()?;
    node.import_busybox()?;
    node.configure("serverTLSBootstrap: true\n")?;
    node.spawn(&["--standalone", "--cluster-signing-duration", "30s"])?;
    node.wait_ready()?;
    let client = node.client()?;
    let node_path = format!("/api/v1/nodes/{}", node.name());
    client.create(PODS, &sleeper("before"))?;
    let before = client.wait(&pod_path("before"), LONG, |pod| pod.filter(|pod| is_ready(pod)).cloned())?;
    let node_before = client.get(&node_path)?;

    let renewals = || node.log().matches("asked for a new certificate towards the API server").count();
    let start = Instant::now();
    // When the third is asked for, the first has ended.
    while renewals() < 2 {
        ensure!(start.elapsed() < Duration::from_secs(120), "{} renewals only: {}", renewals(), node.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    while start.elapsed() < Duration::from_secs(35) {
        std::thread::sleep(Duration::from_millis(200));
    }

    // The watch of pods goes on, or is begun again with a certificate that holds; statuses arrive.
    client.create(PODS, &sleeper("after"))?;
    client.wait(&pod_path("after"), LONG, |pod| pod.filter(|pod| is_ready(pod)).cloned())?;
    let pod = client.get(&pod_path("before"))?;
    ensure!(ready_since(&pod) == ready_since(&before), "{} was {}", ready_since(&pod), ready_since(&before));
    ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == json!(0), "{pod:#}");
    let now = client.get(&node_path)?;
    ensure!(ready_since(&now) == ready_since(&node_before), "{}", ready_since(&now));
    ensure!(node.log().contains("serving certificate"), "no serving certificate: {}", node.log());
    for trouble in ["Unauthorized", "is not renewed", "does not answer"] {
        ensure!(!node.log().contains(trouble), "{trouble}: {}", node.log());
    }
    Ok(())
}
