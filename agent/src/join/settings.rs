//! What a join is to do: JoinConfiguration and flags put together. A flag wins over the file; ignored checks add up.
//!
//! Owns: the file's form, the defaults, and which of it goes together. Never: reads a file, connects. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::args::JoinArgs;
use super::pin::Pin;
use super::token::BootstrapToken;
use crate::config::duration::GoDuration;
use crate::config::labels::Taint;

const VERSIONS: [&str; 2] = ["kubeadm.k8s.io/v1beta3", "kubeadm.k8s.io/v1beta4"];
const KIND: &str = "JoinConfiguration";

/// How the cluster is found and why it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// By a token, and by hashes of the CA; without any where that is asked for.
    Token {
        /// `host:port`.
        endpoint: String,
        /// Checks the signature.
        token: BootstrapToken,
        /// One of them must fit; none means that the CA is not checked.
        pins: Vec<Pin>,
    },
    /// By a kubeconfig: a path, or an https URL.
    File(String),
}

/// What a join is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How the cluster is found.
    pub discovery: Discovery,
    /// Asks for the certificate; none where the discovery file has credentials.
    pub bootstrap_token: Option<BootstrapToken>,
    /// `--node-name`.
    pub node_name: Option<String>,
    /// Names of checks, lower case.
    pub ignored: Vec<String>,
    /// Change nothing.
    pub dry_run: bool,
    /// Flags of `orlop run` that the file asks for.
    pub node_flags: Vec<String>,
    /// How long each phase may take.
    pub timeouts: Timeouts,
}

/// How long each phase may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// `timeouts.discovery`.
    pub discovery: Duration,
    /// `timeouts.kubernetesAPICall`.
    pub api_call: Duration,
    /// `timeouts.tlsBootstrap`.
    pub tls_bootstrap: Duration,
    /// `timeouts.kubeletHealthCheck`, or `--ready-timeout`.
    pub ready: Duration,
}

/// The parts of a JoinConfiguration that a node obeys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JoinConfiguration {
    discovery: FileDiscovery,
    node_registration: NodeRegistration,
    control_plane: Option<Value>,
    timeouts: FileTimeouts,
    dry_run: bool,
    // Said by every file, and read before.
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    // This node keeps the CA in a place of its own.
    #[serde(rename = "caCertPath")]
    _ca_cert_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FileDiscovery {
    bootstrap_token: Option<TokenDiscovery>,
    file: Option<KubeconfigDiscovery>,
    tls_bootstrap_token: String,
    timeout: GoDuration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TokenDiscovery {
    token: String,
    api_server_endpoint: String,
    ca_cert_hashes: Vec<String>,
    #[serde(rename = "unsafeSkipCAVerification")]
    unsafe_skip_ca_verification: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct KubeconfigDiscovery {
    kube_config_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeRegistration {
    name: String,
    // There is no other container runtime here.
    #[serde(rename = "criSocket")]
    _cri_socket: String,
    taints: Option<Vec<Taint>>,
    kubelet_extra_args: Option<ExtraArgs>,
    ignore_preflight_errors: Vec<String>,
}

/// A map in v1beta3, a list in v1beta4.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ExtraArgs {
    Map(BTreeMap<String, String>),
    List(Vec<ExtraArg>),
}

#[derive(Debug, Deserialize)]
struct ExtraArg {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FileTimeouts {
    discovery: GoDuration,
    #[serde(rename = "kubernetesAPICall")]
    kubernetes_api_call: GoDuration,
    tls_bootstrap: GoDuration,
    kubelet_health_check: GoDuration,
}

/// Reads a file of one or several documents. Beside the JoinConfiguration come the fields that are not obeyed.
///
/// # Errors
/// When there is none, or a field is not what it should be.
pub fn parse(text: &str) -> Result<(JoinConfiguration, Vec<String>), String> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|e| e.without_snippet().to_string())?;
    let found = documents.into_iter().find(|document| document["kind"] == KIND);
    let document = found.ok_or_else(|| format!("holds no `kind: {KIND}`"))?;
    let version = document["apiVersion"].as_str().unwrap_or_default();
    if !VERSIONS.contains(&version) {
        return Err(format!("apiVersion is {version:?}; {} are understood", VERSIONS.join(" and ")));
    }
    let mut ignored = Vec::new();
    let parsed = serde_ignored::deserialize(document, |path| ignored.push(path.to_string()))
        .map_err(|e: serde_json::Error| e.to_string())?;
    Ok((parsed, ignored))
}

/// Puts file and flags together.
///
/// # Errors
/// Says which flag or field is missing, or does not go with another.
pub fn merge(args: &JoinArgs, file: JoinConfiguration) -> Result<Settings, String> {
    if file.control_plane.is_some_and(|value| !value.is_null()) {
        return Err("controlPlane is set: orlop joins worker nodes only".to_owned());
    }
    let FileDiscovery { bootstrap_token, file: by_file, tls_bootstrap_token, timeout } = file.discovery;
    let of_file = by_file.map(|f| f.kube_config_path).filter(|path| !path.is_empty());
    let by_file = args.discovery_file.clone().or(of_file);
    let by_token = bootstrap_token.unwrap_or_default();
    let token_text = first([&args.discovery_token, &args.token], &by_token.token);
    let discovery = match (by_file, &token_text) {
        (Some(file), _) if args.discovery_token.is_none() && by_token.token.is_empty() => {
            Discovery::File(file)
        }
        (Some(_), _) => return Err("--discovery-file and a discovery token exclude each other".to_owned()),
        (None, Some(token)) => by_token_of(args, &by_token, token)?,
        (None, None) => return Err("no way to find the cluster: give --token or --discovery-file".to_owned()),
    };
    let secret = first([&args.tls_bootstrap_token, &args.token], &tls_bootstrap_token)
        .or_else(|| token_text.filter(|_| matches!(discovery, Discovery::Token { .. })));
    let bootstrap_token = secret.map(|text| text.parse()).transpose();
    let registration = file.node_registration;
    let timeouts = &file.timeouts;
    let minutes = |n: u64| Duration::from_secs(n * 60);
    Ok(Settings {
        bootstrap_token: bootstrap_token.map_err(|e: String| format!("--tls-bootstrap-token: {e}"))?,
        discovery,
        node_name: args
            .node_name
            .clone()
            .or_else(|| Some(registration.name.clone()).filter(|n| !n.is_empty())),
        ignored: args
            .ignore_preflight_errors
            .iter()
            .chain(&registration.ignore_preflight_errors)
            .map(|name| name.trim().to_lowercase())
            .filter(|name| !name.is_empty())
            .collect(),
        dry_run: args.dry_run || file.dry_run,
        node_flags: node_flags(registration)?,
        timeouts: Timeouts {
            discovery: timeouts.discovery.or(timeout.or(minutes(5))),
            api_call: timeouts.kubernetes_api_call.or(minutes(1)),
            tls_bootstrap: timeouts.tls_bootstrap.or(minutes(5)),
            ready: args.ready_timeout.unwrap_or_else(|| timeouts.kubelet_health_check.or(minutes(4))),
        },
    })
}

fn first(flags: [&Option<String>; 2], file: &str) -> Option<String> {
    let flag = flags.into_iter().flatten().next().cloned();
    flag.or_else(|| Some(file.to_owned()).filter(|text| !text.is_empty()))
}

fn by_token_of(args: &JoinArgs, file: &TokenDiscovery, token: &str) -> Result<Discovery, String> {
    let named = args.endpoint.clone().unwrap_or_else(|| file.api_server_endpoint.clone());
    if named.is_empty() {
        return Err("no API server: give its host:port".to_owned());
    }
    let hashes = match args.discovery_token_ca_cert_hash.as_slice() {
        [] => &file.ca_cert_hashes,
        given => given,
    };
    let pins: Result<Vec<Pin>, String> = hashes.iter().map(|text| text.parse()).collect();
    let pins = pins.map_err(|e| format!("--discovery-token-ca-cert-hash: {e}"))?;
    let unsafe_skip = args.discovery_token_unsafe_skip_ca_verification || file.unsafe_skip_ca_verification;
    if pins.is_empty() && !unsafe_skip {
        return Err("no CA hash: give --discovery-token-ca-cert-hash, or knowingly \
                    --discovery-token-unsafe-skip-ca-verification"
            .to_owned());
    }
    Ok(Discovery::Token {
        endpoint: endpoint(&named)?,
        token: token.parse().map_err(|e| format!("--token: {e}"))?,
        pins,
    })
}

/// `host:port` of what was given as the API server.
///
/// # Errors
/// When it is none.
pub fn endpoint(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is not an API server such as 192.0.2.1:6443");
    let bare = text.trim().strip_prefix("https://").unwrap_or(text.trim()).trim_end_matches('/');
    if bare.is_empty() || bare.contains(['/', '@', ' ', '?', '#']) {
        return Err(wrong());
    }
    let (host, port) = match bare.rsplit_once(':') {
        // An IPv6 address without brackets has colons of its own.
        Some((host, _)) if host.contains(':') && !host.starts_with('[') => (format!("[{bare}]"), "6443"),
        Some((host, port)) if !bare.ends_with(']') => (host.to_owned(), port),
        Some(_) | None => (bare.to_owned(), "6443"),
    };
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if host.is_empty() || port == 0 {
        return Err(wrong());
    }
    Ok(format!("{host}:{port}"))
}

fn node_flags(registration: NodeRegistration) -> Result<Vec<String>, String> {
    let mut flags = Vec::new();
    if let Some(taints) = registration.taints.filter(|taints| !taints.is_empty()) {
        let texts = taints.iter().map(|t| format!("{}={}:{}", t.key, t.value, t.effect.as_str()));
        flags.push(format!("--register-with-taints={}", texts.collect::<Vec<_>>().join(",")));
    }
    let pairs: Vec<(String, String)> = match registration.kubelet_extra_args {
        None => Vec::new(),
        Some(ExtraArgs::Map(map)) => map.into_iter().collect(),
        Some(ExtraArgs::List(list)) => list.into_iter().map(|arg| (arg.name, arg.value)).collect(),
    };
    for (name, value) in pairs {
        if value.chars().chain(name.chars()).any(|c| c.is_whitespace() || c == '"' || c == '\\') {
            return Err(format!(
                "kubeletExtraArgs: the value of {name} may hold no blank, quote or backslash"
            ));
        }
        flags.push(format!("--{name}={value}"));
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const TOKEN: &str = "abcdef.0123456789abcdef";
    const HASH: &str = "sha256:0fb684b97dc7f60e2f40c74ed60befe4bd4ab34007f18d2e039de70db58137be";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        join: JoinArgs,
    }

    fn args(line: &str) -> JoinArgs {
        let words = std::iter::once("orlop").chain(line.split_whitespace());
        Line::try_parse_from(words).expect("flags").join
    }

    fn merged(line: &str, file: &str) -> Result<Settings, String> {
        let file = if file.is_empty() { JoinConfiguration::default() } else { parse(file)?.0 };
        merge(&args(line), file)
    }

    fn token() -> BootstrapToken {
        TOKEN.parse().expect("a token")
    }

    #[test]
    fn the_line_that_kubeadm_prints_is_understood() {
        let settings =
            merged(&format!("10.0.0.1:6443 --token {TOKEN} --discovery-token-ca-cert-hash {HASH}"), "")
                .expect("settings");
        let wanted = Discovery::Token {
            endpoint: "10.0.0.1:6443".into(),
            token: token(),
            pins: vec![HASH.parse().expect("a hash")],
        };
        assert_eq!((settings.discovery, settings.bootstrap_token), (wanted, Some(token())));
        assert_eq!(settings.timeouts.discovery, Duration::from_secs(300));
    }

    #[test]
    fn what_is_missing_or_does_not_go_together_is_named() {
        for (line, wanted) in [
            ("".to_owned(), "--token or --discovery-file"),
            (format!("--token {TOKEN}"), "no API server"),
            (format!("h --token {TOKEN}"), "no CA hash"),
            (format!("h --token x --discovery-token-ca-cert-hash {HASH}"), "--token: a bootstrap token"),
            (format!("h --token {TOKEN} --discovery-token-ca-cert-hash md5:1"), "is not a hash"),
            (format!("h/x --token {TOKEN} --discovery-token-ca-cert-hash {HASH}"), "is not an API server"),
            (format!("--discovery-file f --discovery-token {TOKEN}"), "exclude each other"),
            ("--discovery-file f --tls-bootstrap-token x".to_owned(), "--tls-bootstrap-token: a bootstrap"),
        ] {
            let error = merged(&line, "").expect_err(wanted);
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn a_file_is_enough_for_discovery_and_a_token_then_only_asks_for_the_certificate() {
        let settings = merged("--discovery-file /f", "").expect("settings");
        assert_eq!((settings.discovery, settings.bootstrap_token), (Discovery::File("/f".into()), None));
        let settings = merged(&format!("--discovery-file /f --token {TOKEN}"), "").expect("settings");
        assert_eq!(settings.bootstrap_token, Some(token()));
    }

    #[test]
    fn a_configuration_of_either_version_says_the_same_and_flags_win() {
        let of = |version: &str, extra: &str, timeouts: &str| {
            format!(
                "apiVersion: kubeadm.k8s.io/{version}\nkind: JoinConfiguration\ndiscovery:\n  bootstrapToken:\n    \
                 token: {TOKEN}\n    apiServerEndpoint: api:443\n    caCertHashes: [\"{HASH}\"]\n{timeouts}\
                 nodeRegistration:\n  name: n1\n  criSocket: unix:///x\n  ignorePreflightErrors: [Swap]\n  taints:\n  \
                 - {{key: a, effect: NoSchedule}}\n  kubeletExtraArgs:\n{extra}"
            )
        };
        let old = of("v1beta3", "    node-ip: 10.0.0.9\n", "  timeout: 7s\n");
        let new = of("v1beta4", "  - {name: node-ip, value: 10.0.0.9}\n", "timeouts: {discovery: 7s}\n");
        let line = "--node-name n2 --ignore-preflight-errors Port-10250";
        let (old, new) = (merged(line, &old).expect("v1beta3"), merged(line, &new).expect("v1beta4"));
        assert_eq!(old, new);
        assert_eq!(old.node_name.as_deref(), Some("n2"));
        assert_eq!(old.ignored, ["port-10250", "swap"]);
        assert_eq!(old.node_flags, ["--register-with-taints=a=:NoSchedule", "--node-ip=10.0.0.9"]);
        assert_eq!(old.timeouts.discovery, Duration::from_secs(7));
        assert!(matches!(old.discovery, Discovery::Token { endpoint, .. } if endpoint == "api:443"));
    }

    #[test]
    fn fields_without_effect_are_named_and_a_control_plane_is_refused() {
        let head = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\n";
        let (_, ignored) = parse(&format!("{head}patches: {{directory: /x}}\n")).expect("parsed");
        assert_eq!(ignored, ["patches"]);
        let error = merged("", &format!("{head}controlPlane: {{}}\n")).expect_err("a control plane");
        assert!(error.contains("worker nodes only"), "{error}");
        assert!(parse("kind: InitConfiguration\n").is_err_and(|e| e.contains("JoinConfiguration")));
        let error = parse(&head.replace("v1beta4", "v1beta2")).expect_err("too old");
        assert!(error.contains("v1beta2"), "{error}");
    }

    #[test]
    fn an_endpoint_may_leave_out_its_port() {
        for (given, wanted) in [
            ("api", Some("api:6443")),
            ("https://api:443/", Some("api:443")),
            ("[fd00::1]:6443", Some("[fd00::1]:6443")),
            ("[fd00::1]", Some("[fd00::1]:6443")),
            ("fd00::1", Some("[fd00::1]:6443")),
            ("api:0", None),
            ("api:x", None),
            (":6443", None),
            ("http://api", None),
        ] {
            assert_eq!(endpoint(given).ok().as_deref(), wanted, "{given}");
        }
    }
}
