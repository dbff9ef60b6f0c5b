//! Files and flags in, configuration or a clear error out.

use std::path::Path;

use clap::Parser;

use super::kubelet::KubeletConfiguration;
use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    run: RunArgs,
}

fn args(line: &str) -> RunArgs {
    Line::parse_from(std::iter::once("orlop").chain(line.split_whitespace())).run
}

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

fn parse(body: &str) -> Result<(KubeletConfiguration, Vec<String>), String> {
    kubelet::parse(&format!("{HEAD}{body}"), Path::new("k.yaml")).map_err(|e| e.to_string())
}

fn config(body: &str) -> Config {
    let (file, _) = parse(body).expect("valid");
    Config::build(&args("--kubeconfig k --config k.yaml"), file, "Node-1").expect("consistent")
}

#[test]
fn without_a_file_kubelets_defaults_hold() {
    let config =
        Config::build(&args("--kubeconfig k"), KubeletConfiguration::default(), "Node-1").expect("valid");
    assert_eq!(config.node_name, "node-1");
    assert_eq!(config.server.address.map(|a| a.to_string()).as_deref(), Some("0.0.0.0:10250"));
    assert_eq!(config.server.healthz.map(|a| a.to_string()).as_deref(), Some("127.0.0.1:10248"));
    assert_eq!((config.server.read_only, config.server.anonymous), (None, false));
    assert_eq!((config.pods.max, config.pods.pids_limit), (110, None));
    assert_eq!((config.logs.max_bytes, config.logs.max_files), (10 << 20, 5));
    assert_eq!(config.node.report_every, Duration::from_secs(300));
    assert_eq!(config.node.lease_duration, Duration::from_secs(40));
    assert_eq!(config.reserved.eviction_hard["memory.available"], Threshold::Amount(100 << 20));
    assert_eq!(config.pod_logs_dir, Path::new("/var/log/pods"));
    assert_eq!(config.dns.resolv_conf.as_deref(), Some(Path::new("/etc/resolv.conf")));
}

/// What `kubeadm init` writes, zero values and all.
const KUBEADM: &str = "
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
logging: {flushFrequency: 0, options: {json: {infoBufferSize: '0'}, text: {infoBufferSize: '0'}}, verbosity: 0}
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
resolvConf: /run/systemd/resolve/resolv.conf
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
";

#[test]
fn kubeadms_file_is_obeyed_and_only_what_is_lost_is_named() {
    let (file, ignored) = parse(KUBEADM).expect("valid");
    assert_eq!(ignored, ["staticPodPath"]);
    let config = Config::build(&args("--kubeconfig k"), file, "n").expect("consistent");
    assert!(config.certificates.rotate && !config.certificates.serving_from_cluster);
    assert_eq!(config.server.client_ca_file.as_deref(), Some(Path::new("/etc/kubernetes/pki/ca.crt")));
    assert_eq!(config.server.token_review, Some(Duration::from_secs(120)));
    let webhook =
        Authorization::Webhook { allowed_for: Duration::from_secs(300), denied_for: Duration::from_secs(30) };
    assert_eq!(config.server.authorization, webhook);
    assert_eq!(config.cgroups.driver, Some(CgroupDriver::Systemd));
    assert_eq!(config.dns.servers, ["10.96.0.10".parse::<IpAddr>().expect("an address")]);
    assert_eq!(config.pods.max_restart_backoff, Duration::from_secs(300));
    assert_eq!(config.static_pod_path.as_deref(), Some(Path::new("/etc/kubernetes/manifests")));
}

#[test]
fn certificates_come_as_the_file_and_the_flags_say() {
    let of = |flags: &str, lines: &str| {
        let (file, _) = parse(lines).expect("valid");
        Config::build(&args(flags), file, "n").expect("consistent").certificates
    };
    let plain = of("--kubeconfig /etc/orlop/kubeconfig", "");
    assert!(plain.rotate && !plain.serving_from_cluster);
    assert_eq!(plain.bootstrap_kubeconfig, Some("/etc/orlop/bootstrap-kubeconfig".into()));
    assert!(!of("--kubeconfig k", "rotateCertificates: false").rotate);
    assert!(of("--kubeconfig k", "serverTLSBootstrap: true").serving_from_cluster);
    let files = "serverTLSBootstrap: true\ntlsCertFile: c\ntlsPrivateKeyFile: k";
    assert!(!of("--kubeconfig k", files).serving_from_cluster, "files come first");
    let given = of("--kubeconfig k --bootstrap-kubeconfig /b", "");
    assert_eq!(given.bootstrap_kubeconfig, Some("/b".into()));
    assert_eq!(of("--standalone", "").bootstrap_kubeconfig, None);
}

#[test]
fn fields_not_obeyed_are_named_by_their_path() {
    let (_, ignored) =
        parse("cpuManagerPolicy: static\nmemorySwap: {swapBehavior: LimitedSwap}\nshutDown: 1\n")
            .expect("valid");
    assert_eq!(ignored, ["cpuManagerPolicy", "memorySwap.swapBehavior", "shutDown"]);
    let (_, ignored) = parse("authentication: {x509: {clientCAFile: a, crl: b}}\n").expect("valid");
    assert_eq!(ignored, ["authentication.x509.crl"]);
}

#[test]
fn values_are_understood() {
    let config = config(
        "address: 10.0.0.9\nport: 11250\nhealthzPort: 0\npodCIDR: 10.1.0.0/24,fd00::/64\nmaxPods: 50\npodPidsLimit: 100\n\
         containerLogMaxSize: 1Mi\nregisterWithTaints: [{key: a, value: b, effect: NoExecute}]\n\
         kubeReserved: {cpu: 200m, memory: 1Gi}\nevictionHard: {memory.available: 5%}\nresolvConf: ''\n\
         crashLoopBackOff: {maxContainerRestartPeriod: 30s}\nauthorization: {mode: AlwaysAllow}\ncgroupRoot: /orlop/a/\n\
         maxParallelImagePulls: 3\nnodeStatusReportFrequency: 1m\n",
    );
    assert_eq!(config.server.address.map(|a| a.to_string()).as_deref(), Some("10.0.0.9:11250"));
    assert_eq!((config.server.healthz, config.dns.resolv_conf), (None, None));
    assert_eq!(config.pod_cidrs.len(), 2);
    assert_eq!((config.pods.max, config.pods.pids_limit), (50, Some(100)));
    assert_eq!(config.node.taints, ["a=b:NoExecute".parse::<Taint>().expect("a taint")]);
    assert_eq!(config.reserved.kube["cpu"].millis(), 200);
    assert_eq!(
        config.reserved.eviction_hard,
        [("memory.available".to_owned(), Threshold::Share(0.05))].into()
    );
    assert_eq!(config.pods.max_restart_backoff, Duration::from_secs(30));
    assert_eq!(config.server.authorization, Authorization::AlwaysAllow);
    assert_eq!(config.cgroups.root, "orlop/a");
    assert_eq!(config.images.parallel_pulls, Some(3));
    assert_eq!(config.node.report_every, Duration::from_secs(60));
}

#[test]
fn a_malformed_value_names_file_line_and_field() {
    let table = [
        ("maxPods: many\n", "configuration k.yaml, line 3: maxPods: "),
        ("# a comment\nport: 70000\n", "configuration k.yaml, line 4: port: "),
        (
            "authentication:\n  webhook:\n    cacheTTL: soon\n",
            "configuration k.yaml, line 5: cacheTTL: `soon` is not a duration such as 30s or 1h30m",
        ),
        (
            "podCIDR: here\n",
            "configuration k.yaml, line 3: podCIDR: `here` is not a network such as 10.1.0.0/24",
        ),
        ("clusterDNS: [10.0.0.1, nowhere]\n", "configuration k.yaml, line 3: clusterDNS: "),
        (
            "evictionHard:\n  memory.available: lots\n",
            "configuration k.yaml, line 4: memory.available: `lots` is neither",
        ),
        ("cgroupDriver: magic\n", "configuration k.yaml, line 3: cgroupDriver: "),
        ("maxPods: [\n", "configuration k.yaml, line "),
    ];
    for (body, wanted) in table {
        let error = parse(body).expect_err(wanted);
        assert!(error.starts_with(wanted), "{error}\nwanted {wanted}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn a_file_of_another_kind_says_what_it_should_be() {
    let error = |text: &str| kubelet::parse(text, Path::new("k.yaml")).expect_err("wrong kind").to_string();
    assert_eq!(
        error("apiVersion: v1\nkind: Pod\n"),
        "configuration k.yaml: kind: is Pod; this file must say `kind: KubeletConfiguration`"
    );
    assert_eq!(
        error("apiVersion: kubelet.config.k8s.io/v1\nkind: KubeletConfiguration\n"),
        "configuration k.yaml: apiVersion: is kubelet.config.k8s.io/v1; this file must say `apiVersion: \
         kubelet.config.k8s.io/v1beta1`"
    );
    assert_eq!(
        error(""),
        "configuration k.yaml: kind: is not set; this file must say `kind: KubeletConfiguration`"
    );
}

#[test]
fn fields_that_contradict_each_other_are_errors() {
    let table = [
        ("containerLogMaxFiles: 1\n", "containerLogMaxFiles: must be at least 2"),
        ("tlsCertFile: a\n", "tlsCertFile: goes together with tlsPrivateKeyFile"),
        ("imageGCHighThresholdPercent: 50\n", "imageGCHighThresholdPercent: must be at most 100"),
        (
            "serializeImagePulls: true\nmaxParallelImagePulls: 3\n",
            "maxParallelImagePulls: cannot be larger than 1",
        ),
        (
            "crashLoopBackOff: {maxContainerRestartPeriod: 10m}\n",
            "crashLoopBackOff.maxContainerRestartPeriod: must be between",
        ),
        ("podCIDR: 10.0.0.0/24,10.0.1.0/24\n", "podCIDR: at most one network of each family"),
    ];
    for (body, wanted) in table {
        let (file, _) = parse(body).expect("well formed");
        let error =
            Config::build(&args("--kubeconfig k --config k.yaml"), file, "n").expect_err(wanted).to_string();
        assert!(error.starts_with(&format!("configuration k.yaml: {wanted}")), "{error}");
    }
}

#[test]
fn flags_are_checked_together() {
    let build = |line: &str, hostname: &str| {
        Config::build(&args(line), KubeletConfiguration::default(), hostname).map_err(|e| e.to_string())
    };
    let error = build("--kubeconfig k --node-ip 10.0.0.1,10.0.0.2", "n").expect_err("two of one family");
    assert_eq!(error, "--node-ip: at most one address of each family");
    let error =
        build("--kubeconfig k --node-labels node-role.kubernetes.io/master=", "n").expect_err("forbidden");
    assert!(
        error.starts_with("--node-labels: a node may not give itself node-role.kubernetes.io/master;"),
        "{error}"
    );
    let error = build("--kubeconfig k", "under_score").expect_err("not a name");
    assert!(error.starts_with("--hostname-override: `under_score` cannot be the name of a Node"), "{error}");
    assert_eq!(build("--kubeconfig k --hostname-override N2", "x").expect("valid").node_name, "n2");
}

#[test]
fn a_missing_file_is_named() {
    let error =
        Config::load(&args("--kubeconfig k --config /nonexistent/k.yaml")).expect_err("missing").to_string();
    assert_eq!(error, "configuration /nonexistent/k.yaml: No such file or directory (os error 2)");
}
