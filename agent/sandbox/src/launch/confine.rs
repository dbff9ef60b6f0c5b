//! The last thing before `execve`: capabilities, no_new_privs, the system call filter. For started and exec'd processes
//! alike.
//!
//! # Order
//! The process arrives with its final user and group, and all of root's permitted capabilities (`libcontainer` was told
//! of none, so it kept them). Then:
//! 1. effective and permitted: what is wanted, plus `SYS_ADMIN` and `SETPCAP` for the steps below; inheritable: none;
//! 2. bounding: only what is wanted; ambient: none. These are `prctl`s, so they come before a filter that may forbid it;
//! 3. with no_new_privs: the final sets, then no_new_privs, then the filter, which then needs no privilege;
//!    without: the filter, which needs `SYS_ADMIN`, then the final sets.
//!
//! Every error is fatal. A step that is refused must never look like one that had nothing to do.
//!
//! The result for root is `CapEff = CapPrm = CapBnd = wanted`; for others `execve` clears all but `CapBnd`.

use std::str::FromStr;

use caps::Capability;
use nix::errno::Errno;

use crate::protocol::{Seccomp, Security};
use crate::seccomp::bpf::{self, Instruction};
use crate::seccomp::syscalls::Architecture;
use crate::seccomp::{SeccompError, profile, runtime_default};
use crate::sys::privilege;

/// A compiled system call filter.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u64,
}

/// What is to be applied, ready to be applied.
#[derive(Debug, Clone)]
pub struct Confinement {
    capabilities: u64,
    no_new_privs: bool,
    filter: Option<Filter>,
}

/// Why a confinement cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// No capability of this name.
    #[error("unknown capability {0:?}")]
    UnknownCapability(String),
    /// The filter.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The supervisor's own capabilities cannot be read.
    #[error("read capabilities: {0}")]
    Capabilities(Errno),
}

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {errno}")]
pub struct Refused {
    step: &'static str,
    errno: Errno,
}

/// One bit for each named capability; `ALL` is every one there is.
pub fn capability_bits(names: &[String]) -> Result<u64, ConfineError> {
    names.iter().try_fold(0, |bits, name| {
        if name == "ALL" {
            return Ok(u64::MAX);
        }
        let full = if name.starts_with("CAP_") { name.clone() } else { format!("CAP_{name}") };
        let known = Capability::from_str(&full).map_err(|_| ConfineError::UnknownCapability(name.clone()))?;
        Ok(bits | known.bitmask())
    })
}

impl Confinement {
    /// Prepares; compiles the filter.
    ///
    /// What this process itself may not do it cannot hand on: such capabilities are left out, as other runtimes do.
    pub fn prepare(security: &Security) -> Result<Self, ConfineError> {
        let own = privilege::permitted().map_err(ConfineError::Capabilities)?;
        let capabilities = capability_bits(&security.capabilities)? & own;
        let compile = |rules: crate::seccomp::Rules, architecture| {
            let program = bpf::compile(&rules, architecture)?;
            Ok::<_, SeccompError>(Some(Filter { program, flags: rules.flags }))
        };
        let filter = match &security.seccomp {
            Seccomp::Unconfined => None,
            Seccomp::RuntimeDefault => {
                let architecture = Architecture::native()?;
                compile(runtime_default::rules(capabilities, architecture), architecture)?
            }
            Seccomp::Localhost(path) => {
                let architecture = Architecture::native()?;
                compile(profile::read(path, capabilities, architecture)?, architecture)?
            }
        };
        Ok(Confinement { capabilities, no_new_privs: security.no_new_privs, filter })
    }

    /// Applies to the calling process, for good.
    pub fn apply(&self) -> Result<(), Refused> {
        let step = |step: &'static str| move |errno| Refused { step, errno };
        let helpers = Capability::CAP_SYS_ADMIN.bitmask() | Capability::CAP_SETPCAP.bitmask();
        privilege::set_capabilities(self.capabilities | helpers).map_err(step("set capabilities"))?;
        privilege::bound(self.capabilities).map_err(step("drop bounding capabilities"))?;
        privilege::clear_ambient().map_err(step("clear ambient capabilities"))?;
        let load = || match &self.filter {
            Some(filter) => privilege::load_filter(&filter.program, filter.flags),
            None => Ok(()),
        };
        let settle =
            || privilege::set_capabilities(self.capabilities).map_err(step("set final capabilities"));
        if self.no_new_privs {
            settle()?;
            privilege::set_no_new_privs().map_err(step("set no_new_privs"))?;
            load().map_err(step("load seccomp filter"))
        } else {
            load().map_err(step("load seccomp filter"))?;
            settle()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_known_with_and_without_prefix() {
        let bits =
            |names: &[&str]| capability_bits(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(bits(&["CHOWN", "CAP_SYS_ADMIN"]).unwrap(), 1 | 1 << 21);
        assert_eq!(bits(&["ALL"]).unwrap(), u64::MAX);
        assert_eq!(bits(&[]).unwrap(), 0);
        assert!(bits(&["NO_SUCH"]).unwrap_err().to_string().contains("NO_SUCH"));
    }
}
