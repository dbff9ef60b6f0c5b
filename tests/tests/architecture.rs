//! The structure's rules, checked in the sources: who may name what.
//!
//! Each rule is a list of places and a list of words that may not stand there. Comments and test modules do not count.

use std::fs;
use std::path::{Path, PathBuf};

/// Pure modules: no clock, no I/O, no async.
const PURE: [&str; 30] = [
    "agent/src/certificates/lifetime.rs",
    "agent/src/certificates/trouble.rs",
    "agent/src/pod/action.rs",
    "agent/src/pod/admission",
    "agent/src/pod/events",
    "agent/src/pod/facts.rs",
    "agent/src/pod/history",
    "agent/src/pod/names.rs",
    "agent/src/pod/observed.rs",
    "agent/src/pod/plan",
    "agent/src/pod/quantity.rs",
    "agent/src/pod/reporter.rs",
    "agent/src/pod/restart",
    "agent/src/pod/spec",
    "agent/src/pod/status",
    "agent/src/pod/sysctls.rs",
    "agent/src/pod/wanted.rs",
    "agent/src/host/cgroup/resources.rs",
    "agent/src/host/container/env.rs",
    "agent/src/host/container/mod.rs",
    "agent/src/host/container/mounts.rs",
    "agent/src/host/container/privileges.rs",
    "agent/src/join/cluster_info.rs",
    "agent/src/join/pin.rs",
    "agent/src/join/settings.rs",
    "agent/src/join/token.rs",
    "agent/src/network/dns.rs",
    "agent/src/network/hosts.rs",
    "agent/src/network/service_env.rs",
    "agent/src/volume/payload.rs",
];

const IMPURE_WORDS: [&str; 11] = [
    "tokio",
    "reqwest",
    "std::fs",
    "std::process",
    "std::net::Tcp",
    "std::env",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "async fn",
    ".await",
];

/// The only files with unsafe code. Each says at its top why it needs it; each block why it is sound.
const UNSAFE: [&str; 9] = [
    "agent/sandbox/src/sys/bpf.rs",
    "agent/sandbox/src/sys/descriptor.rs",
    "agent/sandbox/src/sys/environment.rs",
    "agent/sandbox/src/sys/loopback.rs",
    "agent/sandbox/src/sys/memory.rs",
    "agent/sandbox/src/sys/mount.rs",
    "agent/sandbox/src/sys/privilege.rs",
    "agent/sandbox/src/sys/process.rs",
    "agent/src/image/layers/xattr.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every source file below a place; a place without ending is a module, in a file or in a folder of its name.
fn sources(place: &str) -> Vec<PathBuf> {
    let path = root().join(place);
    if path.is_file() {
        return vec![path];
    }
    let mut files = vec![];
    let file = path.with_extension("rs");
    if file.is_file() {
        files.push(file);
    }
    collect(&path, &mut files);
    files
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

/// The code of a file without comments and without what is only for tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "benches" | "examples")))
        || path.file_stem().is_some_and(|name| name == "tests" || name == "fake")
}

/// Words that stand where they may not.
fn violations<'a>(places: &[&str], words: &'a [&'a str]) -> Vec<String> {
    let mut found = vec![];
    for place in places {
        let files = sources(place);
        assert!(!files.is_empty(), "{place} is named by the architecture test and not there");
        for file in files.into_iter().filter(|file| !is_test(file)) {
            let text = code(&fs::read_to_string(&file).expect("source"));
            for word in words.iter().filter(|word| text.contains(**word)) {
                let name = file.strip_prefix(root()).expect("in the workspace").display().to_string();
                found.push(format!("{name} names {word}"));
            }
        }
    }
    found
}

#[test]
fn pure_modules_have_no_clock_no_io_and_no_async() {
    assert_eq!(violations(&PURE, &IMPURE_WORDS), Vec::<String>::new());
}

#[test]
fn only_the_api_folder_names_the_http_client() {
    let agent: Vec<String> = fs::read_dir(root().join("agent/src"))
        .expect("sources")
        .flatten()
        .filter(|entry| entry.file_name() != "api")
        .map(|entry| format!("agent/src/{}", entry.file_name().to_string_lossy()))
        .collect();
    let places: Vec<&str> = agent
        .iter()
        .map(String::as_str)
        .chain(["agent/sandbox/src", "agent/standalone/src", "netproxy/src", "cni/src"])
        .collect();
    assert_eq!(violations(&places, &["reqwest"]), Vec::<String>::new());
}

#[test]
fn netproxy_and_cni_know_neither_the_agent_nor_http() {
    let words =
        ["orlop::", "orlop_sandbox", "orlop_standalone", "reqwest", "hyper", "axum", "http::", "k8s_openapi"];
    assert_eq!(violations(&["netproxy/src", "cni/src"], &words), Vec::<String>::new());
    assert_eq!(violations(&["netproxy/src"], &["orlop_cni", "tokio"]), Vec::<String>::new());
    assert_eq!(violations(&["cni/src"], &["orlop_netproxy"]), Vec::<String>::new());
}

#[test]
fn the_supervisor_knows_nobody() {
    let words = [
        "orlop::",
        "orlop_cni",
        "orlop_netproxy",
        "orlop_standalone",
        "tokio",
        "rustls",
        "k8s_openapi",
        "async fn",
    ];
    assert_eq!(violations(&["agent/sandbox/src"], &words), Vec::<String>::new());
}

#[test]
fn the_planning_half_does_not_know_who_carries_out() {
    let words =
        ["crate::host::", "crate::api", "crate::network", "crate::volume", "crate::image", "crate::server"];
    let pod: Vec<&str> = PURE.iter().copied().filter(|place| place.starts_with("agent/src/pod/")).collect();
    assert_eq!(violations(&pod, &words), Vec::<String>::new());
}

#[test]
fn unsafe_code_stays_in_files_that_say_why() {
    for file in
        sources("agent").into_iter().chain(sources("netproxy")).chain(sources("cni")).chain(sources("tests"))
    {
        let text = fs::read_to_string(&file).expect("source");
        let name = file.strip_prefix(root()).expect("in the workspace").display().to_string();
        if text.contains("#![allow(unsafe_code)]") && !is_test(&file) {
            assert!(UNSAFE.contains(&name.as_str()), "{name} allows itself unsafe code");
            let header: Vec<&str> = text
                .lines()
                .take_while(|line| line.starts_with("//!") || line.contains("unsafe_code"))
                .collect();
            assert!(
                ["Reason:", "unsafe"]
                    .iter()
                    .any(|word| header.join(" ").replace("unsafe_code", "").contains(word)),
                "{name} does not say in its header why it needs unsafe code"
            );
        }
        assert!(!text.contains("\n    #[allow(unsafe_code)]"), "{name} allows unsafe code within");
    }
}

#[test]
fn every_file_opens_with_what_it_owns() {
    let all = ["agent", "netproxy", "cni", "tests"].into_iter().flat_map(sources);
    let headless: Vec<PathBuf> =
        all.filter(|file| !fs::read_to_string(file).expect("source").starts_with("//!")).collect();
    assert_eq!(headless, Vec::<PathBuf>::new());
}

#[test]
fn the_checker_sees_code_and_not_comments_or_tests() {
    let text = "use std::fs; // tokio\n#[cfg(test)]\nmod tests { use tokio; }\n";
    assert!(code(text).contains("std::fs"));
    assert!(!code(text).contains("tokio"));
}
