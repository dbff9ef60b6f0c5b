//! What an image says about how to run it, in the few fields this node uses.
//!
//! Owns: [`ImageConfig`]. Pure. Never: keeps the rest of the image's configuration in memory.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::manifest::Platform;

/// Execution parameters of an image (OCI image specification, `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageConfig {
    /// Program and first arguments; the pod's `command` replaces it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments; the pod's `args` replace them, and so does its `command`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, … or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Working directory, or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// `SIGTERM`, `SIGRTMIN+3`, `15`, … or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Paths the image declares as volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// An image configuration read from its JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedConfig {
    /// Execution parameters.
    pub config: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// What the image was built for.
    pub platform: Platform,
}

/// Reads an image configuration.
///
/// # Errors
/// A sentence about what is wrong with the JSON or with a digest in it.
pub fn parse_config(json: &[u8]) -> Result<ParsedConfig, String> {
    let image: ImageConfiguration = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if image.rootfs().typ() != "layers" {
        return Err(format!("its rootfs is of type {:?}, not \"layers\"", image.rootfs().typ()));
    }
    let diff_ids = image.rootfs().diff_ids().iter().map(|d| d.parse::<Digest>());
    let diff_ids = diff_ids.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let platform = Platform {
        os: image.os().to_string(),
        architecture: image.architecture().to_string(),
        variant: image.variant().clone().unwrap_or_default(),
    };
    let config = image.config().clone().unwrap_or_default();
    let mut volumes = config.volumes().clone().unwrap_or_default();
    volumes.sort();
    Ok(ParsedConfig {
        config: ImageConfig {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().unwrap_or_default(),
            volumes,
            labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        },
        diff_ids,
        platform,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn docker_configuration_with_nulls_reads() {
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","docker_version":"x",
            "config":{{"Hostname":"","User":"65534:0","Env":["A=b"],"Cmd":null,"Entrypoint":["/x"],"Volumes":{{"/v":{{}}}},
            "ExposedPorts":{{"80/tcp":{{}}}},"Labels":null,"OnBuild":null,"StopSignal":"SIGQUIT","WorkingDir":"/w"}},
            "rootfs":{{"type":"layers","diff_ids":["{DIFF}"]}},"history":[{{"created":"2024-01-01T00:00:00Z"}}]}}"#
        );
        let parsed = parse_config(json.as_bytes()).unwrap();
        assert_eq!(parsed.diff_ids, [DIFF.parse().unwrap()]);
        assert_eq!(parsed.platform.to_string(), "linux/amd64");
        assert_eq!(
            parsed.config,
            ImageConfig {
                entrypoint: vec!["/x".into()],
                env: vec!["A=b".into()],
                user: "65534:0".into(),
                working_dir: "/w".into(),
                stop_signal: "SIGQUIT".into(),
                volumes: vec!["/v".into()],
                ..ImageConfig::default()
            }
        );
    }

    #[test]
    fn null_volumes_and_no_config_read() {
        for config in [r#""config":{"Volumes":null,"ExposedPorts":null},"#, ""] {
            let json = format!(
                r#"{{{config}"architecture":"riscv64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
            );
            assert_eq!(
                parse_config(json.as_bytes()).map(|p| p.config),
                Ok(ImageConfig::default()),
                "{config}"
            );
        }
    }

    #[test]
    fn bad_digest_in_a_configuration_is_named() {
        let json =
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:zz"]}}"#;
        assert!(parse_config(json.as_bytes()).unwrap_err().contains("sha256:zz"));
    }
}
