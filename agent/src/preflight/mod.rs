//! What a machine lacks to be a node, each finding with what to do about it: `orlop check`, and the first phase of
//! `orlop join`.
//!
//! Owns: findings, their names and which of them are ignored. Never: changes the machine.
//!
//! Names are those of kubeadm's preflight checks where it has the same check (`Port-10250`, `Swap`, ...), so that
//! `--ignore-preflight-errors` takes what administrators know.

mod kernel;
mod machine;
mod neighbours;

use std::path::Path;

pub use machine::{CLOCK, clock};
use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// The node runs, with less.
    Warn,
    /// The node cannot run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at, as `--ignore-preflight-errors` takes it.
    pub name: String,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty if nothing.
    pub advice: String,
    /// Another name for it.
    #[serde(skip)]
    also: Option<&'static str>,
}

impl Finding {
    /// As it should be.
    pub fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { level: Level::Ok, name: name.into(), detail: detail.into(), advice: String::new(), also: None }
    }

    /// Worth knowing.
    pub fn warn(name: impl Into<String>, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warn, advice: advice.into(), ..Self::ok(name, detail) }
    }

    /// In the way.
    pub fn fail(name: impl Into<String>, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Fail, advice: advice.into(), ..Self::ok(name, detail) }
    }

    /// The same under another name too.
    #[must_use]
    fn also(self, name: &'static str) -> Self {
        Self { also: Some(name), ..self }
    }

    /// With a failure that is ignored shown as a warning. `names` are lower case; `all` is every check.
    #[must_use]
    pub fn ignoring(self, names: &[String]) -> Self {
        let called =
            |name: &str| names.iter().any(|ignored| ignored == "all" || *ignored == name.to_lowercase());
        if self.level == Level::Fail && (called(&self.name) || self.also.is_some_and(called)) {
            Self { level: Level::Warn, ..self }
        } else {
            self
        }
    }
}

/// Looks at everything that needs no API server.
pub fn findings(root_dir: &Path, run_dir: &Path) -> Vec<Finding> {
    let mut findings = kernel::findings();
    findings.extend(machine::findings(root_dir, run_dir));
    findings.extend(neighbours::findings());
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_ignored_by_either_of_its_names_and_by_all() {
        let finding = || Finding::fail("Overlay", "no", "modprobe overlay").also("SystemVerification");
        for (names, level) in [
            (&["overlay"][..], Level::Warn),
            (&["systemverification"], Level::Warn),
            (&["all"], Level::Warn),
            (&["swap", "port-10250"], Level::Fail),
            (&[], Level::Fail),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(finding().ignoring(&names).level, level, "{names:?}");
        }
        assert_eq!(Finding::ok("Swap", "off").ignoring(&["all".to_owned()]).level, Level::Ok);
    }

    #[test]
    fn every_finding_has_a_name_of_its_own_and_says_what_to_do() {
        let nowhere = Path::new("/nonexistent");
        let findings = findings(nowhere, nowhere);
        let names: std::collections::BTreeSet<_> =
            findings.iter().map(|finding| finding.name.clone()).collect();
        assert_eq!(names.len(), findings.len(), "{findings:?}");
        for name in [
            "IsPrivilegedUser",
            "Port-10250",
            "Port-10248",
            "Port-10256",
            "Swap",
            "Hostname",
            "Kubelet",
            "RootDir",
        ] {
            assert!(names.contains(name), "{name} is not looked at");
        }
        for finding in &findings {
            assert_eq!(finding.advice.is_empty(), finding.level == Level::Ok, "{finding:?}");
        }
    }
}
