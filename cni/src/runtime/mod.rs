//! The CNI runtime: carries a network configuration out for containers, by any plugins.
//!
//! Owns: the order of plugins (ADD forward, DEL backward), what they are told (capability arguments, previous
//! results), the record of each attachment, and who may do what at the same time: one operation for a container at a
//! time, GC alone.
//! Plugins of the type `orlop-cni` are called in this process; all others are programs found in the plugin
//! directories. All calls block. All threads that call must be in the network namespace of the node.
//!
//! Guarantees: an attachment is on record before the first plugin is called, with the configuration it is made by, so
//! DEL undoes it even if the daemon was killed in between or the configuration has changed since.

mod attachment;
mod cache;
mod call;
mod conf_dir;
mod default_network;
mod gate;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::exec::ExecError;
use crate::netns::Netns;
use crate::plugin::{KIND, Plugin, STATE_DIR, Verb};
use crate::spec::{CniError, NetworkList, NetworkResult};

pub use attachment::{Attached, Attachment, Bandwidth, Capabilities, DnsServers, PortMapping};
use cache::{Cache, Record};
use call::Call;
pub use conf_dir::{LoadError, load_directory};
pub use default_network::DefaultNetwork;
use gate::Gate;
pub use watch::ConfWatch;

/// Where the runtime looks and keeps things.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Network configurations.
    pub conf_dir: PathBuf,
    /// Programs of plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// Records of attachments; should not survive a reboot.
    pub cache_dir: PathBuf,
    /// The address store of our own plugin, where the configuration names no other.
    pub state_dir: PathBuf,
    /// What is used while `conf_dir` holds no configuration.
    pub fallback: Option<NetworkList>,
    /// How long one plugin may take.
    pub timeout: Duration,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into()],
            cache_dir: PathBuf::from(STATE_DIR).join("attachments"),
            state_dir: STATE_DIR.into(),
            fallback: None,
            timeout: Duration::from_secs(60),
        }
    }
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// There is no usable network configuration. (NetworkPluginNotReady)
    #[error(transparent)]
    NotReady(#[from] LoadError),
    /// A plugin failed.
    #[error("CNI plugin {plugin} ({verb}): {source}")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// How it failed.
        source: ExecError,
    },
    /// A plugin's result is not what the specification says.
    #[error("CNI plugin {plugin} (ADD) printed an unusable result: {source}")]
    Result {
        /// The plugin's type.
        plugin: String,
        /// What is wrong with it.
        source: CniError,
    },
    /// The record of an attachment could not be read or written.
    #[error("{what} {path}: {source}", path = .path.display())]
    Record {
        /// What was done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The attachment itself is unusable: names, or a namespace that is gone.
    #[error("{0}")]
    Attachment(CniError),
}

impl RuntimeError {
    /// The CNI error code, where a plugin gave one.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Plugin { source: ExecError::Said(error), .. } => Some(error.code),
            Self::Result { source, .. } | Self::Attachment(source) => Some(source.code),
            Self::Plugin { .. } | Self::NotReady(_) | Self::Record { .. } => None,
        }
    }
}

/// The runtime.
#[derive(Debug)]
pub struct Runtime {
    config: RuntimeConfig,
    plugin: Plugin,
    cache: Cache,
    gate: Gate,
    fallback: RwLock<Option<NetworkList>>,
    current: RwLock<Result<Arc<NetworkList>, LoadError>>,
}

impl Runtime {
    /// A runtime that has loaded no configuration yet. Call it from a thread in the node's namespace.
    #[must_use]
    pub fn new(config: RuntimeConfig) -> Self {
        Self {
            plugin: Plugin::in_process(&config.state_dir),
            cache: Cache::new(&config.cache_dir),
            gate: Gate::default(),
            fallback: RwLock::new(config.fallback.clone()),
            current: RwLock::new(Err(LoadError::Nothing(config.conf_dir.clone()))),
            config,
        }
    }

    /// Reads the configuration (again). Attachments that exist are not touched.
    ///
    /// # Errors
    /// There is no usable one; ADD fails with the same error until the next successful load.
    pub fn load(&self) -> Result<Arc<NetworkList>, LoadError> {
        let loaded = match load_directory(&self.config.conf_dir) {
            Err(LoadError::Nothing(dir)) => {
                let fallback = self.fallback.read().unwrap_or_else(PoisonError::into_inner).clone();
                fallback.ok_or(LoadError::Nothing(dir))
            }
            other => other,
        };
        let loaded = loaded.map(Arc::new);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded.clone();
        loaded
    }

    /// Replaces the configuration that is used while the directory holds none (the node got other pod ranges), and
    /// loads. Attachments that exist are not touched.
    ///
    /// # Errors
    /// As [`Runtime::load`].
    pub fn set_fallback(&self, fallback: Option<NetworkList>) -> Result<Arc<NetworkList>, LoadError> {
        *self.fallback.write().unwrap_or_else(PoisonError::into_inner) = fallback;
        self.load()
    }

    /// The configuration in force.
    ///
    /// # Errors
    /// What the last [`Runtime::load`] failed with.
    pub fn network(&self) -> Result<Arc<NetworkList>, LoadError> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Attaches a container. An attachment that is complete and in the same namespace is left as it is; one that was
    /// begun is undone first. Brings the namespace's loopback interface up as well.
    ///
    /// # Errors
    /// The first plugin that failed; what the plugins before it did has been undone.
    pub fn add(&self, attachment: &Attachment) -> Result<Attached, RuntimeError> {
        let _turn = self.gate.enter(&attachment.container_id);
        let owner = attachment.owner().map_err(RuntimeError::Attachment)?;
        let unusable = |e: crate::netns::NetnsError| RuntimeError::Attachment(e.into());
        let netns = Netns::open(&attachment.netns).map_err(unusable)?;
        let inode = netns.inode().unwrap_or_default();
        if let Some(record) = self.cache.read(&owner)? {
            match record.attached() {
                // The kernel reuses these numbers, so the interface is looked for as well.
                Some(attached) if record.netns_inode == inode && is_inside(&netns, attachment, &attached) => {
                    return Ok(attached);
                }
                _ => self.undo(&record)?,
            }
        }
        let network = self.network()?;
        let mut record = Record::begin(&network, attachment, inode);
        self.cache.write(&owner, &record)?;
        if network.plugins.iter().all(|p| p.kind != KIND) {
            crate::plugin::loopback_up(&netns).map_err(RuntimeError::Attachment)?;
        }
        match self.add_chain(&network, attachment) {
            Ok(result) => {
                record.result = Some(result.to_json(network.version));
                self.cache.write(&owner, &record)?;
                Ok(Attached::new(network.name.clone(), result))
            }
            Err(error) => {
                if let Err(e) = self.undo(&record) {
                    tracing::warn!(container = %owner.container, error = %e, "undoing a failed ADD");
                }
                Err(error)
            }
        }
    }

    fn add_chain(
        &self,
        network: &NetworkList,
        attachment: &Attachment,
    ) -> Result<NetworkResult, RuntimeError> {
        let mut result = None;
        for plugin in &network.plugins {
            let call =
                Call { verb: Verb::Add, network, plugin, attachment: Some(attachment), previous: result };
            let value = self.call(&call)?;
            let read = NetworkResult::from_json(&value, network.version);
            read.map_err(|source| RuntimeError::Result { plugin: plugin.kind.clone(), source })?;
            result = Some(value);
        }
        let last = network.plugins.last().map(|p| p.kind.clone()).unwrap_or_default();
        NetworkResult::from_json(&result.unwrap_or_default(), network.version)
            .map_err(|source| RuntimeError::Result { plugin: last, source })
    }

    /// Detaches a container. Detaching what is not attached is fine. With our own plugin the removal of the link goes
    /// on after this returns, see [`Runtime::settle`].
    ///
    /// # Errors
    /// The first plugin that failed; all were asked, and DEL should be tried again later.
    pub fn del(&self, attachment: &Attachment) -> Result<(), RuntimeError> {
        let _turn = self.gate.enter(&attachment.container_id);
        let owner = attachment.owner().map_err(RuntimeError::Attachment)?;
        match self.cache.read(&owner)? {
            Some(record) => self.undo(&record),
            None => match self.network() {
                // Without a record the present configuration is the best guess, as the specification has it.
                Ok(network) => self.del_chain(&network, attachment, None),
                Err(_) => Ok(()),
            },
        }
    }

    fn undo(&self, record: &Record) -> Result<(), RuntimeError> {
        let network = record.network()?;
        let mut attachment = record.attachment.clone();
        // A namespace that has been replaced since is not the one to clean up in.
        let same =
            Netns::open(&attachment.netns).map(|n| n.inode().unwrap_or_default() == record.netns_inode);
        if !same.unwrap_or(false) {
            attachment.netns = PathBuf::new();
        }
        self.del_chain(&network, &attachment, record.result.as_ref())?;
        self.cache.remove(&attachment.owner().map_err(RuntimeError::Attachment)?)
    }

    fn del_chain(
        &self,
        network: &NetworkList,
        attachment: &Attachment,
        result: Option<&serde_json::Value>,
    ) -> Result<(), RuntimeError> {
        let mut first = Ok(());
        for plugin in network.plugins.iter().rev() {
            // prevResult of DEL came with 0.4.0.
            let previous = result.filter(|_| network.version.has_check()).cloned();
            let call = Call { verb: Verb::Del, network, plugin, attachment: Some(attachment), previous };
            first = first.and(self.call(&call).map(|_| ()));
        }
        first
    }

    /// Asks every plugin whether the attachment is still as ADD left it.
    ///
    /// # Errors
    /// The first plugin that says no.
    pub fn check(&self, attachment: &Attachment) -> Result<(), RuntimeError> {
        let _turn = self.gate.enter(&attachment.container_id);
        let owner = attachment.owner().map_err(RuntimeError::Attachment)?;
        let unknown = || {
            let msg = format!("container {} is not attached", owner.container);
            RuntimeError::Attachment(CniError::new(crate::spec::code::UNKNOWN_CONTAINER, msg))
        };
        let record = self.cache.read(&owner)?.filter(|r| r.result.is_some()).ok_or_else(unknown)?;
        let network = record.network()?;
        if network.disable_check || !network.version.has_check() {
            return Ok(());
        }
        for plugin in &network.plugins {
            let previous = record.result.clone();
            let attachment = Some(&record.attachment);
            self.call(&Call { verb: Verb::Check, network: &network, plugin, attachment, previous })?;
        }
        Ok(())
    }

    /// The result of an attachment made earlier, by this process or one before it.
    ///
    /// # Errors
    /// The record could not be read.
    pub fn attached(&self, attachment: &Attachment) -> Result<Option<Attached>, RuntimeError> {
        let owner = attachment.owner().map_err(RuntimeError::Attachment)?;
        Ok(self.cache.read(&owner)?.and_then(|r| r.attached()))
    }

    /// Removes everything that belongs to none of these attachments. No other operation runs meanwhile.
    ///
    /// # Errors
    /// The first plugin that failed; all were asked.
    pub fn gc(&self, valid: &[Attachment]) -> Result<(), RuntimeError> {
        let _alone = self.gate.close();
        let valid: Vec<_> = valid.iter().filter_map(|a| a.owner().ok()).collect();
        let mut first = Ok(());
        for (owner, record) in self.cache.list()? {
            if !valid.contains(&owner) {
                first = first.and(self.undo(&record));
            }
        }
        self.plugin.settle();
        let Ok(network) = self.network() else { return first };
        if network.disable_gc {
            return first;
        }
        let attachments: Vec<_> = valid
            .iter()
            .map(|o| serde_json::json!({"containerID": o.container, "ifname": o.ifname}))
            .collect();
        for plugin in &network.plugins {
            if network.version.has_gc() || plugin.kind == KIND {
                let mut plugin = plugin.clone();
                plugin.raw.insert("cni.dev/valid-attachments".to_owned(), attachments.clone().into());
                let call = Call {
                    verb: Verb::Gc,
                    network: &network,
                    plugin: &plugin,
                    attachment: None,
                    previous: None,
                };
                first = first.and(self.call(&call).map(|_| ()));
            }
        }
        first
    }

    /// Whether ADD would work, as far as the plugins can tell.
    ///
    /// # Errors
    /// What is missing: a configuration, a program, or what a plugin says.
    pub fn status(&self) -> Result<(), RuntimeError> {
        let network = self.network()?;
        for plugin in &network.plugins {
            if network.version.has_gc() || plugin.kind == KIND {
                let call =
                    Call { verb: Verb::Status, network: &network, plugin, attachment: None, previous: None };
                self.call(&call)?;
            } else if plugin.kind != KIND {
                crate::exec::find(&plugin.kind, &self.config.bin_dirs).map_err(|source| {
                    RuntimeError::Plugin { plugin: plugin.kind.clone(), verb: Verb::Status.as_str(), source }
                })?;
            }
        }
        Ok(())
    }

    /// Waits until everything DEL has begun is done: no link, no lease is left.
    pub fn settle(&self) {
        self.plugin.settle();
    }
}

/// Whether the interface of an attachment is really in the namespace.
fn is_inside(netns: &Netns, attachment: &Attachment, attached: &Attached) -> bool {
    let wanted =
        attached.result.interfaces.iter().find(|i| i.name == attachment.ifname && !i.sandbox.is_empty());
    let found = crate::plugin::hardware_address(netns, &attachment.ifname);
    match (wanted, found) {
        (Some(wanted), Some(mac)) => wanted.mac.is_empty() || wanted.mac.eq_ignore_ascii_case(&mac),
        // A chain that says nothing of interfaces cannot be held to more than that there is one.
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

#[cfg(test)]
mod tests;
