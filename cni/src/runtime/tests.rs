//! Tests of the runtime with plugins that are shell scripts, without touching any network.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::programs;

struct Setup {
    dir: tempfile::TempDir,
    runtime: Runtime,
}

/// A plugin that logs what it is called with and answers like a chained plugin.
const GOOD: &str = r#"conf=$(cat); echo "$CNI_COMMAND $0 $CNI_CONTAINERID $CNI_ARGS" >> "$(dirname "$0")/../log"
case $CNI_COMMAND in ADD) echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.5/24"}],"dns":{}}';; esac"#;

impl Setup {
    fn new(plugins: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("bin")).unwrap();
        fs::create_dir(path("conf")).unwrap();
        for (name, body) in plugins {
            programs::write(&path("bin").join(name), format!("#!/bin/sh\n{body}\n"), "755").unwrap();
        }
        let list: Vec<_> = plugins.iter().map(|(name, _)| json!({"type": name})).collect();
        let conf = json!({"cniVersion": "1.0.0", "name": "n", "plugins": list});
        fs::write(path("conf/10.conflist"), conf.to_string()).unwrap();
        let runtime = Runtime::new(RuntimeConfig {
            conf_dir: path("conf"),
            bin_dirs: vec![path("bin")],
            cache_dir: path("cache"),
            state_dir: path("state"),
            timeout: Duration::from_secs(30),
            ..RuntimeConfig::default()
        });
        runtime.load().unwrap();
        Self { dir, runtime }
    }

    /// The chain without the namespace work around it, which needs root.
    fn add_chain(&self) -> Result<NetworkResult, RuntimeError> {
        self.runtime.add_chain(&self.runtime.network().unwrap(), &attachment())
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let words = |l: &str| {
            let mut words = l.split(' ');
            let verb = words.next().unwrap().to_owned();
            let plugin = Path::new(words.next().unwrap()).file_name().unwrap().to_string_lossy().into_owned();
            format!("{verb} {plugin}")
        };
        text.lines().map(words).collect()
    }
}

fn attachment() -> Attachment {
    Attachment::of_pod("c1", "/proc/self/ns/net".into(), "default", "web", "u-1")
}

#[test]
fn plugins_run_forward_on_add_and_backward_on_del() {
    let setup = Setup::new(&[("one", GOOD), ("two", GOOD)]);
    let result = setup.add_chain().unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.1.0.5/24");
    setup.runtime.del(&attachment()).unwrap();
    assert_eq!(setup.log(), ["ADD one", "ADD two", "DEL two", "DEL one"]);
}

#[test]
fn every_plugin_is_asked_to_undo_even_when_one_fails() {
    let bad =
        format!("{GOOD}\n[ $CNI_COMMAND = ADD ] || {{ echo '{{\"code\":11,\"msg\":\"later\"}}'; exit 1; }}");
    let setup = Setup::new(&[("one", GOOD), ("two", &bad)]);
    let error = setup.runtime.del(&attachment()).unwrap_err();
    assert_eq!(error.to_string(), "CNI plugin two (DEL): later (CNI code 11)");
    assert_eq!(error.code(), Some(11));
    assert_eq!(setup.log(), ["DEL two", "DEL one"]);
}

#[test]
fn garbage_and_silence_name_the_plugin() {
    let error = Setup::new(&[("one", "cat >/dev/null; echo '<html>'")]).add_chain().unwrap_err();
    assert!(
        error.to_string().starts_with("CNI plugin one (ADD): printed something that is not JSON"),
        "{error}"
    );
    let error = Setup::new(&[("one", "cat >/dev/null")]).add_chain().unwrap_err();
    assert!(error.to_string().starts_with("CNI plugin one (ADD) printed an unusable result"), "{error}");
}

#[test]
fn a_missing_program_is_named_with_the_directory() {
    let setup = Setup::new(&[("one", GOOD)]);
    fs::remove_file(setup.dir.path().join("bin/one")).unwrap();
    let error = setup.runtime.status().unwrap_err();
    assert!(error.to_string().contains("CNI plugin one (STATUS): not found in"), "{error}");
}

#[test]
fn without_a_configuration_nothing_is_ready_until_one_appears() {
    let setup = Setup::new(&[("one", GOOD)]);
    let file = setup.dir.path().join("conf/10.conflist");
    let saved = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(matches!(setup.runtime.load(), Err(LoadError::Nothing(_))));
    assert!(matches!(setup.runtime.status(), Err(RuntimeError::NotReady(_))));
    assert!(matches!(setup.runtime.add(&attachment()), Err(RuntimeError::NotReady(_))));
    fs::write(&file, saved).unwrap();
    setup.runtime.load().unwrap();
    setup.runtime.status().unwrap();
}

#[test]
fn the_fallback_is_used_only_while_the_directory_is_empty() {
    let setup = Setup::new(&[("one", GOOD)]);
    let fallback =
        DefaultNetwork { pod_cidrs: vec!["10.9.0.0/24".parse().unwrap()], ..DefaultNetwork::default() };
    assert_eq!(setup.runtime.set_fallback(fallback.to_list()).unwrap().name, "n");
    fs::remove_file(setup.dir.path().join("conf/10.conflist")).unwrap();
    assert_eq!(setup.runtime.load().unwrap().name, "orlop");
}

#[test]
fn names_that_are_not_allowed_never_reach_a_plugin() {
    let setup = Setup::new(&[("one", GOOD)]);
    let bad = Attachment { container_id: "../etc".into(), ..attachment() };
    assert_eq!(setup.runtime.add(&bad).unwrap_err().code(), Some(crate::spec::code::INVALID_ENVIRONMENT));
    assert!(setup.runtime.del(&bad).is_err());
    assert_eq!(setup.log(), [""; 0]);
}

#[test]
fn gc_undoes_records_of_attachments_that_are_no_more() {
    let setup = Setup::new(&[("one", GOOD)]);
    let network = setup.runtime.network().unwrap();
    for id in ["c1", "c2"] {
        let attachment = Attachment { container_id: id.into(), ..attachment() };
        let record = Record::begin(&network, &attachment, 1);
        setup.runtime.cache.write(&attachment.owner().unwrap(), &record).unwrap();
    }
    setup.runtime.gc(&[attachment()]).unwrap();
    assert_eq!(setup.log(), ["DEL one"]);
    let left: Vec<_> = setup.runtime.cache.list().unwrap().into_iter().map(|(o, _)| o.container).collect();
    assert_eq!(left, ["c1"]);
}
