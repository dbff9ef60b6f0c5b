//! One call of the plugin: the verb and its parameters, from the environment or from the runtime in this process.
//!
//! Owns: reading and checking the `CNI_*` variables.

use std::path::PathBuf;

use serde_json::Value;

use crate::spec::{CniError, code, valid_container_id, valid_ifname};
use crate::store::Owner;

/// What is asked of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verb {
    /// Attach a container.
    #[default]
    Add,
    /// Detach a container; again and again if need be.
    Del,
    /// Look whether an attachment is still as ADD left it.
    Check,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Verb {
    /// The value of `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|v| v.as_str() == text)
    }
}

/// A call.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// What is asked.
    pub verb: Verb,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`, split.
    pub args: Vec<(String, String)>,
    /// `CNI_PATH`, split.
    pub path: Vec<PathBuf>,
    /// The network configuration.
    pub conf: Value,
}

impl Request {
    /// Reads a call from the process's environment; `variable` looks one up. The configuration is still missing.
    ///
    /// # Errors
    /// Code 4, with the names of the variables that are missing or wrong.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let get = |name: &str| variable(name).filter(|v| !v.is_empty());
        let wrong = |msg: String| CniError::new(code::INVALID_ENVIRONMENT, msg);
        let command = get("CNI_COMMAND").ok_or_else(|| wrong("CNI_COMMAND is not set".into()))?;
        let verb =
            Verb::parse(&command).ok_or_else(|| wrong(format!("CNI_COMMAND {command:?} is unknown")))?;
        let request = Self {
            verb,
            container: get("CNI_CONTAINERID").unwrap_or_default(),
            netns: get("CNI_NETNS").map(PathBuf::from),
            ifname: get("CNI_IFNAME").unwrap_or_default(),
            args: split_args(&get("CNI_ARGS").unwrap_or_default())?,
            path: get("CNI_PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default(),
            conf: Value::Null,
        };
        let missing = request.missing();
        if !missing.is_empty() {
            return Err(wrong(format!("{} not set for {}", missing.join(", "), verb.as_str())));
        }
        Ok(request)
    }

    fn missing(&self) -> Vec<&'static str> {
        let (attachment, netns) = match self.verb {
            Verb::Add | Verb::Check => (true, true),
            Verb::Del => (true, false),
            Verb::Gc | Verb::Status | Verb::Version => (false, false),
        };
        let variables = [
            ("CNI_CONTAINERID", attachment && self.container.is_empty()),
            ("CNI_NETNS", netns && self.netns.is_none()),
            ("CNI_IFNAME", attachment && self.ifname.is_empty()),
        ];
        variables.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect()
    }

    /// The value of a key of `CNI_ARGS`.
    #[must_use]
    pub fn arg(&self, key: &str) -> Option<&str> {
        self.args.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The attachment this call is about.
    ///
    /// # Errors
    /// Code 4: the container ID or interface name is not allowed.
    pub fn owner(&self) -> Result<Owner, CniError> {
        let wrong = |what: &str, value: &str| {
            CniError::new(code::INVALID_ENVIRONMENT, format!("{what} {value:?} is not allowed"))
        };
        if !valid_container_id(&self.container) {
            return Err(wrong("CNI_CONTAINERID", &self.container));
        }
        if !valid_ifname(&self.ifname) {
            return Err(wrong("CNI_IFNAME", &self.ifname));
        }
        Ok(Owner::new(&self.container, &self.ifname))
    }
}

/// `K=V;K=V`.
fn split_args(text: &str) -> Result<Vec<(String, String)>, CniError> {
    let pairs = text.split(';').filter(|p| !p.is_empty()).map(|pair| {
        let pair = pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        pair.ok_or_else(|| {
            CniError::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS {text:?} is not K=V;K=V"))
        })
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<Request, CniError> {
        Request::from_environment(|name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn missing_variables_are_named() {
        let error = from(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "eth0")]).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (4, "CNI_CONTAINERID, CNI_NETNS not set for ADD"));
        assert_eq!(from(&[]).unwrap_err().msg, "CNI_COMMAND is not set");
        assert_eq!(from(&[("CNI_COMMAND", "EAT")]).unwrap_err().msg, "CNI_COMMAND \"EAT\" is unknown");
        assert!(from(&[("CNI_COMMAND", "STATUS")]).is_ok());
        assert!(from(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "e")]).is_ok());
    }

    #[test]
    fn arguments_are_split_and_bad_ones_refused() {
        let base = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "e")];
        let request = from(&[&base[..], &[("CNI_ARGS", "IgnoreUnknown=1;IP=10.0.0.5;")]].concat()).unwrap();
        assert_eq!((request.arg("IP"), request.arg("MAC")), (Some("10.0.0.5"), None));
        assert_eq!(from(&[&base[..], &[("CNI_ARGS", "IP")]].concat()).unwrap_err().code, 4);
    }

    #[test]
    fn names_are_checked_before_they_are_used() {
        let request = Request { container: "../x".into(), ifname: "eth0".into(), ..Request::default() };
        assert_eq!(request.owner().unwrap_err().code, code::INVALID_ENVIRONMENT);
    }
}
