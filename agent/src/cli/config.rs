//! `orlop config`: the configuration in force, each value with its origin; and the page about its fields.
//!
//! Owns: the two formats. Never: decides a value (that is `config::document`).

use std::fmt::Write;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Arg, Args, value_parser};

use crate::config::document::{Document, Setting};
use crate::config::fields::{Class, FIELDS};
use crate::config::flags::CloudProvider;
use crate::config::{Config, RunArgs, kubelet};

/// Where the service reads its configuration.
const SERVICE_FILE: &str = "/etc/orlop/config.yaml";
const SERVICE_DIR: &str = "/etc/orlop/config.d";

/// The flags of `orlop config`: those of `orlop run`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Print what each field does, as Markdown, instead of the values
    #[arg(long)]
    fields: bool,

    #[command(flatten)]
    run: RunArgs,
}

/// The one flag of `orlop run` that is not needed to look at a configuration.
pub fn kubeconfig() -> Arg {
    Arg::new("kubeconfig")
        .long("kubeconfig")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .hide(true)
        .help("Not read")
}

/// Prints it. Without `--config` and `--config-dir`, those of the service are read where they are.
///
/// # Errors
/// Whatever would keep the daemon from starting with this configuration.
pub fn run(args: ConfigArgs) -> anyhow::Result<()> {
    if args.fields {
        return Ok(print(&page())?);
    }
    let mut run = args.run;
    if run.config.is_none() && run.config_dir.is_none() {
        run.config = Some(PathBuf::from(SERVICE_FILE)).filter(|file| file.exists());
        run.config_dir = Some(PathBuf::from(SERVICE_DIR)).filter(|dir| dir.exists());
    }
    // As the daemon does it, so that what it would refuse is refused here.
    let (config, notices) = Config::load(&run)?;
    let mut text = values(&Document::read(&run)?.effective(&run));
    text += &flags(&run, &config);
    for notice in notices {
        let _ = writeln!(text, "# no effect: {}: {}", notice.field, notice.says);
    }
    Ok(print(&text)?)
}

/// Whoever reads may stop reading.
fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// YAML with one value a line and its origin behind it.
fn values(settings: &[Setting]) -> String {
    let mut text = format!("apiVersion: {}\nkind: {}\n", kubelet::API_VERSION, kubelet::KIND);
    let mut open: &[String] = &[];
    for Setting { path, value, origin } in settings {
        let Some((name, parents)) = path.split_last() else { continue };
        let common = parents.iter().zip(open).take_while(|(one, other)| one == other).count();
        for (depth, parent) in parents.iter().enumerate().skip(common) {
            let _ = writeln!(text, "{:width$}{parent}:", "", width = 2 * depth);
        }
        // JSON is YAML, too, and takes one line.
        let _ = writeln!(text, "{:width$}{name}: {value}  # {origin}", "", width = 2 * parents.len());
        open = parents;
    }
    text
}

/// What only flags say, as comments: KubeletConfiguration has no fields for it.
fn flags(args: &RunArgs, config: &Config) -> String {
    let mut text = String::new();
    let mut line = |flag: &str, value: &dyn std::fmt::Display, given: bool| {
        let origin = if given { "flag" } else { "default" };
        let _ = writeln!(text, "# --{flag}={value}  ({origin})");
    };
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(",");
    let ips = list(&mut config.node_ips.iter().map(ToString::to_string));
    let labels = list(&mut config.node.labels.iter().map(|(key, value)| format!("{key}={value}")));
    let is_default = |dir: &Path, default: &str| dir != Path::new(default);
    line("hostname-override", &config.node_name, args.hostname_override.is_some());
    line("node-ip", &ips, !ips.is_empty());
    line("node-labels", &labels, !labels.is_empty());
    let external = args.cloud_provider == CloudProvider::External;
    line("cloud-provider", &if external { "external" } else { "" }, external);
    line("root-dir", &config.root_dir.display(), is_default(&config.root_dir, crate::config::ROOT_DIR));
    line("run-dir", &config.run_dir.display(), is_default(&config.run_dir, crate::config::RUN_DIR));
    text
}

/// The page `agent/CONFIGURATION.md`.
fn page() -> String {
    let mut text = String::from(PAGE_HEAD);
    for class in [Class::Obeyed, Class::Warned, Class::Refused, Class::NotNeeded] {
        let _ = write!(
            text,
            "\n## {}\n{}\n\n| field | default | |\n|---|---|---|\n",
            title(class),
            meaning(class)
        );
        for field in FIELDS.iter().filter(|field| field.class == class) {
            let default =
                if field.default.is_empty() { String::new() } else { format!("`{}`", field.default) };
            let _ = writeln!(text, "| `{}` | {default} | {} |", field.path, field.says);
        }
    }
    text
}

const PAGE_HEAD: &str = "# Configuration\n\n\
<!-- Made by `orlop config --fields > agent/CONFIGURATION.md` from agent/src/config/fields.rs; a test holds it up to date. -->\n\n\
`orlop run --config FILE --config-dir DIR` reads kubelet's own file: `apiVersion: kubelet.config.k8s.io/v1beta1`,\n\
`kind: KubeletConfiguration`. The files `*.conf` of DIR, of the same kind, are merged into it in the order of their names:\n\
maps key by key, everything else whole, and null takes a value away. Flags win over files. The service reads\n\
`/etc/orlop/config.yaml` and `/etc/orlop/config.d`. `orlop config` prints what is in force, and where each value comes from.\n\n\
This page names every field of the type as of Kubernetes 1.36, by what this node makes of it. A name that is not here is\n\
warned about. What has no field is said by flags: `--node-ip`, `--hostname-override`, `--node-labels`, `--cloud-provider`,\n\
`--root-dir` and others, see `orlop run --help`.\n";

fn title(class: Class) -> String {
    let words = class.as_str();
    words[..1].to_uppercase() + &words[1..]
}

fn meaning(class: Class) -> &'static str {
    match class {
        Class::Obeyed => "They do what they say.",
        Class::Warned => {
            "They have no effect, or not all of it. A value other than the default is named by one warning."
        }
        Class::Refused => {
            "Ignoring them would be unsafe: with a value other than the default the node does not start."
        }
        Class::NotNeeded => {
            "They steer what this node does in another way or not at all. Nothing is lost, nothing is said."
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn the_page_is_up_to_date() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("CONFIGURATION.md");
        let written = std::fs::read_to_string(file).expect("the page");
        assert!(
            written == page(),
            "make it anew: cargo run -p orlop -- config --fields > agent/CONFIGURATION.md"
        );
    }

    #[test]
    fn no_api_server_is_needed_to_look() {
        let parsed = super::super::Cli::try_parse_from(["orlop", "config", "--node-ip", "10.0.0.1"]);
        assert!(matches!(parsed.expect("valid").command, super::super::Command::Config(_)));
    }

    #[test]
    fn what_is_printed_is_a_configuration_that_means_the_same() {
        let given = format!(
            "apiVersion: {}\nkind: {}\nmaxPods: 7\nkubeReserved: {{cpu: 100m}}\nauthorization: {{mode: AlwaysAllow}}\n",
            kubelet::API_VERSION,
            kubelet::KIND
        );
        let dir = tempfile::tempdir().expect("a directory");
        let build = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).expect("written");
            let line = super::super::Cli::try_parse_from([
                "orlop".into(),
                "config".into(),
                "--config".into(),
                file.into_os_string(),
            ]);
            let super::super::Command::Config(args) = line.expect("valid").command else { panic!("config") };
            let (config, notices) = Config::load(&args.run).expect("valid");
            assert_eq!(notices, []);
            (values(&Document::read(&args.run).expect("valid").effective(&args.run)), config)
        };
        let (printed, config) = build("a.yaml", &given);
        assert!(printed.contains("maxPods: 7  # file "), "{printed}");
        assert!(printed.contains("kubeReserved:\n  cpu: \"100m\"  # file "), "{printed}");
        assert!(printed.contains("authorization:\n  mode: \"AlwaysAllow\"  # file "), "{printed}");
        assert!(printed.contains("port: 10250  # default\n"), "{printed}");
        assert_eq!(build("b.yaml", &printed).1, config);
    }
}
