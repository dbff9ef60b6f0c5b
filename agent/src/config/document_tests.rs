//! Files merged, origins kept, and the table of fields held together with the decoder.

use std::collections::BTreeMap;
use std::fs;

use clap::Parser;
use serde_json::json;

use super::document::*;
use super::fields::{Class, FIELDS};
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

fn document(bodies: &[&str]) -> Document {
    let mut document = Document::default();
    for (index, body) in bodies.iter().enumerate() {
        let file = PathBuf::from(format!("{index}.yaml"));
        let origin = if index == 0 { Origin::File(file.clone()) } else { Origin::DropIn(file.clone()) };
        document.add(&format!("{HEAD}{body}"), &file, &origin).expect("valid");
    }
    document
}

fn in_force(document: &Document, line: &str) -> BTreeMap<String, (serde_json::Value, String)> {
    let settings = document.effective(&args(line));
    settings.into_iter().map(|s| (s.path.join("/"), (s.value, s.origin.to_string()))).collect()
}

#[test]
fn the_later_file_wins_and_maps_come_together() {
    let document = document(&[
        "maxPods: 50\nclusterDNS: [10.0.0.1, 10.0.0.2]\nkubeReserved: {cpu: 100m, memory: 1Gi}\nsyncFrequency: 0s\n",
        "maxPods: 60\nclusterDNS: [10.9.9.9]\nkubeReserved: {memory: 2Gi}\n",
        "kubeReserved: {cpu: null}\nresolvConf: ''\n",
    ]);
    let typed = document.typed().expect("valid");
    assert_eq!(typed.max_pods, Some(60));
    assert_eq!(typed.cluster_dns.len(), 1, "a list is taken whole");
    assert_eq!(typed.kube_reserved.keys().collect::<Vec<_>>(), ["memory"], "null takes away");
    let shown = in_force(&document, "--kubeconfig k --provider-id x://1 --v 4");
    let is = |path: &str, value: serde_json::Value, origin: &str| {
        assert_eq!(shown[path], (value, origin.to_owned()), "{path}");
    };
    is("maxPods", json!(60), "drop-in 1.yaml");
    is("kubeReserved/memory", json!("2Gi"), "drop-in 1.yaml");
    is("clusterDNS", json!(["10.9.9.9"]), "drop-in 1.yaml");
    is("resolvConf", json!(""), "drop-in 2.yaml");
    is("syncFrequency", json!("1m"), "default");
    is("port", json!(10250), "default");
    is("evictionHard/memory.available", json!("100Mi"), "default");
    is("providerID", json!("x://1"), "flag --provider-id");
    is("logging.verbosity".replace('.', "/").as_str(), json!(4), "flag --v");
    assert!(!shown.contains_key("kubeReserved/cpu") && !shown.contains_key("staticPodPath"));
}

#[test]
fn defaults_of_eviction_are_shown_where_they_are_merged() {
    let shown = in_force(
        &document(&["mergeDefaultEvictionSettings: true\nevictionHard: {memory.available: 5%}\n"]),
        "--standalone",
    );
    assert_eq!(shown["evictionHard/memory.available"], (json!("5%"), "file 0.yaml".to_owned()));
    assert_eq!(shown["evictionHard/nodefs.available"].1, "default");
    let shown = in_force(&document(&["evictionHard: {memory.available: 5%}\n"]), "--standalone");
    assert!(!shown.contains_key("evictionHard/nodefs.available"), "a file that sets one unsets the others");
}

#[test]
fn what_would_be_unsafe_to_ignore_is_refused_by_name() {
    let table = [
        ("enableDebuggingHandlers: false\n", "enableDebuggingHandlers"),
        ("imagePullCredentialsVerificationPolicy: AlwaysVerify\n", "imagePullCredentialsVerificationPolicy"),
        ("runOnce: true\n", "runOnce"),
        ("tlsCurvePreferences: [29]\n", "tlsCurvePreferences"),
    ];
    for (body, field) in table {
        let error = document(&["", body]).judge().expect_err(field).to_string();
        assert!(
            error.starts_with(&format!("configuration 1.yaml: {field}: this node cannot obey it: ")),
            "{error}"
        );
    }
    let taken_back = document(&["runOnce: true\n", "runOnce: false\n"]);
    assert_eq!(taken_back.judge().expect("fine"), []);
}

#[test]
fn suites_and_versions_that_are_not_kept_are_refused() {
    let build = |body: &str| {
        let typed = document(&[body]).typed().expect("valid");
        Config::build(&args("--kubeconfig k --config k.yaml"), typed, "n").map_err(|error| error.to_string())
    };
    let six = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, \
               TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, \
               TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    assert!(build(&format!("tlsCipherSuites: [{six}, TLS_RSA_WITH_AES_128_GCM_SHA256]\n")).is_ok());
    assert!(build("tlsMinVersion: VersionTLS12\n").is_ok());
    let error = build("tlsCipherSuites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n").expect_err("too few");
    assert!(error.contains("tlsCipherSuites: this node offers TLS_ECDHE_ECDSA_WITH_AES_128"), "{error}");
    assert!(build("tlsMinVersion: VersionTLS13\n").expect_err("1.2 is spoken").contains("tlsMinVersion"));
    assert!(build("tlsMinVersion: '1.2'\n").expect_err("no such name").contains("tlsMinVersion: must be"));
}

#[test]
fn directories_are_read_in_order_and_only_conf_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, body: &str| {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        fs::write(file, format!("{HEAD}{body}")).expect("written");
    };
    write("90-b.conf", "maxPods: 9\n");
    write("10-a.conf", "maxPods: 1\npodsPerCore: 1\n");
    write("50/x.conf", "maxPods: 5\npodsPerCore: 5\n");
    write("99-not.yaml", "maxPods: 99\n");
    let line = format!("--kubeconfig k --config-dir {}", dir.path().display());
    let (config, notices) = Config::load(&args(&line)).expect("valid");
    assert_eq!((config.pods.max, config.pods.per_core, notices.len()), (9, 5, 0));

    write("95-wrong.conf", "maxPods: many\n");
    let error = Config::load(&args(&line)).expect_err("malformed").to_string();
    assert!(error.contains("95-wrong.conf, line 3: maxPods: "), "{error}");
    write("95-wrong.conf", "containerLogMaxFiles: 1\n");
    let error = Config::load(&args(&line)).expect_err("too few").to_string();
    assert!(error.contains("95-wrong.conf: containerLogMaxFiles: must be at least 2"), "{error}");
    let error =
        Config::load(&args("--kubeconfig k --config-dir /nonexistent")).expect_err("missing").to_string();
    assert_eq!(error, "configuration /nonexistent: No such file or directory (os error 2)");
}

/// A value that is neither zero nor the default, where the default does not tell the type.
fn example(path: &str) -> serde_json::Value {
    match path {
        "clusterDNS" => json!(["10.0.0.1"]),
        "allowedUnsafeSysctls" => json!(["net.core.*"]),
        "tlsCipherSuites" => json!(["a"]),
        "podCIDR" => json!("10.0.0.0/24"),
        "cgroupDriver" => json!("systemd"),
        "failSwapOn" => json!(true),
        "maxParallelImagePulls" => json!(3),
        "kubeReserved" | "systemReserved" => json!({ "cpu": "1" }),
        "registerWithTaints" => json!([{ "key": "a", "effect": "NoExecute" }]),
        _ => json!("a"),
    }
}

/// YAML of one field: its names as maps around a value.
fn alone(path: &str, value: &serde_json::Value) -> String {
    let nested = path.rsplit('.').fold(value.clone(), |inner, name| json!({ name: inner }));
    serde_saphyr::to_string(&nested).expect("YAML")
}

#[test]
fn what_the_table_calls_obeyed_is_decoded_and_what_it_refuses_is_not() {
    for field in FIELDS {
        let value = serde_json::from_str(field.default).unwrap_or_else(|_| example(field.path));
        let text = format!("{HEAD}{}", alone(field.path, &value));
        let mut ignored = Vec::new();
        serde_saphyr::with_deserializer_from_str(&text, |deserializer| {
            serde_ignored::deserialize::<_, _, KubeletConfiguration>(deserializer, |path| {
                ignored.push(path.to_string());
            })
        })
        .unwrap_or_else(|error| panic!("{}: {error}", field.path));
        let decoded = ignored.is_empty();
        match field.class {
            Class::Obeyed => assert!(decoded, "{} is called obeyed and is not decoded", field.path),
            Class::NotNeeded | Class::Refused => {
                assert!(!decoded, "{} is decoded: the table should say what for", field.path);
            }
            // Some of them are read in part.
            Class::Warned => {}
        }
    }
}

#[test]
fn the_tables_defaults_are_those_in_force() {
    let written = |field: &&fields::Field| !field.default.is_empty();
    let bodies: Vec<String> = FIELDS
        .iter()
        .filter(written)
        .map(|field| alone(field.path, &serde_json::from_str(field.default).expect("JSON")))
        .collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let all = document(&bodies);
    assert_eq!(all.judge().expect("defaults are never refused"), [], "and never warned about");
    let build = |document: &Document| {
        Config::build(&args("--kubeconfig k"), document.typed().expect("valid"), "n").expect("consistent")
    };
    assert_eq!(build(&all), build(&Document::default()));
}

#[test]
fn the_table_is_sorted_and_says_something_of_each() {
    for pair in FIELDS.windows(2) {
        let key = |field: &fields::Field| field.path.to_lowercase();
        assert!(key(&pair[0]) < key(&pair[1]), "{} stands before {}", pair[0].path, pair[1].path);
    }
    for field in FIELDS {
        assert!(field.says.ends_with('.'), "{}: a sentence", field.path);
    }
}
