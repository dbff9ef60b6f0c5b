//! The CNI specification's own types: versions, errors, results, configuration lists.
//!
//! Owns: how they look as JSON in each version of the specification.
//! Never: acts on anything.
//! Source: <https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md>

mod error;
mod list;
mod names;
mod result;
mod version;

pub use error::{CniError, code};
pub use list::{ListError, NetworkList, PluginConf};
pub use names::{valid_container_id, valid_ifname, valid_network_name};
pub use result::{Dns, Interface, IpConfig, NetworkResult, Route};
pub use version::{Version, supported_versions};
