//! A second opinion from stock `nft`.
//!
//! Owns: asking the program `nft`, where it is installed, for the chains it sees, by the crate `nftables`; and comparing
//! them with ours. For `verify` and for tests: it shows that what we write is what others read.
//! Architecture invariant: the only place that starts a program, and never to program anything.
//! Never: asks for the elements' JSON form: nft cannot put keys with random numbers into it.

use std::collections::BTreeMap;

use nftables::helper::{NftablesError, get_current_ruleset_with_args};
use nftables::schema::{NfListObject, NfObject};
use nftables::types::{NfChainType, NfFamily, NfHook};

use crate::backend::Backend;
use crate::objects::Family;
use crate::proxy::Proxy;
use crate::ruleset::{Hook, HookPoint};

type Chains = BTreeMap<(Family, String), Option<Hook>>;

/// The chains of a table as `nft` lists them, in the network namespace of the calling thread.
fn chains(table: &str) -> Result<Chains, NftablesError> {
    let ruleset = get_current_ruleset_with_args(None::<&str>, ["list", "chains"])?;
    let mut found = Chains::new();
    for object in ruleset.objects.iter() {
        let NfObject::ListObject(NfListObject::Chain(chain)) = object else { continue };
        let family = match chain.family {
            NfFamily::IP => Family::V4,
            NfFamily::IP6 => Family::V6,
            NfFamily::INet | NfFamily::ARP | NfFamily::Bridge | NfFamily::NetDev => continue,
        };
        if chain.table != table {
            continue;
        }
        let point = chain.hook.and_then(|hook| match hook {
            NfHook::Prerouting => Some(HookPoint::Prerouting),
            NfHook::Output => Some(HookPoint::Output),
            NfHook::Postrouting => Some(HookPoint::Postrouting),
            NfHook::Ingress | NfHook::Forward | NfHook::Input | NfHook::Egress => None,
        });
        let nat = chain._type == Some(NfChainType::NAT);
        let hook = point.zip(chain.prio).map(|(point, priority)| Hook { point, nat, priority });
        found.insert((family, chain.name.to_string()), hook);
    }
    Ok(found)
}

impl<B: Backend> Proxy<B> {
    /// Compares our chains and where they are attached with what `nft` sees, in the network namespace of the calling
    /// thread. Each difference in words.
    ///
    /// # Errors
    /// When `nft` is not installed, or cannot list what is there.
    pub fn verify_with_nft(&self) -> Result<Vec<String>, NftablesError> {
        let mut seen = chains(&self.config().table)?;
        let mut differences = Vec::new();
        for (family, chain) in self.chains().keys() {
            match seen.remove(&(*family, chain.to_string())) {
                None => differences.push(format!("nft does not see {family} chain {chain}")),
                Some(hook) if hook != chain.hook() => {
                    differences.push(format!("nft sees {family} chain {chain} at {hook:?}"));
                }
                Some(_) => {}
            }
        }
        differences.extend(
            seen.keys().map(|(family, name)| format!("nft sees {family} chain {name}, which is not ours")),
        );
        differences.sort_unstable();
        Ok(differences)
    }
}
