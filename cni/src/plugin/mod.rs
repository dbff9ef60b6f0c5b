//! The plugin `orlop-cni`: a container's interface, addresses, routes, masquerade, host ports and bandwidth.
//!
//! Owns: what each verb of the specification does. It runs as a process of its own ([`main`]) or in the caller's
//! process ([`Plugin::in_process`]); the code is the same, apart from DEL: in process, a link's removal (the kernel
//! takes some 20 ms for one) goes on in a thread of the plugin's own after DEL has returned, and the address stays
//! leased until it is done.
//!
//! Order on disk and in the kernel: an attachment is in the address log before its link exists, and stays there until
//! its link is gone. So whatever a crash leaves behind has an entry by which GC finds it. Names and hardware addresses
//! follow from the attachment and its address; nothing has to be remembered to be removed.

mod add;
mod check;
mod conf;
mod del;
mod inside;
mod ipam;
mod masquerade;
mod names;
mod ports;
mod reaper;
mod request;
mod shape;
mod status;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::netlink::{Channel, NetlinkError};
use crate::netns::NetnsError;
use crate::spec::{CniError, Version, code, supported_versions};
use crate::store::Store;

use conf::Conf;
pub use conf::KIND;
pub(crate) use inside::{hardware_address, loopback_up};
pub(crate) use ipam::environment;
use reaper::Reaper;
pub use request::{Request, Verb};

/// Where leases are kept unless the configuration (`ipam.dataDir`) or the caller says otherwise.
pub const STATE_DIR: &str = "/run/orlop/cni";

/// How long a delegated plugin may take.
const DELEGATE_TIMEOUT: Duration = Duration::from_secs(60);

/// State directory and network.
type StoreKey = (PathBuf, String);

/// The plugin with its open sockets and logs. All threads that call it must be in one network namespace, the node's.
#[derive(Debug)]
pub struct Plugin {
    state_dir: PathBuf,
    stores: Mutex<HashMap<StoreKey, Arc<Mutex<Store>>>>,
    route: Mutex<Vec<Channel>>,
    netfilter: Mutex<Vec<Channel>>,
    reaper: Option<Reaper>,
}

impl Plugin {
    /// The plugin for one call: DEL returns when everything is gone.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            stores: Mutex::default(),
            route: Mutex::default(),
            netfilter: Mutex::default(),
            reaper: None,
        }
    }

    /// The plugin for a long-lived caller: DEL returns early, see the module.
    #[must_use]
    pub fn in_process(state_dir: &Path) -> Self {
        Self { reaper: Some(Reaper::new()), ..Self::new(state_dir) }
    }

    /// Carries a call out. `None` means success without output.
    ///
    /// # Errors
    /// What the plugin prints as a process.
    pub fn call(&self, request: &Request) -> Result<Option<Value>, CniError> {
        if request.verb == Verb::Version {
            return Ok(Some(version_answer(request)));
        }
        let conf = Conf::read(request)?;
        match request.verb {
            Verb::Add => self.add(request, &conf).map(|result| Some(result.to_json(conf.version))),
            Verb::Del => self.del(request, &conf).map(|()| None),
            Verb::Check => self.check(request, &conf).map(|()| None),
            Verb::Gc => self.gc(request, &conf).map(|()| None),
            Verb::Status => self.status(request, &conf).map(|()| None),
            Verb::Version => Ok(None),
        }
    }

    /// Waits until every removal begun by DEL is done.
    pub fn settle(&self) {
        if let Some(reaper) = &self.reaper {
            reaper.settle();
        }
    }

    fn store(&self, conf: &Conf) -> Arc<Mutex<Store>> {
        let dir = conf.data_dir.as_ref().unwrap_or(&self.state_dir);
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (dir.clone(), conf.network.clone());
        Arc::clone(stores.entry(key).or_insert_with(|| Arc::new(Mutex::new(Store::new(dir, &conf.network)))))
    }

    fn with_route<T>(&self, work: impl FnOnce(&mut Channel) -> Result<T, CniError>) -> Result<T, CniError> {
        with_channel(&self.route, Channel::route, work)
    }

    fn with_netfilter<T>(
        &self,
        work: impl FnOnce(&mut Channel) -> Result<T, CniError>,
    ) -> Result<T, CniError> {
        with_channel(&self.netfilter, Channel::netfilter, work)
    }
}

/// Lends a socket out of a pool, so that calls for different containers do not wait for each other.
fn with_channel<T>(
    pool: &Mutex<Vec<Channel>>,
    open: fn() -> Result<Channel, NetlinkError>,
    work: impl FnOnce(&mut Channel) -> Result<T, CniError>,
) -> Result<T, CniError> {
    let idle = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut channel = idle.map_or_else(open, Ok)?;
    let result = work(&mut channel);
    pool.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
    result
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        Self::new(code::KERNEL, error.to_string())
    }
}

impl From<NetnsError> for CniError {
    fn from(error: NetnsError) -> Self {
        let code = match error {
            NetnsError::Gone(_) => code::UNKNOWN_CONTAINER,
            NetnsError::NotNamespace(_) => code::INVALID_ENVIRONMENT,
            NetnsError::Open { .. } | NetnsError::Enter { .. } => code::IO,
        };
        Self::new(code, error.to_string())
    }
}

fn version_answer(request: &Request) -> Value {
    let asked = request.conf.get("cniVersion").and_then(Value::as_str);
    let version = asked.and_then(|v| v.parse::<Version>().ok()).unwrap_or(Version::LATEST);
    let all: Vec<_> = supported_versions().iter().map(|v| v.as_str()).collect();
    json!({"cniVersion": version.as_str(), "supportedVersions": all})
}

/// The whole process is one call of the plugin: `CNI_*` variables and standard input in, JSON on standard output.
#[must_use]
pub fn main() -> ExitCode {
    let mut version = Version::LATEST;
    let outcome = Request::from_environment(|name| std::env::var(name).ok()).and_then(|mut request| {
        request.conf = read_input(&mut std::io::stdin(), request.verb)?;
        let asked = request.conf.get("cniVersion").and_then(Value::as_str);
        version = asked.and_then(|v| v.parse().ok()).unwrap_or(Version::LATEST);
        Plugin::new(Path::new(STATE_DIR)).call(&request)
    });
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(value)) => print(&value, ExitCode::SUCCESS),
        Err(error) => print(&error.to_json(version), ExitCode::FAILURE),
    }
}

fn print(value: &Value, exit: ExitCode) -> ExitCode {
    use std::io::Write;
    // Without a reader there is nobody to tell; the exit code has to do.
    match writeln!(std::io::stdout(), "{value}") {
        Ok(()) => exit,
        Err(_) => ExitCode::FAILURE,
    }
}

fn read_input(input: &mut impl Read, verb: Verb) -> Result<Value, CniError> {
    let mut text = String::new();
    input.read_to_string(&mut text).map_err(|e| CniError::io("read the network configuration", &e))?;
    if text.trim().is_empty() && verb == Verb::Version {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text)
        .map_err(|e| CniError::new(code::DECODE, format!("network configuration: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_needs_no_configuration() {
        let plugin = Plugin::new(Path::new("/nonexistent"));
        let answer = plugin.call(&Request { verb: Verb::Version, ..Request::default() }).unwrap().unwrap();
        assert_eq!(answer["cniVersion"], "1.1.0");
        assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 7);
        assert_eq!(read_input(&mut &b""[..], Verb::Version).unwrap(), Value::Null);
        assert_eq!(read_input(&mut &b"{"[..], Verb::Add).unwrap_err().code, code::DECODE);
    }
}
