//! STATUS: would ADD work?
//!
//! Owns: which lack gets which code.

use std::sync::PoisonError;

use crate::spec::{CniError, code};

use super::Plugin;
use super::conf::{Conf, Ipam};
use super::ipam;
use super::request::{Request, Verb};

impl Plugin {
    pub(super) fn status(&self, request: &Request, conf: &Conf) -> Result<(), CniError> {
        if !conf.version.has_gc() {
            let msg = format!("CNI {} has no STATUS", conf.version);
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg));
        }
        let unavailable = |e: CniError| CniError::new(code::NOT_AVAILABLE, e.msg).details(e.details);
        match &conf.ipam {
            Ipam::None => {}
            Ipam::Own { sets, .. } => {
                let store = self.store(conf);
                let free = store.lock().unwrap_or_else(PoisonError::into_inner).has_free(sets);
                free.map_err(|e| unavailable(e.into()))?;
            }
            Ipam::Delegate(kind) => {
                ipam::delegate(kind, request, Verb::Status).map_err(unavailable)?;
            }
        }
        self.with_route(|channel| channel.link("lo").map(|_| ()).map_err(Into::into)).map_err(unavailable)?;
        if conf.masquerade || conf.maps_ports {
            let probe = |channel: &mut crate::netlink::Channel| {
                channel.chain_comment(&conf.table, "status").map(|_| ()).map_err(Into::into)
            };
            self.with_netfilter(probe).map_err(unavailable)?;
        }
        Ok(())
    }
}
