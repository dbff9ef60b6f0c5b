//! The cluster's `kubelet-config` as this node's configuration.
//!
//! Owns: which of it is changed on the way (where the CA is), and that the daemon understands the result before anything is
//! written. Never: fetches it. Pure.

use std::path::Path;

use clap::Parser;
use serde_json::{Value, json};

use super::args::{ETC_DIR, Places};
use super::files::MARK;
use super::settings::Settings;
use crate::config::document::Document;
use crate::config::{Config, ROOT_DIR, RUN_DIR, RunArgs, kubelet};

/// The config map that holds it.
pub const CONFIG_MAP: (&str, &str) = ("kube-system", "kubelet-config");
/// Where kubeadm has the nodes' CA; other nodes have it there.
const KUBEADM_CA: &str = "/etc/kubernetes/pki/ca.crt";

#[derive(Parser)]
#[command(name = "orlop run")]
struct Line {
    #[command(flatten)]
    run: RunArgs,
}

/// How the daemon is going to be called.
#[derive(Debug, Clone)]
pub struct Run {
    /// The flags, understood.
    pub args: RunArgs,
    /// Those that the unit does not give by itself.
    pub flags: Vec<String>,
}

impl Run {
    /// From what the join was told.
    ///
    /// # Errors
    /// In clap's words, for a flag that the daemon does not have.
    pub fn new(settings: &Settings, places: &Places) -> Result<Self, String> {
        let mut flags = Vec::new();
        for (flag, dir, default) in
            [("root-dir", &places.root_dir, ROOT_DIR), ("run-dir", &places.run_dir, RUN_DIR)]
        {
            if dir != Path::new(default) {
                flags.push(format!("--{flag}={}", dir.display()));
            }
        }
        flags.extend(settings.node_name.iter().map(|name| format!("--hostname-override={name}")));
        flags.extend(settings.node_flags.iter().cloned());
        let words = Self::files(places).into_iter().chain(flags.iter().cloned());
        let line = Line::try_parse_from(std::iter::once("orlop run".to_owned()).chain(words));
        let args = line.map_err(|error| error.render().to_string().trim().to_owned())?.run;
        Ok(Self { args, flags })
    }

    fn files(places: &Places) -> [String; 2] {
        [
            format!("--kubeconfig={}", places.kubeconfig().display()),
            format!("--config={}", places.config().display()),
        ]
    }

    /// What the unit's environment file says.
    pub fn environment(&self) -> String {
        format!("{MARK}ORLOP_JOIN_ARGS=\"{}\"\n", self.flags.join(" "))
    }

    /// The whole command line, for machines without systemd.
    pub fn command(&self, places: &Places) -> String {
        let words = Self::files(places).into_iter().chain(self.flags.iter().cloned());
        format!("orlop run {}", words.collect::<Vec<_>>().join(" "))
    }

    /// The node's name.
    ///
    /// # Errors
    /// When the hostname cannot be one.
    pub fn node_name(&self, hostname: &str) -> Result<String, String> {
        let config = Config::build(&self.args, kubelet::KubeletConfiguration::default(), hostname);
        config.map(|config| config.node_name).map_err(|error| error.to_string())
    }
}

/// Whether the unit finds the files where they are.
pub fn is_the_units(places: &Places) -> bool {
    places.etc_dir == Path::new(ETC_DIR)
}

/// The text of the node's configuration, of what `kubelet-config` says.
///
/// # Errors
/// When the daemon would not start with it.
pub fn adapt(text: &str, places: &Places, run: &Run, hostname: &str) -> Result<String, String> {
    let mut value: Value =
        serde_saphyr::from_str(text).map_err(|error| error.without_snippet().to_string())?;
    let file = value.pointer("/authentication/x509/clientCAFile").and_then(Value::as_str);
    if file.is_some_and(|file| file == KUBEADM_CA || !Path::new(file).exists()) {
        value["authentication"]["x509"]["clientCAFile"] = json!(places.ca());
    }
    let adapted = serde_saphyr::to_string(&value).map_err(|error| error.to_string())?;
    let adapted = format!("{MARK}{adapted}");
    let document = Document::of(&adapted, &run.args).map_err(|error| error.to_string())?;
    Config::of(&run.args, &document, hostname).map_err(|error| error.to_string())?;
    Ok(adapted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::settings::{Discovery, Timeouts};

    fn places() -> Places {
        Places { etc_dir: "/etc/orlop".into(), root_dir: ROOT_DIR.into(), run_dir: RUN_DIR.into() }
    }

    fn settings(name: Option<&str>, flags: &[&str]) -> Settings {
        let span = std::time::Duration::from_secs(1);
        Settings {
            discovery: Discovery::File("f".into()),
            bootstrap_token: None,
            node_name: name.map(str::to_owned),
            ignored: Vec::new(),
            dry_run: false,
            node_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            timeouts: Timeouts { discovery: span, api_call: span, tls_bootstrap: span, ready: span },
        }
    }

    #[test]
    fn the_daemons_flags_are_checked_before_anything_is_written() {
        let run = Run::new(&settings(Some("n1"), &["--node-ip=10.0.0.9"]), &places()).expect("flags");
        assert_eq!(
            run.environment(),
            format!("{MARK}ORLOP_JOIN_ARGS=\"--hostname-override=n1 --node-ip=10.0.0.9\"\n")
        );
        assert_eq!(run.node_name("other").as_deref(), Ok("n1"));
        let elsewhere = Places { root_dir: "/data".into(), ..places() };
        let run = Run::new(&settings(None, &[]), &elsewhere).expect("flags");
        assert_eq!(
            run.command(&elsewhere),
            "orlop run --kubeconfig=/etc/orlop/kubeconfig --config=/etc/orlop/config.yaml --root-dir=/data"
        );
        assert_eq!(run.node_name("Host").as_deref(), Ok("host"));
        assert!(run.node_name("no_name").is_err());
        let error = Run::new(&settings(None, &["--cni-plugin=x"]), &places()).expect_err("unknown");
        assert!(error.contains("--cni-plugin"), "{error}");
    }

    #[test]
    fn the_clusters_configuration_is_kept_but_for_the_place_of_the_ca() {
        let run = Run::new(&settings(None, &[]), &places()).expect("flags");
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let text = format!(
            "{head}authentication:\n  x509:\n    clientCAFile: {KUBEADM_CA}\nclusterDNS: [10.96.0.10]\nmaxPods: 7\nunknownField: kept\n"
        );
        let adapted = adapt(&text, &places(), &run, "n1").expect("usable");
        let value: Value = serde_saphyr::from_str(&adapted).expect("YAML");
        assert_eq!(value["authentication"]["x509"]["clientCAFile"], "/etc/orlop/pki/ca.crt");
        assert_eq!((&value["maxPods"], &value["unknownField"]), (&json!(7), &json!("kept")));
        assert!(adapted.starts_with(MARK));

        let adapted = adapt(head, &places(), &run, "n1").expect("usable");
        assert!(!adapted.contains("clientCAFile"), "{adapted}");
        let error = adapt(&format!("{head}maxPods: many\n"), &places(), &run, "n1").expect_err("wrong");
        assert!(error.contains("maxPods"), "{error}");
        // What the daemon would refuse when it starts is refused before there is anything to start.
        let error = adapt(&format!("{head}runOnce: true\n"), &places(), &run, "n1").expect_err("unsafe");
        assert!(error.contains("runOnce: this node cannot obey it"), "{error}");
        let error = adapt(&format!("{head}allowedUnsafeSysctls: [vm.*]\n"), &places(), &run, "n1")
            .expect_err("unsafe");
        assert!(error.contains("allowedUnsafeSysctls: `vm.*` is not known"), "{error}");
        assert!(adapt("kind: Pod\n", &places(), &run, "n1").is_err());
    }
}
